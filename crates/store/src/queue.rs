//! The queue: every change of a job's state. A job's row is the queue item.
//!
//! The rules, each of them also a CHECK, a trigger or a `WHERE`:
//!
//! - **A lease** is a fence (a number that grows with every claim, for order) and a token (a secret). Every
//!   effect of a worker begins by locking the job's row *where fence, token and `running` still hold*;
//!   if no row is found, the lease is lost and nothing is written. Cancelled, superseded and late workers are
//!   therefore one code path.
//! - **Expiry alone takes no lease away**; only [`crate::reaper`] does. A late heartbeat renews.
//! - **Lock order**: the job's row first, everything else after it.
//! - **Replays are harmless**: a worker repeats every call until it is answered.
//! - All times are the database's.
//!
//! Validation is in `validation`, the claim in `claim`, checkpoints in `checkpoint` and `retention`, what to
//! resume from in `resume`, success in `finish`, the users' wishes in `wishes`.

mod checkpoint;
mod claim;
mod finish;
mod resume;
mod retention;
mod validation;
mod wishes;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use domain::internal::{Directive, ReportBatch};
use domain::report::{RunFailure, RunReport};
use domain::{FileId, JobId, JobStatus};
use serde_json::{Value, json};
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

pub use checkpoint::{
    begin_checkpoint, commit_checkpoint, leased_checkpoint_file, leased_model_files,
    put_checkpoint_file,
};
#[cfg(feature = "testing")]
pub(crate) use claim::CLAIM;
pub use claim::{Claimant, ClaimedJob, claim};
pub use finish::finish;
pub use resume::verify_resume;
pub(crate) use retention::{discard, starts};
pub use validation::{
    Note, Validation, ValidationClaim, claim_validation, extend_validation, finish_validation,
    release_validation,
};
pub use wishes::{cancel, pause, resume};

use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::events;
use crate::files::{self, FileRow};
use crate::jobs::{self, JobError, JobRow};
use crate::messages;
use crate::text;
use crate::webhooks::outbox::{self, Subject};

/// So many bad ends in a row without a new checkpoint, and the job fails.
pub(crate) const CRASH_BUDGET: i32 = 5;

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

/// A job's row, locked by the present transaction.
#[derive(Debug, Clone, FromRow)]
pub(crate) struct Held {
    pub(crate) id: String,
    pub(crate) project_id: String,
    pub(crate) status: String,
    pub(crate) desired: String,
    pub(crate) base_model: String,
    pub(crate) fence: i64,
    pub(crate) crashes: i32,
    pub(crate) committed_step: i64,
    pub(crate) committed_tokens: i64,
    pub(crate) reports_seq: i64,
}

/// Selects [`Held`] for update.
macro_rules! hold {
    ($condition:literal) => {
        concat!(
            "select id, project_id, status, desired, base_model, fence, crashes, committed_step,
                    committed_tokens, reports_seq
             from jobs where ",
            $condition,
            " for no key update"
        )
    };
}
pub(crate) use hold;

impl Held {
    pub(crate) fn id(&self) -> JobId {
        self.id.as_str().into()
    }

    pub(crate) fn status(&self) -> Result<JobStatus> {
        jobs::parse_status(&self.id, &self.status)
    }

    /// The job of a lease that is still valid; else `LeaseLost`.
    async fn by_lease(tx: &mut PgConnection, lease: &Lease) -> Result<Self> {
        let statement = hold!("id = $1 and fence = $2 and lease_token = $3 and status = 'running'");
        sqlx::query_as(statement)
            .bind(lease.job_id.as_str())
            .bind(lease.fence)
            .bind(lease.token)
            .fetch_optional(tx)
            .await?
            .ok_or(Error::LeaseLost)
    }

    /// The status after a bad end: wanted to pause, once too often, or again after a while.
    pub(crate) fn after_crash(&self) -> JobStatus {
        match self.crashes + 1 {
            crashes if crashes >= CRASH_BUDGET => JobStatus::Failed,
            _ if self.desired == "pause" => JobStatus::Paused,
            _ => JobStatus::Queued,
        }
    }

    /// Five seconds, doubled with every crash in a row, at most five minutes.
    pub(crate) fn back_off(&self) -> Duration {
        Duration::from_secs((5 << self.crashes.clamp(0, 10)).min(300))
    }
}

/// A job's next state. Whatever is not said is cleared: no lease, no claim, no result.
#[derive(Default)]
pub(crate) struct Change<'a> {
    pub(crate) crashes: i32,
    /// Not to be claimed before so long from now.
    pub(crate) delay: Duration,
    pub(crate) error: Option<&'a JobError>,
    pub(crate) model: Option<&'a str>,
    pub(crate) trained_tokens: Option<i64>,
    /// The token, when the worker itself ended its lease.
    pub(crate) ended_lease: Option<Uuid>,
}

/// Moves a held job to `next`. The only statement that takes a job out of a status, but for the claims.
pub(crate) async fn change(
    tx: &mut PgConnection,
    held: &Held,
    next: JobStatus,
    change: Change<'_>,
) -> Result<()> {
    debug_assert!(held.status()?.may_become(next), "{} → {next}", held.status);
    let desired = match next {
        JobStatus::Queued => "run",
        JobStatus::Paused => "pause",
        JobStatus::Cancelled => "cancel",
        _ => held.desired.as_str(),
    };
    let changed = sqlx::query(
        "update jobs set status = $3, desired = $4, crashes = $5,
             run_after = clock_timestamp() + $6, error_code = $7, fine_tuned_model = $8,
             trained_tokens = $9, ended_lease = coalesce($10, ended_lease),
             finished_at = case when $11 then clock_timestamp() end,
             lease_token = null, lease_until = null, heartbeat_at = null, worker_id = null,
             validating_until = null
         where id = $1 and status = $2",
    )
    .bind(&held.id)
    .bind(&held.status)
    .bind(next.as_str())
    .bind(desired)
    .bind(change.crashes)
    .bind(crate::interval(change.delay))
    .bind(change.error.map(|error| text::clean(&error.code)))
    .bind(change.model)
    .bind(change.trained_tokens)
    .bind(change.ended_lease)
    .bind(next.is_terminal())
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if changed != 1 {
        return Err(Error::inconsistent("jobs", &held.id, "changed although it was locked"));
    }
    if next.is_terminal() {
        settle(tx, held, next, change.error).await?;
    }
    Ok(())
}

/// What belongs to every end: the error, the message to the outside, and no more checkpoints to resume.
async fn settle(
    tx: &mut PgConnection,
    held: &Held,
    next: JobStatus,
    error: Option<&JobError>,
) -> Result<()> {
    if let Some(error) = error {
        let error = json!({
            "code": text::clean(&error.code),
            "param": error.param.as_deref().map(text::clean),
            "message": text::clean_message(&error.message),
        });
        sqlx::query("update job_details set error = $2 where job_id = $1")
            .bind(&held.id)
            .bind(error)
            .execute(&mut *tx)
            .await?;
    }
    let kind = format!("fine_tuning.job.{next}");
    outbox::announce(tx, &held.project_id, &kind, Subject::Job(&held.id)).await?;
    retention::drop_unneeded(tx, held, retention::Need::NoRun).await
}

/// A failed job, with its last event.
pub(crate) async fn fail_held(
    tx: &mut PgConnection,
    held: &Held,
    error: &JobError,
    data: Value,
    ended_lease: Option<Uuid>,
) -> Result<()> {
    let ending =
        Change { crashes: held.crashes, error: Some(error), ended_lease, ..Change::default() };
    change(tx, held, JobStatus::Failed, ending).await?;
    events::append(tx, &held.id(), &[messages::failed(error, data)]).await
}

/// Renews the lease, and tells what is wanted of the run. `step` is the engine's counter.
pub async fn heartbeat(db: &Db, lease: &Lease, ttl: Duration, step: u64) -> Result<Directive> {
    let desired: Option<(String,)> = sqlx::query_as(
        "update jobs set lease_until = clock_timestamp() + $4, heartbeat_at = clock_timestamp(),
             heartbeat_step = $5
         where id = $1 and fence = $2 and lease_token = $3 and status = 'running'
         returning desired",
    )
    .bind(lease.job_id.as_str())
    .bind(lease.fence)
    .bind(lease.token)
    .bind(crate::interval(ttl))
    .bind(i64::try_from(step).unwrap_or(i64::MAX))
    .fetch_optional(&db.lease_pool)
    .await?;
    match desired.ok_or(Error::LeaseLost)?.0.as_str() {
        "pause" => Ok(Directive::Pause),
        _ => Ok(Directive::Continue),
    }
}

/// Turns reports into events and step metrics. Reports that are already recorded are passed over, so a
/// batch may be sent again; a gap is `Conflict::ReportGap`.
pub async fn record_reports(db: &Db, lease: &Lease, batch: &ReportBatch) -> Result<()> {
    let args = (lease.clone(), batch.clone());
    db.transact(Lane::Lease, args, |tx, (lease, batch)| Box::pin(record(tx, lease, batch))).await
}

async fn record(tx: &mut PgConnection, lease: &Lease, batch: &ReportBatch) -> Result<()> {
    let held = Held::by_lease(tx, lease).await?;
    let expected = held.reports_seq.unsigned_abs();
    let Some(known) = expected.checked_sub(batch.first_seq) else {
        return Err(Conflict::ReportGap { expected, got: batch.first_seq }.into());
    };
    let new = batch.reports.get(known as usize..).unwrap_or_default();
    if new.is_empty() {
        return Ok(());
    }
    let mut steps = BTreeMap::new();
    for report in new {
        if let RunReport::Step(metrics) = report {
            steps.insert(metrics.step, metrics);
        }
    }
    let started = new.iter().any(|report| matches!(report, RunReport::Started(_)));
    sqlx::query(
        "update jobs set reports_seq = reports_seq + $2,
             started_at = case when $3 then coalesce(started_at, clock_timestamp())
                          else started_at end
         where id = $1",
    )
    .bind(&held.id)
    .bind(new.len() as i64)
    .bind(started)
    .execute(&mut *tx)
    .await?;
    events::record_steps(tx, &lease.job_id, &steps).await?;
    let new: Vec<_> = new.iter().map(messages::report).collect();
    events::append(tx, &lease.job_id, &new).await
}

/// `running` → `failed`, or → `queued` when another attempt may succeed and the budget of five crashes
/// without progress is not used up. A repeated call is harmless.
pub async fn fail(db: &Db, lease: &Lease, failure: &RunFailure) -> Result<JobStatus> {
    let args = (lease.clone(), failure.clone());
    db.transact(Lane::Lease, args, |tx, (lease, failure)| Box::pin(fail_run(tx, lease, failure)))
        .await
}

async fn fail_run(tx: &mut PgConnection, lease: &Lease, failure: &RunFailure) -> Result<JobStatus> {
    let held = match Held::by_lease(tx, lease).await {
        Err(Error::LeaseLost) => return ended_by(tx, lease).await,
        other => other?,
    };
    let next = if failure.retryable { held.after_crash() } else { JobStatus::Failed };
    let ended_lease = Some(lease.token);
    if next == JobStatus::Failed {
        let RunFailure { code, param, message, .. } = failure.clone();
        let error = JobError { code, param, message };
        fail_held(tx, &held, &error, Value::Null, ended_lease).await?;
        return Ok(next);
    }
    let (crashes, delay) = (held.crashes + 1, held.back_off());
    change(tx, &held, next, Change { crashes, delay, ended_lease, ..Change::default() }).await?;
    events::append(tx, &lease.job_id, &[messages::retrying(failure)]).await?;
    Ok(next)
}

/// `running` → `queued` (drain), or → `paused` when that is wanted. Counts as no crash. A repeated call is
/// harmless.
pub async fn release(db: &Db, lease: &Lease) -> Result<JobStatus> {
    db.transact(Lane::Lease, lease.clone(), |tx, lease| Box::pin(release_run(tx, lease))).await
}

async fn release_run(tx: &mut PgConnection, lease: &Lease) -> Result<JobStatus> {
    let held = match Held::by_lease(tx, lease).await {
        Err(Error::LeaseLost) => return ended_by(tx, lease).await,
        other => other?,
    };
    let (next, event) = match held.desired.as_str() {
        "pause" => (JobStatus::Paused, messages::paused()),
        _ => (JobStatus::Queued, messages::released()),
    };
    let ending =
        Change { crashes: held.crashes, ended_lease: Some(lease.token), ..Change::default() };
    change(tx, &held, next, ending).await?;
    events::append(tx, &lease.job_id, &[event]).await?;
    Ok(next)
}

/// The present status of a job whose last lease was ended by its worker with this very token.
async fn ended_by(tx: &mut PgConnection, lease: &Lease) -> Result<JobStatus> {
    let status: Option<(String,)> =
        sqlx::query_as("select status from jobs where id = $1 and fence = $2 and ended_lease = $3")
            .bind(lease.job_id.as_str())
            .bind(lease.fence)
            .bind(lease.token)
            .fetch_optional(tx)
            .await?;
    jobs::parse_status(lease.job_id.as_str(), &status.ok_or(Error::LeaseLost)?.0)
}

/// The leased job; for calls that read on its behalf.
pub async fn leased_job(db: &Db, lease: &Lease) -> Result<JobRow> {
    db.transact(Lane::Lease, lease.clone(), |tx, lease| {
        Box::pin(async move {
            Held::by_lease(tx, lease).await?;
            jobs::load(tx, &lease.job_id).await
        })
    })
    .await
}

/// A training or validation file of the leased job.
pub async fn leased_file(db: &Db, lease: &Lease, file: &FileId) -> Result<FileRow> {
    let args = (lease.clone(), file.clone());
    db.transact(Lane::Lease, args, |tx, (lease, file)| {
        Box::pin(async move {
            let held = Held::by_lease(tx, lease).await?;
            let job = jobs::load(tx, &lease.job_id).await?;
            if job.training_file != *file && job.validation_file.as_ref() != Some(file) {
                return Err(Error::NotFound("file"));
            }
            files::of_job(tx, &held.project_id, file.as_str()).await
        })
    })
    .await
}
