//! `check-device` and `measure` as processes, on the CPU.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn engine(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_finetuned-engine")).args(arguments).output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_check_passes_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    for name in ["llama-wide", "qlora"] {
        symlink(fixtures.join(name), folder.path().join(name)).unwrap();
    }
    let fixtures = folder.path().to_str().unwrap();
    let arguments = ["check-device", "--device", "cpu", "--json", "--threads", "1"];
    let output = engine(&[&arguments[..], &["--fixtures", fixtures]].concat());
    let lines = lines(&output);
    let summary = lines.last().unwrap();
    assert_eq!(summary["failed"], json!([]), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success());
    let of = |part: &str| lines.iter().filter(|line| line["part"] == part).count();
    // Two models in two precisions, each with logits, loss, gradient and steps.
    assert_eq!((of("device"), of("fixture")), (1, 16));
    assert!(of("operation") > 20 && of("step") == 18);
    assert_eq!(summary["checks"], of("operation") + of("step") + of("fixture"));
}

#[test]
fn a_fixture_that_does_not_agree_fails_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    // The weights of one model under the numbers of another.
    let mixed = folder.path().join("mixed");
    std::fs::create_dir(&mixed).unwrap();
    symlink(fixtures.join("qlora/model"), mixed.join("model")).unwrap();
    for name in ["adapter", "golden.safetensors"] {
        symlink(fixtures.join("llama-wide").join(name), mixed.join(name)).unwrap();
    }
    let fixtures = folder.path().to_str().unwrap();
    let arguments = ["check-device", "--device", "cpu", "--json", "--threads", "1"];
    let output = engine(&[&arguments[..], &["--fixtures", fixtures]].concat());
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output);
    let failed = lines.last().unwrap()["failed"].as_array().unwrap();
    assert!(failed.iter().all(|name| name.as_str().unwrap().starts_with("fixture mixed")));
    assert!(!failed.is_empty());
}

#[test]
fn kernels_that_the_environment_leaves_out_are_off() {
    let output = Command::new(env!("CARGO_BIN_EXE_finetuned-engine"))
        .args(["check-device", "--device", "cpu", "--json", "--threads", "1"])
        .env("FINETUNED_CUDA_WITHOUT", "rotate_f32, adamw,")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(lines(&output)[0]["facts"]["switched off"], json!(["adamw", "rotate_f32"]));
}

#[test]
fn a_device_that_is_missing_is_named() {
    let output = engine(&["check-device", "--device", "cuda:63"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("cuda:63"), "{text}");
}

#[test]
fn steps_of_a_shape_are_timed() {
    let shape = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/bench/gpu/shapes/tiny.json");
    let tokens = ["--tokens", "64", "--length", "24", "--steps", "2", "--warm-up", "1"];
    for quantization in ["none", "nf4"] {
        let arguments = ["measure", "--config", shape, "--threads", "1"];
        let arguments = [&arguments[..], &["--quantization", quantization]].concat();
        let output = engine(&[&arguments[..], &tokens].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = lines(&output);
        let sum = lines.last().unwrap();
        assert_eq!((&sum["event"], &sum["tokens"]), (&json!("sum"), &json!(64)));
        assert!(sum["tokens_per_second"].as_f64().unwrap() > 0.0);
        let steps = lines.iter().filter(|line| line["event"] == "step");
        let losses: Vec<f64> = steps.map(|step| step["loss"].as_f64().unwrap()).collect();
        // Random weights know nothing of the 49,152 tokens; a step learns a little of them.
        assert!((losses[0] - 49_152f64.ln()).abs() < 0.1 && losses[2] < losses[0], "{losses:?}");
    }
}
