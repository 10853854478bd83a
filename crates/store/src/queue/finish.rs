//! `running` → `succeeded`: one transaction in which the final checkpoint becomes the tuned model, the result
//! files become visible, and the job ends.

use std::sync::Arc;

use domain::internal::FinishRun;
use domain::report::CheckpointKind;
use domain::{JobStatus, ModelId};
use sqlx::PgConnection;

use super::{Change, Held, Lease, change, checkpoint};
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::events;
use crate::files::{self, NewFile, Uploaded};
use crate::messages;

type Results = Arc<Vec<(Uploaded, NewFile)>>;

/// `running` → `succeeded`: the committed final checkpoint becomes the tuned model, the result files
/// become visible. A repeated call gives the first result; its result files are dropped. The tokens that
/// count are those of the checkpoint.
pub async fn finish(
    db: &Db,
    lease: &Lease,
    finish: &FinishRun,
    results: Vec<(Uploaded, NewFile)>,
) -> Result<ModelId> {
    let results: Results = Arc::new(results);
    let args = (lease.clone(), finish.clone(), results.clone());
    let (model, first) = db
        .transact(Lane::Lease, args, |tx, (lease, finish, results)| {
            Box::pin(succeed(tx, lease, finish, results))
        })
        .await?;
    if first {
        results.iter().for_each(|(upload, _)| upload.mark_visible());
    }
    Ok(model)
}

/// The tuned model, and whether this call made it.
async fn succeed(
    tx: &mut PgConnection,
    lease: &Lease,
    finish: &FinishRun,
    results: &Results,
) -> Result<(ModelId, bool)> {
    let held = match Held::by_lease(tx, lease).await {
        Err(Error::LeaseLost) => return Ok((first_result(tx, lease, finish).await?, false)),
        other => other?,
    };
    let record = checkpoint::Record::of_job(tx, &held.id, &finish.checkpoint_id).await?;
    if record.kind != CheckpointKind::Final.as_str() || record.state != "committed" {
        let (id, kind, state) = (&record.id, &record.kind, &record.state);
        let problem = format!("checkpoint {id} is {state} and {kind}, not committed and final");
        return Err(Conflict::Checkpoint(problem).into());
    }
    let slug = checkpoint::organization_slug(tx, &held.project_id).await?;
    let suffix = checkpoint::suffix(tx, &held.id).await?;
    let model = ModelId::tuned(&held.base_model, &slug, suffix.as_deref());
    checkpoint::insert_model(tx, &held, &record, &model, "tuned").await?;
    let mut result_files = Vec::new();
    for (upload, new) in results.iter() {
        result_files.push(files::insert(tx, upload, new).await?.id.to_string());
    }
    sqlx::query("update job_details set result_files = $2 where job_id = $1")
        .bind(&held.id)
        .bind(result_files)
        .execute(&mut *tx)
        .await?;
    let ending = Change {
        model: Some(model.as_str()),
        trained_tokens: Some(record.trained_tokens),
        ended_lease: Some(lease.token),
        ..Change::default()
    };
    change(tx, &held, JobStatus::Succeeded, ending).await?;
    let last = [messages::model_created(&model), messages::succeeded()];
    events::append(tx, &lease.job_id, &last).await?;
    Ok((model, true))
}

/// What an earlier call with the same lease and checkpoint has made; else the lease is lost.
async fn first_result(tx: &mut PgConnection, lease: &Lease, finish: &FinishRun) -> Result<ModelId> {
    let model: Option<(String,)> = sqlx::query_as(
        "select j.fine_tuned_model from jobs j
         where j.id = $1 and j.fence = $2 and j.ended_lease = $3 and j.status = 'succeeded'
           and exists (select 1 from checkpoints c
                       where c.id = $4 and c.job_id = j.id and c.kind = 'final')",
    )
    .bind(lease.job_id.as_str())
    .bind(lease.fence)
    .bind(lease.token)
    .bind(finish.checkpoint_id.as_str())
    .fetch_optional(tx)
    .await?;
    Ok(model.ok_or(Error::LeaseLost)?.0.into())
}
