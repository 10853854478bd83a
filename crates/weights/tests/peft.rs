//! Adapter folders: PEFT's own is read, ours looks like it, and what we cannot do is refused.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::tempdir;
use weights::TensorFile;
use weights::peft::{
    AdapterConfig, LoraConfig, lora_a_key, lora_b_key, read_adapter, write_adapter,
};

const QUERY: &str = "model.layers.0.self_attn.q_proj";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft")
}

fn eighths(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32 / 8.0).collect()
}

#[test]
fn the_folder_that_peft_wrote_is_read() {
    let (mut config, file) = read_lora(&fixture());
    config.target_modules.sort();
    assert_eq!((config.r, config.lora_alpha, config.lora_dropout), (2, 4.0, 0.0));
    assert_eq!(config.base_model_name_or_path.as_deref(), Some("tiny"));
    assert_eq!(config.target_modules, ["down_proj", "q_proj"]);
    assert_eq!(file.metadata("format"), Some("pt"));
    assert_eq!(file.len(), 4);
    let a = file.get(&lora_a_key(QUERY)).unwrap();
    assert_eq!(a.shape, [2, 8]);
    assert_eq!(file.get_f32(&lora_b_key(QUERY)).unwrap(), eighths(16));
}

fn write_small(dir: &Path, config: &AdapterConfig) {
    let (a, b) = (eighths(6), eighths(8));
    let tensors =
        [(lora_a_key(QUERY), vec![2, 3], &a[..]), (lora_b_key(QUERY), vec![4, 2], &b[..])];
    write_adapter(dir, config, &tensors).unwrap();
}

fn read_lora(dir: &Path) -> (LoraConfig, TensorFile) {
    let (config, file) = read_adapter(dir).unwrap();
    (lora(config), file)
}

fn lora(config: AdapterConfig) -> LoraConfig {
    let AdapterConfig::Lora(config) = config else { panic!("{config:?}") };
    config
}

fn small_config() -> AdapterConfig {
    AdapterConfig::Lora(LoraConfig::new("base", 2, 32.0, 0.05, &["q_proj".to_owned()]))
}

#[test]
fn what_is_written_is_read() {
    let folder = tempdir().unwrap();
    write_small(folder.path(), &small_config());
    let (config, file) = read_adapter(folder.path()).unwrap();
    assert_eq!(config, small_config());
    assert_eq!(file.get_f32(&lora_a_key(QUERY)).unwrap(), eighths(6));
}

#[test]
fn every_field_that_we_write_is_one_of_pefts() {
    let text = fs::read_to_string(fixture().join("adapter_config.json")).unwrap();
    let theirs: Value = serde_json::from_str(&text).unwrap();
    let ours = small_config().to_json();
    for (name, value) in ours.as_object().unwrap() {
        assert!(theirs.get(name).is_some(), "{name} is not a field of PEFT");
        let (same, found) = (std::mem::discriminant(value), &theirs[name]);
        assert_eq!(same, std::mem::discriminant(found), "{name}: {value} and {found}");
    }
}

#[test]
fn settings_that_we_do_not_honour_are_refused_by_name() {
    let cases = [
        ("peft_type", json!("IA3")),
        ("task_type", json!("TOKEN_CLS")),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({ "q_proj": 0 })),
        ("rank_pattern", json!({ "layers.[01].*": 4 })),
        ("alpha_pattern", json!({ "(q|k)_proj": 4 })),
        ("layers_to_transform", json!([0])),
        ("init_lora_weights", json!("pissa")),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!([])),
        ("r", json!(0)),
        ("lora_dropout", json!(1.5)),
    ];
    for (field, value) in cases {
        let mut config = small_config().to_json();
        config[field] = value;
        let message = AdapterConfig::from_json(config.to_string().as_bytes()).unwrap_err();
        assert!(message.contains(field), "{field}: {message}");
    }
    // A model that scores without a trained head for it.
    let mut config = small_config().to_json();
    config["task_type"] = json!("SEQ_CLS");
    let message = AdapterConfig::from_json(config.to_string().as_bytes()).unwrap_err();
    assert!(message.contains("modules_to_save"), "{message}");
}

#[test]
fn the_first_pattern_that_fits_a_module_counts_as_in_peft() {
    let mut text = small_config().to_json().to_string();
    let whole = r#""rank_pattern":{"layers.0.self_attn.q_proj":8,"q_proj":4,"roj":3}"#;
    text = text.replace(r#""rank_pattern":{}"#, whole);
    let config = lora(AdapterConfig::from_json(text.as_bytes()).unwrap());
    assert_eq!(config.rank_of(QUERY), 8);
    assert_eq!(config.rank_of("model.layers.1.self_attn.q_proj"), 4);
    assert_eq!(config.rank_of("model.layers.1.self_attn.k_proj"), 2);
    // Written and read, the order stays.
    let text = AdapterConfig::Lora(config).to_json().to_string();
    let again = lora(AdapterConfig::from_json(text.as_bytes()).unwrap());
    assert_eq!(again.rank_of(QUERY), 8);
}

#[test]
fn unknown_fields_are_tolerated() {
    let mut config = small_config().to_json();
    config["a_field_of_next_year"] = json!({ "x": 1 });
    assert_eq!(AdapterConfig::from_json(config.to_string().as_bytes()), Ok(small_config()));
}

#[test]
fn tensors_must_be_pairs_of_the_rank() {
    let folder = tempdir().unwrap();
    let a = eighths(6);
    let cases = [
        (vec![(lora_a_key(QUERY), vec![2, 3], &a[..])], "no partner"),
        (vec![(format!("base_model.model.{QUERY}.weight"), vec![6], &a[..])], "not supported"),
        (
            vec![(lora_a_key(QUERY), vec![3, 2], &a[..]), (lora_b_key(QUERY), vec![3, 2], &a[..])],
            "but r is 2",
        ),
        (vec![], "no tensors"),
    ];
    for (tensors, cause) in cases {
        write_adapter(folder.path(), &small_config(), &tensors).unwrap();
        let message = read_adapter(folder.path()).unwrap_err().to_string();
        assert!(message.contains(cause), "{cause}: {message}");
    }
}
