//! Uploads: files that come in parts, in any order, several at a time.
//!
//! Each part is a blob with a row. A completion orders the parts, hashes them as one content and makes a file of
//! them in one transaction; nothing is copied, so it needs no room and can be repeated. Whoever ends an upload
//! first (complete, cancel, expire) wins: each of them asks for `pending` under the lock of the row.
//!
//! Rules about purposes and sizes are the server's; here they are numbers that it passes in.

mod complete;
mod parts;

use std::time::Duration;

use domain::{FileId, PartId, ProjectId, UploadId};
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::blob::BlobKey;
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::files::{self, FileRow};
use crate::garbage;
use crate::idempotency::{self, Once};
use crate::projects::Project;

pub use complete::{Completion, complete};
pub(crate) use parts::read;
pub use parts::{PartLimits, PartRow, StoredPart, check_open, store_part};

/// A completion that began in time may end so long after the time is over.
const GRACE: Duration = Duration::from_secs(900);
/// An ended upload can be looked at for so long, or for as long as its file exists.
const STAY: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadStatus {
    Pending,
    Completed,
    Cancelled,
    Expired,
}

impl UploadStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadRow {
    pub id: UploadId,
    pub filename: String,
    pub purpose: String,
    /// As announced.
    pub bytes: u64,
    pub status: UploadStatus,
    pub created_at: OffsetDateTime,
    pub expires_at: OffsetDateTime,
    /// The file that it has become, while that exists.
    pub file: Option<FileRow>,
}

/// What the client announces.
#[derive(Debug, Clone)]
pub struct NewUpload {
    pub filename: String,
    pub purpose: String,
    pub mime_type: String,
    pub bytes: u64,
    /// Of the file, from its creation.
    pub file_expires_after: Option<Duration>,
    /// Of the upload.
    pub lifetime: Duration,
}

/// Why an upload does not take a part or become a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UploadRefusal {
    #[error("Upload {id} has the status '{status}' and cannot be {wanted}.")]
    Ended { id: UploadId, status: &'static str, wanted: &'static str },
    #[error("Upload {id} was completed already, from other parts or with another md5.")]
    CompletedOtherwise { id: UploadId },
    #[error("Upload {upload} has no part {part}.")]
    UnknownPart { upload: UploadId, part: PartId },
    #[error("Part {0} is named more than once.")]
    PartTwice(PartId),
    #[error(
        "The parts named have {got} bytes together, but the upload was created for {announced} bytes."
    )]
    WrongSum { announced: u64, got: u64 },
    #[error(
        "The content has the md5 {got}, not {expected}. No part is lost: send the wrong ones again."
    )]
    WrongMd5 { expected: String, got: String },
    #[error(
        "The parts of upload {id} would have more bytes than it may hold: {most} for an announced size of \
         {announced}. Name the parts received so far in a completion, or begin a new upload."
    )]
    TooManyBytes { id: UploadId, announced: u64, most: u64 },
    #[error("Upload {id} has {most} parts already, which is the limit. Send larger parts.")]
    TooManyParts { id: UploadId, most: u32 },
}

impl UploadRefusal {
    /// The field of the request that is at fault.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::UnknownPart { .. } | Self::PartTwice(_) | Self::WrongSum { .. } => {
                Some("part_ids")
            }
            Self::WrongMd5 { .. } => Some("md5"),
            Self::TooManyBytes { .. } | Self::TooManyParts { .. } => Some("data"),
            Self::Ended { .. } | Self::CompletedOtherwise { .. } => None,
        }
    }
}

impl From<UploadRefusal> for Error {
    fn from(refusal: UploadRefusal) -> Self {
        Self::Conflict(Conflict::Upload(refusal))
    }
}

#[derive(FromRow)]
struct Record {
    id: String,
    filename: String,
    purpose: String,
    bytes: i64,
    file_expires_after: Option<sqlx::postgres::types::PgInterval>,
    status: String,
    file_id: Option<String>,
    md5: Option<String>,
    created_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    /// Whether the time is over, by the database's clock.
    is_over: bool,
}

impl Record {
    fn id(&self) -> UploadId {
        self.id.as_str().into()
    }

    fn status(&self) -> Result<UploadStatus> {
        Ok(match self.status.as_str() {
            "pending" if self.is_over => UploadStatus::Expired,
            "pending" => UploadStatus::Pending,
            "completed" => UploadStatus::Completed,
            "cancelled" => UploadStatus::Cancelled,
            "expired" => UploadStatus::Expired,
            other => return Err(Error::inconsistent("uploads", &self.id, other)),
        })
    }

    /// Refuses, unless the upload waits for parts.
    fn demand_pending(&self, wanted: &'static str) -> Result<()> {
        match self.status()? {
            UploadStatus::Pending => Ok(()),
            ended => Err(self.refusal(ended, wanted)),
        }
    }

    fn refusal(&self, status: UploadStatus, wanted: &'static str) -> Error {
        UploadRefusal::Ended { id: self.id(), status: status.as_str(), wanted }.into()
    }

    fn into_row(self, file: Option<FileRow>) -> Result<UploadRow> {
        Ok(UploadRow {
            id: self.id(),
            status: self.status()?,
            filename: self.filename,
            purpose: self.purpose,
            bytes: self.bytes.unsigned_abs(),
            created_at: self.created_at,
            expires_at: self.expires_at,
            file,
        })
    }
}

pub async fn create(
    db: &Db,
    project: &Project,
    new: NewUpload,
    once: Option<Once>,
) -> Result<UploadRow> {
    let args = (project.clone(), new, once);
    db.transact(Lane::Api, args, |tx, (project, new, once)| {
        Box::pin(async move {
            let id = UploadId::new();
            let first = idempotency::begin(tx, project.id.as_str(), once.as_ref(), id.as_str());
            let Some(first) = first.await? else { return insert(tx, project, &id, new).await };
            let upload = find(tx, project, &first.into()).await?;
            let file = file_of(tx, project, &upload).await?;
            upload.into_row(file)
        })
    })
    .await
}

async fn insert(
    tx: &mut PgConnection,
    project: &Project,
    id: &UploadId,
    new: &NewUpload,
) -> Result<UploadRow> {
    let record: Record = sqlx::query_as(
        "insert into uploads (id, project_id, filename, purpose, mime_type, bytes, file_expires_after,
                              created_at, expires_at)
         select $1, $2, $3, $4, $5, $6, $7, now, now + $8 from clock_timestamp() now
         returning *, false as is_over",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .bind(crate::text::clean(&new.filename))
    .bind(&new.purpose)
    .bind(crate::text::clean(&new.mime_type))
    .bind(new.bytes as i64)
    .bind(new.file_expires_after.map(crate::interval))
    .bind(crate::interval(new.lifetime))
    .fetch_one(tx)
    .await?;
    record.into_row(None)
}

/// The upload and the parts that it has received, the oldest first; after its completion, those of the file in
/// their order.
pub async fn get(db: &Db, project: &Project, id: &UploadId) -> Result<(UploadRow, Vec<PartRow>)> {
    let args = (project.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, id)| {
        Box::pin(async move {
            let upload = find(tx, project, id).await?;
            let file = file_of(tx, project, &upload).await?;
            let parts = parts::of(tx, id).await?;
            Ok((upload.into_row(file)?, parts.into_iter().map(Into::into).collect()))
        })
    })
    .await
}

/// `pending` → `cancelled`; a repeated call is answered alike.
pub async fn cancel(db: &Db, project: &Project, id: &UploadId) -> Result<UploadRow> {
    let args = (project.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, id)| {
        Box::pin(async move {
            let upload = lock(tx, project, id).await?;
            match upload.status()? {
                UploadStatus::Cancelled => return upload.into_row(None),
                UploadStatus::Pending => {}
                ended => return Err(upload.refusal(ended, "cancelled")),
            }
            let cancelled = end(tx, id, UploadStatus::Cancelled).await?;
            cancelled.into_row(None)
        })
    })
    .await
}

/// `pending` → an end without a file. Its parts go.
async fn end(tx: &mut PgConnection, id: &UploadId, status: UploadStatus) -> Result<Record> {
    let record: Record = sqlx::query_as(
        "update uploads set status = $2, ended_at = clock_timestamp(),
                remove_after = clock_timestamp() + $3
         where id = $1 and status = 'pending' returning *, false as is_over",
    )
    .bind(id.as_str())
    .bind(status.as_str())
    .bind(crate::interval(STAY))
    .fetch_one(&mut *tx)
    .await?;
    remove_parts(tx, id.as_str(), "deleted").await?;
    Ok(record)
}

/// Ends uploads whose time is over, and removes old rows of ended ones.
pub(crate) async fn expire(tx: &mut PgConnection) -> Result<()> {
    let over: Vec<(String,)> = sqlx::query_as(
        "select id from uploads where status = 'pending' and expires_at <= clock_timestamp() - $1
         order by expires_at limit 50 for update skip locked",
    )
    .bind(crate::interval(GRACE))
    .fetch_all(&mut *tx)
    .await?;
    for (id,) in over {
        end(tx, &id.into(), UploadStatus::Expired).await?;
    }
    sqlx::query("delete from uploads where remove_after <= clock_timestamp()").execute(tx).await?;
    Ok(())
}

/// The file that an upload became is gone: its parts go too, and some time later the upload. The paths.
pub(crate) async fn remove_content(
    tx: &mut PgConnection,
    upload: &str,
    reason: &str,
) -> Result<Vec<String>> {
    sqlx::query("update uploads set remove_after = clock_timestamp() + $2 where id = $1")
        .bind(upload)
        .bind(crate::interval(STAY))
        .execute(&mut *tx)
        .await?;
    remove_parts(tx, upload, reason).await
}

async fn remove_parts(tx: &mut PgConnection, upload: &str, reason: &str) -> Result<Vec<String>> {
    let gone: Vec<(String, String)> =
        sqlx::query_as("delete from upload_parts where upload_id = $1 returning project_id, id")
            .bind(upload)
            .fetch_all(&mut *tx)
            .await?;
    let paths: Vec<String> = gone
        .iter()
        .map(|(project, part)| {
            part_key(&project.as_str().into(), &upload.into(), &part.as_str().into()).path()
        })
        .collect();
    if let Some((project, _)) = gone.first() {
        garbage::add(tx, project, &paths, reason, Duration::ZERO).await?;
    }
    Ok(paths)
}

fn part_key(project: &ProjectId, upload: &UploadId, part: &PartId) -> BlobKey {
    BlobKey::UploadPart { project: project.clone(), upload: upload.clone(), part: part.clone() }
}

async fn find(tx: &mut PgConnection, project: &Project, id: &UploadId) -> Result<Record> {
    let record: Option<Record> = sqlx::query_as(
        "select *, expires_at <= clock_timestamp() as is_over from uploads
         where id = $1 and project_id = $2",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(tx)
    .await?;
    record.ok_or(Error::NotFound("upload"))
}

async fn lock(tx: &mut PgConnection, project: &Project, id: &UploadId) -> Result<Record> {
    sqlx::query("select 1 from uploads where id = $1 and project_id = $2 for update")
        .bind(id.as_str())
        .bind(project.id.as_str())
        .execute(&mut *tx)
        .await?;
    find(tx, project, id).await
}

/// The file that a completed upload has become, while it exists.
async fn file_of(
    tx: &mut PgConnection,
    project: &Project,
    upload: &Record,
) -> Result<Option<FileRow>> {
    let Some(id) = &upload.file_id else { return Ok(None) };
    match files::find(tx, &project.id, &FileId::from(id.as_str())).await {
        Ok(file) => Ok(Some(file)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
