//! Base models: folders in Hugging Face's layout, file by file in the blob store, and their rows.
//!
//! A base model belongs to the project that registered it and may be used by all.

use std::path::Path;
use std::time::Duration;

use domain::hyperparameters::{Precision, Quantization};
use domain::id::random_suffix;
use domain::internal::{BaseModel, ManifestFile};
use domain::{ModelId, ProjectId};
use futures::{Stream, TryStreamExt};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt;

use crate::Store;
use crate::blob::{BlobKey, Expected, hex, is_plain_name};
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::garbage;
use crate::projects::Project;

/// Bytes read from a model file at a time.
const READ_SIZE: usize = 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseModelRow {
    pub id: ModelId,
    /// Hash over the manifest.
    pub digest: String,
    /// `llama`, …
    pub architecture: String,
    pub parameters: u64,
    /// Tokens that it reads, if its `config.json` says so.
    pub context_length: Option<u64>,
    pub files: Vec<ManifestFile>,
    pub created_at: OffsetDateTime,
    owner: ProjectId,
    /// Drawn for each upload: the paths of its blobs are nobody else's, whatever the content.
    upload: String,
}

impl BaseModelRow {
    /// As the workers know it.
    pub fn to_manifest(&self) -> BaseModel {
        BaseModel {
            id: self.id.clone(),
            digest: self.digest.clone(),
            files: self.files.clone(),
            quantization: Quantization::None,
            precision: Precision::Auto,
        }
    }

    /// Where a file of the manifest lies; `NotFound` for a name that is not in it.
    pub fn blob_key(&self, name: &str) -> Result<(BlobKey, &ManifestFile)> {
        let file = self.files.iter().find(|file| file.name == name);
        let file = file.ok_or(Error::NotFound("file of the model"))?;
        Ok((self.key_of(name), file))
    }

    fn key_of(&self, name: &str) -> BlobKey {
        let (project, upload) = (self.owner.clone(), self.upload.clone());
        BlobKey::BaseModelFile { project, upload, name: name.to_owned() }
    }

    fn paths(&self) -> Vec<String> {
        self.files.iter().map(|file| self.key_of(&file.name).path()).collect()
    }
}

/// What the importer knows about a folder.
#[derive(Debug, Clone)]
pub struct NewBaseModel {
    pub id: ModelId,
    pub architecture: String,
    pub parameters: u64,
}

#[derive(FromRow)]
pub(crate) struct BaseModelRecord {
    id: String,
    project_id: String,
    upload_id: String,
    digest: String,
    architecture: String,
    parameters: i64,
    context_length: Option<i64>,
    files: Json<Vec<ManifestFile>>,
    created_at: OffsetDateTime,
}

impl From<BaseModelRecord> for BaseModelRow {
    fn from(record: BaseModelRecord) -> Self {
        Self {
            id: record.id.into(),
            digest: record.digest,
            architecture: record.architecture,
            parameters: record.parameters.unsigned_abs(),
            context_length: record.context_length.map(i64::unsigned_abs),
            files: record.files.0,
            created_at: record.created_at,
            owner: record.project_id.into(),
            upload: record.upload_id,
        }
    }
}

/// Hashes and uploads every plain file of `folder` (no sub-folders), then makes the model visible to all
/// projects. The same content again changes nothing; other content under a taken name is a `Conflict`.
pub async fn register(
    store: &Store,
    project: &Project,
    new: NewBaseModel,
    folder: &Path,
) -> Result<BaseModelRow> {
    let files = hash_folder(folder).await?;
    let row = BaseModelRow {
        digest: manifest_digest(&files),
        id: new.id,
        architecture: new.architecture,
        parameters: new.parameters,
        context_length: context_length(folder).await,
        files,
        created_at: OffsetDateTime::now_utc(),
        owner: project.id.clone(),
        upload: random_suffix(20),
    };
    if let Some(present) = find(&store.db, &row.id).await? {
        let present = same_content(present, &row)?;
        return complete(&store.db, present, row.context_length).await;
    }
    garbage::reserve(store, project.id.as_str(), &row.paths()).await?;
    let paths = row.paths();
    let outcome = upload(store, row.clone(), folder).await;
    if !matches!(&outcome, Ok(stored) if stored.upload == row.upload) {
        for path in &paths {
            garbage::discard(store, path).await?;
        }
    }
    outcome
}

/// The tokens that a model reads, from its `config.json`.
async fn context_length(folder: &Path) -> Option<u64> {
    const LIMIT: u64 = 1 << 20;
    let file = tokio::fs::File::open(folder.join("config.json")).await.ok()?;
    let mut text = Vec::new();
    file.take(LIMIT).read_to_end(&mut text).await.ok()?;
    let config: Value = serde_json::from_slice(&text).ok()?;
    let of = |config: &Value| config["max_position_embeddings"].as_u64();
    // Models of several kinds of input keep the language model's numbers one level deeper.
    of(&config).or_else(|| of(&config["text_config"])).filter(|&tokens| tokens > 0)
}

/// Adds what an earlier version did not know.
pub async fn complete(
    db: &Db,
    row: BaseModelRow,
    context_length: Option<u64>,
) -> Result<BaseModelRow> {
    if row.context_length.is_some() || context_length.is_none() {
        return Ok(row);
    }
    sqlx::query("update base_models set context_length = $2 where id = $1")
        .bind(row.id.as_str())
        .bind(context_length.map(u64::cast_signed))
        .execute(&db.pool)
        .await?;
    Ok(BaseModelRow { context_length, ..row })
}

async fn upload(store: &Store, row: BaseModelRow, folder: &Path) -> Result<BaseModelRow> {
    for file in &row.files {
        let (key, _) = row.blob_key(&file.name)?;
        let expected = Expected { bytes: file.bytes, sha256: file.sha256.clone() };
        let body = Box::pin(read_local(&folder.join(&file.name)).await?);
        store.blobs.put_stream(&key, body, file.bytes, Some(&expected)).await?;
    }
    store.db.transact(Lane::Api, row, |tx, row| Box::pin(insert(tx, row))).await
}

async fn insert(tx: &mut PgConnection, row: &BaseModelRow) -> Result<BaseModelRow> {
    let record: Option<BaseModelRecord> = sqlx::query_as(
        "insert into base_models
             (id, project_id, upload_id, digest, architecture, parameters, files, context_length)
         values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (id) do nothing returning *",
    )
    .bind(row.id.as_str())
    .bind(row.owner.as_str())
    .bind(&row.upload)
    .bind(&row.digest)
    .bind(&row.architecture)
    .bind(row.parameters as i64)
    .bind(Json(&row.files))
    .bind(row.context_length.map(u64::cast_signed))
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(record) = record {
        garbage::keep(tx, &row.paths()).await?;
        return Ok(record.into());
    }
    // Somebody else was faster.
    let present: BaseModelRecord = sqlx::query_as("select * from base_models where id = $1")
        .bind(row.id.as_str())
        .fetch_one(tx)
        .await?;
    same_content(present.into(), row)
}

fn same_content(present: BaseModelRow, row: &BaseModelRow) -> Result<BaseModelRow> {
    if present.digest == row.digest {
        return Ok(present);
    }
    Err(Conflict::Exists(format!("Model {}", row.id)).into())
}

/// By name.
pub async fn list(db: &Db, project: &Project) -> Result<Vec<BaseModelRow>> {
    let records: Vec<BaseModelRecord> =
        sqlx::query_as("select * from base_models where shared or project_id = $1 order by id")
            .bind(project.id.as_str())
            .fetch_all(&db.pool)
            .await?;
    Ok(records.into_iter().map(Into::into).collect())
}

pub async fn get(db: &Db, project: &Project, id: &ModelId) -> Result<BaseModelRow> {
    let record: Option<BaseModelRecord> =
        sqlx::query_as("select * from base_models where id = $1 and (shared or project_id = $2)")
            .bind(id.as_str())
            .bind(project.id.as_str())
            .fetch_optional(&db.pool)
            .await?;
    record.map(Into::into).ok_or(Error::NotFound("model"))
}

/// For workers, who serve all projects.
pub async fn list_for_workers(db: &Db) -> Result<Vec<BaseModelRow>> {
    let records: Vec<BaseModelRecord> =
        sqlx::query_as("select * from base_models order by id").fetch_all(&db.pool).await?;
    Ok(records.into_iter().map(Into::into).collect())
}

/// For workers, who serve all projects.
pub async fn get_for_workers(db: &Db, id: &ModelId) -> Result<BaseModelRow> {
    find(db, id).await?.ok_or(Error::NotFound("model"))
}

async fn find(db: &Db, id: &ModelId) -> Result<Option<BaseModelRow>> {
    let record: Option<BaseModelRecord> = sqlx::query_as("select * from base_models where id = $1")
        .bind(id.as_str())
        .fetch_optional(&db.pool)
        .await?;
    Ok(record.map(Into::into))
}

/// Removes a base model; `Conflict::ModelInUse` while a job that has not ended uses it. Models tuned from it
/// stay listed, but cannot answer until the same content is registered again.
pub async fn remove(store: &Store, project: &Project, id: &ModelId) -> Result<()> {
    let args = (project.id.clone(), id.clone());
    store
        .db
        .transact(Lane::Api, args, |tx, (project, id)| Box::pin(remove_row(tx, project, id)))
        .await
}

async fn remove_row(tx: &mut PgConnection, project: &ProjectId, id: &ModelId) -> Result<()> {
    let record: Option<BaseModelRecord> =
        sqlx::query_as("select * from base_models where id = $1 and project_id = $2 for update")
            .bind(id.as_str())
            .bind(project.as_str())
            .fetch_optional(&mut *tx)
            .await?;
    let row: BaseModelRow = record.ok_or(Error::NotFound("model"))?.into();
    let user: Option<(String,)> = sqlx::query_as(
        "select id from jobs where base_model = $1
         and status in ('validating_files', 'queued', 'running', 'paused') order by id limit 1",
    )
    .bind(id.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    if let Some((job,)) = user {
        return Err(Conflict::ModelInUse(job.into()).into());
    }
    sqlx::query("delete from base_models where id = $1")
        .bind(id.as_str())
        .execute(&mut *tx)
        .await?;
    // Workers may be downloading it.
    let delay = Duration::from_secs(600);
    garbage::add(tx, project.as_str(), &row.paths(), "deleted", delay).await
}

/// The hash of a list of files: over name, size and hash of each, in order.
pub(crate) fn manifest_digest(files: &[ManifestFile]) -> String {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(format!("{}\n{}\n{}\n", file.name, file.bytes, file.sha256));
    }
    hex(&hash.finalize())
}

async fn hash_folder(folder: &Path) -> Result<Vec<ManifestFile>> {
    let mut files = Vec::new();
    let mut entries = tokio::fs::read_dir(folder).await?;
    while let Some(entry) = entries.next_entry().await? {
        if !entry.file_type().await?.is_file() {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_plain_name(&name) {
            let place = entry.path().display().to_string();
            let problem = "a model's file names may hold letters, digits, '.', '_' and '-' only";
            return Err(Error::Config(format!("{place}: {problem}")));
        }
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut content = Box::pin(read_local(&entry.path()).await?);
        while let Some(chunk) = content.try_next().await? {
            bytes += chunk.len() as u64;
            hash.update(&chunk);
        }
        files.push(ManifestFile { name, bytes, sha256: hex(&hash.finalize()) });
    }
    if files.is_empty() {
        return Err(Error::Config(format!("{}: the folder has no files", folder.display())));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

async fn read_local(
    path: &Path,
) -> Result<impl Stream<Item = std::io::Result<bytes::Bytes>> + Send + use<>> {
    let mut file = tokio::fs::File::open(path).await?;
    file.set_max_buf_size(READ_SIZE);
    Ok(futures::stream::try_unfold(file, |mut file| async move {
        let mut chunk = bytes::BytesMut::with_capacity(READ_SIZE);
        let read = file.read_buf(&mut chunk).await?;
        Ok((read > 0).then(|| (chunk.freeze(), file)))
    }))
}
