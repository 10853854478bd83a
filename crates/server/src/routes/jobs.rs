//! Fine-tuning jobs: create, list, retrieve, cancel, pause, resume, events, checkpoints.
//!
//! `cancel`, `pause` and `resume` read no body at all: clients send none, or `{}`, with or without
//! a content type.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use domain::JobId;
use store::jobs::{JobRow, MetadataFilter};
use store::{Project, checkpoints, events, jobs, queue};
use time::OffsetDateTime;

use crate::convert::{self, OrNotFound, page_query};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Filters, Id, Json as Body, Page};
use crate::request;
use crate::state::AppState;
use crate::wire::error::ErrorEnvelope;
use crate::wire::event::{Checkpoint, Event};
use crate::wire::job::{CreateJob, Job};
use crate::wire::list::List;

const JOB_SIZES: (u32, u32) = (20, 100);
const EVENT_SIZES: (u32, u32) = (20, 1000);
const CHECKPOINT_SIZES: (u32, u32) = (10, 100);

/// Create a job. A repeated `Idempotency-Key` answers with the job of the first call.
#[utoipa::path(post, path = "/fine_tuning/jobs", tag = "Fine-tuning",
    operation_id = "createFineTuningJob",
    request_body = CreateJob,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Job), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    headers: HeaderMap,
    Body(body): Body<CreateJob>,
) -> ApiResult<Json<Job>> {
    let id = request::job_id(&project, &headers);
    let new = request::new_job(&state, &project, id.clone(), body).await?;
    let db = &state.store.db;
    let is_repeatable = headers.contains_key(request::IDEMPOTENCY_KEY);
    if is_repeatable && let Some(first) = earlier(&state, &project, &id).await? {
        request::check_same(&first, &new)?;
        return Ok(show(first));
    }
    let row = match jobs::create(db, &project, new.clone()).await {
        Ok(row) => row,
        Err(error) => match earlier(&state, &project, &id).await? {
            // Two calls with one key met: the other one has created the job.
            Some(first) if is_repeatable => {
                request::check_same(&first, &new)?;
                return Ok(show(first));
            }
            _ => return Err(request::creation_error(error, &new)),
        },
    };
    state.wake.validation.notify_waiters();
    Ok(show(row))
}

async fn earlier(state: &AppState, project: &Project, id: &JobId) -> ApiResult<Option<JobRow>> {
    match jobs::get(&state.store.db, project, id).await {
        Ok(row) => Ok(Some(row)),
        Err(store::Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn show(row: JobRow) -> Json<Job> {
    Json(convert::job(row, OffsetDateTime::now_utc()))
}

/// List jobs, the newest first. `metadata[key]=value` filters, `metadata=null` finds jobs without
/// any.
#[utoipa::path(get, path = "/fine_tuning/jobs", tag = "Fine-tuning",
    operation_id = "listPaginatedFineTuningJobs",
    params(("after" = Option<String>, Query), ("limit" = Option<u32>, Query)),
    responses((status = 200, body = List<Job>), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(project): Caller,
    page: Page,
    filters: Filters,
) -> ApiResult<Json<List<Job>>> {
    let filter = match filters {
        Filters::All => MetadataFilter::Any,
        Filters::NoMetadata => MetadataFilter::Absent,
        Filters::Metadata(pairs) => MetadataFilter::Holds(pairs.into_iter().collect()),
    };
    let query = page_query(&page, JOB_SIZES);
    let rows = jobs::list(&state.store.db, &project, &filter, &query).await?;
    let now = OffsetDateTime::now_utc();
    Ok(Json(convert::list(rows, |row| convert::job(row, now))))
}

/// One job.
#[utoipa::path(get, path = "/fine_tuning/jobs/{fine_tuning_job_id}", tag = "Fine-tuning",
    operation_id = "retrieveFineTuningJob",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Job), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Job>> {
    let job_id = id.as_str().into();
    let db = &state.store.db;
    let row = jobs::get(db, &project, &job_id).await.or_not_found(|| ApiError::JobNotFound(id))?;
    let queue_position = match row.status {
        domain::JobStatus::Queued => jobs::queue_position(db, &project, &job_id).await?,
        _ => None,
    };
    let mut job = convert::job(row, OffsetDateTime::now_utc());
    if let Some(resolved) = &mut job.finetuned {
        resolved.queue_position = queue_position;
    }
    Ok(Json(job))
}

/// Cancel a job, at once.
#[utoipa::path(post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/cancel",
    tag = "Fine-tuning", operation_id = "cancelFineTuningJob",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Job), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn cancel(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Job>> {
    let row = queue::cancel(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    Ok(show(row))
}

/// Pause a job. A running one writes a checkpoint first and says `running` until it has.
#[utoipa::path(post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/pause",
    tag = "Fine-tuning", operation_id = "pauseFineTuningJob",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Job), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn pause(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Job>> {
    let row = queue::pause(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    Ok(show(row))
}

/// Put a paused job back into the queue; it goes on from its checkpoint.
#[utoipa::path(post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/resume",
    tag = "Fine-tuning", operation_id = "resumeFineTuningJob",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Job), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn resume(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Job>> {
    let row = queue::resume(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    state.wake.claim.notify_waiters();
    Ok(show(row))
}

/// A job's events, the newest first.
#[utoipa::path(get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/events",
    tag = "Fine-tuning", operation_id = "listFineTuningEvents",
    params(("fine_tuning_job_id" = String, Path), ("after" = Option<String>, Query),
        ("limit" = Option<u32>, Query)),
    responses((status = 200, body = List<Event>), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn events(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    page: Page,
) -> ApiResult<Json<List<Event>>> {
    let query = page_query(&page, EVENT_SIZES);
    let rows = events::list(&state.store.db, &project, &id.as_str().into(), &query)
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    Ok(Json(convert::list(rows, convert::event)))
}

/// A job's checkpoints that are models of their own, the highest step first.
#[utoipa::path(get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints",
    tag = "Fine-tuning", operation_id = "listFineTuningJobCheckpoints",
    params(("fine_tuning_job_id" = String, Path), ("after" = Option<String>, Query),
        ("limit" = Option<u32>, Query)),
    responses((status = 200, body = List<Checkpoint>), (status = "4XX", body = ErrorEnvelope)))]
pub(crate) async fn checkpoints(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    page: Page,
) -> ApiResult<Json<List<Checkpoint>>> {
    let query = page_query(&page, CHECKPOINT_SIZES);
    let rows = checkpoints::list(&state.store.db, &project, &id.as_str().into(), &query)
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    Ok(Json(convert::list(rows, convert::checkpoint)))
}
