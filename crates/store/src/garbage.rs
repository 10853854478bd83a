//! Blobs that nothing refers to any more, and their removal.
//!
//! A row names a blob that may be removed after a time. Uploads *reserve*: the row is there before the first byte
//! and goes in the transaction that makes the blob visible. So whatever dies in between, something remains to
//! clean up by, and the row's lock decides between the collector and a late commit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::ProjectId;
use sqlx::PgConnection;

use crate::Store;
use crate::blob::{BlobKey, Blobs};
use crate::db::Lane;
use crate::error::{Error, Result};
use crate::{files, uploads};

/// An upload that is not visible after this is not going on any more.
const UPLOAD_LIMIT: Duration = Duration::from_secs(48 * 3600);
/// Tries, one second apart and then ever longer, before a broken-off upload is left to the collector.
const DISCARD_ATTEMPTS: u32 = 5;
/// A blob whose removal failed is left alone for so long.
const RETRY_IN: Duration = Duration::from_secs(300);

/// A blob that a row here names from before its first byte. Dropped before it is kept, it is removed again.
pub(crate) struct Reserved {
    store: Store,
    path: String,
    is_kept: AtomicBool,
}

impl Reserved {
    pub(crate) async fn new(store: &Store, project: &ProjectId, key: &BlobKey) -> Result<Self> {
        // Made first, so that it cleans up even if the call below is not waited for.
        let reserved =
            Self { store: store.clone(), path: key.path(), is_kept: AtomicBool::new(false) };
        reserve(store, project.as_str(), std::slice::from_ref(&reserved.path)).await?;
        Ok(reserved)
    }

    /// Makes it stay; part of the transaction that refers to it.
    pub(crate) async fn keep(&self, tx: &mut PgConnection) -> Result<()> {
        keep(tx, std::slice::from_ref(&self.path)).await
    }

    /// That transaction is committed: nothing is to be cleaned up any more.
    pub(crate) fn mark_kept(&self) {
        self.is_kept.store(true, Ordering::Release);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !*self.is_kept.get_mut() {
            discard_soon(self.store.clone(), std::mem::take(&mut self.path));
        }
    }
}

/// Removes up to `limit` blobs whose time has come: deleted and expired files, superseded checkpoints, uploads
/// that were broken off. The server calls it every few seconds. Returns how many were removed.
pub async fn collect(store: &Store, limit: u32) -> Result<usize> {
    store.db.transact(Lane::Api, (), |tx, ()| Box::pin(files::expire(tx))).await?;
    store.db.transact(Lane::Api, (), |tx, ()| Box::pin(uploads::expire(tx))).await?;
    // A worker's name is new with each of its processes.
    sqlx::query("delete from workers where seen_at < clock_timestamp() - interval '7 days'")
        .execute(&store.db.pool)
        .await?;
    let mut removed = 0;
    for _ in 0..limit {
        match remove(store, None).await? {
            Removal::Done => removed += 1,
            Removal::Postponed => {}
            Removal::Nothing => break,
        }
    }
    Ok(removed)
}

/// Takes back a reservation: the blob goes now, unless it has become visible.
pub(crate) async fn discard(store: &Store, path: &str) -> Result<()> {
    remove(store, Some(path.to_owned())).await.map(|_| ())
}

/// [`discard`] in a task of its own, patient with a database that is busy or restarting.
fn discard_soon(store: Store, path: String) {
    // Without a run-time the process is ending; the reservation is then collected later.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        for attempt in 0..DISCARD_ATTEMPTS {
            match discard(&store, &path).await {
                Err(error) if error.is_unavailable() && attempt + 1 < DISCARD_ATTEMPTS => {
                    tokio::time::sleep(Duration::from_secs(1 << attempt)).await;
                }
                Err(error) => {
                    tracing::warn!(blob.path = path, %error, "broken-off upload left for later");
                    return;
                }
                Ok(()) => return,
            }
        }
    });
}

/// Notes, before an upload, what it will leave if it breaks off.
pub(crate) async fn reserve(store: &Store, project: &str, paths: &[String]) -> Result<()> {
    let project = project.to_owned();
    let args = (project, paths.to_vec());
    store
        .db
        .transact(Lane::Api, args, |tx, (project, paths)| {
            Box::pin(add(tx, project, paths, "upload", UPLOAD_LIMIT))
        })
        .await
}

/// Makes reserved blobs stay; part of the transaction that refers to them.
pub(crate) async fn keep(tx: &mut PgConnection, paths: &[String]) -> Result<()> {
    let kept = sqlx::query("delete from garbage where path = any($1)")
        .bind(paths)
        .execute(tx)
        .await?
        .rows_affected();
    if kept as usize != paths.len() {
        let message = "the upload took too long and was removed; send it again";
        return Err(Error::Unavailable(message.to_owned()));
    }
    Ok(())
}

/// Gives blobs over to removal in `delay` from now.
pub(crate) async fn add(
    tx: &mut PgConnection,
    project: &str,
    paths: &[String],
    reason: &str,
    delay: Duration,
) -> Result<()> {
    sqlx::query(
        "insert into garbage (path, project_id, reason, delete_after)
         select path, $2, $3, clock_timestamp() + $4 from unnest($1::text[]) path
         on conflict (path) do update set
             reason = excluded.reason, delete_after = excluded.delete_after",
    )
    .bind(paths)
    .bind(project)
    .bind(reason)
    .bind(crate::interval(delay))
    .execute(tx)
    .await?;
    Ok(())
}

enum Removal {
    Done,
    Postponed,
    Nothing,
}

/// Removes one blob: the named one, or one whose time has come. The row stays locked meanwhile.
async fn remove(store: &Store, path: Option<String>) -> Result<Removal> {
    let args = (store.blobs.clone(), path);
    store
        .db
        .transact(Lane::Api, args, |tx, (blobs, path)| {
            Box::pin(remove_one(tx, blobs, path.as_deref()))
        })
        .await
}

async fn remove_one(tx: &mut PgConnection, blobs: &Blobs, path: Option<&str>) -> Result<Removal> {
    let due: Option<(String,)> = match path {
        Some(path) => {
            sqlx::query_as("select path from garbage where path = $1 for update")
                .bind(path)
                .fetch_optional(&mut *tx)
                .await?
        }
        None => {
            sqlx::query_as(
                "select path from garbage where delete_after <= clock_timestamp()
                 order by delete_after for update skip locked limit 1",
            )
            .fetch_optional(&mut *tx)
            .await?
        }
    };
    let Some((path,)) = due else { return Ok(Removal::Nothing) };
    if let Err(error) = blobs.delete_path(&path).await {
        tracing::warn!(blob.path = path, %error, "a blob could not be removed; will try again");
        let retry = "update garbage set delete_after = clock_timestamp() + $2 where path = $1";
        sqlx::query(retry).bind(&path).bind(crate::interval(RETRY_IN)).execute(tx).await?;
        return Ok(Removal::Postponed);
    }
    sqlx::query("delete from garbage where path = $1").bind(&path).execute(tx).await?;
    Ok(Removal::Done)
}
