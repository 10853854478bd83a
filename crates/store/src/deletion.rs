//! Deleting a job that has ended: what it left goes, its row stays out of sight.
//!
//! The row stays because its models stay: they answer, and can be deleted, as before. What was used stays
//! counted too.

use std::time::Duration;

use domain::{FileId, JobId};
use sqlx::PgConnection;

use crate::blob::BlobKey;
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::garbage;
use crate::idempotency::{self, Created};
use crate::projects::Project;
use crate::queue::{self, Held, hold};

/// A download that has just begun may still be reading.
const DELETED_STAY: Duration = Duration::from_secs(600);

/// Deletes a job, its events, metrics, result files and checkpoints that are no models. `Conflict::JobAlive`
/// before it has ended.
pub async fn delete(db: &Db, project: &Project, id: &JobId) -> Result<()> {
    let args = (project.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, id)| Box::pin(remove(tx, project, id))).await
}

async fn remove(tx: &mut PgConnection, project: &Project, id: &JobId) -> Result<()> {
    let held: Option<Held> =
        sqlx::query_as(hold!("id = $1 and project_id = $2 and deleted_at is null"))
            .bind(id.as_str())
            .bind(project.id.as_str())
            .fetch_optional(&mut *tx)
            .await?;
    let held = held.ok_or(Error::NotFound("job"))?;
    let status = held.status()?;
    if !status.is_terminal() {
        return Err(Conflict::JobAlive { job: id.clone(), status }.into());
    }
    remove_results(tx, project, id).await?;
    let unnamed: Vec<(String,)> = sqlx::query_as(
        "select id from checkpoints where job_id = $1 and model is null and state <> 'garbage'",
    )
    .bind(id.as_str())
    .fetch_all(&mut *tx)
    .await?;
    let unnamed: Vec<String> = unnamed.into_iter().map(|(id,)| id).collect();
    queue::discard(tx, id, &unnamed, DELETED_STAY).await?;
    for statement in [
        "delete from checkpoints where job_id = $1 and model is null",
        "delete from events where job_id = $1",
        "delete from step_metrics where job_id = $1",
        "delete from reports where job_id = $1",
        "update job_details set metadata = null, result_files = '{}', error = null, dataset = null,
             integrations = '[]' where job_id = $1",
        "update jobs set deleted_at = clock_timestamp() where id = $1",
    ] {
        sqlx::query(statement).bind(id.as_str()).execute(&mut *tx).await?;
    }
    idempotency::forget(tx, project.id.as_str(), Created::Job, id.as_str()).await
}

async fn remove_results(tx: &mut PgConnection, project: &Project, id: &JobId) -> Result<()> {
    let gone: Vec<(String,)> = sqlx::query_as(
        "delete from files where project_id = $2 and id in (
             select unnest(result_files) from job_details where job_id = $1)
         returning id",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_all(&mut *tx)
    .await?;
    let key =
        |file: String| BlobKey::File { project: project.id.clone(), file: FileId::from(file) };
    let paths: Vec<String> = gone.into_iter().map(|(file,)| key(file).path()).collect();
    garbage::add(tx, project.id.as_str(), &paths, "deleted", DELETED_STAY).await
}
