//! Files: uploaded and produced content, and the rows that make it visible.
//!
//! The blob comes first, the row second: a file that can be seen is stored, synced and hashed, and an upload
//! that breaks off is never seen.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use domain::{FileId, ProjectId};
use futures::Stream;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::Store;
use crate::blob::{BlobKey, BlobReader};
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::garbage;
use crate::page::{Page, PageQuery};
use crate::projects::Project;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    pub id: FileId,
    pub filename: String,
    pub purpose: String,
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
    /// Always `processed` at present.
    pub status: String,
    pub status_details: Option<String>,
    pub created_at: OffsetDateTime,
    pub expires_at: Option<OffsetDateTime>,
    project_id: ProjectId,
}

impl FileRow {
    /// Where the content lies.
    pub fn blob_key(&self) -> BlobKey {
        BlobKey::File { project: self.project_id.clone(), file: self.id.clone() }
    }
}

/// What the user says about a file.
#[derive(Debug, Clone)]
pub struct NewFile {
    pub filename: String,
    pub purpose: String,
    pub expires_after: Option<Duration>,
}

#[derive(FromRow)]
struct FileRecord {
    id: String,
    project_id: String,
    filename: String,
    purpose: String,
    bytes: i64,
    sha256: String,
    status: String,
    status_details: Option<String>,
    created_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
}

impl From<FileRecord> for FileRow {
    fn from(record: FileRecord) -> Self {
        Self {
            id: record.id.into(),
            filename: record.filename,
            purpose: record.purpose,
            bytes: record.bytes.unsigned_abs(),
            sha256: record.sha256,
            status: record.status,
            status_details: record.status_details,
            created_at: record.created_at,
            expires_at: record.expires_at,
            project_id: record.project_id.into(),
        }
    }
}

/// Content that is stored and has no row yet. Dropped without [`Uploaded::commit`], it is removed again.
pub struct Uploaded {
    store: Store,
    project: ProjectId,
    id: FileId,
    bytes: u64,
    sha256: String,
    visible: AtomicBool,
}

impl Uploaded {
    pub fn id(&self) -> &FileId {
        &self.id
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    fn blob_key(&self) -> BlobKey {
        BlobKey::File { project: self.project.clone(), file: self.id.clone() }
    }

    /// Makes the file visible.
    pub async fn commit(self, new: NewFile) -> Result<FileRow> {
        let (db, upload) = (self.store.db.clone(), Arc::new(self));
        let args = (upload.clone(), new);
        let row = db
            .transact(Lane::Api, args, |tx, (upload, new)| Box::pin(insert(tx, upload, new)))
            .await?;
        upload.mark_visible();
        Ok(row)
    }

    /// The row is committed: nothing is to be cleaned up any more.
    pub(crate) fn mark_visible(&self) {
        self.visible.store(true, Ordering::Release);
    }
}

impl Drop for Uploaded {
    fn drop(&mut self) {
        if *self.visible.get_mut() {
            return;
        }
        garbage::discard_soon(self.store.clone(), self.blob_key().path());
    }
}

/// Stores a body of at most `limit` bytes (`TooLarge` above), in constant memory.
pub async fn upload<E: std::fmt::Display>(
    store: &Store,
    project: &Project,
    body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
    limit: u64,
) -> Result<Uploaded> {
    let mut upload = Uploaded {
        store: store.clone(),
        project: project.id.clone(),
        id: FileId::new(),
        bytes: 0,
        sha256: String::new(),
        visible: AtomicBool::new(false),
    };
    let key = upload.blob_key();
    garbage::reserve(store, project.id.as_str(), &[key.path()]).await?;
    let stored = store.blobs.put_stream(&key, body, limit, None).await?;
    (upload.bytes, upload.sha256) = (stored.bytes, stored.sha256);
    Ok(upload)
}

/// [`upload`] for content in memory.
pub async fn upload_bytes(store: &Store, project: &Project, body: Bytes) -> Result<Uploaded> {
    let limit = body.len() as u64;
    let body = futures::stream::iter([Ok::<_, std::convert::Infallible>(body)]);
    upload(store, project, body, limit).await
}

/// The row of a complete upload, within the caller's transaction.
pub(crate) async fn insert(
    tx: &mut PgConnection,
    upload: &Uploaded,
    new: &NewFile,
) -> Result<FileRow> {
    garbage::keep(tx, &[upload.blob_key().path()]).await?;
    let record: FileRecord = sqlx::query_as(
        "insert into files (id, project_id, filename, purpose, bytes, sha256, expires_at)
         values ($1, $2, $3, $4, $5, $6, clock_timestamp() + $7)
         returning *",
    )
    .bind(upload.id.as_str())
    .bind(upload.project.as_str())
    .bind(crate::text::clean(&new.filename))
    .bind(&new.purpose)
    .bind(upload.bytes as i64)
    .bind(&upload.sha256)
    .bind(new.expires_after.map(crate::interval))
    .fetch_one(tx)
    .await?;
    Ok(record.into())
}

pub async fn get(db: &Db, project: &Project, id: &FileId) -> Result<FileRow> {
    let record: Option<FileRecord> = sqlx::query_as(
        "select * from files where id = $1 and project_id = $2
         and (expires_at is null or expires_at > clock_timestamp())",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(&db.pool)
    .await?;
    record.map(Into::into).ok_or(Error::NotFound("file"))
}

/// A file that a job names, within the caller's transaction; also one that has expired meanwhile.
pub(crate) async fn of_job(tx: &mut PgConnection, project: &str, id: &str) -> Result<FileRow> {
    let record: Option<FileRecord> =
        sqlx::query_as("select * from files where id = $1 and project_id = $2")
            .bind(id)
            .bind(project)
            .fetch_optional(tx)
            .await?;
    record.map(Into::into).ok_or(Error::NotFound("file"))
}

/// The project's files, by creation.
pub async fn list(
    db: &Db,
    project: &Project,
    purpose: Option<&str>,
    page: &PageQuery,
) -> Result<Page<FileRow>> {
    // Two statements, because one plan for both would read every file to find those of a rare purpose.
    macro_rules! statement {
        ($purpose:literal) => {
            concat!(
                "select * from files
                 where project_id = $1 and ",
                $purpose,
                " and (expires_at is null or expires_at > clock_timestamp())
                  and ($3::text is null or (created_at, id) {after}
                       (select created_at, id from files where id = $3 and project_id = $1))
                order by created_at {way}, id {way} limit $4"
            )
        };
    }
    let statement = page.sql(match purpose {
        Some(_) => statement!("purpose = $2"),
        None => statement!("$2::text is null"),
    });
    let records: Vec<FileRecord> = sqlx::query_as(statement)
        .bind(project.id.as_str())
        .bind(purpose)
        .bind(page.after.as_deref())
        .bind(page.fetch_limit())
        .fetch_all(&db.pool)
        .await?;
    Ok(Page::from_rows(records.into_iter().map(Into::into).collect(), page))
}

/// The row and its content, or the part of it within `range`.
pub async fn open(
    store: &Store,
    project: &Project,
    id: &FileId,
    range: Option<Range<u64>>,
) -> Result<(FileRow, BlobReader)> {
    let row = get(&store.db, project, id).await?;
    let reader = store.blobs.get(&row.blob_key(), range).await?;
    Ok((row, reader))
}

/// Removes a file; `Conflict::FileInUse` while a job that has not ended uses it.
pub async fn delete(store: &Store, project: &Project, id: &FileId) -> Result<()> {
    let path = BlobKey::File { project: project.id.clone(), file: id.clone() }.path();
    let args = (project.clone(), id.clone(), path.clone());
    store
        .db
        .transact(Lane::Api, args, |tx, (project, id, path)| {
            Box::pin(delete_row(tx, project, id, path))
        })
        .await?;
    // The file is gone for everyone; if its content cannot be removed at once, the collector does it.
    if let Err(error) = garbage::discard(store, &path).await {
        tracing::warn!(blob.path = path, %error, "a deleted file's content is left for later");
    }
    Ok(())
}

async fn delete_row(
    tx: &mut PgConnection,
    project: &Project,
    id: &FileId,
    path: &str,
) -> Result<()> {
    // Locked first: a job that is just being created holds a share of this lock.
    sqlx::query("select 1 from files where id = $1 and project_id = $2 for update")
        .bind(id.as_str())
        .bind(project.id.as_str())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(Error::NotFound("file"))?;
    let user: Option<(String,)> = sqlx::query_as(
        "select j.id from jobs j join job_details d on d.job_id = j.id
         where j.project_id = $2 and $1 in (d.training_file, d.validation_file)
           and j.status in ('validating_files', 'queued', 'running', 'paused')
         order by j.id limit 1",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    if let Some((job,)) = user {
        return Err(Conflict::FileInUse(job.into()).into());
    }
    sqlx::query("delete from files where id = $1").bind(id.as_str()).execute(&mut *tx).await?;
    garbage::add(tx, project.id.as_str(), &[path.to_owned()], "deleted", Duration::ZERO).await
}
