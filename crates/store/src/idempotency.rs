//! Requests that may come twice. The row that remembers a request is written in the transaction that creates
//! what it asks for, so there is never one without the other, whichever server gets the repetition.

use std::time::Duration;

use sqlx::PgConnection;

use crate::db::Db;
use crate::error::{Conflict, Error, Result};
use crate::projects::Project;

/// How long a key of the client's own is remembered.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// A client that heard nothing tries again after its time-out, ten minutes by default, and a few seconds.
const RETRIED_WITHIN: Duration = Duration::from_secs(15 * 60);

/// A request that creates something once.
#[derive(Debug, Clone)]
pub struct Once {
    pub created: Created,
    pub key: String,
    pub request_sha256: [u8; 32],
    pub attempt: Attempt,
}

/// What can be created once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    Job,
    File,
    Upload,
    Eval,
    EvalRun,
    WebhookEndpoint,
}

impl Created {
    /// As the rows name it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Job => "fine_tuning.job",
            Self::File => "file",
            Self::Upload => "upload",
            Self::Eval => "eval",
            Self::EvalRun => "eval.run",
            Self::WebhookEndpoint => "webhook_endpoint",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The key is the client's: for a day it means this one request.
    Keyed,
    /// Without a key, and for the first time: whoever wants two alike gets two.
    First,
    /// Without a key, and by its own account a repetition: of the same request minutes ago.
    Again,
}

impl Once {
    /// Rows that are older answer nothing any more.
    fn remembered(&self) -> Duration {
        match self.attempt {
            Attempt::Keyed => KEPT,
            Attempt::First => Duration::ZERO,
            Attempt::Again => RETRIED_WITHIN,
        }
    }
}

/// What an earlier request of this kind has created. `Conflict::KeyReused` when it asked for something else.
pub async fn earlier(db: &Db, project: &Project, once: &Once) -> Result<Option<String>> {
    if once.attempt == Attempt::First {
        return Ok(None);
    }
    let mut connection = db.pool.acquire().await?;
    find(&mut connection, project.id.as_str(), once).await
}

async fn find(connection: &mut PgConnection, project: &str, once: &Once) -> Result<Option<String>> {
    let row: Option<(String, Vec<u8>)> = sqlx::query_as(
        "select object_id, request_sha256 from idempotency
         where project_id = $1 and operation = $2 and key = $3
           and created_at > clock_timestamp() - $4",
    )
    .bind(project)
    .bind(once.created.as_str())
    .bind(&once.key)
    .bind(crate::interval(once.remembered()))
    .fetch_optional(connection)
    .await?;
    match row {
        Some((object, hash)) if hash != once.request_sha256 => {
            Err(Conflict::KeyReused(object).into())
        }
        Some((object, _)) => Ok(Some(object)),
        None => Ok(None),
    }
}

/// Remembers that the present transaction creates `object`; or gives what an earlier request has created, whose
/// end this waits for. Without `once` nothing is remembered: who asks twice gets two.
pub(crate) async fn begin(
    tx: &mut PgConnection,
    project: &str,
    once: Option<&Once>,
    object: &str,
) -> Result<Option<String>> {
    let Some(once) = once else { return Ok(None) };
    let ours: Option<(String,)> = sqlx::query_as(
        "insert into idempotency as i (project_id, operation, key, request_sha256, object_id)
         values ($1, $2, $3, $4, $5)
         on conflict (project_id, operation, key) do update set
             request_sha256 = excluded.request_sha256, object_id = excluded.object_id,
             created_at = clock_timestamp()
         where i.created_at <= clock_timestamp() - $6
         returning object_id",
    )
    .bind(project)
    .bind(once.created.as_str())
    .bind(&once.key)
    .bind(once.request_sha256.as_slice())
    .bind(object)
    .bind(crate::interval(once.remembered()))
    .fetch_optional(&mut *tx)
    .await?;
    if ours.is_some() {
        return Ok(None);
    }
    let first = find(tx, project, once).await?;
    let vanished =
        || Error::Unavailable("the first of two like requests has just expired".to_owned());
    first.map(Some).ok_or_else(vanished)
}

/// Forgets what was created by whichever requests: it is gone.
pub(crate) async fn forget(
    tx: &mut PgConnection,
    project: &str,
    created: Created,
    object: &str,
) -> Result<()> {
    sqlx::query(
        "delete from idempotency where project_id = $1 and operation = $2 and object_id = $3",
    )
    .bind(project)
    .bind(created.as_str())
    .bind(object)
    .execute(tx)
    .await?;
    Ok(())
}

/// Removes rows whose time is over; the server calls it every few seconds.
pub async fn expire(db: &Db) -> Result<u64> {
    let gone = sqlx::query(
        "delete from idempotency where (project_id, operation, key) in (
             select project_id, operation, key from idempotency
             where created_at < clock_timestamp() - $1 order by created_at limit 1000)",
    )
    .bind(crate::interval(KEPT))
    .execute(&db.pool)
    .await?;
    Ok(gone.rows_affected())
}
