//! `queued` → `running`: whose turn it is, and everything that the worker must stage.

use std::time::Duration;

use domain::internal::{BaseModel, CheckpointManifest};
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
    pub resume_from: Option<CheckpointManifest>,
}

/// `queued` → `running`: the next run for this worker, if there is one.
///
/// First the project that has the fewest running jobs, then the one that has waited longest for a turn; within
/// it the highest priority, then a job for the model that the worker has warm (unless another has waited
/// five minutes already), then the oldest.
pub async fn claim(
    db: &Db,
    worker_id: &str,
    warm_model: Option<&str>,
    ttl: Duration,
) -> Result<Option<ClaimedJob>> {
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
    let args = (turn, worker_id.to_owned(), warm_model.map(str::to_owned), ttl);
    let (answer, claimed) = oneshot::channel();
    let db = db.clone();
    tokio::spawn(async move {
        let claimed = db
            .transact(Lane::Api, args, |tx, (_, worker_id, warm_model, ttl)| {
                Box::pin(claim_next(tx, worker_id, warm_model.as_deref(), *ttl))
            })
            .await;
        // The worker has hung up meanwhile: another need not wait until the lease is over.
        if let Err(Ok(Some(unwanted))) = answer.send(claimed) {
            release(&db, &unwanted.lease).await.ok();
        }
    });
    claimed.await.unwrap_or_else(|_| Err(Error::Unavailable("the claim broke off".to_owned())))
}

/// The statement of the claim: $1 worker, $2 warm model (a variant's name), $3 duration of the lease.
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
                 (j.base_model || coalesce((select '@' || (d.resolved ->> 'quantization')
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
    worker_id: &str,
    warm_model: Option<&str>,
    ttl: Duration,
) -> Result<Option<ClaimedJob>> {
    sqlx::query("select pg_advisory_xact_lock($1)").bind(CLAIM_LOCK).execute(&mut *tx).await?;
    let claimed: Option<(String, Uuid)> = sqlx::query_as(CLAIM)
        .bind(worker_id)
        .bind(warm_model)
        .bind(crate::interval(ttl))
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
    match assemble(tx, &held, lease).await {
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

async fn assemble(tx: &mut PgConnection, held: &Held, lease: Lease) -> Result<ClaimedJob> {
    let job = jobs::load(tx, &lease.job_id).await?;
    let (project, id) = (&held.project_id, &held.id);
    let hyperparameters = job.resolved.clone().ok_or_else(|| {
        Error::inconsistent("job_details", id, "the hyperparameters are not resolved")
    })?;
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
    let resume_from = resume::latest(tx, id).await?.map(|record| record.to_manifest());
    let quantization = hyperparameters.quantization;
    let base_model = BaseModel { quantization, ..model.to_manifest() };
    Ok(ClaimedJob {
        lease,
        job,
        hyperparameters,
        base_model,
        training_file,
        validation_file,
        resume_from,
    })
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
