//! Runs: claim, heartbeat, files, checkpoints, and the three ways out. Each is one call of the
//! store's, which checks the lease; a lost one answers `lease_lost`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::internal::{
    BeginCheckpoint, CheckpointBegun, ClaimRequest, ClaimedRun, FinishRun, Heartbeat,
    HeartbeatReply, RunFinished, StagedFile,
};
use domain::report::RunFailure;
use domain::{CheckpointId, FileId, JobStatus};
use serde::Deserialize;
use store::blob::{BlobKey, BlobReader};
use store::files::FileRow;
use store::queue::{self, Claimant, ClaimedJob};

use super::error::{InternalApiError, InternalResult};
use super::extract::{InternalJson, LONGEST_POLL, Leased};
use crate::extract::Worker;
use crate::results;
use crate::state::AppState;

/// How often a waiting claim looks by itself: other servers' jobs ring no bell here.
const POLL: Duration = Duration::from_secs(1);

pub(crate) async fn claim(
    _: Worker,
    State(state): State<AppState>,
    InternalJson(request): InternalJson<ClaimRequest>,
) -> InternalResult<Response> {
    let wait = Duration::from_secs(request.wait_seconds).min(LONGEST_POLL);
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        // Listening begins before looking, so that no job falls between the two.
        let woken = state.wake.claim.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        // An error, because a plain "none" would be followed by the next call at once.
        if state.stopping.is_cancelled() {
            return Err(InternalApiError::ShuttingDown);
        }
        let ttl = state.config.lease.ttl;
        let claimant = Claimant {
            worker_id: &request.worker_id,
            warm_model: request.warm_model.as_deref(),
            precision: request.precision,
        };
        if let Some(job) = queue::claim(&state.store.db, claimant, ttl).await? {
            return Ok(Json(claimed_run(&state, job)).into_response());
        }
        let now = tokio::time::Instant::now();
        if now >= deadline {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep_until(deadline.min(now + POLL)) => {}
            () = state.stopping.cancelled() => {}
        }
    }
}

fn claimed_run(state: &AppState, claimed: ClaimedJob) -> ClaimedRun {
    let lease = &state.config.lease;
    ClaimedRun {
        job_id: claimed.lease.job_id,
        fence: claimed.lease.fence,
        lease_token: claimed.lease.token.to_string(),
        lease_seconds: lease.ttl.as_secs_f64(),
        heartbeat_seconds: lease.heartbeat.as_secs_f64(),
        method: claimed.job.method,
        base_model: claimed.base_model,
        training_file: staged(claimed.training_file),
        validation_file: claimed.validation_file.map(staged),
        hyperparameters: claimed.hyperparameters,
        start_from: claimed.start_from,
        resume_from: claimed.resume_from,
    }
}

fn staged(row: FileRow) -> StagedFile {
    StagedFile { file_id: row.id, bytes: row.bytes, sha256: row.sha256 }
}

pub(crate) async fn heartbeat(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
    InternalJson(beat): InternalJson<Heartbeat>,
) -> InternalResult<Json<HeartbeatReply>> {
    let ttl = state.config.lease.ttl;
    let directive = queue::heartbeat(&state.store.db, &lease, ttl, beat.step).await?;
    Ok(Json(HeartbeatReply { directive, lease_seconds: ttl.as_secs_f64() }))
}

#[derive(Deserialize)]
pub(crate) struct FilePath {
    file: FileId,
}

pub(crate) async fn file(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
    Path(FilePath { file }): Path<FilePath>,
) -> InternalResult<Response> {
    let row = queue::leased_file(&state.store.db, &lease, &file).await?;
    Ok(answer(store::files::read(&state.store, &row, None).await?))
}

/// A blob's bytes.
pub(super) async fn download(state: &AppState, key: &BlobKey) -> InternalResult<Response> {
    Ok(answer(state.store.blobs.get(key, None).await?))
}

fn answer(reader: BlobReader) -> Response {
    let length = reader.bytes;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    (headers, Body::from_stream(reader.stream)).into_response()
}

pub(crate) async fn begin_checkpoint(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
    InternalJson(begin): InternalJson<BeginCheckpoint>,
) -> InternalResult<Json<CheckpointBegun>> {
    let checkpoint_id = queue::begin_checkpoint(&state.store.db, &lease, &begin).await?;
    Ok(Json(CheckpointBegun { checkpoint_id }))
}

#[derive(Deserialize)]
pub(crate) struct CheckpointPath {
    checkpoint: CheckpointId,
    #[serde(default)]
    name: String,
}

/// The bytes go to storage as they come; size and hash are those announced, or nothing is kept.
pub(crate) async fn put_checkpoint_file(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
    Path(CheckpointPath { checkpoint, name }): Path<CheckpointPath>,
    body: Body,
) -> InternalResult<StatusCode> {
    let chunks = body.into_data_stream();
    queue::put_checkpoint_file(&state.store, &lease, &checkpoint, &name, chunks).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn commit_checkpoint(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
    Path(CheckpointPath { checkpoint, .. }): Path<CheckpointPath>,
) -> InternalResult<StatusCode> {
    queue::commit_checkpoint(&state.store, &lease, &checkpoint).await?;
    state.follow.ring();
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn checkpoint_file(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
    Path(CheckpointPath { checkpoint, name }): Path<CheckpointPath>,
) -> InternalResult<Response> {
    let db = &state.store.db;
    let (key, _) = queue::leased_checkpoint_file(db, &lease, &checkpoint, &name).await?;
    download(&state, &key).await
}

/// The job succeeds only when its model is really there: the adapter is read back and compared with
/// its manifest first. Then model, result files, event and status appear in one transaction.
pub(crate) async fn finish(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
    InternalJson(finish): InternalJson<FinishRun>,
) -> InternalResult<Json<RunFinished>> {
    let files = match results::prepare(&state.store, &lease, &finish.checkpoint_id).await {
        // A repeated call: the run has ended already, and the store knows with which model.
        Err(InternalApiError::LeaseLost) => Vec::new(),
        prepared => prepared?,
    };
    let fine_tuned_model = queue::finish(&state.store.db, &lease, &finish, files).await?;
    state.follow.ring();
    Ok(Json(RunFinished { fine_tuned_model }))
}

pub(crate) async fn fail(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
    InternalJson(failure): InternalJson<RunFailure>,
) -> InternalResult<StatusCode> {
    let status = queue::fail(&state.store.db, &lease, &failure).await?;
    wake_if_queued(&state, status);
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn release(
    _: Worker,
    State(state): State<AppState>,
    Leased(lease): Leased,
) -> InternalResult<StatusCode> {
    let status = queue::release(&state.store.db, &lease).await?;
    wake_if_queued(&state, status);
    Ok(StatusCode::NO_CONTENT)
}

/// What a changed status sets going.
fn wake_if_queued(state: &AppState, status: JobStatus) {
    state.follow.ring();
    if status == JobStatus::Queued {
        state.wake.claim.notify_waiters();
    }
}
