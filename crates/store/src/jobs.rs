//! Jobs as users see them: creating, reading, listing. Every change of state is in [`crate::queue`].

use std::collections::BTreeMap;

use domain::hyperparameters::TrainingOptions;
use domain::plan::ResolvedHyperparameters;
use domain::report::StepMetrics;
use domain::{
    FileId, Hyperparameters, JobId, JobStatus, MethodType, ModelId, OrganizationId, ProjectId,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::db::Db;
use crate::error::Result;
use crate::page::{Page, PageQuery};
use crate::projects::Project;

/// A checked request for a job.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub id: JobId,
    /// A base model's name, resolved from whatever the user wrote.
    pub base_model: ModelId,
    pub method: MethodType,
    pub training_file: FileId,
    pub validation_file: Option<FileId>,
    pub hyperparameters: Hyperparameters,
    pub options: TrainingOptions,
    pub suffix: Option<String>,
    pub seed: u32,
    pub metadata: Option<BTreeMap<String, String>>,
    /// Higher runs first within the project; 0 is usual.
    pub priority: i16,
}

/// What the server wants of a job that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Desired {
    Run,
    Pause,
    Cancel,
}

/// Why a job failed, in the API's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    pub code: String,
    pub param: Option<String>,
    pub message: String,
}

#[derive(Debug, Clone)]
pub struct JobRow {
    pub id: JobId,
    pub project_id: ProjectId,
    pub organization_id: OrganizationId,
    pub status: JobStatus,
    pub desired: Desired,
    pub base_model: ModelId,
    pub method: MethodType,
    pub training_file: FileId,
    pub validation_file: Option<FileId>,
    pub suffix: Option<String>,
    pub seed: u32,
    pub metadata: Option<BTreeMap<String, String>>,
    pub priority: i16,
    /// As requested.
    pub hyperparameters: Hyperparameters,
    /// As requested.
    pub options: TrainingOptions,
    /// Set once the files are validated.
    pub resolved: Option<ResolvedHyperparameters>,
    /// What validation found out about the files; set with `resolved`.
    pub dataset: Option<serde_json::Value>,
    pub created_at: OffsetDateTime,
    /// When the first step began.
    pub started_at: Option<OffsetDateTime>,
    pub finished_at: Option<OffsetDateTime>,
    pub fine_tuned_model: Option<ModelId>,
    pub result_files: Vec<FileId>,
    /// Set on success.
    pub trained_tokens: Option<u64>,
    pub error: Option<JobError>,
    /// The latest step that the present worker reported; only while running.
    pub progress: Option<StepMetrics>,
    pub worker_id: Option<String>,
    pub fence: i64,
    pub attempts: u32,
    /// Consecutive attempts that ended badly without progress.
    pub crashes: u32,
    pub committed_step: u64,
    /// Events so far.
    pub event_seq: i64,
    /// Grows with every change.
    pub version: i64,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub enum MetadataFilter {
    #[default]
    Any,
    /// Jobs without metadata.
    Absent,
    /// Jobs whose metadata hold all of these pairs.
    Holds(BTreeMap<String, String>),
}

/// Inserts a job in `validating_files`, and the event `Created fine-tuning job: …`. `NotFound("training
/// file")`, `NotFound("validation file")` or `NotFound("model")` when the project has none such.
pub async fn create(db: &Db, project: &Project, new: NewJob) -> Result<JobRow> {
    let _ = (db, project, new);
    crate::unwritten()
}

pub async fn get(db: &Db, project: &Project, id: &JobId) -> Result<JobRow> {
    let _ = (db, project, id);
    crate::unwritten()
}

pub async fn list(
    db: &Db,
    project: &Project,
    filter: &MetadataFilter,
    page: &PageQuery,
) -> Result<Page<JobRow>> {
    let _ = (db, project, filter, page);
    crate::unwritten()
}

/// How many of the project's queued jobs stand before this one; `None` when it is not queued.
pub async fn queue_position(db: &Db, project: &Project, id: &JobId) -> Result<Option<u64>> {
    let _ = (db, project, id);
    crate::unwritten()
}

/// How many jobs there are in each status, over all projects.
pub async fn count_by_status(db: &Db) -> Result<Vec<(JobStatus, u64)>> {
    let _ = db;
    crate::unwritten()
}
