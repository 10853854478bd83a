//! Base models: folders in Hugging Face's layout, file by file in the blob store, and their rows.

use std::path::Path;

use domain::ModelId;
use domain::internal::{BaseModel, ManifestFile};
use time::OffsetDateTime;

use crate::Store;
use crate::blob::BlobKey;
use crate::db::Db;
use crate::error::Result;
use crate::projects::Project;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseModelRow {
    pub id: ModelId,
    /// Hash over the manifest.
    pub digest: String,
    /// `llama`, …
    pub architecture: String,
    pub parameters: u64,
    pub files: Vec<ManifestFile>,
    pub created_at: OffsetDateTime,
    pub(crate) owner: domain::ProjectId,
}

impl BaseModelRow {
    /// As the workers know it.
    pub fn to_manifest(&self) -> BaseModel {
        BaseModel { id: self.id.clone(), digest: self.digest.clone(), files: self.files.clone() }
    }

    /// Where a file of the manifest lies; `NotFound` for a name that is not in it.
    pub fn blob_key(&self, name: &str) -> Result<(BlobKey, &ManifestFile)> {
        let _ = name;
        crate::unwritten()
    }
}

/// What the importer knows about a folder.
#[derive(Debug, Clone)]
pub struct NewBaseModel {
    pub id: ModelId,
    pub architecture: String,
    pub parameters: u64,
}

/// Hashes and uploads every plain file of `folder` (no sub-folders), then makes the model visible to all
/// projects. The same content again changes nothing; other content under a taken name is a `Conflict`.
pub async fn register(
    store: &Store,
    project: &Project,
    new: NewBaseModel,
    folder: &Path,
) -> Result<BaseModelRow> {
    let _ = (store, project, new, folder);
    crate::unwritten()
}

/// By name.
pub async fn list(db: &Db, project: &Project) -> Result<Vec<BaseModelRow>> {
    let _ = (db, project);
    crate::unwritten()
}

pub async fn get(db: &Db, project: &Project, id: &ModelId) -> Result<BaseModelRow> {
    let _ = (db, project, id);
    crate::unwritten()
}

/// For workers, who serve all projects.
pub async fn list_for_workers(db: &Db) -> Result<Vec<BaseModelRow>> {
    let _ = db;
    crate::unwritten()
}

/// For workers, who serve all projects.
pub async fn get_for_workers(db: &Db, id: &ModelId) -> Result<BaseModelRow> {
    let _ = (db, id);
    crate::unwritten()
}

/// Removes a base model; `Conflict::ModelInUse` while a job that has not ended uses it. Models tuned from it
/// stay listed, but cannot answer until the same content is registered again.
pub async fn remove(store: &Store, project: &Project, id: &ModelId) -> Result<()> {
    let _ = (store, project, id);
    crate::unwritten()
}
