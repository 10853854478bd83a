//! What a run resumes from: the newest committed checkpoint whose files are what they were.

use domain::internal::CheckpointManifest;
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::checkpoint::Record;
use super::{ClaimedJob, Held, Lease, release};
use crate::Store;
use crate::blob::hex;
use crate::db::Lane;
use crate::error::{Error, Result};
use crate::events;
use crate::messages;

impl Record {
    pub(super) fn to_manifest(&self) -> CheckpointManifest {
        CheckpointManifest {
            checkpoint_id: self.id.as_str().into(),
            step: self.step.unsigned_abs(),
            files: self.files.0.clone(),
        }
    }
}

/// The newest committed checkpoint of a job.
pub(super) async fn latest(tx: &mut PgConnection, job: &str) -> Result<Option<Record>> {
    let record = sqlx::query_as(
        "select id, project_id, job_id, step, kind, state, files, trained_tokens
         from checkpoints where job_id = $1 and state = 'committed'
         order by step desc, committed_at desc limit 1",
    )
    .bind(job)
    .fetch_optional(tx)
    .await?;
    Ok(record)
}

/// To be called between the claim and its answer: sees to it that the checkpoint to resume from is whole. A
/// damaged one is marked, told of, and replaced by the one before it, down to none. Sizes are always
/// compared, contents only after a crash, which damage may have caused. On an error the run is given back.
pub async fn verify_resume(store: &Store, mut claimed: ClaimedJob) -> Result<ClaimedJob> {
    let lease = claimed.lease.clone();
    match intact(store, &lease, claimed.job.crashes > 0).await {
        Ok(resume_from) => {
            claimed.resume_from = resume_from;
            Ok(claimed)
        }
        Err(error) => {
            release(&store.db, &lease).await.ok();
            Err(error)
        }
    }
}

async fn intact(
    store: &Store,
    lease: &Lease,
    contents: bool,
) -> Result<Option<CheckpointManifest>> {
    loop {
        let newest = store
            .db
            .transact(Lane::Lease, lease.clone(), |tx, lease| {
                Box::pin(async move {
                    let held = Held::by_lease(tx, lease).await?;
                    latest(tx, &held.id).await
                })
            })
            .await?;
        let Some(record) = newest else { return Ok(None) };
        let Some(problem) = damage(store, &record, contents).await? else {
            return Ok(Some(record.to_manifest()));
        };
        tracing::warn!(job.id = record.job_id, checkpoint.id = record.id, problem, "damaged");
        let args = (lease.clone(), record);
        store
            .db
            .transact(Lane::Lease, args, |tx, (lease, record)| Box::pin(mark(tx, lease, record)))
            .await?;
    }
}

/// What is wrong with a checkpoint's files, if anything is.
async fn damage(store: &Store, record: &Record, contents: bool) -> Result<Option<String>> {
    for file in record.files.iter() {
        let key = record.blob_key(&file.name);
        let size = store.blobs.head(&key).await?;
        if size != Some(file.bytes) {
            return Ok(Some(format!("{} has {size:?} of {} bytes", file.name, file.bytes)));
        }
        if !contents {
            continue;
        }
        let mut hash = Sha256::new();
        let mut reader = store.blobs.get(&key, None).await?;
        while let Some(chunk) = reader.stream.try_next().await? {
            hash.update(&chunk);
        }
        if hex(&hash.finalize()) != file.sha256 {
            return Ok(Some(format!("{} has another SHA-256", file.name)));
        }
    }
    Ok(None)
}

/// Damaged: never loaded again, no model any more.
async fn mark(tx: &mut PgConnection, lease: &Lease, record: &Record) -> Result<()> {
    let held = Held::by_lease(tx, lease).await?;
    sqlx::query("delete from models where checkpoint_id = $1")
        .bind(&record.id)
        .execute(&mut *tx)
        .await?;
    let marked = sqlx::query(
        "update checkpoints set state = 'corrupt', model = null
         where id = $1 and job_id = $2 and state = 'committed'",
    )
    .bind(&record.id)
    .bind(&held.id)
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if marked != 1 {
        return Err(Error::inconsistent("checkpoints", &record.id, "changed while it was read"));
    }
    events::append(tx, &held.id(), &[messages::damaged(record.step)]).await
}
