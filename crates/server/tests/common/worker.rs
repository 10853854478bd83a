//! A worker as a script: plain HTTP calls of the internal API.

use domain::internal::{BeginCheckpoint, ClaimedRun, FENCE_HEADER, LEASE_HEADER, ManifestFile};
use domain::report::{CheckpointKind, RunReport, StepMetrics};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{TestServer, WORKER_TOKEN};

pub struct Worker<'a> {
    pub server: &'a TestServer,
}

/// A claimed run and its lease.
pub struct Run<'a> {
    pub server: &'a TestServer,
    pub claimed: ClaimedRun,
}

impl<'a> Worker<'a> {
    pub fn of(server: &'a TestServer) -> Self {
        Self { server }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.server
            .http
            .request(method, format!("{}/internal/v1{path}", self.server.base))
            .header("authorization", format!("Bearer {WORKER_TOKEN}"))
    }

    pub async fn claim(&self, wait_seconds: u64) -> Option<Run<'a>> {
        let body = json!({"worker_id": "w", "warm_model": null, "wait_seconds": wait_seconds});
        let response = self.request(Method::POST, "/runs/claim").json(&body).send().await.unwrap();
        match response.status() {
            StatusCode::NO_CONTENT => None,
            StatusCode::OK => {
                Some(Run { server: self.server, claimed: response.json().await.unwrap() })
            }
            other => panic!("claim answered {other}"),
        }
    }
}

impl Run<'_> {
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let ClaimedRun { job_id, fence, lease_token, .. } = &self.claimed;
        Worker::of(self.server)
            .request(method, &format!("/runs/{job_id}{path}"))
            .header(FENCE_HEADER, *fence)
            .header(LEASE_HEADER, lease_token)
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        super::body(self.request(Method::POST, path).json(body).send().await.unwrap()).await
    }

    pub async fn report(&self, first_seq: u64, reports: &[RunReport]) -> StatusCode {
        self.post("/reports", &json!({"first_seq": first_seq, "reports": reports})).await.0
    }

    /// Announces, stores and commits a checkpoint; gives its id.
    pub async fn checkpoint(&self, kind: CheckpointKind, metrics: &StepMetrics) -> String {
        let files = adapter_files(metrics.step);
        let id = self.begin(kind, metrics, &files).await;
        for (name, content) in &files {
            let (status, body) = self.put(&id, name, content).await;
            assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
        }
        let (status, body) = self.post(&format!("/checkpoints/{id}/commit"), &json!({})).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
        id
    }

    pub async fn begin(
        &self,
        kind: CheckpointKind,
        metrics: &StepMetrics,
        files: &[(String, Vec<u8>)],
    ) -> String {
        let begin = BeginCheckpoint {
            step: metrics.step,
            kind,
            files: files.iter().map(|(name, content)| manifest(name, content)).collect(),
            trained_tokens: metrics.trained_tokens,
            metrics: metrics.clone(),
        };
        let (status, body) = self.post("/checkpoints", &serde_json::to_value(begin).unwrap()).await;
        assert_eq!(status, 200, "{body}");
        body["checkpoint_id"].as_str().unwrap().to_owned()
    }

    pub async fn put(&self, id: &str, name: &str, content: &[u8]) -> (StatusCode, Value) {
        let path = format!("/checkpoints/{id}/files/{name}");
        let request = self.request(Method::PUT, &path).body(content.to_vec());
        super::body(request.send().await.unwrap()).await
    }
}

fn manifest(name: &str, content: &[u8]) -> ManifestFile {
    ManifestFile {
        name: name.to_owned(),
        bytes: content.len() as u64,
        sha256: Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// The files of a checkpoint, with contents that tell steps apart.
pub fn adapter_files(step: u64) -> Vec<(String, Vec<u8>)> {
    ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json"]
        .into_iter()
        .map(|name| (name.to_owned(), format!("{name} of step {step}").into_bytes()))
        .collect()
}

pub fn metrics(step: u64, total_steps: u64) -> StepMetrics {
    StepMetrics {
        step,
        total_steps,
        epoch: step as f64,
        train_loss: 2.0 / step as f64,
        train_mean_token_accuracy: 0.5,
        tokens: 30,
        target_tokens: 10,
        trained_tokens: 30 * step,
        tokens_per_second: 100.0,
        seconds_left: 40.0,
        ..StepMetrics::default()
    }
}
