//! Jobs as users see them: creating, reading, listing. Every change of state is in [`crate::queue`].

use std::collections::BTreeMap;

use domain::hyperparameters::TrainingOptions;
use domain::plan::ResolvedHyperparameters;
use domain::report::StepMetrics;
use domain::{
    CheckpointId, FileId, Hyperparameters, JobId, JobStatus, MethodType, ModelId, OrganizationId,
    ProjectId,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::db::{Db, Lane};
use crate::error::{Error, Result};
use crate::events;
use crate::idempotency::{self, Once};
use crate::messages;
use crate::projects::Project;
use crate::text;

/// A tuned model that a job goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartModel {
    pub model: ModelId,
    /// Whose files it consists of.
    pub checkpoint: CheckpointId,
}

/// A checked request for a job.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub id: JobId,
    /// A base model's name, resolved from whatever the user wrote.
    pub base_model: ModelId,
    /// The tuned model to go on from; none starts from the base model.
    pub start: Option<StartModel>,
    pub method: MethodType,
    pub training_file: FileId,
    pub validation_file: Option<FileId>,
    pub hyperparameters: Hyperparameters,
    pub options: TrainingOptions,
    pub suffix: Option<String>,
    pub seed: u32,
    pub metadata: Option<BTreeMap<String, String>>,
    /// As the job shows them.
    pub integrations: Vec<Value>,
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
    /// The tuned model that it goes on from.
    pub start: Option<StartModel>,
    pub method: MethodType,
    pub training_file: FileId,
    pub validation_file: Option<FileId>,
    pub suffix: Option<String>,
    pub seed: u32,
    pub metadata: Option<BTreeMap<String, String>>,
    /// An array.
    pub integrations: Value,
    pub priority: i16,
    /// As requested.
    pub hyperparameters: Hyperparameters,
    /// As requested.
    pub options: TrainingOptions,
    /// Set once the files are validated.
    pub resolved: Option<ResolvedHyperparameters>,
    /// What validation found out about the files; set with `resolved`.
    pub dataset: Option<Value>,
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
    /// Not to be claimed before.
    pub run_after: OffsetDateTime,
    /// Still to be trained; none until the files are validated.
    pub tokens_left: Option<u64>,
    /// Events so far.
    pub event_seq: i64,
    /// Grows with every change.
    pub version: i64,
}

/// Inserts a job in `validating_files`, and the event `Created fine-tuning job: …`. `NotFound("training
/// file")`, `NotFound("validation file")` or `NotFound("model")` when the project has none such.
/// A job that an earlier request of the same kind has created is given instead.
pub async fn create(db: &Db, project: &Project, new: NewJob, once: Option<Once>) -> Result<JobRow> {
    let args = (project.clone(), new, once);
    db.transact(Lane::Api, args, |tx, (project, new, once)| {
        Box::pin(async move {
            let id = new.id.as_str();
            let first = idempotency::begin(tx, project.id.as_str(), once.as_ref(), id);
            match first.await? {
                Some(first) => load(tx, &first.into()).await,
                None => insert(tx, project, new).await,
            }
        })
    })
    .await
}

async fn insert(tx: &mut PgConnection, project: &Project, new: &NewJob) -> Result<JobRow> {
    // Shared locks: neither a file nor the model can be deleted before this job is there to forbid it.
    let model = match &new.start {
        None => {
            "select 1 from base_models where id = $1 and (shared or project_id = $2) for key share"
        }
        // The right to the tuned model is the right to its base.
        Some(_) => "select 1 from base_models where id = $1 and $2::text <> '' for key share",
    };
    let file = "select 1 from files where id = $1 and project_id = $2
                and (expires_at is null or expires_at > clock_timestamp()) for key share";
    let mut needed = vec![
        (model, new.base_model.as_str(), "model"),
        (file, new.training_file.as_str(), "training file"),
    ];
    if let Some(id) = &new.validation_file {
        needed.push((file, id.as_str(), "validation file"));
    }
    for (statement, id, what) in needed {
        sqlx::query(statement)
            .bind(id)
            .bind(project.id.as_str())
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(Error::NotFound(what))?;
    }
    if let Some(start) = &new.start {
        hold_start(tx, project, start).await?;
    }
    sqlx::query("insert into jobs (id, project_id, base_model, priority) values ($1, $2, $3, $4)")
        .bind(new.id.as_str())
        .bind(project.id.as_str())
        .bind(new.base_model.as_str())
        .bind(new.priority)
        .execute(&mut *tx)
        .await?;
    insert_details(tx, project, new).await?;
    events::append(tx, &new.id, &[messages::created(&new.id)]).await?;
    load(tx, &new.id).await
}

/// Keeps the model to start from where it is until this job is there to forbid its removal.
async fn hold_start(tx: &mut PgConnection, project: &Project, start: &StartModel) -> Result<()> {
    sqlx::query(
        "select 1 from models m join checkpoints c on c.id = m.checkpoint_id
         where m.id = $1 and c.id = $2 and c.state = 'committed'
           and (m.project_id = $3 or exists (
                select 1 from checkpoint_permissions where model = m.id and grantee_id = $3))
         for key share of m, c",
    )
    .bind(start.model.as_str())
    .bind(start.checkpoint.as_str())
    .bind(project.id.as_str())
    .fetch_optional(tx)
    .await?
    .map(|_| ())
    .ok_or(Error::NotFound("model"))
}

async fn insert_details(tx: &mut PgConnection, project: &Project, new: &NewJob) -> Result<()> {
    let metadata = new.metadata.as_ref().map(cleaned);
    sqlx::query(
        "insert into job_details (job_id, project_id, method, training_file, validation_file,
                                  suffix, seed, metadata, hyperparameters, options,
                                  start_model, start_checkpoint, integrations)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(new.id.as_str())
    .bind(project.id.as_str())
    .bind(new.method.as_str())
    .bind(new.training_file.as_str())
    .bind(new.validation_file.as_ref().map(FileId::as_str))
    .bind(new.suffix.as_deref().map(text::clean))
    .bind(i64::from(new.seed))
    .bind(metadata.map(Json))
    .bind(Json(&new.hyperparameters))
    .bind(Json(&new.options))
    .bind(new.start.as_ref().map(|start| start.model.as_str()))
    .bind(new.start.as_ref().map(|start| start.checkpoint.as_str()))
    .bind(text::clean_json(&Value::Array(new.integrations.clone())))
    .execute(tx)
    .await?;
    Ok(())
}

/// The columns of a [`JobRecord`], up to the `where`.
macro_rules! select_job {
    ($rest:literal) => {
        concat!(
            "select j.id, j.project_id, p.organization_id, j.status, j.desired, j.base_model,
                    d.start_model, d.start_checkpoint, d.method, d.training_file,
                    d.validation_file, d.suffix, d.seed, d.metadata, d.integrations,
                    j.priority, d.hyperparameters, d.options, d.resolved, d.dataset,
                    j.created_at, j.started_at, j.finished_at, j.fine_tuned_model, d.result_files,
                    j.trained_tokens, d.error, j.worker_id, j.fence, j.attempts, j.crashes,
                    j.committed_step, j.run_after, j.event_seq, j.version,
                    j.planned_tokens - j.committed_tokens as tokens_left,
                    case when j.status = 'running' then
                        (select s.metrics from step_metrics s
                         where s.job_id = j.id and s.fence = j.fence order by s.step desc limit 1)
                    end as progress
             from jobs j join job_details d on d.job_id = j.id
                  join projects p on p.id = j.project_id ",
            $rest
        )
    };
}

// Behind the macro, which it uses.
mod list;

#[cfg(feature = "testing")]
pub(crate) use list::list_statement;
pub use list::{MetadataFilter, list};

pub async fn get(db: &Db, project: &Project, id: &JobId) -> Result<JobRow> {
    let record: Option<JobRecord> = sqlx::query_as(select_job!(
        "where j.id = $1 and j.project_id = $2 and j.deleted_at is null"
    ))
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(&db.pool)
    .await?;
    record.ok_or(Error::NotFound("job"))?.try_into()
}

/// By id alone, within a transaction that has established the right to it.
pub(crate) async fn load(tx: &mut PgConnection, id: &JobId) -> Result<JobRow> {
    let record: JobRecord =
        sqlx::query_as(select_job!("where j.id = $1")).bind(id.as_str()).fetch_one(tx).await?;
    record.try_into()
}

/// `NotFound` unless the project has the job.
pub(crate) async fn require(db: &Db, project: &Project, id: &JobId) -> Result<()> {
    sqlx::query("select 1 from jobs where id = $1 and project_id = $2 and deleted_at is null")
        .bind(id.as_str())
        .bind(project.id.as_str())
        .fetch_optional(&db.pool)
        .await?
        .map(|_| ())
        .ok_or(Error::NotFound("job"))
}

/// Replaces the user's pairs, in whatever status the job is.
pub async fn set_metadata(
    db: &Db,
    project: &Project,
    id: &JobId,
    metadata: Option<&BTreeMap<String, String>>,
) -> Result<JobRow> {
    sqlx::query(
        "update job_details d set metadata = $3 from jobs j
         where j.id = $1 and j.project_id = $2 and j.deleted_at is null and d.job_id = j.id",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .bind(metadata.map(cleaned).map(Json))
    .execute(&db.pool)
    .await?;
    get(db, project, id).await
}

fn cleaned(pairs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let clean = |text: &str| text::clean(text).into_owned();
    pairs.iter().map(|(key, value)| (clean(key), clean(value))).collect()
}

/// How many jobs there are in each status, over all projects.
pub async fn count_by_status(db: &Db) -> Result<Vec<(JobStatus, u64)>> {
    let counts: Vec<(String, i64)> =
        sqlx::query_as("select status, count(*) from jobs where deleted_at is null group by status order by status")
            .fetch_all(&db.pool)
            .await?;
    counts
        .into_iter()
        .map(|(status, count)| Ok((parse_status("count", &status)?, count.unsigned_abs())))
        .collect()
}

pub(crate) fn parse_status(job: &str, text: &str) -> Result<JobStatus> {
    text.parse().map_err(|error| Error::inconsistent("jobs", job, error))
}

#[derive(FromRow)]
struct JobRecord {
    id: String,
    project_id: String,
    organization_id: String,
    status: String,
    desired: String,
    base_model: String,
    start_model: Option<String>,
    start_checkpoint: Option<String>,
    method: String,
    training_file: String,
    validation_file: Option<String>,
    suffix: Option<String>,
    seed: i64,
    metadata: Option<Json<BTreeMap<String, String>>>,
    integrations: Value,
    priority: i16,
    hyperparameters: Json<Hyperparameters>,
    options: Json<TrainingOptions>,
    resolved: Option<Json<ResolvedHyperparameters>>,
    dataset: Option<Value>,
    created_at: OffsetDateTime,
    started_at: Option<OffsetDateTime>,
    finished_at: Option<OffsetDateTime>,
    fine_tuned_model: Option<String>,
    result_files: Vec<String>,
    trained_tokens: Option<i64>,
    error: Option<Json<JobError>>,
    progress: Option<Json<StepMetrics>>,
    worker_id: Option<String>,
    fence: i64,
    attempts: i32,
    crashes: i32,
    committed_step: i64,
    run_after: OffsetDateTime,
    tokens_left: Option<i64>,
    event_seq: i64,
    version: i64,
}

impl TryFrom<JobRecord> for JobRow {
    type Error = Error;

    fn try_from(record: JobRecord) -> Result<Self> {
        let desired = match record.desired.as_str() {
            "pause" => Desired::Pause,
            "cancel" => Desired::Cancel,
            _ => Desired::Run,
        };
        let method = match record.method.as_str() {
            "dpo" => MethodType::Dpo,
            "reinforcement" => MethodType::Reinforcement,
            _ => MethodType::Supervised,
        };
        let seed = u32::try_from(record.seed)
            .map_err(|error| Error::inconsistent("job_details", &record.id, error))?;
        Ok(Self {
            status: parse_status(&record.id, &record.status)?,
            desired,
            method,
            seed,
            id: record.id.into(),
            project_id: record.project_id.into(),
            organization_id: record.organization_id.into(),
            base_model: record.base_model.into(),
            start: record.start_model.zip(record.start_checkpoint).map(|(model, checkpoint)| {
                StartModel { model: model.into(), checkpoint: checkpoint.into() }
            }),
            training_file: record.training_file.into(),
            validation_file: record.validation_file.map(Into::into),
            suffix: record.suffix,
            metadata: record.metadata.map(|metadata| metadata.0),
            integrations: record.integrations,
            priority: record.priority,
            hyperparameters: record.hyperparameters.0,
            options: record.options.0,
            resolved: record.resolved.map(|resolved| resolved.0),
            dataset: record.dataset,
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
            fine_tuned_model: record.fine_tuned_model.map(Into::into),
            result_files: record.result_files.into_iter().map(Into::into).collect(),
            trained_tokens: record.trained_tokens.map(i64::unsigned_abs),
            error: record.error.map(|error| error.0),
            progress: record.progress.map(|progress| progress.0),
            worker_id: record.worker_id,
            fence: record.fence,
            attempts: record.attempts.unsigned_abs(),
            crashes: record.crashes.unsigned_abs(),
            committed_step: record.committed_step.unsigned_abs(),
            run_after: record.run_after,
            tokens_left: record.tokens_left.map(|left| left.max(0).unsigned_abs()),
            event_seq: record.event_seq,
            version: record.version,
        })
    }
}
