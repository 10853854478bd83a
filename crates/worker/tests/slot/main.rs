//! The whole worker against a server in memory and an engine that follows a script. Only those two
//! are made up; processes, pipes, HTTP, files and hashes are real.

mod chat;
mod fake;
mod faults;
mod runs;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use domain::hyperparameters::Schedule;
use domain::internal::{BaseModel, ClaimedRun, StagedFile};
use domain::plan::{LoraConfig, ResolvedHyperparameters};
use domain::{FileId, JobId, MethodType};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::Config;

use crate::fake::{Fake, TOKEN, entry};

const TRAINING: &[u8] = b"{\"messages\":[]}\n";

/// A worker at work for a fake server.
struct Harness {
    fake: Arc<Fake>,
    work_dir: tempfile::TempDir,
    shutdown: CancellationToken,
    worker: JoinHandle<Result<(), worker::Error>>,
}

impl Harness {
    async fn start(script: Value) -> Self {
        Self::configured(script, |_| {}).await
    }

    /// A worker whose only base model is `base`, with an engine that follows the script.
    async fn configured(script: Value, change: impl FnOnce(&mut Config)) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fake = Fake::start().await;
        add_model(&fake, "base", script);
        let work_dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            server_urls: vec![fake.url.clone()],
            token: TOKEN.into(),
            work_dir: work_dir.path().to_owned(),
            engine: Some(PathBuf::from(env!("CARGO_BIN_EXE_scripted-engine"))),
            devices: vec!["cpu".to_owned()],
            threads: 1,
            max_generations: 2,
            claim_wait: Duration::from_secs(1),
            chat_wait: Duration::from_secs(1),
            report_interval: Duration::from_millis(1),
            retry_first: Duration::from_millis(1),
            retry_longest: Duration::from_millis(20),
            ..Config::default()
        };
        change(&mut config);
        let shutdown = CancellationToken::new();
        let worker = tokio::spawn(worker::run(config, shutdown.clone()));
        Self { fake, work_dir, shutdown, worker }
    }

    /// Puts a run on the base model `base` into the queue.
    fn enqueue(&self) -> ClaimedRun {
        let base = self.fake.look(|state| state.models[0].0.clone());
        self.enqueue_on(base)
    }

    fn enqueue_on(&self, base_model: BaseModel) -> ClaimedRun {
        let file_id = FileId::from("file-training");
        let known = entry("", TRAINING);
        let run = ClaimedRun {
            job_id: JobId::new(),
            fence: 7,
            lease_token: "the-lease".to_owned(),
            lease_seconds: 60.0,
            heartbeat_seconds: 0.005,
            method: MethodType::Supervised,
            base_model,
            training_file: StagedFile {
                file_id: file_id.clone(),
                bytes: known.bytes,
                sha256: known.sha256,
            },
            validation_file: None,
            hyperparameters: hyperparameters(),
            start_from: None,
            resume_from: None,
        };
        self.fake.change(|state| {
            state.blobs.insert(file_id.to_string(), TRAINING.to_vec());
            state.queue.push_back(run.clone());
        });
        run
    }

    /// Waits until the worker is back from its runs: the claim after the last one has come.
    async fn idle_again(&self) {
        let seen = self.fake.look(|state| state.claims.len());
        self.fake.until("the worker claims again", |s| (s.claims.len() > seen).then_some(())).await;
    }

    /// What the scripted engine of a base model has noted.
    fn notes(&self, model: &str, name: &str) -> Vec<String> {
        let model = self.fake.look(|state| {
            let found = state.models.iter().find(|(m, _)| m.id.as_str() == model);
            found.unwrap().0.clone()
        });
        let path = self.work_dir.path().join("models").join(model.digest).join(name);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Shuts the worker down; nothing may be left behind.
    async fn stop(self) {
        self.shutdown.cancel();
        self.worker.await.unwrap().unwrap();
        for folder in ["runs", "partial"] {
            let left = std::fs::read_dir(self.work_dir.path().join(folder)).unwrap().count();
            assert_eq!(left, 0, "{folder} is empty");
        }
    }
}

fn add_model(fake: &Fake, name: &str, script: Value) {
    let script = script.to_string().into_bytes();
    let model = BaseModel {
        id: name.into(),
        digest: format!("digest-of-{name}"),
        files: vec![entry("script.json", &script)],
        quantization: Default::default(),
        precision: Default::default(),
    };
    let files = HashMap::from([("script.json".to_owned(), script)]);
    fake.change(|state| state.models.push((model, files)));
}

fn hyperparameters() -> ResolvedHyperparameters {
    ResolvedHyperparameters {
        n_epochs: 1,
        batch_size: 1,
        learning_rate_multiplier: 1.0,
        learning_rate: 1e-4,
        schedule: Schedule::Linear,
        warmup_steps: 0,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        max_seq_len: 64,
        micro_batch_tokens: 64,
        checkpoint_steps: 2,
        gradient_checkpointing: Default::default(),
        optimizer: Default::default(),
        early_stopping: None,
        quantization: Default::default(),
        precision: Default::default(),
        tuning: Default::default(),
        virtual_tokens: None,
        lora: LoraConfig::default(),
        preference: None,
        seed: 1,
    }
}

fn six_steps() -> Value {
    json!({"steps": 6, "checkpoint_every": 2})
}
