//! Checkpoints as users see them.

use domain::report::StepMetrics;
use domain::{CheckpointId, JobId, ModelId};
use time::OffsetDateTime;

use crate::db::Db;
use crate::error::Result;
use crate::page::{Page, PageQuery};
use crate::projects::Project;

/// A checkpoint that is a model of its own.
#[derive(Debug, Clone)]
pub struct CheckpointRow {
    pub id: CheckpointId,
    pub job_id: JobId,
    pub step: u64,
    /// The newest one's is the tuned model itself, once the job has succeeded.
    pub model: ModelId,
    pub metrics: StepMetrics,
    pub created_at: OffsetDateTime,
}

/// The visible checkpoints (at most three), the highest step first.
pub async fn list(
    db: &Db,
    project: &Project,
    job: &JobId,
    page: &PageQuery,
) -> Result<Page<CheckpointRow>> {
    let _ = (db, project, job, page);
    crate::unwritten()
}
