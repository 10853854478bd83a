//! A server on a real listener, over a real Postgres and a real blob folder, and a worker that is a
//! script of plain HTTP calls.

#![expect(dead_code, reason = "every test binary uses a part of it")]

pub mod answering;
pub mod worker;

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use store::base_models::{self, NewBaseModel};
use store::testing::TestStore;
use store::{KeyKind, keys};
use tokio_util::sync::CancellationToken;

/// With spaces, as keys may have them.
pub const KEY: &str = "a key with spaces 0123456789";
pub const WORKER_TOKEN: &str = "worker token 0123456789";
pub const MODEL: &str = "tiny-chat";
/// The longest wait of a test for something that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct TestServer {
    pub base: String,
    pub http: reqwest::Client,
    pub shutdown: CancellationToken,
    pub served: Option<tokio::task::JoinHandle<Result<(), server::Error>>>,
    pub data: TestStore,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut server::Config)) -> Self {
        // The first test to come installs it; the others find it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let data = TestStore::new().await;
        let (db, project) = (&data.store.db, &data.project);
        for (kind, secret) in [(KeyKind::Project, KEY), (KeyKind::Worker, WORKER_TOKEN)] {
            keys::create(db, project, kind, "test", secret).await.unwrap();
        }
        let mut config =
            server::Config { drain_delay: Duration::ZERO, ..server::Config::default() };
        change(&mut config);
        Self::serve(config, data).await
    }

    /// Another server on the same store.
    pub async fn beside(first: &Self) -> Beside {
        let config = server::Config { drain_delay: Duration::ZERO, ..server::Config::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        tokio::spawn(server::serve(config, first.data.store.clone(), listener, shutdown.clone()));
        Beside { base, http: first.http.clone(), shutdown }
    }

    async fn serve(config: server::Config, data: TestStore) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let served =
            tokio::spawn(server::serve(config, data.store.clone(), listener, shutdown.clone()));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { base, http, shutdown, served: Some(served), data }
    }

    /// Another server over the same data, with the default configuration; the first one is no longer asked.
    pub async fn serve_again(&mut self) {
        let config = server::Config { drain_delay: Duration::ZERO, ..server::Config::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.base = format!("http://{}", listener.local_addr().unwrap());
        let store = self.data.store.clone();
        let served = tokio::spawn(server::serve(config, store, listener, self.shutdown.clone()));
        self.served = Some(served);
    }

    /// Registers the tiny base model: a real tokenizer and chat template, no usable weights.
    pub async fn with_model(self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/dataset");
        for (from, to) in [
            ("tokenizer.json", "tokenizer.json"),
            ("tokenizer_config.json", "tokenizer_config.json"),
            ("chat_ml.jinja", "chat_template.jinja"),
        ] {
            std::fs::copy(format!("{golden}/{from}"), folder.path().join(to)).unwrap();
        }
        let config = json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
                            "num_hidden_layers": 2, "num_attention_heads": 4,
                            "num_key_value_heads": 2, "vocab_size": 300,
                            "tie_word_embeddings": true, "max_position_embeddings": 512});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), b"no weights").unwrap();
        let new =
            NewBaseModel { id: MODEL.into(), architecture: "llama".to_owned(), parameters: 1 };
        base_models::register(&self.data.store, &self.data.project, new, folder.path())
            .await
            .unwrap();
        self
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {KEY}"))
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        body(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn delete(&self, path: &str) -> (StatusCode, Value) {
        body(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    /// Without a body and without a content type.
    pub async fn post_empty(&self, path: &str) -> (StatusCode, Value) {
        body(self.request(Method::POST, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, json: &Value) -> (StatusCode, Value) {
        body(self.request(Method::POST, path).json(json).send().await.unwrap()).await
    }

    pub async fn post_form(&self, parts: &[Part<'_>]) -> (StatusCode, Value) {
        let request = self.request(Method::POST, "/v1/files");
        let request = request.header("content-type", FORM_TYPE).body(form(parts));
        body(request.send().await.unwrap()).await
    }

    /// Uploads a file for training and gives its id.
    pub async fn upload(&self, content: &[u8]) -> String {
        let parts = [
            text("purpose", "fine-tune"),
            Part { name: "file", filename: Some("rows.jsonl"), content },
        ];
        let (status, file) = self.post_form(&parts).await;
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    /// Creates a job and gives its id.
    pub async fn create_job(&self, body: &Value) -> String {
        let (status, job) = self.post("/v1/fine_tuning/jobs", body).await;
        assert_eq!(status, 200, "{job}");
        job["id"].as_str().unwrap().to_owned()
    }

    /// The job, once it has the status.
    pub async fn job_when(&self, job: &str, status: &str) -> Value {
        let path = format!("/v1/fine_tuning/jobs/{job}");
        until(&format!("{job} is {status}"), async || {
            let (_, body) = self.get(&path).await;
            (body["status"] == status).then_some(body)
        })
        .await
    }

    /// Messages of all events, oldest first.
    pub async fn messages(&self, job: &str) -> Vec<String> {
        let (status, list) =
            self.get(&format!("/v1/fine_tuning/jobs/{job}/events?limit=1000")).await;
        assert_eq!(status, 200, "{list}");
        let events = list["data"].as_array().unwrap().iter().rev();
        events.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
    }

    /// The same without what is said about the data.
    pub async fn story(&self, job: &str) -> Vec<String> {
        let mut messages = self.messages(job).await;
        messages.retain(|text| !is_about_data(text));
        messages
    }

    /// Every file below the blob folder.
    pub fn blobs(&self) -> Vec<std::path::PathBuf> {
        files_below(self.data.blobs.path())
    }
}

/// A second server of a test.
pub struct Beside {
    pub base: String,
    http: reqwest::Client,
    shutdown: CancellationToken,
}

impl Beside {
    pub async fn post_empty(&self, path: &str) -> (StatusCode, Value) {
        let request = self.http.post(format!("{}{path}", self.base));
        let request = request.header("authorization", format!("Bearer {KEY}"));
        body(request.send().await.unwrap()).await
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Asks again and again until there is an answer.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never: {what}"))
}

pub async fn body(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let request_id = response.headers().get("x-request-id").is_some();
    assert!(request_id, "every answer carries x-request-id");
    let bytes = response.bytes().await.unwrap();
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    (status, value)
}

/// (code, param, message) of an error body whose shape is right.
pub fn error_of(body: &Value) -> (Value, Value, String) {
    let error = body["error"].as_object().unwrap_or_else(|| panic!("no error envelope: {body}"));
    let keys: Vec<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(keys, ["message", "type", "param", "code"], "{body}");
    assert!(error["type"].is_string() && error["message"].is_string(), "{body}");
    (error["code"].clone(), error["param"].clone(), error["message"].as_str().unwrap().to_owned())
}

/// One part of a form.
pub struct Part<'a> {
    pub name: &'a str,
    pub filename: Option<&'a str>,
    pub content: &'a [u8],
}

pub fn text<'a>(name: &'a str, value: &'a str) -> Part<'a> {
    Part { name, filename: None, content: value.as_bytes() }
}

pub const FORM_TYPE: &str = "multipart/form-data; boundary=----form";

pub fn form(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        body.extend(
            format!("------form\r\ncontent-disposition: form-data; name=\"{}\"", part.name).bytes(),
        );
        if let Some(filename) = part.filename {
            body.extend(
                format!("; filename=\"{filename}\"\r\ncontent-type: application/octet-stream")
                    .bytes(),
            );
        }
        body.extend(b"\r\n\r\n");
        body.extend(part.content);
        body.extend(b"\r\n");
    }
    body.extend(b"------form--\r\n");
    body
}

/// Whether an event tells what is doubtful about a file, such as that it is small.
pub fn is_about_data(message: &str) -> bool {
    message.starts_with("Training file: ") || message.starts_with("Validation file: ")
}

/// `n` good rows.
pub fn rows(n: usize) -> Vec<u8> {
    let row = |i: usize| {
        json!({"messages": [
            {"role": "user", "content": format!("What is {i} plus one?")},
            {"role": "assistant", "content": format!("It is {}.", i + 1)},
        ]})
    };
    (0..n).flat_map(|i| format!("{}\n", row(i)).into_bytes()).collect()
}
