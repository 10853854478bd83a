//! Events of a job, numbered without gaps, and the metrics of its steps.

use domain::report::{Level, StepMetrics};
use domain::{EventId, JobId};
use serde_json::Value;
use time::OffsetDateTime;

use crate::db::Db;
use crate::error::Result;
use crate::page::{Page, PageQuery};
use crate::projects::Project;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Message,
    Metrics,
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

/// Events of a job; `NotFound` for an unknown job, an empty page for an unknown `after`.
pub async fn list(
    db: &Db,
    project: &Project,
    job: &JobId,
    page: &PageQuery,
) -> Result<Page<EventRow>> {
    let _ = (db, project, job, page);
    crate::unwritten()
}

/// Events with a number above `seq`, oldest first, at most `limit`: for following a job.
pub async fn since(
    db: &Db,
    project: &Project,
    job: &JobId,
    seq: i64,
    limit: u32,
) -> Result<Vec<EventRow>> {
    let _ = (db, project, job, seq, limit);
    crate::unwritten()
}

/// One row per step, by step; of a step that ran more than once, the last report.
pub async fn step_metrics(db: &Db, job: &JobId) -> Result<Vec<StepMetrics>> {
    let _ = (db, job);
    crate::unwritten()
}
