//! Events of a job, numbered without gaps, and the metrics of its steps.
//!
//! The number comes from a counter in the job's row, taken under the row's lock: the order of numbers is the
//! order of commits, and a reader who has seen number n has seen all before it.

use std::collections::BTreeMap;

use domain::report::{Level, StepMetrics};
use domain::{EventId, JobId};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::page::{Page, PageQuery};
use crate::projects::Project;
use crate::text;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Message,
    Metrics,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Metrics => "metrics",
        }
    }
}

#[derive(Debug, Clone)]
pub struct EventRow {
    pub id: EventId,
    /// 1, 2, 3, … within the job.
    pub seq: i64,
    pub level: Level,
    pub kind: EventType,
    pub message: String,
    pub data: Option<Value>,
    pub created_at: OffsetDateTime,
}

/// An event to be appended.
pub(crate) struct NewEvent {
    pub(crate) level: Level,
    pub(crate) kind: EventType,
    pub(crate) message: String,
    pub(crate) data: Option<Value>,
}

#[derive(FromRow)]
pub(crate) struct EventRecord {
    id: String,
    seq: i64,
    level: String,
    r#type: String,
    message: String,
    data: Option<Value>,
    created_at: OffsetDateTime,
}

impl From<EventRecord> for EventRow {
    fn from(record: EventRecord) -> Self {
        // The columns' CHECKs admit no other words.
        let level = match record.level.as_str() {
            "error" => Level::Error,
            "warn" => Level::Warn,
            _ => Level::Info,
        };
        let kind = if record.r#type == "metrics" { EventType::Metrics } else { EventType::Message };
        Self {
            id: record.id.into(),
            seq: record.seq,
            level,
            kind,
            message: record.message,
            data: record.data,
            created_at: record.created_at,
        }
    }
}

/// Events of a job; `NotFound` for an unknown job, an empty page for an unknown `after`.
pub async fn list(
    db: &Db,
    project: &Project,
    job: &JobId,
    page: &PageQuery,
) -> Result<Page<EventRow>> {
    crate::jobs::require(db, project, job).await?;
    let records: Vec<EventRecord> = sqlx::query_as(page.sql(
        "select id, seq, level, type, message, data, created_at from events
         where job_id = $1 and project_id = $2
           and ($3::text is null or
                seq {after} (select seq from events where id = $3 and job_id = $1))
         order by seq {way} limit $4",
    ))
    .bind(job.as_str())
    .bind(project.id.as_str())
    .bind(page.after.as_deref())
    .bind(page.fetch_limit())
    .fetch_all(&db.pool)
    .await?;
    Ok(Page::from_rows(records.into_iter().map(Into::into).collect(), page))
}

/// Events with a number above `seq`, oldest first, at most `limit`: for following a job.
pub async fn since(
    db: &Db,
    project: &Project,
    job: &JobId,
    seq: i64,
    limit: u32,
) -> Result<Vec<EventRow>> {
    crate::jobs::require(db, project, job).await?;
    let records: Vec<EventRecord> = sqlx::query_as(
        "select id, seq, level, type, message, data, created_at from events
         where job_id = $1 and project_id = $2 and seq > $3 order by seq limit $4",
    )
    .bind(job.as_str())
    .bind(project.id.as_str())
    .bind(seq)
    .bind(i64::from(limit))
    .fetch_all(&db.pool)
    .await?;
    Ok(records.into_iter().map(Into::into).collect())
}

/// One row per step, by step; of a step that ran more than once, the last report.
pub async fn step_metrics(db: &Db, job: &JobId) -> Result<Vec<StepMetrics>> {
    let records: Vec<(Json<StepMetrics>,)> =
        sqlx::query_as("select metrics from step_metrics where job_id = $1 order by step")
            .bind(job.as_str())
            .fetch_all(&db.pool)
            .await?;
    Ok(records.into_iter().map(|(metrics,)| metrics.0).collect())
}

/// Appends events to a job that the caller's transaction has locked.
pub(crate) async fn append(tx: &mut PgConnection, job: &JobId, events: &[NewEvent]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let count = events.len() as i64;
    let counter: Option<(i64, i64, String)> = sqlx::query_as(
        "update jobs set event_seq = event_seq + $2 where id = $1
         returning event_seq, fence, project_id",
    )
    .bind(job.as_str())
    .bind(count)
    .fetch_optional(&mut *tx)
    .await?;
    let (last, fence, project) = counter.ok_or(Error::NotFound("job"))?;
    let ids: Vec<String> = events.iter().map(|_| EventId::new().to_string()).collect();
    let levels: Vec<&str> = events.iter().map(|event| event.level.as_str()).collect();
    let types: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    let messages: Vec<String> =
        events.iter().map(|event| text::clean_message(&event.message)).collect();
    let data: Vec<Option<Value>> =
        events.iter().map(|event| event.data.as_ref().map(text::clean_json)).collect();
    sqlx::query(
        "insert into events (job_id, project_id, fence, seq, id, level, type, message, data)
         select $1, $2, $3, $4 + n, id, level, type, message, data
         from unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::jsonb[])
              with ordinality as new (id, level, type, message, data, n)",
    )
    .bind(job.as_str())
    .bind(project)
    .bind(fence)
    .bind(last - count)
    .bind(ids)
    .bind(levels)
    .bind(types)
    .bind(messages)
    .bind(data)
    .execute(tx)
    .await?;
    Ok(())
}

/// Keeps the numbers of steps; a step that runs again replaces its numbers.
pub(crate) async fn record_steps(
    tx: &mut PgConnection,
    job: &JobId,
    steps: &BTreeMap<u64, &StepMetrics>,
) -> Result<()> {
    if steps.is_empty() {
        return Ok(());
    }
    let numbers: Vec<i64> = steps.keys().map(|step| *step as i64).collect();
    let metrics: Vec<Json<&StepMetrics>> = steps.values().map(|step| Json(*step)).collect();
    sqlx::query(
        "insert into step_metrics (job_id, project_id, fence, step, metrics)
         select j.id, j.project_id, j.fence, new.step, new.metrics
         from jobs j, unnest($2::bigint[], $3::jsonb[]) as new (step, metrics) where j.id = $1
         on conflict (job_id, step) do update set
             metrics = excluded.metrics, fence = excluded.fence, recorded_at = clock_timestamp()",
    )
    .bind(job.as_str())
    .bind(numbers)
    .bind(metrics)
    .execute(tx)
    .await?;
    Ok(())
}
