//! The parts of an upload: taken one by one, each stored before it counts, and read as one content.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use domain::{PartId, UploadId};
use futures::{Stream, StreamExt, TryStreamExt};
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use super::{Record, UploadRefusal, find, lock, part_key};
use crate::Store;
use crate::blob::{BlobKey, BlobReader};
use crate::db::{Db, Lane};
use crate::error::{Error, Result};
use crate::files::FileRow;
use crate::garbage::Reserved;
use crate::projects::Project;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartRow {
    pub id: PartId,
    pub upload_id: UploadId,
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
    pub created_at: OffsetDateTime,
}

/// How much may lie in one upload.
#[derive(Debug, Clone, Copy)]
pub struct PartLimits {
    pub parts: u32,
    pub part_bytes: u64,
}

#[derive(FromRow)]
pub(super) struct PartRecord {
    pub id: String,
    upload_id: String,
    pub bytes: i64,
    sha256: String,
    pub position: Option<i32>,
    created_at: OffsetDateTime,
}

impl From<PartRecord> for PartRow {
    fn from(record: PartRecord) -> Self {
        Self {
            id: record.id.into(),
            upload_id: record.upload_id.into(),
            bytes: record.bytes.unsigned_abs(),
            sha256: record.sha256,
            created_at: record.created_at,
        }
    }
}

/// Refuses, unless the upload takes parts now: asked before a part's bytes are read.
pub async fn check_open(
    db: &Db,
    project: &Project,
    id: &UploadId,
    limits: PartLimits,
) -> Result<()> {
    let args = (project.clone(), id.clone());
    db.transact(Lane::Api, args, move |tx, (project, id)| {
        Box::pin(async move {
            let upload = find(tx, project, id).await?;
            demand_room(tx, &upload, 0, limits).await
        })
    })
    .await
}

/// A part whose content is stored and which has no row yet. Dropped without [`StoredPart::commit`], it is removed
/// again.
pub struct StoredPart {
    db: Db,
    project: Project,
    upload: UploadId,
    id: PartId,
    blob: Reserved,
    bytes: u64,
    sha256: String,
}

/// Stores the bytes of a part, at most `limit` of them (`TooLarge` above), in constant memory.
pub async fn store_part<E: std::fmt::Display>(
    store: &Store,
    project: &Project,
    upload: &UploadId,
    body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
    limit: u64,
) -> Result<StoredPart> {
    let id = PartId::new();
    let key = part_key(&project.id, upload, &id);
    let blob = Reserved::new(store, &project.id, &key).await?;
    let stored = store.blobs.put_stream(&key, body, limit, None).await?;
    Ok(StoredPart {
        db: store.db.clone(),
        project: project.clone(),
        upload: upload.clone(),
        id,
        blob,
        bytes: stored.bytes,
        sha256: stored.sha256,
    })
}

impl StoredPart {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes it a part of the upload, if that still takes parts.
    pub async fn commit(self, limits: PartLimits) -> Result<PartRow> {
        let (db, part) = (self.db.clone(), Arc::new(self));
        let row = db
            .transact(Lane::Api, part.clone(), move |tx, part| Box::pin(add(tx, part, limits)))
            .await?;
        part.blob.mark_kept();
        Ok(row)
    }
}

async fn add(tx: &mut PgConnection, part: &StoredPart, limits: PartLimits) -> Result<PartRow> {
    let upload = lock(tx, &part.project, &part.upload).await?;
    demand_room(tx, &upload, part.bytes, limits).await?;
    part.blob.keep(tx).await?;
    let record: PartRecord = sqlx::query_as(
        "insert into upload_parts (id, project_id, upload_id, bytes, sha256)
         values ($1, $2, $3, $4, $5) returning *",
    )
    .bind(part.id.as_str())
    .bind(part.project.id.as_str())
    .bind(part.upload.as_str())
    .bind(part.bytes as i64)
    .bind(&part.sha256)
    .fetch_one(tx)
    .await?;
    Ok(record.into())
}

/// Refuses, unless the upload is pending and can take a part of so many bytes.
async fn demand_room(
    tx: &mut PgConnection,
    upload: &Record,
    bytes: u64,
    limits: PartLimits,
) -> Result<()> {
    upload.demand_pending("given more parts")?;
    let (parts, stored): (i64, i64) = sqlx::query_as(
        "select count(*), coalesce(sum(bytes), 0)::bigint from upload_parts where upload_id = $1",
    )
    .bind(&upload.id)
    .fetch_one(tx)
    .await?;
    if parts.unsigned_abs() >= u64::from(limits.parts) {
        return Err(UploadRefusal::TooManyParts { id: upload.id(), most: limits.parts }.into());
    }
    // More than was announced: a part whose answer was lost is sent again under another id.
    let announced = upload.bytes.unsigned_abs();
    let most = announced.saturating_add(announced.max(3 * limits.part_bytes));
    if stored.unsigned_abs() + bytes > most {
        return Err(UploadRefusal::TooManyBytes { id: upload.id(), announced, most }.into());
    }
    Ok(())
}

/// All parts of an upload: those of its file in their order, then the others by age.
pub(super) async fn of(tx: &mut PgConnection, upload: &UploadId) -> Result<Vec<PartRecord>> {
    let statement = "select * from upload_parts where upload_id = $1 order by position, id";
    Ok(sqlx::query_as(statement).bind(upload.as_str()).fetch_all(tx).await?)
}

/// The content of a file that came as an upload, or the part of it within `range`.
pub(crate) async fn read(
    store: &Store,
    file: &FileRow,
    upload: &UploadId,
    range: Option<Range<u64>>,
) -> Result<BlobReader> {
    let parts: Vec<(String, i64)> = sqlx::query_as(
        "select id, bytes from upload_parts
         where upload_id = $1 and project_id = $2 and position is not null order by position",
    )
    .bind(upload.as_str())
    .bind(file.project_id.as_str())
    .fetch_all(&store.db.pool)
    .await?;
    let parts = parts
        .into_iter()
        .map(|(id, bytes)| (part_key(&file.project_id, upload, &id.into()), bytes.unsigned_abs()));
    let range = range.map_or(0..file.bytes, |range| range.start..range.end.min(file.bytes));
    read_in_order(store, parts, range).await
}

/// Some parts as one content.
pub(super) async fn read_in_order(
    store: &Store,
    parts: impl Iterator<Item = (BlobKey, u64)>,
    range: Range<u64>,
) -> Result<BlobReader> {
    let mut pieces = Vec::new();
    let mut begin = 0;
    for (key, bytes) in parts {
        let end = begin + bytes;
        let within = range.start.max(begin)..range.end.min(end);
        if within.start < within.end {
            pieces.push((key, bytes, within.start - begin..within.end - begin));
        }
        begin = end;
    }
    let mut pieces = pieces.into_iter();
    // The first at once, so that content which is not there is told before anything is sent.
    let first = match pieces.next() {
        Some(piece) => read_piece(store.clone(), piece).await?.boxed(),
        None => futures::stream::empty().boxed(),
    };
    let store = store.clone();
    let rest = futures::stream::iter(pieces)
        .then(move |piece| read_piece(store.clone(), piece))
        .try_flatten();
    Ok(BlobReader { bytes: begin, range, stream: first.chain(rest).boxed() })
}

async fn read_piece(
    store: Store,
    (key, bytes, range): (BlobKey, u64, Range<u64>),
) -> Result<impl Stream<Item = Result<Bytes>> + Send + 'static> {
    let reader = store.blobs.get(&key, Some(range)).await?;
    if reader.bytes != bytes {
        let problem = format!("has {} bytes in the storage instead of {bytes}", reader.bytes);
        return Err(Error::Inconsistent(format!("{}: {problem}", key.path())));
    }
    Ok(reader.stream)
}
