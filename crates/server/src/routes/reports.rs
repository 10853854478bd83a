//! Reports of jobs: shown, and begun by the first who asks for one.

use axum::Json;
use axum::extract::State;
use domain::{JobStatus, LossType};
use serde_json::{Value, json};
use store::jobs::{self, JobRow};
use store::reports::{self, ReportRow};

use crate::convert::OrNotFound;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Id, JsonOrNothing};
use crate::inference::prompt::integer;
use crate::report::{MAX_ROWS, MAX_SHOTS, Wish};
use crate::state::AppState;
use crate::wire::report::{MakeReport, Report, ReportError, ReportProgress};

/// Whether a job's tuned model beats what it was tuned from, on held-out rows. The first call begins the report;
/// ask again until its status is `completed`. An extension of this server's.
#[utoipa::path(get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/report", tag = "Fine-tuning",
    operation_id = "retrieveFineTuningReport",
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Report)))]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Report>> {
    let db = &state.store.db;
    let job = jobs::get(db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::JobNotFound(id.clone()))?;
    if let Some(reason) = obstacle(&job) {
        return Ok(Json(Report { status: "not_available", reason: Some(reason), ..empty(id) }));
    }
    let row = reports::begin(db, &project, &job.id, &json!(Wish::of_job(&job)))
        .await
        .or_not_found(|| ApiError::JobNotFound(id.clone()))?;
    state.wake.reports.notify_waiters();
    Ok(Json(shown(id, row)))
}

/// Make the report of a job anew, with other rows or another number of examples. An extension of this server's.
#[utoipa::path(post, path = "/fine_tuning/jobs/{fine_tuning_job_id}/report", tag = "Fine-tuning",
    operation_id = "createFineTuningReport",
    request_body = Option<MakeReport>,
    params(("fine_tuning_job_id" = String, Path)),
    responses((status = 200, body = Report)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    JsonOrNothing(asked): JsonOrNothing<MakeReport>,
) -> ApiResult<Json<Report>> {
    let db = &state.store.db;
    let job = jobs::get(db, &project, &id.as_str().into())
        .await
        .or_not_found(|| ApiError::JobNotFound(id.clone()))?;
    let mut wish = Wish::of_job(&job);
    if let Some(rows) = asked.rows {
        wish.rows = integer("rows", rows, 1, MAX_ROWS)? as usize;
    }
    if let Some(few_shot) = asked.few_shot {
        wish.few_shot = integer("few_shot", few_shot, 0, MAX_SHOTS)? as usize;
    }
    if let Some(seed) = asked.seed {
        wish.seed = integer("seed", seed, 0, i64::from(u32::MAX))?.unsigned_abs();
    }
    if let Some(reason) = obstacle(&job) {
        return Err(ApiError::BadRequest(reason));
    }
    let row = reports::renew(db, &project, &job.id, &json!(wish))
        .await
        .or_not_found(|| ApiError::JobNotFound(id.clone()))?;
    state.wake.reports.notify_waiters();
    Ok(Json(shown(id, row)))
}

/// Why there can be no report.
fn obstacle(job: &JobRow) -> Option<String> {
    let status = job.status.as_str();
    if !job.status.is_terminal() {
        return Some(format!("The job is {status}. Its report can be made when it has succeeded."));
    }
    if job.status != JobStatus::Succeeded {
        return Some(format!("The job is {status}: it has made no model to compare."));
    }
    if job.hyperparameters.preference.is_some_and(|wish| wish.loss_type == LossType::Reward) {
        return Some("The job made a reward model, which does not answer.".to_owned());
    }
    job.validation_file.is_none().then(|| {
        "Nothing was held out: the job had no 'validation_file'. Rows that were trained on would prove \
         nothing; give the next job a validation file."
            .to_owned()
    })
}

fn empty(job_id: String) -> Report {
    Report {
        object: "fine_tuning.job.report",
        job_id,
        status: "pending",
        reason: None,
        error: None,
        progress: None,
        created_at: None,
        finished_at: None,
        verdict: None,
        task: None,
        primary_metric: None,
        method: None,
        seed: None,
        max_completion_tokens: None,
        held_out: None,
        contenders: None,
        comparison: None,
        loss: None,
        curves: None,
        rows: None,
    }
}

fn shown(id: String, row: ReportRow) -> Report {
    let mut content = row.content.unwrap_or(Value::Null);
    let mut part = |key: &str| content.get_mut(key).map(Value::take).filter(|part| !part.is_null());
    let mut text = |key: &str| match part(key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let (verdict, task) = (text("verdict"), text("task"));
    let (primary_metric, method) = (text("primary_metric"), text("method"));
    let mut number = |key: &str| part(key).and_then(|number| number.as_i64());
    let (seed, max_completion_tokens) = (number("seed"), number("max_completion_tokens"));
    let has_ended = row.finished_at.is_some();
    Report {
        status: row.status.as_str(),
        error: row.error.map(|error| ReportError { code: error.code, message: error.message }),
        progress: (!has_ended)
            .then_some(ReportProgress { answers: row.answers, wanted: row.wanted }),
        created_at: Some(row.created_at.unix_timestamp()),
        finished_at: row.finished_at.map(|time| time.unix_timestamp()),
        verdict,
        task,
        primary_metric,
        method,
        seed,
        max_completion_tokens,
        held_out: part("held_out"),
        contenders: part("contenders"),
        comparison: part("comparison"),
        loss: part("loss"),
        curves: part("curves"),
        rows: part("rows"),
        ..empty(id)
    }
}
