//! Following jobs: which of many have new events, and those events. Two statements serve a whole server,
//! however many readers it has.

use std::collections::HashMap;

use domain::{JobId, JobStatus};
use sqlx::FromRow;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::events::{EventRecord, EventRow};
use crate::jobs::parse_status;
use crate::projects::Project;

/// How far a job has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The number of its last event.
    pub event_seq: i64,
    /// Nothing follows that event.
    pub has_ended: bool,
}

/// A followed job that has moved, with its latest events. None of a job that is gone.
#[derive(Debug, Clone)]
pub struct Moved {
    pub progress: Option<Progress>,
    /// The last ones, in order; at most as many as were asked for.
    pub events: Vec<EventRow>,
}

/// How far a job has come. `NotFound` for one that the project has not.
pub async fn progress(db: &Db, project: &Project, job: &JobId) -> Result<Progress> {
    let row: Option<(i64, String)> = sqlx::query_as(
        "select event_seq, status from jobs
         where id = $1 and project_id = $2 and deleted_at is null",
    )
    .bind(job.as_str())
    .bind(project.id.as_str())
    .fetch_optional(&db.pool)
    .await?;
    let (event_seq, status) = row.ok_or(Error::NotFound("job"))?;
    Ok(Progress { event_seq, has_ended: parse_status(job.as_str(), &status)?.is_terminal() })
}

/// The number of an event of the job, if it has it.
pub async fn seq_of(db: &Db, job: &JobId, event: &str) -> Result<Option<i64>> {
    let row: Option<(i64,)> =
        sqlx::query_as("select seq from events where id = $1 and job_id = $2")
            .bind(event)
            .bind(job.as_str())
            .fetch_optional(&db.pool)
            .await?;
    Ok(row.map(|(seq,)| seq))
}

#[derive(FromRow)]
struct MovedEvent {
    job_id: String,
    #[sqlx(flatten)]
    event: EventRecord,
}

/// Of the jobs in `seen` (with the number of the last event that is known), those that have newer events, have
/// ended or are gone; of each its last events, at most `most`.
pub async fn moved(db: &Db, seen: &[(JobId, i64)], most: u32) -> Result<HashMap<JobId, Moved>> {
    let ids: Vec<&str> = seen.iter().map(|(id, _)| id.as_str()).collect();
    let seqs: Vec<i64> = seen.iter().map(|(_, seq)| *seq).collect();
    let rows: Vec<(String, i64, Option<i64>, Option<String>)> = sqlx::query_as(
        "select w.id, w.seq, j.event_seq, j.status
         from unnest($1::text[], $2::bigint[]) as w (id, seq)
              left join jobs j on j.id = w.id and j.deleted_at is null
         where j.id is null or j.event_seq > w.seq
            or j.status in ('succeeded', 'failed', 'cancelled')",
    )
    .bind(&ids)
    .bind(&seqs)
    .fetch_all(&db.pool)
    .await?;
    let mut moved = HashMap::new();
    let (mut newer, mut known) = (Vec::new(), Vec::new());
    for (id, seen, event_seq, status) in rows {
        let progress = match (event_seq, status) {
            (Some(event_seq), Some(status)) => {
                let status: JobStatus = parse_status(&id, &status)?;
                if event_seq > seen {
                    newer.push(id.clone());
                    known.push(seen);
                }
                Some(Progress { event_seq, has_ended: status.is_terminal() })
            }
            _ => None,
        };
        moved.insert(JobId::from(id), Moved { progress, events: Vec::new() });
    }
    if newer.is_empty() {
        return Ok(moved);
    }
    let events: Vec<MovedEvent> = sqlx::query_as(
        "select w.id as job_id, e.id, e.seq, e.level, e.type, e.message, e.data, e.created_at
         from unnest($1::text[], $2::bigint[]) as w (id, seen)
              cross join lateral (
                  select * from events where job_id = w.id and seq > w.seen
                  order by seq desc limit $3) e
         order by w.id, e.seq",
    )
    .bind(&newer)
    .bind(&known)
    .bind(i64::from(most))
    .fetch_all(&db.pool)
    .await?;
    for MovedEvent { job_id, event } in events {
        if let Some(moved) = moved.get_mut(&JobId::from(job_id)) {
            moved.events.push(event.into());
        }
    }
    Ok(moved)
}

/// Events of a job with a number above `seq`, oldest first; by a reader whose right to them was established.
pub async fn backlog(db: &Db, job: &JobId, seq: i64, most: u32) -> Result<Vec<EventRow>> {
    let records: Vec<EventRecord> = sqlx::query_as(
        "select id, seq, level, type, message, data, created_at from events
         where job_id = $1 and seq > $2 order by seq limit $3",
    )
    .bind(job.as_str())
    .bind(seq)
    .bind(i64::from(most))
    .fetch_all(&db.pool)
    .await?;
    Ok(records.into_iter().map(Into::into).collect())
}
