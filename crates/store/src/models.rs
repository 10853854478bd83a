//! Models as the API shows them: base models, tuned models, and the checkpoints of epochs.

use domain::internal::{AdapterRef, ManifestFile};
use domain::{JobId, ModelId};
use time::OffsetDateTime;

use crate::Store;
use crate::base_models::BaseModelRow;
use crate::blob::BlobKey;
use crate::db::Db;
use crate::error::Result;
use crate::projects::Project;

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
}

/// All models of the project, the newest first.
pub async fn list(db: &Db, project: &Project) -> Result<Vec<ModelRow>> {
    let _ = (db, project);
    crate::unwritten()
}

pub async fn get(db: &Db, project: &Project, id: &ModelId) -> Result<ModelRow> {
    let _ = (db, project, id);
    crate::unwritten()
}

/// What a model consists of. `NotFound` for an unknown one, and for one whose base model is gone.
pub async fn resolve(db: &Db, project: &Project, id: &ModelId) -> Result<Resolved> {
    let _ = (db, project, id);
    crate::unwritten()
}

/// Where a file of a stored adapter lies; for workers, who serve all projects.
pub async fn adapter_file_for_workers(
    db: &Db,
    id: &ModelId,
    name: &str,
) -> Result<(BlobKey, ManifestFile)> {
    let _ = (db, id, name);
    crate::unwritten()
}

/// Deletes a tuned model or a checkpoint's model. A base model is a `Conflict`.
pub async fn delete(store: &Store, project: &Project, id: &ModelId) -> Result<()> {
    let _ = (store, project, id);
    crate::unwritten()
}
