//! Models as the API shows them: base models, tuned models, and the checkpoints of epochs.

use std::time::Duration;

use domain::hyperparameters::{Precision, Quantization};
use domain::internal::{AdapterRef, BaseModel, ManifestFile};
use domain::{JobId, ModelId};
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRow {
    pub id: ModelId,
    pub kind: ModelKind,
    /// Itself, for a base model.
    pub base_model: ModelId,
    /// The job that made it.
    pub job_id: Option<JobId>,
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
    job_id: Option<String>,
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
            job_id: record.job_id.map(Into::into),
            created_at: record.created_at,
        }
    }
}

/// All models that the project may use; `$1` is the project, `$2` one id or null.
const MODELS: &str = "
    select id, kind, base_model, job_id, created_at from models
    where project_id = $1 and ($2::text is null or id = $2)
    union all
    select id, 'base', id, null, created_at from base_models
    where (shared or project_id = $1) and ($2::text is null or id = $2)
    order by created_at desc, id desc";

/// All models of the project, the newest first.
pub async fn list(db: &Db, project: &Project) -> Result<Vec<ModelRow>> {
    let records: Vec<ModelRecord> = sqlx::query_as(MODELS)
        .bind(project.id.as_str())
        .bind(None::<&str>)
        .fetch_all(&db.pool)
        .await?;
    Ok(records.into_iter().map(Into::into).collect())
}

pub async fn get(db: &Db, project: &Project, id: &ModelId) -> Result<ModelRow> {
    let record: Option<ModelRecord> = sqlx::query_as(MODELS)
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
}

async fn adapter(db: &Db, project: Option<&str>, id: &ModelId) -> Result<Option<AdapterRecord>> {
    let record = sqlx::query_as(
        "select m.project_id, m.base_model, m.job_id, m.checkpoint_id, m.digest, m.files,
                d.resolved -> 'quantization' as quantization, d.resolved -> 'precision' as precision
         from models m left join job_details d on d.job_id = m.job_id
         where m.id = $1 and ($2::text is null or m.project_id = $2)",
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
    let base = base_models::get(db, project, &record.base_model.into()).await?;
    let (digest, files) = (record.digest, record.files.0);
    let quantization = record.quantization.map_or(Quantization::None, |value| value.0);
    let precision = record.precision.map_or(Precision::Fp32, |value| value.0);
    let adapter = Some(AdapterRef { model_id: id.clone(), digest, files });
    Ok(Resolved { base, adapter, quantization, precision })
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

/// Deletes a tuned model or a checkpoint's model. A base model is a `Conflict`.
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
    let Some((job, checkpoint)) = found else {
        let base: Option<(String,)> = sqlx::query_as(
            "select id from base_models where id = $1 and (shared or project_id = $2)",
        )
        .bind(id.as_str())
        .bind(project.id.as_str())
        .fetch_optional(tx)
        .await?;
        let (base,) = base.ok_or(Error::NotFound("model"))?;
        return Err(Conflict::BaseModel(base).into());
    };
    let held: queue::Held =
        sqlx::query_as(queue::hold!("id = $1")).bind(&job).fetch_one(&mut *tx).await?;
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
