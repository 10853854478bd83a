//! `queued` → `running`: whose turn it is, and everything that the worker must stage.

use std::time::Duration;

use domain::hyperparameters::Precision;
use domain::internal::{AdapterRef, BaseModel, CheckpointManifest};
use domain::plan::ResolvedHyperparameters;
use serde_json::Value;
use sqlx::PgConnection;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Held, Lease, fail_held, release, resume, retention};
use crate::base_models::{BaseModelRecord, BaseModelRow};
use crate::db::{Db, Lane};
use crate::error::{Error, Result};
use crate::files::{self, FileRow};
use crate::jobs::{self, JobError, JobRow};
use crate::models;

/// Claims of all servers take turns under this advisory lock, so that the count of running jobs per project
/// is exact. Claims are rare.
const CLAIM_LOCK: i64 = 0x66_74_63_6c_61_69_6d;

/// A run for a worker, with everything that it must stage.
#[derive(Debug, Clone)]
pub struct ClaimedJob {
    pub lease: Lease,
    pub job: JobRow,
    pub hyperparameters: ResolvedHyperparameters,
    pub base_model: BaseModel,
    pub training_file: FileRow,
    pub validation_file: Option<FileRow>,
    /// The tuned model that the job goes on from.
    pub start_from: Option<AdapterRef>,
    pub resume_from: Option<CheckpointManifest>,
}

/// Who asks for a run.
#[derive(Debug, Clone, Copy)]
pub struct Claimant<'a> {
    pub worker_id: &'a str,
    /// The [variant](BaseModel::variant) that it has warm.
    pub warm_model: Option<&'a str>,
    /// What `auto` becomes when this worker is a job's first.
    pub precision: Precision,
}

impl<'a> Claimant<'a> {
    /// Nothing warm, and a device that computes in f32.
    pub fn cold(worker_id: &'a str) -> Self {
        Self { worker_id, warm_model: None, precision: Precision::Fp32 }
    }
}

/// `queued` → `running`: the next run for this worker, if there is one.
///
/// First the project that has the fewest running jobs, then the one that has waited longest for a turn; within
/// it the highest priority, then a job for the model that the worker has warm (unless another has waited
/// five minutes already), then the oldest.
pub async fn claim(db: &Db, claimant: Claimant<'_>, ttl: Duration) -> Result<Option<ClaimedJob>> {
    let Claimant { worker_id, warm_model, precision } = claimant;
    note_worker(db, worker_id, warm_model).await?;
    let (waiting,): (bool,) = sqlx::query_as(
        "select exists (select 1 from jobs
                        where status = 'queued' and run_after <= statement_timestamp())",
    )
    .fetch_one(&db.pool)
    .await?;
    if !waiting {
        return Ok(None);
    }
    // Held until the transaction has ended, also if the caller is gone by then.
    let turn = db.claims.clone().lock_owned().await;
    let args = (turn, worker_id.to_owned(), warm_model.map(str::to_owned), precision, ttl);
    let (answer, claimed) = oneshot::channel();
    let db = db.clone();
    tokio::spawn(async move {
        let claimed = db
            .transact(Lane::Api, args, |tx, (_, worker_id, warm_model, precision, ttl)| {
                let warm_model = warm_model.as_deref();
                let claimant = Claimant { worker_id, warm_model, precision: *precision };
                Box::pin(claim_next(tx, claimant, *ttl))
            })
            .await;
        // The worker has hung up meanwhile: another need not wait until the lease is over.
        if let Err(Ok(Some(unwanted))) = answer.send(claimed) {
            release(&db, &unwanted.lease).await.ok();
        }
    });
    claimed.await.unwrap_or_else(|_| Err(Error::Unavailable("the claim broke off".to_owned())))
}

/// The statement of the claim: $1 worker, $2 warm model (a variant's name), $3 duration of the lease, $4 what
/// `auto` means on the worker's device.
pub(crate) const CLAIM: &str = "
    with turn as materialized (
        select p.id from projects p
        where exists (select 1 from jobs q where q.project_id = p.id and q.status = 'queued'
                      and q.run_after <= statement_timestamp())
        order by (select count(*) from jobs r where r.project_id = p.id and r.status = 'running'),
                 p.last_claim_at nulls first, p.id
        limit 1
    ), next as materialized (
        select j.id from jobs j
        where j.project_id = (select id from turn) and j.status = 'queued'
          and j.run_after <= statement_timestamp()
        order by j.priority desc,
                 (j.base_model
                  || coalesce((select '@' || (d.resolved ->> 'quantization')
                               from job_details d where d.job_id = j.id), '')
                  || coalesce((select '@' || nullif(replace(d.resolved ->> 'precision', 'auto', $4),
                                                    'fp32')
                               from job_details d where d.job_id = j.id), '')
                  is not distinct from $2
                  or j.run_after < statement_timestamp() - interval '5 minutes') desc,
                 j.run_after, j.id
        limit 1 for no key update skip locked
    )
    update jobs j set status = 'running', fence = j.fence + 1, lease_token = gen_random_uuid(),
        worker_id = $1, lease_until = clock_timestamp() + $3, heartbeat_at = clock_timestamp(),
        heartbeat_step = j.committed_step, reports_seq = 0, attempts = j.attempts + 1
    from next where j.id = next.id and j.status = 'queued'
    returning j.id, j.lease_token";

async fn claim_next(
    tx: &mut PgConnection,
    claimant: Claimant<'_>,
    ttl: Duration,
) -> Result<Option<ClaimedJob>> {
    sqlx::query("select pg_advisory_xact_lock($1)").bind(CLAIM_LOCK).execute(&mut *tx).await?;
    let claimed: Option<(String, Uuid)> = sqlx::query_as(CLAIM)
        .bind(claimant.worker_id)
        .bind(claimant.warm_model)
        .bind(crate::interval(ttl))
        .bind(claimant.precision.as_str())
        .fetch_optional(&mut *tx)
        .await?;
    let Some((id, token)) = claimed else { return Ok(None) };
    let held: Held = sqlx::query_as(super::hold!("id = $1")).bind(&id).fetch_one(&mut *tx).await?;
    sqlx::query("update projects set last_claim_at = clock_timestamp() where id = $1")
        .bind(&held.project_id)
        .execute(&mut *tx)
        .await?;
    retention::drop_unneeded(tx, &held, retention::Need::NewLease).await?;
    let lease = Lease { job_id: held.id(), fence: held.fence, token };
    match assemble(tx, &held, lease, claimant.precision).await {
        Ok(claimed) => Ok(Some(claimed)),
        Err(error @ (Error::NotFound(_) | Error::Inconsistent(_))) => {
            // It would be claimed again and again, and hold up all others.
            let error = JobError {
                code: "internal_error".to_owned(),
                param: None,
                message: format!("The job cannot be run any more: {error}."),
            };
            fail_held(tx, &held, &error, Value::Null, None).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn assemble(
    tx: &mut PgConnection,
    held: &Held,
    lease: Lease,
    native: Precision,
) -> Result<ClaimedJob> {
    let mut job = jobs::load(tx, &lease.job_id).await?;
    let (project, id) = (&held.project_id, &held.id);
    let mut hyperparameters = job.resolved.clone().ok_or_else(|| {
        Error::inconsistent("job_details", id, "the hyperparameters are not resolved")
    })?;
    if hyperparameters.precision == Precision::Auto {
        hyperparameters.precision = native;
        decide_precision(tx, id, native).await?;
        job.resolved = Some(hyperparameters.clone());
    }
    let model: Option<BaseModelRecord> = sqlx::query_as("select * from base_models where id = $1")
        .bind(&held.base_model)
        .fetch_optional(&mut *tx)
        .await?;
    let model: BaseModelRow = model.ok_or(Error::NotFound("base model"))?.into();
    let training_file = files::of_job(tx, project, job.training_file.as_str()).await?;
    let validation_file = match &job.validation_file {
        Some(file) => Some(files::of_job(tx, project, file.as_str()).await?),
        None => None,
    };
    let start_from = match &job.start {
        Some(start) => Some(models::files_of(tx, &start.model).await?),
        None => None,
    };
    let resume_from = resume::latest(tx, id).await?.map(|record| record.to_manifest());
    let (quantization, precision) = (hyperparameters.quantization, hyperparameters.precision);
    let base_model = BaseModel { quantization, precision, ..model.to_manifest() };
    Ok(ClaimedJob {
        lease,
        job,
        hyperparameters,
        base_model,
        training_file,
        validation_file,
        start_from,
        resume_from,
    })
}

/// The first worker's device decides for all attempts, and for the model's answers.
async fn decide_precision(tx: &mut PgConnection, job: &str, precision: Precision) -> Result<()> {
    sqlx::query(
        "update job_details set resolved = jsonb_set(resolved, '{precision}', to_jsonb($2))
         where job_id = $1",
    )
    .bind(job)
    .bind(precision.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// Who asks; written at most every ten seconds.
async fn note_worker(db: &Db, worker_id: &str, warm_model: Option<&str>) -> Result<()> {
    sqlx::query(
        "insert into workers (id, warm_model) values ($1, $2)
         on conflict (id) do update set warm_model = $2, seen_at = clock_timestamp()
         where workers.seen_at < clock_timestamp() - interval '10 seconds'
            or workers.warm_model is distinct from $2",
    )
    .bind(worker_id)
    .bind(warm_model)
    .execute(&db.pool)
    .await?;
    Ok(())
}
