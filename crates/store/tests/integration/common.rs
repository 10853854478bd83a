//! What the tests of the store share: a job at each stage, made by the functions under test.

use std::time::Duration;

use bytes::Bytes;
use domain::hyperparameters::{Hyperparameters, TrainingOptions};
use domain::internal::{BeginCheckpoint, FinishRun, ManifestFile, ReportBatch};
use domain::plan::{LoraConfig, ResolvedHyperparameters};
use domain::report::{CheckpointKind, RunReport, RunStarted, StepMetrics};
use domain::{CheckpointId, FileId, JobId, MethodType, ModelId};
use sha2::{Digest, Sha256};
use store::base_models::{self, NewBaseModel};
use store::files::{self, NewFile};
use store::jobs::{self, JobRow, NewJob};
use store::queue::{self, Claimant, ClaimedJob, Lease, Validation, ValidationClaim};
use store::testing::TestStore;
use store::{Page, PageQuery};

pub const BASE: &str = "tiny-base";
pub const TTL: Duration = Duration::from_secs(60);

pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub async fn upload(test: &TestStore, content: &[u8]) -> FileId {
    let body = Bytes::copy_from_slice(content);
    let uploaded = files::upload_bytes(&test.store, &test.project, body).await.unwrap();
    uploaded.commit(new_file(), None).await.unwrap().id
}

pub fn new_file() -> NewFile {
    NewFile {
        filename: "train.jsonl".to_owned(),
        purpose: "fine-tune".to_owned(),
        expires_after: None,
    }
}

pub async fn base_model(test: &TestStore) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), b"{}").unwrap();
    std::fs::write(folder.path().join("model.safetensors"), b"weights").unwrap();
    let new = NewBaseModel { id: BASE.into(), architecture: "llama".to_owned(), parameters: 7 };
    base_models::register(&test.store, &test.project, new, folder.path()).await.unwrap();
}

pub fn new_job(training_file: FileId) -> NewJob {
    NewJob {
        id: JobId::new(),
        base_model: BASE.into(),
        start: None,
        method: MethodType::Supervised,
        training_file,
        validation_file: None,
        hyperparameters: Hyperparameters::default(),
        options: TrainingOptions::default(),
        suffix: Some("mine".to_owned()),
        seed: 42,
        metadata: None,
        integrations: Vec::new(),
        priority: 0,
    }
}

/// A store with a base model and one file.
pub async fn prepared() -> (TestStore, FileId) {
    let test = TestStore::new().await;
    base_model(&test).await;
    let file = upload(&test, b"{}\n").await;
    (test, file)
}

pub async fn create(test: &TestStore, new: NewJob) -> JobRow {
    jobs::create(&test.store.db, &test.project, new, None).await.unwrap()
}

pub fn resolved() -> ResolvedHyperparameters {
    ResolvedHyperparameters {
        n_epochs: 3,
        batch_size: 4,
        learning_rate_multiplier: 1.0,
        learning_rate: 1e-4,
        schedule: Default::default(),
        warmup_steps: 2,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        max_seq_len: 512,
        micro_batch_tokens: 2048,
        checkpoint_steps: 0,
        gradient_checkpointing: Default::default(),
        optimizer: Default::default(),
        early_stopping: None,
        quantization: Default::default(),
        precision: Default::default(),
        tuning: Default::default(),
        virtual_tokens: None,
        lora: LoraConfig::default(),
        preference: None,
        seed: 42,
    }
}

pub fn passed() -> Validation {
    let dataset = serde_json::json!({ "n_examples": 100 });
    Validation::Passed {
        hyperparameters: Box::new(resolved()),
        planned_tokens: 300,
        dataset,
        notes: Vec::new(),
    }
}

pub async fn claim_validation(test: &TestStore) -> ValidationClaim {
    queue::claim_validation(&test.store.db, TTL).await.unwrap().expect("a job is to be validated")
}

/// A queued job.
pub async fn queued(test: &TestStore, new: NewJob) -> JobId {
    let job = create(test, new).await;
    let claim = claim_validation(test).await;
    assert_eq!(claim.job.id, job.id);
    queue::finish_validation(&test.store.db, &claim, passed()).await.unwrap();
    job.id
}

pub async fn claim(test: &TestStore) -> ClaimedJob {
    queue::claim(&test.store.db, Claimant::cold("worker"), TTL)
        .await
        .unwrap()
        .expect("a job is queued")
}

/// A store with one running job.
pub async fn running() -> (TestStore, ClaimedJob) {
    let (test, file) = prepared().await;
    queued(&test, new_job(file)).await;
    let claimed = claim(&test).await;
    (test, claimed)
}

pub async fn job(test: &TestStore, id: &JobId) -> JobRow {
    jobs::get(&test.store.db, &test.project, id).await.unwrap()
}

pub fn metrics(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        total_steps: 30,
        train_loss: 1.0 / step.max(1) as f64,
        ..Default::default()
    }
}

pub fn steps(range: std::ops::RangeInclusive<u64>) -> Vec<RunReport> {
    range.map(|step| RunReport::Step(metrics(step))).collect()
}

pub fn started() -> RunReport {
    RunReport::Started(RunStarted {
        completed_steps: 0,
        total_steps: 30,
        train_examples: 100,
        valid_examples: 0,
        tokens_per_epoch: 1000,
        trainable_parameters: 10,
    })
}

pub fn batch(first_seq: u64, reports: Vec<RunReport>) -> ReportBatch {
    ReportBatch { first_seq, reports }
}

pub const CHECKPOINT_FILES: [&str; 4] =
    ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"];

pub fn begin(step: u64, kind: CheckpointKind) -> BeginCheckpoint {
    let files = CHECKPOINT_FILES.map(|name| {
        let content = content(name, step);
        let bytes = content.len() as u64;
        ManifestFile { name: name.to_owned(), bytes, sha256: hex(&content) }
    });
    BeginCheckpoint {
        step,
        kind,
        files: files.to_vec(),
        trained_tokens: step * 100,
        metrics: metrics(step),
    }
}

/// What the file of that name holds at that step.
pub fn content(name: &str, step: u64) -> Vec<u8> {
    format!("{name} after step {step}").into_bytes()
}

pub fn body(content: &[u8]) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> + Unpin {
    let content = Bytes::copy_from_slice(content);
    futures::stream::iter([Ok(content)])
}

pub async fn put_files(
    test: &TestStore,
    lease: &Lease,
    id: &CheckpointId,
    step: u64,
) -> store::Result<()> {
    for name in CHECKPOINT_FILES {
        let content = content(name, step);
        queue::put_checkpoint_file(&test.store, lease, id, name, body(&content)).await?;
    }
    Ok(())
}

/// A committed checkpoint.
pub async fn checkpoint(
    test: &TestStore,
    lease: &Lease,
    step: u64,
    kind: CheckpointKind,
) -> CheckpointId {
    let begin = begin(step, kind);
    let id = queue::begin_checkpoint(&test.store.db, lease, &begin).await.unwrap();
    put_files(test, lease, &id, step).await.unwrap();
    queue::commit_checkpoint(&test.store, lease, &id).await.unwrap();
    id
}

/// A job run to its end; the tuned model.
pub async fn succeed(test: &TestStore, lease: &Lease, step: u64) -> ModelId {
    let checkpoint_id = checkpoint(test, lease, step, CheckpointKind::Final).await;
    let finish = FinishRun { checkpoint_id, trained_tokens: step * 100 };
    queue::finish(&test.store.db, lease, &finish, Vec::new()).await.unwrap()
}

/// All messages of a job's events, oldest first.
pub async fn messages(test: &TestStore, id: &JobId) -> Vec<String> {
    let page: Page<_> =
        store::events::list(&test.store.db, &test.project, id, &PageQuery::newest(1000))
            .await
            .unwrap();
    page.data.into_iter().rev().map(|event| event.message).collect()
}

/// The invariants that hold for every job at every time, as one query each.
pub async fn assert_invariants(test: &TestStore) {
    for (what, query) in [
        (
            "events are numbered 1..n",
            "select count(*) from (select j.id from jobs j left join events e on e.job_id = j.id
             group by j.id having coalesce(max(e.seq), 0) <> count(e.seq)
             or count(e.seq) <> j.event_seq) x",
        ),
        (
            "fences never fall in the order of events",
            "select count(*) from (select fence, lag(fence) over (partition by job_id order by seq)
             as before from events) x where fence < before",
        ),
        (
            "every ended job has one outbox row, and no other has any",
            "select count(*) from jobs j where (j.finished_at is not null)::int <>
             (select count(*) from outbox o where o.job_id = j.id)",
        ),
        (
            "usage tiles 0..committed_step",
            "select count(*) from jobs j where
             coalesce((select sum(to_step - from_step) from usage u where u.job_id = j.id), 0)
                 <> committed_step
             or coalesce((select sum(tokens) from usage u where u.job_id = j.id), 0)
                 <> committed_tokens",
        ),
        (
            "a succeeded job has its model",
            "select count(*) from jobs j where j.status = 'succeeded' and not exists
             (select 1 from models m where m.id = j.fine_tuned_model)",
        ),
    ] {
        assert_eq!(test.value(query).await, "0", "violated: {what}");
    }
}
