//! Checkpoints: announced, uploaded file by file, committed. Only the commit makes one exist, and it is the only
//! truth about which is the latest: nothing is found by listing blobs.

use std::fmt;

use bytes::Bytes;
use domain::internal::{BeginCheckpoint, ManifestFile, model_files, required_files};
use domain::report::{CheckpointKind, StepMetrics};
use domain::{CheckpointId, ModelId};
use futures::Stream;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use super::retention::{self, Need};
use super::{Held, Lease};
use crate::Store;
use crate::base_models::manifest_digest;
use crate::blob::{BlobKey, Expected, is_plain_name};
use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::events;
use crate::messages;

/// Files of one checkpoint.
const FILES_LIMIT: usize = 64;
/// A row of `checkpoints`.
#[derive(Debug, Clone, FromRow)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) project_id: String,
    pub(super) job_id: String,
    pub(super) step: i64,
    pub(super) kind: String,
    pub(super) state: String,
    pub(super) files: Json<Vec<ManifestFile>>,
    pub(super) trained_tokens: i64,
}

impl Record {
    pub(super) fn blob_key(&self, name: &str) -> BlobKey {
        BlobKey::CheckpointFile {
            project: self.project_id.as_str().into(),
            job: self.job_id.as_str().into(),
            checkpoint: self.id.as_str().into(),
            name: name.to_owned(),
        }
    }

    fn file(&self, name: &str) -> Result<&ManifestFile> {
        let file = self.files.iter().find(|file| file.name == name);
        file.ok_or(Error::NotFound("file of the checkpoint"))
    }

    pub(super) async fn of_job(
        tx: &mut PgConnection,
        job: &str,
        id: &CheckpointId,
    ) -> Result<Self> {
        sqlx::query_as(
            "select id, project_id, job_id, step, kind, state, files, trained_tokens
             from checkpoints where id = $1 and job_id = $2",
        )
        .bind(id.as_str())
        .bind(job)
        .fetch_optional(tx)
        .await?
        .ok_or(Error::NotFound("checkpoint"))
    }
}

/// Announces a checkpoint and its files. The same announcement again gives the same id.
pub async fn begin_checkpoint(
    db: &Db,
    lease: &Lease,
    begin: &BeginCheckpoint,
) -> Result<CheckpointId> {
    let names = begin.files.iter().map(|file| file.name.as_str());
    let distinct: std::collections::BTreeSet<_> = names.clone().collect();
    let sound = distinct.len() == begin.files.len()
        && (1..=FILES_LIMIT).contains(&begin.files.len())
        && names.clone().all(is_plain_name);
    if !sound {
        let names: Vec<_> = names.collect();
        let problem = format!("a checkpoint needs distinct plain file names, got {names:?}");
        return Err(Conflict::Checkpoint(problem).into());
    }
    let args = (lease.clone(), begin.clone());
    db.transact(Lane::Lease, args, |tx, (lease, begin)| Box::pin(announce(tx, lease, begin))).await
}

async fn announce(
    tx: &mut PgConnection,
    lease: &Lease,
    begin: &BeginCheckpoint,
) -> Result<CheckpointId> {
    let held = Held::by_lease(tx, lease).await?;
    let same: Option<(String,)> = sqlx::query_as(
        "select id from checkpoints
         where job_id = $1 and fence = $2 and step = $3 and kind = $4 and files = $5
           and state in ('writing', 'committed')",
    )
    .bind(&held.id)
    .bind(held.fence)
    .bind(begin.step as i64)
    .bind(begin.kind.as_str())
    .bind(Json(&begin.files))
    .fetch_optional(&mut *tx)
    .await?;
    if let Some((id,)) = same {
        return Ok(id.into());
    }
    let id = CheckpointId::new();
    sqlx::query(
        "insert into checkpoints (id, project_id, job_id, step, kind, fence, prefix, files,
                                  manifest_sha256, trained_tokens, metrics)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(id.as_str())
    .bind(&held.project_id)
    .bind(&held.id)
    .bind(begin.step as i64)
    .bind(begin.kind.as_str())
    .bind(held.fence)
    .bind(format!("projects/{}/jobs/{}/checkpoints/{id}", held.project_id, held.id))
    .bind(Json(&begin.files))
    .bind(manifest_digest(&begin.files))
    .bind(begin.trained_tokens as i64)
    .bind(Json::<&StepMetrics>(&begin.metrics))
    .execute(tx)
    .await?;
    Ok(id)
}

/// Stores one announced file; `HashMismatch` when size or hash differ from the announcement, and then nothing
/// is kept. The same file again is harmless.
pub async fn put_checkpoint_file<E: fmt::Display>(
    store: &Store,
    lease: &Lease,
    checkpoint: &CheckpointId,
    name: &str,
    body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin,
) -> Result<()> {
    let record = leased(&store.db, lease, checkpoint).await?;
    let file = record.file(name)?;
    let key = record.blob_key(name);
    if record.state == "committed" {
        return Ok(());
    }
    let expected = Expected { bytes: file.bytes, sha256: file.sha256.clone() };
    store.blobs.put_stream(&key, body, file.bytes, Some(&expected)).await?;
    // The lease may have been lost meanwhile, and the blobs of the checkpoint with it.
    match leased(&store.db, lease, checkpoint).await {
        Err(Error::LeaseLost) => {
            store.blobs.delete(&key).await?;
            Err(Error::LeaseLost)
        }
        other => other.map(|_| ()),
    }
}

/// A checkpoint of the leased job, written under this very lease.
async fn leased(db: &Db, lease: &Lease, checkpoint: &CheckpointId) -> Result<Record> {
    let args = (lease.clone(), checkpoint.clone());
    db.transact(Lane::Lease, args, |tx, (lease, checkpoint)| {
        Box::pin(async move {
            let held = Held::by_lease(tx, lease).await?;
            writable(tx, &held, checkpoint).await
        })
    })
    .await
}

async fn writable(tx: &mut PgConnection, held: &Held, id: &CheckpointId) -> Result<Record> {
    let record: Option<Record> = sqlx::query_as(
        "select id, project_id, job_id, step, kind, state, files, trained_tokens from checkpoints
         where id = $1 and job_id = $2 and fence = $3 and state in ('writing', 'committed')",
    )
    .bind(id.as_str())
    .bind(&held.id)
    .bind(held.fence)
    .fetch_optional(tx)
    .await?;
    record.ok_or(Error::NotFound("checkpoint"))
}

/// A file of a committed checkpoint of the leased job.
pub async fn leased_checkpoint_file(
    db: &Db,
    lease: &Lease,
    checkpoint: &CheckpointId,
    name: &str,
) -> Result<(BlobKey, ManifestFile)> {
    let record = leased_committed(db, lease, checkpoint).await?;
    Ok((record.blob_key(name), record.file(name)?.clone()))
}

/// The files of a committed checkpoint of the leased job that make a model.
pub async fn leased_model_files(
    db: &Db,
    lease: &Lease,
    checkpoint: &CheckpointId,
) -> Result<Vec<(BlobKey, ManifestFile)>> {
    let record = leased_committed(db, lease, checkpoint).await?;
    let files = model_files(&record.files);
    Ok(files.into_iter().map(|file| (record.blob_key(&file.name), file.clone())).collect())
}

async fn leased_committed(db: &Db, lease: &Lease, checkpoint: &CheckpointId) -> Result<Record> {
    let args = (lease.clone(), checkpoint.clone());
    db.transact(Lane::Lease, args, |tx, (lease, checkpoint)| {
        Box::pin(async move {
            let held = Held::by_lease(tx, lease).await?;
            let record = Record::of_job(tx, &held.id, checkpoint).await?;
            match record.state.as_str() {
                "committed" => Ok(record),
                _ => Err(Error::NotFound("checkpoint")),
            }
        })
    })
    .await
}

/// Makes a checkpoint count, once every announced file is stored: progress, usage, and for the end of an
/// epoch a model and an event. Again is harmless.
pub async fn commit_checkpoint(
    store: &Store,
    lease: &Lease,
    checkpoint: &CheckpointId,
) -> Result<()> {
    let record = leased(&store.db, lease, checkpoint).await?;
    if record.state == "committed" {
        return Ok(());
    }
    for file in record.files.iter() {
        if store.blobs.head(&record.blob_key(&file.name)).await? != Some(file.bytes) {
            let problem = format!("file {} of checkpoint {checkpoint} is not stored", file.name);
            return Err(Conflict::Checkpoint(problem).into());
        }
    }
    let args = (lease.clone(), checkpoint.clone());
    store.db.transact(Lane::Lease, args, |tx, (lease, id)| Box::pin(commit(tx, lease, id))).await
}

async fn commit(tx: &mut PgConnection, lease: &Lease, id: &CheckpointId) -> Result<()> {
    let held = Held::by_lease(tx, lease).await?;
    let record = writable(tx, &held, id).await?;
    if record.state == "committed" {
        return Ok(());
    }
    sqlx::query(
        "update checkpoints set state = 'committed', committed_at = clock_timestamp()
         where id = $1 and state = 'writing'",
    )
    .bind(&record.id)
    .execute(&mut *tx)
    .await?;
    if record.step > held.committed_step {
        advance(tx, &held, &record).await?;
    }
    if record.kind == CheckpointKind::Epoch.as_str() {
        let model = ModelId::checkpoint(
            &held.base_model,
            &organization_slug(tx, &held.project_id).await?,
            suffix(tx, &held.id).await?.as_deref(),
            record.step.unsigned_abs(),
        );
        insert_model(tx, &held, &record, &model, "checkpoint").await?;
        let event = messages::checkpoint(record.step.unsigned_abs(), &model);
        events::append(tx, &lease.job_id, &[event]).await?;
    }
    retention::drop_unneeded(tx, &held, Need::Superseded).await
}

/// Progress: the crash budget is full again, and the tokens since the last progress are billed.
async fn advance(tx: &mut PgConnection, held: &Held, record: &Record) -> Result<()> {
    let tokens = record.trained_tokens - held.committed_tokens;
    if tokens < 0 {
        let (id, before) = (&record.id, held.committed_tokens);
        let problem = format!("checkpoint {id} has fewer trained tokens than {before} before it");
        return Err(Conflict::Checkpoint(problem).into());
    }
    sqlx::query(
        "update jobs set committed_step = $2, committed_tokens = $3, crashes = 0 where id = $1",
    )
    .bind(&held.id)
    .bind(record.step)
    .bind(record.trained_tokens)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "insert into usage (job_id, project_id, fence, from_step, to_step, tokens)
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&held.id)
    .bind(&held.project_id)
    .bind(held.fence)
    .bind(held.committed_step)
    .bind(record.step)
    .bind(tokens)
    .execute(tx)
    .await?;
    Ok(())
}

/// A checkpoint becomes a model that can answer: an adapter, or a whole one.
pub(super) async fn insert_model(
    tx: &mut PgConnection,
    held: &Held,
    record: &Record,
    model: &ModelId,
    kind: &str,
) -> Result<()> {
    let parts: Vec<ManifestFile> = model_files(&record.files).into_iter().cloned().collect();
    for name in required_files(&parts) {
        if !parts.iter().any(|file| file.name == name) {
            let problem = format!("checkpoint {} has no file {name}", record.id);
            return Err(Conflict::Checkpoint(problem).into());
        }
    }
    sqlx::query(
        "insert into models (id, project_id, kind, base_model, job_id, checkpoint_id, digest, files,
                             parent, trained_with)
         select $1, $2, $3, $4, $5, $6, $7, $8, coalesce(start_model, $4), resolved
         from job_details where job_id = $5",
    )
    .bind(model.as_str())
    .bind(&held.project_id)
    .bind(kind)
    .bind(&held.base_model)
    .bind(&held.id)
    .bind(&record.id)
    .bind(manifest_digest(&parts))
    .bind(Json(parts))
    .execute(&mut *tx)
    .await?;
    sqlx::query("update checkpoints set model = $2 where id = $1")
        .bind(&record.id)
        .bind(model.as_str())
        .execute(tx)
        .await?;
    Ok(())
}

pub(super) async fn organization_slug(tx: &mut PgConnection, project: &str) -> Result<String> {
    let (slug,): (String,) = sqlx::query_as(
        "select o.slug from organizations o join projects p on p.organization_id = o.id
         where p.id = $1",
    )
    .bind(project)
    .fetch_one(tx)
    .await?;
    Ok(slug)
}

pub(super) async fn suffix(tx: &mut PgConnection, job: &str) -> Result<Option<String>> {
    let (suffix,): (Option<String>,) =
        sqlx::query_as("select suffix from job_details where job_id = $1")
            .bind(job)
            .fetch_one(tx)
            .await?;
    Ok(suffix)
}
