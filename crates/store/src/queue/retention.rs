//! Which checkpoints are kept: the last three of epochs, which are models, and the newest of all, to resume from.

use std::time::Duration;

use domain::JobId;
use sqlx::PgConnection;

use super::Held;
use super::checkpoint::Record;
use crate::error::Result;
use crate::garbage;

/// Checkpoints of epochs that are kept, the final one included.
const VISIBLE: i64 = 3;
/// Somebody may be reading a superseded checkpoint, or still writing an abandoned one.
const SUPERSEDED_STAY: Duration = Duration::from_secs(600);
const ABANDONED_STAY: Duration = Duration::from_secs(3600);

/// Which checkpoints a change has made unnecessary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A newer one is committed.
    Superseded,
    /// An earlier lease's unfinished ones never will be.
    NewLease,
    /// The job has ended: no unfinished ones, none that serve only to resume, and none of an epoch that the
    /// final one repeats.
    NoRun,
}

/// Gives checkpoints that are not needed any more over to removal, with their models.
pub(super) async fn drop_unneeded(tx: &mut PgConnection, held: &Held, need: Need) -> Result<()> {
    let (statement, stay) = match need {
        Need::Superseded => (
            "select id from checkpoints c where job_id = $1 and state = 'committed' and (
                 (kind = 'resume' and id <> (
                     select id from checkpoints where job_id = $1 and state = 'committed'
                     order by step desc, committed_at desc limit 1))
                 or (kind = 'epoch' and id not in (
                     select id from checkpoints
                     where job_id = $1 and state = 'committed' and kind = 'epoch'
                     order by step desc, committed_at desc limit $3))
                 or (kind = 'epoch' and exists (
                     select 1 from checkpoints n where n.job_id = $1 and n.state = 'committed'
                     and n.kind = 'epoch' and n.step = c.step and n.committed_at > c.committed_at)))
             and $2::bigint is not null",
            SUPERSEDED_STAY,
        ),
        Need::NewLease => (
            "select id from checkpoints where job_id = $1 and state = 'writing' and fence < $2
             and $3::bigint is not null",
            ABANDONED_STAY,
        ),
        Need::NoRun => (
            "select c.id from checkpoints c where job_id = $1 and (
                 state in ('writing', 'corrupt')
                 or (state = 'committed' and kind = 'resume')
                 or (state = 'committed' and kind = 'final' and model is null)
                 or (state = 'committed' and kind = 'epoch' and exists (
                     select 1 from checkpoints f
                     where f.job_id = $1 and f.kind = 'final' and f.model is not null
                     and (f.step = c.step or c.id not in (
                         select id from checkpoints
                         where job_id = $1 and state = 'committed' and kind = 'epoch'
                           and step < f.step
                         order by step desc, committed_at desc limit $3 - 1)))))
             and $2::bigint is not null",
            ABANDONED_STAY,
        ),
    };
    let ids: Vec<(String,)> = sqlx::query_as(statement)
        .bind(&held.id)
        .bind(held.fence)
        .bind(VISIBLE)
        .fetch_all(&mut *tx)
        .await?;
    let ids: Vec<String> = ids.into_iter().map(|(id,)| id).collect();
    discard(tx, &held.id(), &ids, stay).await
}

/// Which of these checkpoints jobs that have not ended start from, each with such a job. The checkpoints stay
/// locked: nothing begins to start from them before the transaction ends.
pub(crate) async fn starts(tx: &mut PgConnection, ids: &[String]) -> Result<Vec<(String, JobId)>> {
    sqlx::query("select 1 from checkpoints where id = any($1) order by id for update")
        .bind(ids)
        .execute(&mut *tx)
        .await?;
    let used: Vec<(String, String)> = sqlx::query_as(
        "select distinct on (d.start_checkpoint) d.start_checkpoint, j.id
         from job_details d join jobs j on j.id = d.job_id
         where d.start_checkpoint = any($1)
           and j.status in ('validating_files', 'queued', 'running', 'paused')
         order by d.start_checkpoint, j.id",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    Ok(used.into_iter().map(|(checkpoint, job)| (checkpoint, job.into())).collect())
}

/// Marks checkpoints as garbage, and their blobs for removal in `stay` from now; not those that another job
/// starts from, which stay as they are.
pub(crate) async fn discard(
    tx: &mut PgConnection,
    job: &JobId,
    ids: &[String],
    stay: Duration,
) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let used = starts(tx, ids).await?;
    let is_free = |id: &&String| !used.iter().any(|(used, _)| used == *id);
    let ids: &[String] = &ids.iter().filter(is_free).cloned().collect::<Vec<_>>();
    sqlx::query("delete from models where checkpoint_id = any($1)")
        .bind(ids)
        .execute(&mut *tx)
        .await?;
    let gone: Vec<Record> = sqlx::query_as(
        "update checkpoints set state = 'garbage', model = null
         where id = any($1) and job_id = $2 and state <> 'garbage'
         returning id, project_id, job_id, step, kind, state, files, trained_tokens",
    )
    .bind(ids)
    .bind(job.as_str())
    .fetch_all(&mut *tx)
    .await?;
    for record in gone {
        let paths: Vec<String> =
            record.files.iter().map(|file| record.blob_key(&file.name).path()).collect();
        garbage::add(tx, &record.project_id, &paths, "superseded", stay).await?;
    }
    Ok(())
}
