//! The queue: every change of a job's state.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use domain::internal::{
    BaseModel, BeginCheckpoint, CheckpointManifest, Directive, FinishRun, ManifestFile, ReportBatch,
};
use domain::plan::ResolvedHyperparameters;
use domain::report::{Level, RunFailure};
use domain::{CheckpointId, FileId, JobId, JobStatus, ModelId};
use futures::Stream;
use uuid::Uuid;

use crate::Store;
use crate::blob::BlobKey;
use crate::db::Db;
use crate::error::{Error, Result};
use crate::files::{FileRow, NewFile, Uploaded};
use crate::jobs::{JobError, JobRow};
use crate::projects::Project;

/// The right to act on a run. `fence` orders, `token` is the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Lease {
    pub job_id: JobId,
    pub fence: i64,
    pub token: Uuid,
}

impl Lease {
    /// From the headers of a call; a malformed token is a lost lease.
    pub fn parse(job_id: JobId, fence: i64, token: &str) -> Result<Self> {
        let token = Uuid::parse_str(token).map_err(|_| Error::LeaseLost)?;
        Ok(Self { job_id, fence, token })
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({}, fence {})", self.job_id, self.fence)
    }
}

/// A job whose files are to be validated, by the holder of this claim alone.
#[derive(Debug, Clone)]
pub struct ValidationClaim {
    pub job: JobRow,
    pub training_file: FileRow,
    pub validation_file: Option<FileRow>,
    pub(crate) fence: i64,
}

/// What validation found.
#[derive(Debug, Clone)]
pub enum Validation {
    Passed {
        hyperparameters: ResolvedHyperparameters,
        /// Shown with the job.
        dataset: serde_json::Value,
        /// Things that the user should read; each becomes an event.
        notes: Vec<(Level, String)>,
    },
    Failed {
        error: JobError,
        /// Goes into the last event.
        data: serde_json::Value,
    },
}

/// A run for a worker, with everything that it must stage.
#[derive(Debug, Clone)]
pub struct ClaimedJob {
    pub lease: Lease,
    pub job: JobRow,
    pub hyperparameters: ResolvedHyperparameters,
    pub base_model: BaseModel,
    pub training_file: FileRow,
    pub validation_file: Option<FileRow>,
    pub resume_from: Option<CheckpointManifest>,
}

/// Takes the oldest job that waits for validation, for `hold`; after that somebody else may take it. Writes
/// the event `Validating training file: …` the first time.
pub async fn claim_validation(db: &Db, hold: Duration) -> Result<Option<ValidationClaim>> {
    let _ = (db, hold);
    crate::unwritten()
}

/// Holds the claim for `hold` from now on. `LeaseLost` when the job was cancelled or taken over.
pub async fn extend_validation(db: &Db, claim: &ValidationClaim, hold: Duration) -> Result<()> {
    let _ = (db, claim, hold);
    crate::unwritten()
}

/// Gives the claim back unfinished (storage out of reach, shutdown); it may be claimed after `retry_in`.
pub async fn release_validation(
    db: &Db,
    claim: &ValidationClaim,
    retry_in: Duration,
) -> Result<()> {
    let _ = (db, claim, retry_in);
    crate::unwritten()
}

/// `validating_files` → `queued` or `failed`, with events.
pub async fn finish_validation(
    db: &Db,
    claim: &ValidationClaim,
    validation: Validation,
) -> Result<JobStatus> {
    let _ = (db, claim, validation);
    crate::unwritten()
}

/// `queued` → `running`: the next run for this worker, if there is one.
pub async fn claim(
    db: &Db,
    worker_id: &str,
    warm_model: Option<&str>,
    ttl: Duration,
) -> Result<Option<ClaimedJob>> {
    let _ = (db, worker_id, warm_model, ttl);
    crate::unwritten()
}

/// Renews the lease, and tells what is wanted of the run. `step` is the engine's counter.
pub async fn heartbeat(db: &Db, lease: &Lease, ttl: Duration, step: u64) -> Result<Directive> {
    let _ = (db, lease, ttl, step);
    crate::unwritten()
}

/// Turns reports into events and step metrics. Reports that are already recorded are passed over, so a
/// batch may be sent again; a gap is `Conflict::ReportGap`.
pub async fn record_reports(db: &Db, lease: &Lease, batch: &ReportBatch) -> Result<()> {
    let _ = (db, lease, batch);
    crate::unwritten()
}

/// Announces a checkpoint and its files. The same announcement again gives the same id.
pub async fn begin_checkpoint(
    db: &Db,
    lease: &Lease,
    begin: &BeginCheckpoint,
) -> Result<CheckpointId> {
    let _ = (db, lease, begin);
    crate::unwritten()
}

/// Stores one announced file; `HashMismatch` when size or hash differ from the announcement, and then nothing
/// is kept. The same file again is harmless.
pub async fn put_checkpoint_file<E: fmt::Display>(
    store: &Store,
    lease: &Lease,
    checkpoint: &CheckpointId,
    name: &str,
    body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
) -> Result<()> {
    let _ = (store, lease, checkpoint, name, body);
    crate::unwritten()
}

/// Makes a checkpoint count, once every announced file is stored: progress, usage, and for the end of an
/// epoch a model and an event. Again is harmless.
pub async fn commit_checkpoint(
    store: &Store,
    lease: &Lease,
    checkpoint: &CheckpointId,
) -> Result<()> {
    let _ = (store, lease, checkpoint);
    crate::unwritten()
}

/// `running` → `succeeded`: the committed final checkpoint becomes the tuned model, the result files
/// become visible. A repeated call gives the first result; its result files are dropped.
pub async fn finish(
    db: &Db,
    lease: &Lease,
    finish: &FinishRun,
    results: Vec<(Uploaded, NewFile)>,
) -> Result<ModelId> {
    let _ = (db, lease, finish, results);
    crate::unwritten()
}

/// `running` → `failed`, or → `queued` when another attempt may succeed and the budget of five crashes
/// without progress is not used up. A repeated call is harmless.
pub async fn fail(db: &Db, lease: &Lease, failure: &RunFailure) -> Result<JobStatus> {
    let _ = (db, lease, failure);
    crate::unwritten()
}

/// `running` → `queued` (drain), or → `paused` when that is wanted. Counts as no crash. A repeated call is
/// harmless.
pub async fn release(db: &Db, lease: &Lease) -> Result<JobStatus> {
    let _ = (db, lease);
    crate::unwritten()
}

/// The leased job; for calls that read on its behalf.
pub async fn leased_job(db: &Db, lease: &Lease) -> Result<JobRow> {
    let _ = (db, lease);
    crate::unwritten()
}

/// A training or validation file of the leased job.
pub async fn leased_file(db: &Db, lease: &Lease, file: &FileId) -> Result<FileRow> {
    let _ = (db, lease, file);
    crate::unwritten()
}

/// A file of a committed checkpoint of the leased job.
pub async fn leased_checkpoint_file(
    db: &Db,
    lease: &Lease,
    checkpoint: &CheckpointId,
    name: &str,
) -> Result<(BlobKey, ManifestFile)> {
    let _ = (db, lease, checkpoint, name);
    crate::unwritten()
}

/// Any status that is not terminal → `cancelled`, at once: the lease is void.
pub async fn cancel(db: &Db, project: &Project, id: &JobId) -> Result<JobRow> {
    let _ = (db, project, id);
    crate::unwritten()
}

/// `queued` → `paused` at once; a running job is asked to write a checkpoint and stop.
pub async fn pause(db: &Db, project: &Project, id: &JobId) -> Result<JobRow> {
    let _ = (db, project, id);
    crate::unwritten()
}

/// `paused` → `queued`; takes back the request to pause of a running job.
pub async fn resume(db: &Db, project: &Project, id: &JobId) -> Result<JobRow> {
    let _ = (db, project, id);
    crate::unwritten()
}
