//! Files: uploaded and produced content, and the rows that make it visible.
//!
//! The blob comes first, the row second: a file that can be seen is stored, synced and hashed, and an upload
//! that breaks off is never seen. The content is one blob, or the parts of the upload that the file came as.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::{FileId, ProjectId, UploadId};
use futures::Stream;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::Store;
use crate::blob::{BlobKey, BlobReader};
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::garbage::{self, Reserved};
use crate::idempotency::{self, Created, Once};
use crate::page::{Page, PageQuery};
use crate::projects::Project;
use crate::uploads;

/// Jobs that need their files: those that have not ended.
const OPEN: &str = "('validating_files', 'queued', 'running', 'paused')";

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
    pub(crate) project_id: ProjectId,
    /// Whose parts are the content; none: it is a blob of its own.
    pub(crate) upload_id: Option<UploadId>,
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
    upload_id: Option<String>,
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
            upload_id: record.upload_id.map(Into::into),
        }
    }
}

/// Content that is stored and has no row yet. Dropped without [`Uploaded::commit`], it is removed again.
pub struct Uploaded {
    db: Db,
    blob: Reserved,
    content: Content,
}

/// What the row of a file says about its content.
pub(crate) struct Content {
    pub id: FileId,
    pub project: ProjectId,
    pub upload: Option<UploadId>,
    pub bytes: u64,
    pub sha256: String,
}

impl Uploaded {
    pub fn id(&self) -> &FileId {
        &self.content.id
    }

    pub fn bytes(&self) -> u64 {
        self.content.bytes
    }

    /// Hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.content.sha256
    }

    /// Makes the file visible. A file that an earlier request of the same kind has made is given instead, and
    /// this content removed.
    pub async fn commit(self, new: NewFile, once: Option<Once>) -> Result<FileRow> {
        let (db, upload) = (self.db.clone(), Arc::new(self));
        let args = (upload.clone(), new, once);
        let row = db
            .transact(Lane::Api, args, |tx, (upload, new, once)| {
                Box::pin(async move {
                    let (project, id) = (&upload.content.project, upload.id());
                    let first =
                        idempotency::begin(tx, project.as_str(), once.as_ref(), id.as_str());
                    match first.await? {
                        Some(first) => find(tx, project, &first.into()).await,
                        None => insert(tx, upload, new).await,
                    }
                })
            })
            .await?;
        if row.id == *upload.id() {
            upload.mark_visible();
        }
        Ok(row)
    }

    /// The row is committed: nothing is to be cleaned up any more.
    pub(crate) fn mark_visible(&self) {
        self.blob.mark_kept();
    }
}

/// Stores a body of at most `limit` bytes (`TooLarge` above), in constant memory.
pub async fn upload<E: std::fmt::Display>(
    store: &Store,
    project: &Project,
    body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
    limit: u64,
) -> Result<Uploaded> {
    let (id, project) = (FileId::new(), project.id.clone());
    let key = BlobKey::File { project: project.clone(), file: id.clone() };
    let blob = Reserved::new(store, &project, &key).await?;
    let stored = store.blobs.put_stream(&key, body, limit, None).await?;
    let (bytes, sha256) = (stored.bytes, stored.sha256);
    let content = Content { id, project, upload: None, bytes, sha256 };
    Ok(Uploaded { db: store.db.clone(), blob, content })
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
    upload.blob.keep(tx).await?;
    insert_row(tx, &upload.content, new).await
}

pub(crate) async fn insert_row(
    tx: &mut PgConnection,
    content: &Content,
    new: &NewFile,
) -> Result<FileRow> {
    // One time for both, so that a life of an hour is one of 3600 seconds as shown.
    let record: FileRecord = sqlx::query_as(
        "insert into files (id, project_id, filename, purpose, bytes, sha256, upload_id,
                            created_at, expires_at)
         select $1, $2, $3, $4, $5, $6, $7, now, now + $8 from clock_timestamp() now
         returning *",
    )
    .bind(content.id.as_str())
    .bind(content.project.as_str())
    .bind(crate::text::clean(&new.filename))
    .bind(&new.purpose)
    .bind(content.bytes as i64)
    .bind(&content.sha256)
    .bind(content.upload.as_ref().map(UploadId::as_str))
    .bind(new.expires_after.map(crate::interval))
    .fetch_one(tx)
    .await?;
    Ok(record.into())
}

pub async fn get(db: &Db, project: &Project, id: &FileId) -> Result<FileRow> {
    find(&db.pool, &project.id, id).await
}

pub(crate) async fn find(
    db: impl sqlx::PgExecutor<'_>,
    project: &ProjectId,
    id: &FileId,
) -> Result<FileRow> {
    let record: Option<FileRecord> = sqlx::query_as(
        "select * from files where id = $1 and project_id = $2
         and (expires_at is null or expires_at > clock_timestamp())",
    )
    .bind(id.as_str())
    .bind(project.as_str())
    .fetch_optional(db)
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

/// The file that an eval run reads; also one that has expired meanwhile.
pub async fn of_run(db: &Db, project: &Project, id: &FileId) -> Result<FileRow> {
    let record: Option<FileRecord> =
        sqlx::query_as("select * from files where id = $1 and project_id = $2")
            .bind(id.as_str())
            .bind(project.id.as_str())
            .fetch_optional(&db.pool)
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
    let reader = read(store, &row, range).await?;
    Ok((row, reader))
}

/// The content of a file, or the part of it within `range`.
pub async fn read(store: &Store, row: &FileRow, range: Option<Range<u64>>) -> Result<BlobReader> {
    if let Some(upload) = &row.upload_id {
        return uploads::read(store, row, upload, range).await;
    }
    store.blobs.get(&blob_key(&row.project_id, &row.id), range).await
}

fn blob_key(project: &ProjectId, file: &FileId) -> BlobKey {
    BlobKey::File { project: project.clone(), file: file.clone() }
}

/// Removes a file; a conflict while a job or an eval run that has not ended uses it.
pub async fn delete(store: &Store, project: &Project, id: &FileId) -> Result<()> {
    let args = (project.clone(), id.clone());
    let blobs = store
        .db
        .transact(Lane::Api, args, |tx, (project, id)| Box::pin(delete_row(tx, project, id)))
        .await?;
    // The file is gone for everyone; what cannot be removed at once is left to the collector, and so are the
    // many parts of a large upload.
    for path in blobs.iter().take(1) {
        if let Err(error) = garbage::discard(store, path).await {
            tracing::warn!(blob.path = path, %error, "a deleted file's content is left for later");
        }
    }
    Ok(())
}

/// The paths that are to be removed now.
async fn delete_row(tx: &mut PgConnection, project: &Project, id: &FileId) -> Result<Vec<String>> {
    // Locked first: a job that is just being created holds a share of this lock.
    let record: FileRecord = sqlx::query_as(
        "select * from files where id = $1 and project_id = $2
         and (expires_at is null or expires_at > clock_timestamp()) for update",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(Error::NotFound("file"))?;
    if let Some(conflict) = user(tx, &record).await? {
        return Err(conflict.into());
    }
    remove(tx, &record, "deleted").await
}

/// The job or the eval run that has not ended and needs the file. The file's row is locked, so none can be
/// created meanwhile.
async fn user(tx: &mut PgConnection, file: &FileRecord) -> Result<Option<Conflict>> {
    let statement = sqlx::AssertSqlSafe(format!(
        "select j.id from jobs j join job_details d on d.job_id = j.id
         where j.project_id = $2 and $1 in (d.training_file, d.validation_file)
           and j.status in {OPEN} order by j.id limit 1"
    ));
    let job: Option<(String,)> = sqlx::query_as(statement)
        .bind(&file.id)
        .bind(&file.project_id)
        .fetch_optional(&mut *tx)
        .await?;
    if let Some((job,)) = job {
        return Ok(Some(Conflict::FileInUse(job.into())));
    }
    let run: Option<(String,)> = sqlx::query_as(
        "select id from eval_runs
         where source_file = $1 and status in ('queued', 'in_progress') order by id limit 1",
    )
    .bind(&file.id)
    .fetch_optional(tx)
    .await?;
    Ok(run.map(|(run,)| Conflict::FileInEvalRun(run.into())))
}

/// The row goes, and its content is given over to removal: the paths.
async fn remove(tx: &mut PgConnection, file: &FileRecord, reason: &str) -> Result<Vec<String>> {
    sqlx::query("delete from files where id = $1").bind(&file.id).execute(&mut *tx).await?;
    idempotency::forget(tx, &file.project_id, Created::File, &file.id).await?;
    if let Some(upload) = &file.upload_id {
        return uploads::remove_content(tx, upload, reason).await;
    }
    let key = blob_key(&file.project_id.as_str().into(), &file.id.as_str().into());
    let paths = vec![key.path()];
    garbage::add(tx, &file.project_id, &paths, reason, Duration::ZERO).await?;
    Ok(paths)
}

/// Removes files whose time is over, except where a job or an eval run that has not ended needs them.
pub(crate) async fn expire(tx: &mut PgConnection) -> Result<()> {
    let statement = sqlx::AssertSqlSafe(format!(
        "select f.* from files f
         where f.expires_at <= clock_timestamp() and not exists (
             select 1 from jobs j join job_details d on d.job_id = j.id
             where j.project_id = f.project_id and f.id in (d.training_file, d.validation_file)
                   and j.status in {OPEN})
           and not exists (select 1 from eval_runs r where r.source_file = f.id
                           and r.status in ('queued', 'in_progress'))
         order by f.expires_at limit 100 for update skip locked"
    ));
    let over: Vec<FileRecord> = sqlx::query_as(statement).fetch_all(&mut *tx).await?;
    for file in over {
        // Asked again under the lock: a job may have been created between the look and the lock.
        if user(tx, &file).await?.is_none() {
            remove(tx, &file, "expired").await?;
        }
    }
    Ok(())
}
