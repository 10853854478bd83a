//! Models as the API shows them: base models, tuned models, and the checkpoints of epochs.

use std::time::Duration;

use domain::hyperparameters::{Precision, Quantization};
use domain::internal::{AdapterRef, BaseModel, ManifestFile};
use domain::plan::ResolvedHyperparameters;
use domain::{CheckpointId, JobId, ModelId};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::Store;
use crate::base_models::{self, BaseModelRow};
use crate::blob::BlobKey;
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::projects::Project;
use crate::queue;

/// A chat that has just begun may still be reading the files of a deleted model.
const DELETED_STAY: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    Base,
    Tuned,
    Checkpoint,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ModelRow {
    pub id: ModelId,
    pub kind: ModelKind,
    /// Itself, for a base model.
    pub base_model: ModelId,
    /// What it was tuned from: the base model, or an earlier tuned one.
    pub parent: Option<ModelId>,
    /// The job that made it.
    pub job_id: Option<JobId>,
    /// Whose files it consists of.
    pub checkpoint_id: Option<CheckpointId>,
    /// Steps of that job when it was written.
    pub step: Option<u64>,
    /// The slug of the organisation that owns a tuned model.
    pub owner: Option<String>,
    /// How it was trained.
    pub trained_with: Option<ResolvedHyperparameters>,
    /// Tokens that the base model reads, if its files say so.
    pub context_length: Option<u64>,
    pub created_at: OffsetDateTime,
}

/// Everything that is needed to answer as a model.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub base: BaseModelRow,
    pub adapter: Option<AdapterRef>,
    /// As the base model was held while the adapter was trained.
    pub quantization: Quantization,
    /// Likewise; `auto` for a base model by itself.
    pub precision: Precision,
}

impl Resolved {
    /// The base model as an engine shall hold it.
    pub fn base_model(&self) -> BaseModel {
        let (quantization, precision) = (self.quantization, self.precision);
        BaseModel { quantization, precision, ..self.base.to_manifest() }
    }
}

#[derive(FromRow)]
struct ModelRecord {
    id: String,
    kind: String,
    base_model: String,
    parent: Option<String>,
    job_id: Option<String>,
    checkpoint_id: Option<String>,
    step: Option<i64>,
    owner: Option<String>,
    trained_with: Option<Value>,
    context_length: Option<i64>,
    created_at: OffsetDateTime,
}

impl From<ModelRecord> for ModelRow {
    fn from(record: ModelRecord) -> Self {
        let kind = match record.kind.as_str() {
            "tuned" => ModelKind::Tuned,
            "checkpoint" => ModelKind::Checkpoint,
            _ => ModelKind::Base,
        };
        Self {
            id: record.id.into(),
            kind,
            base_model: record.base_model.into(),
            parent: record.parent.map(Into::into),
            job_id: record.job_id.map(Into::into),
            checkpoint_id: record.checkpoint_id.map(Into::into),
            step: record.step.map(i64::unsigned_abs),
            owner: record.owner,
            // A list must not fail over one model of a version that nobody remembers.
            trained_with: record.trained_with.and_then(|value| serde_json::from_value(value).ok()),
            context_length: record.context_length.map(i64::unsigned_abs),
            created_at: record.created_at,
        }
    }
}

/// Tuned models, then base models, as [`ModelRecord`]s; each with a condition.
macro_rules! select_models {
    ($tuned:literal, $base:literal) => {
        concat!(
            "select m.id, m.kind, m.base_model, m.parent, m.job_id, m.checkpoint_id, c.step,
                    o.slug as owner, m.trained_with, b.context_length, m.created_at
             from models m join checkpoints c on c.id = m.checkpoint_id
                  join projects p on p.id = m.project_id
                  join organizations o on o.id = p.organization_id
                  left join base_models b on b.id = m.base_model
             where ",
            $tuned,
            " union all
             select id, 'base', id, null, null, null, null, null, null, context_length, created_at
             from base_models where (shared or project_id = $1) and ",
            $base,
            " order by created_at desc, id desc"
        )
    };
}

/// All models that the project may use, those shared with it by permission too; the newest first.
pub async fn list(db: &Db, project: &Project) -> Result<Vec<ModelRow>> {
    let statement = select_models!(
        "m.id in (select id from models where project_id = $1 union
                  select model from checkpoint_permissions where grantee_id = $1)",
        "true"
    );
    let records: Vec<ModelRecord> =
        sqlx::query_as(statement).bind(project.id.as_str()).fetch_all(&db.pool).await?;
    Ok(records.into_iter().map(Into::into).collect())
}

pub async fn get(db: &Db, project: &Project, id: &ModelId) -> Result<ModelRow> {
    let statement = select_models!(
        "m.id = $2 and (m.project_id = $1 or exists (
             select 1 from checkpoint_permissions where model = $2 and grantee_id = $1))",
        "id = $2"
    );
    let record: Option<ModelRecord> = sqlx::query_as(statement)
        .bind(project.id.as_str())
        .bind(id.as_str())
        .fetch_optional(&db.pool)
        .await?;
    record.map(Into::into).ok_or(Error::NotFound("model"))
}

#[derive(FromRow)]
struct AdapterRecord {
    project_id: String,
    base_model: String,
    job_id: String,
    checkpoint_id: String,
    digest: String,
    files: Json<Vec<ManifestFile>>,
    quantization: Option<Json<Quantization>>,
    precision: Option<Json<Precision>>,
    created_at: OffsetDateTime,
}

async fn adapter(db: &Db, project: Option<&str>, id: &ModelId) -> Result<Option<AdapterRecord>> {
    let record = sqlx::query_as(
        "select m.project_id, m.base_model, m.job_id, m.checkpoint_id, m.digest, m.files,
                m.trained_with -> 'quantization' as quantization,
                m.trained_with -> 'precision' as precision, m.created_at
         from models m
         where m.id = $1 and ($2::text is null or m.project_id = $2 or exists (
             select 1 from checkpoint_permissions where model = $1 and grantee_id = $2))",
    )
    .bind(id.as_str())
    .bind(project)
    .fetch_optional(&db.pool)
    .await?;
    Ok(record)
}

/// What a model consists of. `NotFound` for an unknown one, and for one whose base model is gone.
pub async fn resolve(db: &Db, project: &Project, id: &ModelId) -> Result<Resolved> {
    let Some(record) = adapter(db, Some(project.id.as_str()), id).await? else {
        let base = base_models::get(db, project, id).await?;
        let (quantization, precision) = (Quantization::None, Precision::Auto);
        return Ok(Resolved { base, adapter: None, quantization, precision });
    };
    // The right to the tuned model is the right to its base.
    let base = base_models::get_for_workers(db, &record.base_model.into()).await?;
    let (digest, files) = (record.digest, record.files.0);
    let quantization = record.quantization.map_or(Quantization::None, |value| value.0);
    let precision = record.precision.map_or(Precision::Fp32, |value| value.0);
    let adapter = Some(AdapterRef { model_id: id.clone(), digest, files });
    Ok(Resolved { base, adapter, quantization, precision })
}

/// All files of a model, and where they lie.
#[derive(Debug, Clone)]
pub struct StoredModel {
    pub base: BaseModelRow,
    /// Of a tuned model: an adapter's, or those of a whole model. None is the base model itself.
    pub tuned: Option<Vec<(BlobKey, ManifestFile)>>,
    pub created_at: OffsetDateTime,
}

/// The files of a model. `NotFound` for an unknown one, and for one whose base model is gone.
pub async fn stored(db: &Db, project: &Project, id: &ModelId) -> Result<StoredModel> {
    let Some(record) = adapter(db, Some(project.id.as_str()), id).await? else {
        let base = base_models::get(db, project, id).await?;
        let created_at = base.created_at;
        return Ok(StoredModel { base, tuned: None, created_at });
    };
    let key = |name: &str| BlobKey::CheckpointFile {
        project: record.project_id.as_str().into(),
        job: record.job_id.as_str().into(),
        checkpoint: record.checkpoint_id.as_str().into(),
        name: name.to_owned(),
    };
    let files = record.files.iter().map(|file| (key(&file.name), file.clone())).collect();
    let base = base_models::get_for_workers(db, &record.base_model.as_str().into()).await?;
    Ok(StoredModel { base, tuned: Some(files), created_at: record.created_at })
}

/// The files of a tuned model, for a run that goes on from it.
pub(crate) async fn files_of(tx: &mut PgConnection, id: &ModelId) -> Result<AdapterRef> {
    let found: Option<(String, Json<Vec<ManifestFile>>)> =
        sqlx::query_as("select digest, files from models where id = $1")
            .bind(id.as_str())
            .fetch_optional(tx)
            .await?;
    let (digest, files) = found.ok_or(Error::NotFound("model to start from"))?;
    Ok(AdapterRef { model_id: id.clone(), digest, files: files.0 })
}

/// Where a file of a stored adapter lies; for workers, who serve all projects.
pub async fn adapter_file_for_workers(
    db: &Db,
    id: &ModelId,
    name: &str,
) -> Result<(BlobKey, ManifestFile)> {
    let record = adapter(db, None, id).await?.ok_or(Error::NotFound("model"))?;
    let file = record.files.iter().find(|file| file.name == name).cloned();
    let key = BlobKey::CheckpointFile {
        project: record.project_id.into(),
        job: record.job_id.into(),
        checkpoint: record.checkpoint_id.into(),
        name: name.to_owned(),
    };
    Ok((key, file.ok_or(Error::NotFound("file of the model"))?))
}

/// Deletes a tuned model or a checkpoint's model. A `Conflict` for a base model, for another project's, and
/// while a job that has not ended starts from it.
pub async fn delete(store: &Store, project: &Project, id: &ModelId) -> Result<()> {
    let args = (project.clone(), id.clone());
    store
        .db
        .transact(Lane::Api, args, |tx, (project, id)| Box::pin(delete_row(tx, project, id)))
        .await
}

async fn delete_row(tx: &mut PgConnection, project: &Project, id: &ModelId) -> Result<()> {
    let found: Option<(String, String)> = sqlx::query_as(
        "select job_id, checkpoint_id from models where id = $1 and project_id = $2",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let Some((job, checkpoint)) = found else { return Err(not_deletable(tx, project, id).await?) };
    let held: queue::Held =
        sqlx::query_as(queue::hold!("id = $1")).bind(&job).fetch_one(&mut *tx).await?;
    if let Some((_, user)) = queue::starts(tx, std::slice::from_ref(&checkpoint)).await?.pop() {
        return Err(Conflict::ModelInUse(user).into());
    }
    if held.status()?.is_terminal() {
        return queue::discard(tx, &held.id(), &[checkpoint], DELETED_STAY).await;
    }
    // The run may still have to resume from this checkpoint: only the name goes.
    sqlx::query("delete from models where id = $1").bind(id.as_str()).execute(&mut *tx).await?;
    sqlx::query("update checkpoints set model = null where id = $1")
        .bind(checkpoint)
        .execute(tx)
        .await?;
    Ok(())
}

/// Why a model that is no tuned one of the project cannot be deleted by it.
async fn not_deletable(tx: &mut PgConnection, project: &Project, id: &ModelId) -> Result<Error> {
    let found: Option<(bool,)> = sqlx::query_as(
        "select true from base_models where id = $1 and (shared or project_id = $2)
         union all select false from checkpoint_permissions where model = $1 and grantee_id = $2",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(tx)
    .await?;
    Ok(match found {
        Some((true,)) => Conflict::BaseModel(id.to_string()).into(),
        Some((false,)) => Conflict::NotOwner(id.to_string()).into(),
        None => Error::NotFound("model"),
    })
}
