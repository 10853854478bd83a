use std::collections::BTreeSet;
use std::fs;

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format as _, Toml};
use secrecy::ExposeSecret as _;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> Sources {
    let environment = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    Sources { environment, ..Sources::default() }
}

fn load(sources: &Sources) -> Config {
    Loaded::from_sources(sources).unwrap().config
}

fn refusal(sources: &Sources) -> String {
    match Loaded::from_sources(sources) {
        Ok(_) => panic!("the configuration was accepted"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn the_default_file_says_what_the_code_says() {
    let file: Config = layers::extract(&Figment::from(Toml::string(DEFAULTS))).unwrap();
    // Secrets are hidden in both texts, and no default is one.
    let (file, code) = (format!("{file:#?}"), format!("{:#?}", Config::default()));
    let differences: Vec<(&str, &str)> =
        file.lines().zip(code.lines()).filter(|(file, code)| file != code).collect();
    assert!(file == code, "(file, code): {differences:#?}");
}

/// The keys that a section knows, as its own refusal of an unknown key tells them.
fn known_keys(section: &str) -> Vec<&'static str> {
    let text = if section.is_empty() {
        "no_such_key = 1".to_owned()
    } else {
        format!("[{section}]\nno_such_key = 1")
    };
    let error = Figment::from(Toml::string(&text)).extract::<Config>().unwrap_err();
    match error.kind {
        Kind::UnknownField(_, keys) => keys.to_vec(),
        kind => panic!("{section}: {kind}"),
    }
}

#[test]
fn the_default_file_names_every_key_and_no_other() {
    // A key without a default stands there as a comment: `# url = "…"`.
    let mut section = String::new();
    let mut written = BTreeSet::new();
    for line in DEFAULTS.lines() {
        let line = line.trim_start_matches('#').trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, _)) = line.split_once(" = ")
            && key
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
        {
            written.insert(format!("{section}.{key}"));
        }
    }
    let mut known = BTreeSet::new();
    for section in known_keys("") {
        for key in known_keys(section) {
            let path = format!("{section}.{key}");
            if ["training.lora", "training.virtual_tokens", "training.early_stopping"]
                .contains(&path.as_str())
            {
                known.extend(known_keys(&path).iter().map(|key| format!("{path}.{key}")));
            } else {
                known.insert(path);
            }
        }
    }
    let differences: Vec<&String> = written.symmetric_difference(&known).collect();
    assert!(differences.is_empty(), "in the file or in the code, but not in both: {differences:?}");
}

#[test]
fn the_example_is_valid() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/example.toml");
    load(&Sources { file: Some(example.into()), ..Sources::default() });
}

#[test]
fn later_layers_win() {
    let dir = tempfile::tempdir().unwrap();
    let system_file = dir.path().join("system.toml");
    let file = dir.path().join("mine.toml");
    let all =
        "listen = \"LAYER:1\"\nmax_connections = 1\ninference_wait = \"1s\"\nvalidations = 11";
    fs::write(&system_file, format!("[server]\n{}", all.replace("LAYER", "system"))).unwrap();
    fs::write(&file, "[server]\nlisten = \"file:2\"\nmax_connections = 2\ninference_wait = \"2s\"")
        .unwrap();
    let mut sources = environment(&[
        ("FINETUNED_SERVER__LISTEN", "environment:3"),
        ("FINETUNED_SERVER__MAX_CONNECTIONS", "3"),
    ]);
    sources.system_file = Some(system_file);
    sources.file = Some(file);
    sources.flags =
        vec![Flag { name: "--listen".into(), key: "server.listen".into(), value: "flag:4".into() }];

    let server = load(&sources).server;

    let got = (server.listen.as_str(), server.max_connections, server.inference_wait.as_secs());
    assert_eq!(got, ("flag:4", 3, 2));
    assert_eq!(server.validations, 11);
}

#[test]
fn an_unknown_key_is_blamed_on_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    fs::write(&file, "[server]\nlisten = \"127.0.0.1:1\"\nlistne = 1\n").unwrap();

    let text = refusal(&Sources { file: Some(file.clone()), ..Sources::default() });

    assert!(
        text.contains(&format!("file {}: unknown key 'server.listne'", file.display())),
        "{text}"
    );
    assert!(text.contains("known here: listen,"), "{text}");
}

#[test]
fn an_unknown_section_is_refused() {
    let text = refusal(&environment(&[("FINETUNED_SEVRER__LISTEN", "x")]));
    assert!(
        text.contains("environment variable FINETUNED_SEVRER__LISTEN: unknown key 'sevrer'"),
        "{text}"
    );
}

#[test]
fn a_variable_that_lacks_an_underscore_is_refused() {
    let text = refusal(&environment(&[("FINETUNED_DATABASE_URL", "postgres://h/d")]));
    assert!(text.contains("FINETUNED_DATABASE_URL is no configuration key"), "{text}");
}

#[test]
fn variables_of_tools_around_the_program_are_left_alone() {
    load(&environment(&[
        ("FINETUNED_API_KEY", "a b"),
        ("FINETUNED_TEST_MODELS", "x"),
        ("HOME", "/"),
    ]));
}

#[test]
fn a_wrong_value_is_blamed_on_its_variable_and_not_repeated() {
    let text = refusal(&environment(&[("FINETUNED_SERVER__MAX_CONNECTIONS", "hunter2")]));
    assert!(text.contains("environment variable FINETUNED_SERVER__MAX_CONNECTIONS"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_token_of_digits_stays_text_and_lists_are_read() {
    let worker = load(&environment(&[
        ("FINETUNED_WORKER__TOKEN", "0123456789"),
        ("FINETUNED_WORKER__THREADS", "3"),
        ("FINETUNED_WORKER__SERVER_URLS", "[\"http://a\", \"http://b\"]"),
        ("FINETUNED_WORKER__DEVICES", "cuda:0,cuda:1"),
    ]))
    .worker;
    assert_eq!(worker.token.expose_secret(), "0123456789");
    assert_eq!(worker.threads, 3);
    assert_eq!(worker.server_urls, ["http://a", "http://b"]);
    assert_eq!(worker.devices, ["cuda:0", "cuda:1"]);
}

#[test]
fn a_secret_may_come_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, "s3cret\n").unwrap();
    let config = load(&environment(&[("FINETUNED_WORKER__TOKEN_FILE", path.to_str().unwrap())]));
    assert_eq!(config.worker.token.expose_secret(), "s3cret");
}

#[test]
fn training_defaults_are_read_with_their_types() {
    let training = load(&environment(&[
        ("FINETUNED_TRAINING__LEARNING_RATE", "1e-4"),
        ("FINETUNED_TRAINING__LORA__RANK", "8"),
    ]))
    .training;
    assert_eq!(training.learning_rate, Some(1e-4));
    assert_eq!(training.lora.unwrap().rank, Some(8));
}

#[test]
fn printing_names_sources_and_hides_secrets() {
    let loaded = Loaded::from_sources(&environment(&[
        ("FINETUNED_WORKER__TOKEN", "hunter2"),
        ("FINETUNED_DATABASE__URL", "postgres://u:hunter2@h/d"),
    ]))
    .unwrap();

    let text = loaded.render(true).unwrap();

    assert!(!text.contains("hunter2"), "{text}");
    assert!(
        text.contains("token = \"[redacted]\"  # environment variable FINETUNED_WORKER__TOKEN"),
        "{text}"
    );
    assert!(text.contains("listen = \"127.0.0.1:8000\"  # built-in defaults"), "{text}");
    assert!(loaded.render(false).unwrap().contains("hunter2"));
    let again = Figment::from(Toml::string(&text));
    layers::extract::<Config>(&again).unwrap();
}
