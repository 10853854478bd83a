//! Checkpoints as users see them: those that are models. Writing them is in [`crate::queue`].

use domain::report::StepMetrics;
use domain::{CheckpointId, JobId, ModelId};
use sqlx::FromRow;
use sqlx::types::Json;
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

#[derive(FromRow)]
struct CheckpointRecord {
    id: String,
    job_id: String,
    step: i64,
    model: String,
    metrics: Json<StepMetrics>,
    committed_at: OffsetDateTime,
}

impl From<CheckpointRecord> for CheckpointRow {
    fn from(record: CheckpointRecord) -> Self {
        Self {
            id: record.id.into(),
            job_id: record.job_id.into(),
            step: record.step.unsigned_abs(),
            model: record.model.into(),
            metrics: record.metrics.0,
            created_at: record.committed_at,
        }
    }
}

/// The visible checkpoints (at most three), the highest step first.
pub async fn list(
    db: &Db,
    project: &Project,
    job: &JobId,
    page: &PageQuery,
) -> Result<Page<CheckpointRow>> {
    crate::jobs::require(db, project, job).await?;
    let records: Vec<CheckpointRecord> = sqlx::query_as(page.sql(
        "select id, job_id, step, model, metrics, committed_at from checkpoints
         where job_id = $1 and project_id = $2 and state = 'committed' and model is not null
           and ($3::text is null or (step, id) {after}
                (select step, id from checkpoints where id = $3 and job_id = $1))
         order by step {way}, id {way} limit $4",
    ))
    .bind(job.as_str())
    .bind(project.id.as_str())
    .bind(page.after.as_deref())
    .bind(page.fetch_limit())
    .fetch_all(&db.pool)
    .await?;
    Ok(Page::from_rows(records.into_iter().map(Into::into).collect(), page))
}
