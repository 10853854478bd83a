//! Downloads of models: tar streams of what is stored, and of what is merged while it is sent.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::worker::{Worker, metrics};
use common::{MODEL, TestServer, body, error_of, rows};
use domain::report::CheckpointKind;
use reqwest::Method;
use serde_json::json;
use store::base_models::{self, NewBaseModel};

/// A model of the fixtures of `crates/model`, its adapter, and peft's merge of both in `crates/weights`.
const CASE: &str = "dora";

fn fixtures(name: &str) -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    crates.join(name).join("tests/fixtures")
}

/// The files of a tar stream, by name, read by the rules of the format alone.
fn untar(stream: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut rest) = (BTreeMap::new(), stream);
    while rest[..512].iter().any(|&byte| byte != 0) {
        let (header, behind) = rest.split_at(512);
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8(header[range].to_vec()).unwrap().trim_matches('\0').to_owned()
        };
        let size = usize::from_str_radix(&text(124..136), 8).unwrap();
        files.insert(text(0..100), behind[..size].to_vec());
        rest = &behind[size.next_multiple_of(512)..];
    }
    assert_eq!(rest, [0; 1024], "it ends with two empty blocks");
    files
}

async fn download(server: &TestServer, path: &str) -> BTreeMap<String, Vec<u8>> {
    let response = server.request(Method::GET, path).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let headers = response.headers().clone();
    let bytes = response.bytes().await.unwrap();
    assert_eq!(headers["content-length"], bytes.len().to_string());
    assert_eq!(headers["content-type"], "application/x-tar");
    let name = headers["content-disposition"].to_str().unwrap();
    assert!(name.starts_with("attachment; filename=\"") && name.ends_with(".tar\""), "{name}");
    untar(&bytes)
}

/// Runs a job on a base model to its end, with these files as its result.
async fn tuned(server: &TestServer, base: &str, files: &[(&str, Vec<u8>)]) -> String {
    let file = server.upload(&rows(12)).await;
    server.create_job(&json!({"model": base, "training_file": file})).await;
    let run = Worker::of(server).claim(20).await.expect("a job waits");
    let files: Vec<(String, Vec<u8>)> =
        files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect();
    let id = run.begin(CheckpointKind::Final, &metrics(4, 4), &files).await;
    for (name, content) in &files {
        assert_eq!(run.put(&id, name, content).await.0, 204);
    }
    assert_eq!(run.post(&format!("/checkpoints/{id}/commit"), &json!({})).await.0, 204);
    let finish = json!({"checkpoint_id": id, "trained_tokens": 120});
    run.post("/finish", &finish).await.1["fine_tuned_model"].as_str().unwrap().to_owned()
}

fn adapter_of(folder: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let read = |name: &'static str| (name, std::fs::read(folder.join(name)).unwrap());
    let state = ("state.json", b"{}".to_vec());
    vec![read("adapter_config.json"), read("adapter_model.safetensors"), state]
}

/// The fixture's model with a tokenizer, so that a job can be created on it.
async fn register(server: &TestServer, name: &str) -> PathBuf {
    let case = fixtures("model").join(name);
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(case.join("model").join(file), folder.path().join(file)).unwrap();
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/dataset");
    for (from, to) in [
        ("tokenizer.json", "tokenizer.json"),
        ("tokenizer_config.json", "tokenizer_config.json"),
        ("chat_ml.jinja", "chat_template.jinja"),
    ] {
        std::fs::copy(golden.join(from), folder.path().join(to)).unwrap();
    }
    let new = NewBaseModel { id: name.into(), architecture: "llama".to_owned(), parameters: 1 };
    let (store, project) = (&server.data.store, &server.data.project);
    base_models::register(store, project, new, folder.path()).await.unwrap();
    case
}

#[tokio::test]
async fn an_adapter_comes_as_it_is_or_merged_into_its_base() {
    let server = TestServer::start().await;
    let case = register(&server, CASE).await;
    let adapter = adapter_of(&case.join("adapter"));
    let model = tuned(&server, CASE, &adapter).await;

    let files = download(&server, &format!("/v1/models/{model}/weights")).await;
    let names: Vec<&String> = files.keys().collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    for (name, content) in &adapter[..2] {
        assert_eq!(files[*name], *content, "{name}");
    }

    let merged = download(&server, &format!("/v1/models/{model}/weights?merged=true")).await;
    let names: Vec<&String> = merged.keys().collect();
    let whole = [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, whole);
    assert_eq!(merged["config.json"], std::fs::read(case.join("model/config.json")).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &merged["model.safetensors"]).unwrap();
    let ours = weights::TensorFile::open(&path).unwrap();
    let golden = fixtures("weights").join(format!("merge/{CASE}.safetensors"));
    let golden = weights::TensorFile::open(&golden).unwrap();
    for name in golden.names() {
        let (ours, theirs) = (ours.get_f32(name).unwrap(), golden.get_f32(name).unwrap());
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
        }
    }

    // A base model comes whole, merged or not.
    for query in ["", "?merged=false", "?merged=true"] {
        let base = download(&server, &format!("/v1/models/{CASE}/weights{query}")).await;
        assert_eq!(base.keys().collect::<Vec<_>>(), whole);
        let weights = std::fs::read(case.join("model/model.safetensors")).unwrap();
        assert_eq!(base["model.safetensors"], weights);
    }
}

#[tokio::test]
async fn what_cannot_be_merged_or_found_says_so() {
    let server = TestServer::start().await;
    register(&server, "llama-wide").await;
    let prefix = fixtures("model").join("virtual/prefix-llama-wide");
    let model = tuned(&server, "llama-wide", &adapter_of(&prefix)).await;
    let path = format!("/v1/models/{model}/weights");
    assert_eq!(download(&server, &path).await.len(), 2);
    for (path, status, param) in [
        (format!("{path}?merged=true"), 400, json!("merged")),
        (format!("{path}?merged=perhaps"), 400, json!("merged")),
        ("/v1/models/ft:unknown/weights".to_owned(), 404, json!("model")),
    ] {
        let answer = body(server.request(Method::GET, &path).send().await.unwrap()).await;
        assert_eq!((answer.0.as_u16(), error_of(&answer.1).1), (status, param), "{path}");
    }
    let refused = server.get(&format!("{path}?merged=true")).await.1;
    assert!(error_of(&refused).2.contains("virtual tokens"), "{refused}");
}

#[tokio::test]
async fn a_whole_tuned_model_is_merged_already() {
    let server = TestServer::start().await.with_model().await;
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", b"whole".to_vec()),
        ("optimizer.safetensors", b"moments".to_vec()),
        ("state.json", b"{}".to_vec()),
    ];
    let model = tuned(&server, MODEL, &files).await;
    for query in ["", "?merged=true"] {
        let files = download(&server, &format!("/v1/models/{model}/weights{query}")).await;
        assert_eq!(files.keys().collect::<Vec<_>>(), ["config.json", "model.safetensors"]);
        assert_eq!(files["model.safetensors"], b"whole");
    }
}
