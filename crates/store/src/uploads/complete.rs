//! `pending` → `completed`: the parts named are checked, hashed as one content, and become a file.
//!
//! The hashing lies between two transactions and holds no lock. Whatever happens meanwhile (a cancel, another
//! completion) decides under the lock of the second one, so two completions give one file and one of a
//! completion and a cancel loses.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use domain::{FileId, PartId, UploadId};
use futures::TryStreamExt;
use md5::{Digest as _, Md5};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::parts::{self, PartRecord};
use super::{Record, UploadRefusal, UploadRow, UploadStatus, file_of, find, lock, part_key};
use crate::Store;
use crate::blob::hex;
use crate::db::Lane;
use crate::error::{Error, Result};
use crate::files::{self, Content, NewFile};
use crate::garbage;
use crate::projects::Project;

/// Bytes that are hashed in one go, on a thread where that may take its time.
const HASHED_AT_ONCE: usize = 4 * 1024 * 1024;

/// What the client asks for.
#[derive(Debug, Clone)]
pub struct Completion {
    /// In the order of the content.
    pub part_ids: Vec<PartId>,
    /// What the whole content must hash to; lower-case hexadecimal.
    pub md5: Option<String>,
}

/// Makes a file of the parts named; the others are removed. A repeated call gives the first one's file.
pub async fn complete(
    store: &Store,
    project: &Project,
    id: &UploadId,
    completion: Completion,
) -> Result<UploadRow> {
    let args = (project.clone(), id.clone(), completion.clone());
    let plan = store
        .db
        .transact(Lane::Api, args, |tx, (project, id, completion)| {
            Box::pin(plan(tx, project, id, completion))
        })
        .await?;
    let bytes = match plan {
        Plan::Done(upload) => return Ok(*upload),
        Plan::Hash(bytes) => bytes,
    };
    // A cancel that comes in between removes parts: the lock below tells it.
    let hashed = hash(store, project, id, &completion, &bytes).await;
    if let (Ok(Hashes { md5: Some(got), .. }), Some(expected)) = (&hashed, &completion.md5)
        && got != expected
    {
        let (got, expected) = (got.clone(), expected.clone());
        return Err(UploadRefusal::WrongMd5 { expected, got }.into());
    }
    let (sha256, problem) = match hashed {
        Ok(hashes) => (Some(hashes.sha256), None),
        Err(error) => (None, Some(error)),
    };
    let args = (project.clone(), id.clone(), completion, sha256);
    let outcome = store
        .db
        .transact(Lane::Api, args, |tx, (project, id, completion, sha256)| {
            Box::pin(commit(tx, project, id, completion, sha256.as_deref()))
        })
        .await?;
    match (outcome, problem) {
        (Some(upload), _) => Ok(upload),
        // Part of the content is missing although nobody has ended the upload.
        (None, Some(Error::NotFound(_))) => {
            Err(Error::Inconsistent(format!("upload {id}: a part is not in the storage")))
        }
        (None, problem) => Err(problem.unwrap_or(Error::NotFound("upload"))),
    }
}

enum Plan {
    Done(Box<UploadRow>),
    /// The sizes of the parts named.
    Hash(Vec<u64>),
}

async fn plan(
    tx: &mut PgConnection,
    project: &Project,
    id: &UploadId,
    completion: &Completion,
) -> Result<Plan> {
    let upload = find(tx, project, id).await?;
    if upload.status()? == UploadStatus::Completed {
        return Ok(Plan::Done(Box::new(again(tx, project, upload, completion).await?)));
    }
    upload.demand_pending("completed")?;
    let received = parts::of(tx, id).await?;
    Ok(Plan::Hash(chosen(&upload, &received, completion)?))
}

/// The sizes of the parts named, if these can be the content.
fn chosen(upload: &Record, received: &[PartRecord], completion: &Completion) -> Result<Vec<u64>> {
    let mut left: HashMap<&str, u64> =
        received.iter().map(|part| (part.id.as_str(), part.bytes.unsigned_abs())).collect();
    let mut bytes = Vec::with_capacity(completion.part_ids.len());
    for part in &completion.part_ids {
        match left.entry(part.as_str()) {
            Entry::Occupied(entry) => bytes.push(entry.remove()),
            Entry::Vacant(_) if received.iter().any(|known| known.id == part.as_str()) => {
                return Err(UploadRefusal::PartTwice(part.clone()).into());
            }
            Entry::Vacant(_) => {
                let part = part.clone();
                return Err(UploadRefusal::UnknownPart { upload: upload.id(), part }.into());
            }
        }
    }
    let (announced, got) = (upload.bytes.unsigned_abs(), bytes.iter().sum());
    if announced != got {
        return Err(UploadRefusal::WrongSum { announced, got }.into());
    }
    Ok(bytes)
}

/// The answer to a completion of a completed upload: the same, if it asks for the same.
async fn again(
    tx: &mut PgConnection,
    project: &Project,
    upload: Record,
    completion: &Completion,
) -> Result<UploadRow> {
    let mut placed = parts::of(tx, &upload.id()).await?;
    placed.retain(|part| part.position.is_some());
    let same_parts =
        placed.iter().map(|p| p.id.as_str()).eq(completion.part_ids.iter().map(PartId::as_str));
    let same_md5 = completion.md5.is_none() || completion.md5 == upload.md5;
    let file = file_of(tx, project, &upload).await?;
    if !same_md5 || !same_parts || file.is_none() {
        return Err(UploadRefusal::CompletedOtherwise { id: upload.id() }.into());
    }
    upload.into_row(file)
}

struct Hashes {
    sha256: String,
    md5: Option<String>,
}

/// Both hashes under way. They go to a blocking thread and back with each piece.
struct Hasher {
    sha256: Sha256,
    md5: Option<Md5>,
}

/// Reads the content once, in order. The next piece is read while the last one is hashed.
async fn hash(
    store: &Store,
    project: &Project,
    id: &UploadId,
    completion: &Completion,
    bytes: &[u64],
) -> Result<Hashes> {
    let keys = completion.part_ids.iter().map(|part| part_key(&project.id, id, part));
    let all = 0..bytes.iter().sum();
    let mut reader = parts::read_in_order(store, keys.zip(bytes.iter().copied()), all).await?;
    let md5 = completion.md5.as_ref().map(|_| Md5::new());
    let mut hashing = tokio::spawn(async { Ok(Hasher { sha256: Sha256::new(), md5 }) });
    loop {
        let mut chunks = Vec::new();
        let mut gathered = 0;
        while gathered < HASHED_AT_ONCE {
            let Some(chunk) = reader.stream.try_next().await? else { break };
            gathered += chunk.len();
            chunks.push(chunk);
        }
        let mut hasher: Hasher = joined(hashing.await)?;
        if chunks.is_empty() {
            let md5 = hasher.md5.map(|md5| hex(&md5.finalize()));
            return Ok(Hashes { sha256: hex(&hasher.sha256.finalize()), md5 });
        }
        hashing = tokio::task::spawn_blocking(move || {
            for chunk in &chunks {
                hasher.sha256.update(chunk);
                if let Some(md5) = &mut hasher.md5 {
                    md5.update(chunk);
                }
            }
            Ok(hasher)
        });
    }
}

fn joined<T>(outcome: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    outcome.unwrap_or_else(|_| Err(Error::Unavailable("the server is shutting down".to_owned())))
}

/// The upload with its file, whoever has made it. `None` when there is no hash, and the upload still waits.
async fn commit(
    tx: &mut PgConnection,
    project: &Project,
    id: &UploadId,
    completion: &Completion,
    sha256: Option<&str>,
) -> Result<Option<UploadRow>> {
    let upload = lock(tx, project, id).await?;
    match upload.status.as_str() {
        "completed" => return again(tx, project, upload, completion).await.map(Some),
        // Also a little after its time: the completion began within it.
        "pending" => {}
        _ => return Err(upload.refusal(upload.status()?, "completed")),
    }
    let Some(sha256) = sha256 else { return Ok(None) };
    place_parts(tx, project, &upload, completion).await?;
    let content = Content {
        id: FileId::new(),
        project: project.id.clone(),
        upload: Some(upload.id()),
        bytes: upload.bytes.unsigned_abs(),
        sha256: sha256.to_owned(),
    };
    let new = NewFile {
        filename: upload.filename.clone(),
        purpose: upload.purpose.clone(),
        expires_after: upload.file_expires_after.as_ref().map(crate::span),
    };
    let file = files::insert_row(tx, &content, &new).await?;
    let completed: Record = sqlx::query_as(
        "update uploads set status = 'completed', ended_at = clock_timestamp(), file_id = $2, md5 = $3
         where id = $1 and status = 'pending' returning *, false as is_over",
    )
    .bind(id.as_str())
    .bind(file.id.as_str())
    .bind(&completion.md5)
    .fetch_one(tx)
    .await?;
    completed.into_row(Some(file)).map(Some)
}

/// Gives the parts named their places, and the others over to removal.
async fn place_parts(
    tx: &mut PgConnection,
    project: &Project,
    upload: &Record,
    completion: &Completion,
) -> Result<()> {
    let ids: Vec<&str> = completion.part_ids.iter().map(PartId::as_str).collect();
    let placed = sqlx::query(
        "update upload_parts p set position = o.place - 1
         from unnest($2::text[]) with ordinality o (id, place)
         where p.id = o.id and p.upload_id = $1",
    )
    .bind(&upload.id)
    .bind(&ids)
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if placed != ids.len() as u64 {
        return Err(Error::inconsistent("uploads", &upload.id, "a part has vanished"));
    }
    let unused: Vec<(String,)> = sqlx::query_as(
        "delete from upload_parts where upload_id = $1 and position is null returning id",
    )
    .bind(&upload.id)
    .fetch_all(&mut *tx)
    .await?;
    let path = |(part,): (String,)| part_key(&project.id, &upload.id(), &part.into()).path();
    let paths: Vec<String> = unused.into_iter().map(path).collect();
    garbage::add(tx, project.id.as_str(), &paths, "deleted", std::time::Duration::ZERO).await
}
