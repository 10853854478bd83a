//! What users want of a job: cancel, pause, resume. Each is one transaction that ends with the job as it then is.

use domain::{JobId, JobStatus};
use sqlx::PgConnection;

use super::{Change, Held, change, hold};
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::events;
use crate::jobs::{self, JobRow};
use crate::messages;
use crate::projects::Project;

/// Any status that is not terminal → `cancelled`, at once: the lease is void.
pub async fn cancel(db: &Db, project: &Project, id: &JobId) -> Result<JobRow> {
    let args = (project.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, id)| {
        Box::pin(async move {
            let held = held_alive(tx, project, id).await?;
            let ending = Change { crashes: held.crashes, ..Change::default() };
            change(tx, &held, JobStatus::Cancelled, ending).await?;
            events::append(tx, id, &[messages::cancelled()]).await?;
            jobs::load(tx, id).await
        })
    })
    .await
}

/// `queued` → `paused` at once; a running job is asked to write a checkpoint and stop.
pub async fn pause(db: &Db, project: &Project, id: &JobId) -> Result<JobRow> {
    let args = (project.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, id)| {
        Box::pin(async move {
            let held = held_alive(tx, project, id).await?;
            let event = match held.status()? {
                JobStatus::Queued => {
                    let ending = Change { crashes: held.crashes, ..Change::default() };
                    change(tx, &held, JobStatus::Paused, ending).await?;
                    Some(messages::paused())
                }
                JobStatus::Running if held.desired == "run" => {
                    set_desired(tx, &held, "pause").await?;
                    Some(messages::pausing())
                }
                JobStatus::Running | JobStatus::Paused => None,
                status => {
                    return Err(
                        Conflict::JobState { job: id.clone(), status, wanted: "paused" }.into()
                    );
                }
            };
            events::append(tx, id, event.as_slice()).await?;
            jobs::load(tx, id).await
        })
    })
    .await
}

/// `paused` → `queued`; takes back the request to pause of a running job.
pub async fn resume(db: &Db, project: &Project, id: &JobId) -> Result<JobRow> {
    let args = (project.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, id)| {
        Box::pin(async move {
            let held = held_alive(tx, project, id).await?;
            let event = match held.status()? {
                JobStatus::Paused => {
                    let ending = Change { crashes: held.crashes, ..Change::default() };
                    change(tx, &held, JobStatus::Queued, ending).await?;
                    Some(messages::resumed())
                }
                JobStatus::Running if held.desired == "pause" => {
                    set_desired(tx, &held, "run").await?;
                    Some(messages::pause_withdrawn())
                }
                JobStatus::Running | JobStatus::Queued => None,
                status => {
                    return Err(
                        Conflict::JobState { job: id.clone(), status, wanted: "resumed" }.into()
                    );
                }
            };
            events::append(tx, id, event.as_slice()).await?;
            jobs::load(tx, id).await
        })
    })
    .await
}

/// The project's job, locked; `Conflict::JobEnded` when there is nothing left to want of it.
async fn held_alive(tx: &mut PgConnection, project: &Project, id: &JobId) -> Result<Held> {
    let held: Option<Held> =
        sqlx::query_as(hold!("id = $1 and project_id = $2 and deleted_at is null"))
            .bind(id.as_str())
            .bind(project.id.as_str())
            .fetch_optional(tx)
            .await?;
    let held = held.ok_or(Error::NotFound("job"))?;
    match held.status()? {
        status if status.is_terminal() => {
            Err(Conflict::JobEnded { job: id.clone(), status }.into())
        }
        _ => Ok(held),
    }
}

async fn set_desired(tx: &mut PgConnection, held: &Held, desired: &str) -> Result<()> {
    sqlx::query("update jobs set desired = $2 where id = $1 and status = 'running'")
        .bind(&held.id)
        .bind(desired)
        .execute(tx)
        .await?;
    Ok(())
}
