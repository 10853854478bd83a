//! Fine-tuning jobs: create, list, retrieve, update, delete, cancel, pause, resume, events, checkpoints.
//!
//! `cancel`, `pause` and `resume` read no body at all: clients send none, or `{}`, with or without
//! a content type.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use store::idempotency::{self, Created};
use store::jobs::{JobRow, MetadataFilter};
use store::{checkpoints, deletion, events, jobs, queue};
use time::OffsetDateTime;

use crate::convert::{self, OrNotFound, page_query};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Filters, Id, Json as Body, JsonObject, Page};
use crate::follow;
use crate::outlook::{Outlook, outlooks};
use crate::repeats;
use crate::request;
use crate::state::AppState;
use crate::wire::event::{Checkpoint, Event};
use crate::wire::job::{CreateJob, Job, JobDeleted, UpdateJob};
use crate::wire::list::List;
use crate::wire::query::PageParams;

const JOB_SIZES: (u32, u32) = (20, 100);
const EVENT_SIZES: (u32, u32) = (20, 1000);
const CHECKPOINT_SIZES: (u32, u32) = (10, 100);

/// Create a job. A repeated `Idempotency-Key` answers with the job of the first call; so does a repetition
/// that a client makes by itself (`x-stainless-retry-count` above 0) with the same body.
#[utoipa::path(post, path = "/fine_tuning/jobs", tag = "Fine-tuning",
    operation_id = "createFineTuningJob",
    request_body = CreateJob,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Job)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    headers: HeaderMap,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<Job>> {
    let once = repeats::once(&headers, Created::Job, &body)?;
    let db = &state.store.db;
    // The first answer counts, also when a file that it names is gone by now.
    if let Some(first) = idempotency::earlier(db, &project, &once).await? {
        return Ok(show(jobs::get(db, &project, &first.into()).await?));
    }
    let new = request::new_job(&state, &project, body).await?;
    let row = jobs::create(db, &project, new.clone(), Some(once))
        .await
        .map_err(|error| request::creation_error(error, &new))?;
    state.wake.validation.notify_waiters();
    Ok(show(row))
}

fn show(row: JobRow) -> Json<Job> {
    let outlook = Outlook::of_row(&row, OffsetDateTime::now_utc());
    Json(convert::job(row, outlook))
}

/// List jobs, the newest first. `metadata[key]=value` filters, `metadata=null` finds jobs without
/// any.
#[utoipa::path(get, path = "/fine_tuning/jobs", tag = "Fine-tuning",
    operation_id = "listPaginatedFineTuningJobs",
    params(PageParams, ("metadata" = Option<std::collections::BTreeMap<String, String>>, Query,
        style = DeepObject, explode, description = "Only jobs with these pairs.")),
    responses((status = 200, body = List<Job>)))]
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
    let mut outlooks = outlooks(&state, &project, &rows.data).await?.into_iter();
    Ok(Json(convert::list(rows, |row| convert::job(row, outlooks.next().unwrap_or_default()))))
}

/// One job.
#[utoipa::path(get, path = "/fine_tuning/jobs/{fine_tuning_job_id}", tag = "Fine-tuning",
    operation_id = "retrieveFineTuningJob",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Job)))]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Job>> {
    let job_id = id.as_str().into();
    let db = &state.store.db;
    let row = jobs::get(db, &project, &job_id).await.or_not_found(|| ApiError::JobNotFound(id))?;
    let outlook = outlooks(&state, &project, std::slice::from_ref(&row)).await?.pop();
    Ok(Json(convert::job(row, outlook.unwrap_or_default())))
}

/// Replace a job's metadata. An extension of this server's.
#[utoipa::path(post, path = "/fine_tuning/jobs/{fine_tuning_job_id}", tag = "Fine-tuning",
    operation_id = "updateFineTuningJob",
    request_body = UpdateJob,
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Job)))]
pub(crate) async fn update(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    Body(body): Body<UpdateJob>,
) -> ApiResult<Json<Job>> {
    request::check_metadata(body.metadata.as_ref())?;
    let db = &state.store.db;
    let row = jobs::set_metadata(db, &project, &id.as_str().into(), body.metadata.as_ref())
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    Ok(show(row))
}

/// Delete a job that has ended, with its events, metrics, result files and checkpoints. Its models stay. An
/// extension of this server's.
#[utoipa::path(delete, path = "/fine_tuning/jobs/{fine_tuning_job_id}", tag = "Fine-tuning",
    operation_id = "deleteFineTuningJob",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = JobDeleted)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<JobDeleted>> {
    deletion::delete(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::JobNotFound(id.clone()))?;
    Ok(Json(JobDeleted { id, object: "fine_tuning.job", deleted: true }))
}

/// Cancel a job, at once.
#[utoipa::path(post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/cancel",
    tag = "Fine-tuning", operation_id = "cancelFineTuningJob",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Job)))]
pub(crate) async fn cancel(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Job>> {
    let row = queue::cancel(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    state.follow.ring();
    Ok(show(row))
}

/// Pause a job. A running one writes a checkpoint first and says `running` until it has.
#[utoipa::path(post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/pause",
    tag = "Fine-tuning", operation_id = "pauseFineTuningJob",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Job)))]
pub(crate) async fn pause(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Job>> {
    let row = queue::pause(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    state.follow.ring();
    Ok(show(row))
}

/// Put a paused job back into the queue; it goes on from its checkpoint.
#[utoipa::path(post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/resume",
    tag = "Fine-tuning", operation_id = "resumeFineTuningJob",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Job)))]
pub(crate) async fn resume(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Job>> {
    let row = queue::resume(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    state.follow.ring();
    state.wake.claim.notify_waiters();
    Ok(show(row))
}

/// A job's events, the newest first. With `stream=true`, an extension of this server's: server-sent events, the
/// oldest first, each with its id, then those that happen; `data: [DONE]` ends them with the job. `after` or the
/// header `Last-Event-ID` names the last event that is known.
#[utoipa::path(get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/events",
    tag = "Fine-tuning", operation_id = "listFineTuningEvents",
    params(("fine_tuning_job_id" = String, Path), PageParams,
        ("stream" = Option<bool>, Query),
        ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content((List<Event> = "application/json"),
        (Event = "text/event-stream")))))]
pub(crate) async fn events(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    page: Page,
    headers: HeaderMap,
) -> ApiResult<Response> {
    if page.stream {
        return follow::open(state, &project, id, page.after, &headers).await;
    }
    let query = page_query(&page, EVENT_SIZES);
    let rows = events::list(&state.store.db, &project, &id.as_str().into(), &query)
        .await
        .or_not_found(|| ApiError::JobNotFound(id))?;
    Ok(Json(convert::list(rows, convert::event)).into_response())
}

/// A job's checkpoints that are models of their own, the highest step first.
#[utoipa::path(get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints",
    tag = "Fine-tuning", operation_id = "listFineTuningJobCheckpoints",
    params(("fine_tuning_job_id" = String, Path), PageParams),
    responses((status = 200, body = List<Checkpoint>)))]
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
