//! `finetuned data check`: files that were never uploaded, checked without a server.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests")
}

/// A folder with the tokenizer of the fixtures.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("tokenizer.json", "tokenizer.json"),
        ("tokenizer_config.json", "tokenizer_config.json"),
        ("chat_ml.jinja", "chat_template.jinja"),
    ] {
        std::fs::copy(tests().join("golden/dataset").join(from), folder.path().join(to)).unwrap();
    }
    folder
}

fn check(arguments: &[&Path], options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_finetuned"));
    command.args(["data", "check"]).args(arguments).args(options).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FINETUNED_")) {
        command.env_remove(name);
    }
    command.output().unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn sound_files_are_told_of_and_pass() {
    let model = model();
    let data = |name: &str| tests().join("data").join(name);
    let (training, validation) = (data("address_train.jsonl"), data("address_test.jsonl"));
    let files: [&Path; 5] =
        [&training, Path::new("--validation"), &validation, Path::new("--model"), model.path()];
    let output = check(&files, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    let answer = json_of(&output);
    let problems = answer["problems"].as_array().unwrap().iter();
    let codes: Vec<_> = problems.map(|problem| (&problem["code"], &problem["lines"])).collect();
    // "drawer # 1256 …" is in the training file as "drawer 1256 …".
    assert_eq!((&answer["valid"], codes), (&json!(true), vec![(&json!("leaked"), &json!([26]))]));
    assert_eq!(answer["dataset"]["validation_file"]["n_examples"], 60);
    let quality = &answer["quality"]["training_file"];
    assert_eq!((&quality["task"], &quality["size"]), (&json!("extraction"), &json!("minimum")));
    let told = String::from_utf8(check(&files, &[]).stdout).unwrap();
    assert!(told.contains("256 examples of chat messages in JSON lines"), "{told}");
    assert!(told.contains("task extraction (most outputs are JSON), size minimum"), "{told}");
}

#[test]
fn faults_fail_with_their_lines_and_the_rows_are_copied() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let sound = std::fs::read_to_string(tests().join("data/sentiment_train.jsonl")).unwrap();
    let first = sound.lines().next().unwrap();
    let file = folder.path().join("rows.jsonl");
    std::fs::write(&file, format!("{sound}nonsense\n{first}\n")).unwrap();
    let copy = folder.path().join("bad.jsonl");
    let arguments: [&Path; 5] =
        [&file, Path::new("--model"), model.path(), Path::new("--bad-lines"), &copy];
    let output = check(&arguments, &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let answer = json_of(&output);
    let problems = answer["problems"].as_array().unwrap();
    let at = |line: u64| {
        let found = problems.iter().find(|p| p["line"] == line);
        found.unwrap_or_else(|| panic!("{line}: {answer}"))["code"].clone()
    };
    assert_eq!((at(513), at(514)), (json!("invalid_json"), json!("exact_duplicate")));
    let bad = std::fs::read_to_string(&copy).unwrap();
    let rows: Vec<Value> = bad.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.last().unwrap()["row"], json!(first));
    assert!(rows.iter().any(|row| row["row"] == "nonsense"), "{bad}");
    // What is there is not written over.
    let again = check(&arguments, &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("bad.jsonl"), "{again:?}");
}
