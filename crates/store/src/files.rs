//! Files: uploaded and produced content, and the rows that make it visible.
//!
//! The blob comes first, the row second: a file that can be seen is stored, synced and hashed.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use domain::FileId;
use futures::Stream;
use time::OffsetDateTime;

use crate::Store;
use crate::blob::{BlobKey, BlobReader};
use crate::db::Db;
use crate::error::Result;
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
    pub(crate) key: BlobKey,
}

impl FileRow {
    pub fn blob_key(&self) -> &BlobKey {
        &self.key
    }
}

/// What the user says about a file.
#[derive(Debug, Clone)]
pub struct NewFile {
    pub filename: String,
    pub purpose: String,
    pub expires_after: Option<Duration>,
}

/// Content that is stored and has no row yet. Dropped without [`Uploaded::commit`], it is removed again.
pub struct Uploaded {
    id: FileId,
    bytes: u64,
    sha256: String,
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

    /// Makes the file visible.
    pub async fn commit(self, new: NewFile) -> Result<FileRow> {
        let _ = new;
        crate::unwritten()
    }
}

/// Stores a body of at most `limit` bytes (`TooLarge` above), in constant memory.
pub async fn upload<E: std::fmt::Display>(
    store: &Store,
    project: &Project,
    body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
    limit: u64,
) -> Result<Uploaded> {
    let _ = (store, project, body, limit);
    crate::unwritten()
}

/// [`upload`] for content in memory.
pub async fn upload_bytes(store: &Store, project: &Project, body: Bytes) -> Result<Uploaded> {
    let _ = (store, project, body);
    crate::unwritten()
}

pub async fn get(db: &Db, project: &Project, id: &FileId) -> Result<FileRow> {
    let _ = (db, project, id);
    crate::unwritten()
}

pub async fn list(
    db: &Db,
    project: &Project,
    purpose: Option<&str>,
    page: &PageQuery,
) -> Result<Page<FileRow>> {
    let _ = (db, project, purpose, page);
    crate::unwritten()
}

/// The row and its content, or the part of it within `range`.
pub async fn open(
    store: &Store,
    project: &Project,
    id: &FileId,
    range: Option<Range<u64>>,
) -> Result<(FileRow, BlobReader)> {
    let _ = (store, project, id, range);
    crate::unwritten()
}

/// Removes a file; `Conflict::FileInUse` while a job that has not ended uses it.
pub async fn delete(store: &Store, project: &Project, id: &FileId) -> Result<()> {
    let _ = (store, project, id);
    crate::unwritten()
}
