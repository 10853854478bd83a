//! All SQL and all blob keys.
//!
//! Truth lives in two places: rows in Postgres, and blobs in an object store (a folder or S3). Nothing outside
//! this crate speaks to either. It knows no HTTP, no tensors and no processes.
//!
//! # Overview
//!
//! [`Store::open`] gives a [`Store`]: a [`Db`] and [`Blobs`], cheap to clone. Functions are grouped in modules
//! by object; each takes `&Db` (or `&Store` when it touches blobs) and the authenticated [`Project`].
//!
//! | module | for |
//! |---|---|
//! | [`keys`] | `create`, `authenticate` (secret → [`Principal`]), `list`, `revoke` |
//! | [`files`] | `upload` (stream → [`Uploaded`], then `.commit(NewFile)`), `get`, `list`, `open`, `delete` |
//! | [`uploads`] | files that come in parts: `create`, `check_open`, `store_part`, `complete`, `cancel`, `get` |
//! | [`base_models`] | `register` a folder, `list`, `get`, `remove`; `…_for_workers` without a project |
//! | [`models`] | `list`, `get`, `resolve` (name → base model + adapter), `delete` |
//! | [`permissions`] | other projects' right to use a model: `create`, `list`, `delete` |
//! | [`projects`] | `create`, `get`, `list` |
//! | [`jobs`] | `create`, `get`, `list`, `set_metadata`, `count_by_status` |
//! | [`deletion`] | `delete` of a job that has ended |
//! | [`waiting`] | the line before a queued job, workers, speeds: for estimates of time |
//! | [`follow`] | which of many jobs have new events: for streams |
//! | [`idempotency`] | creations that may be asked for twice: a `Once` given to `create` or `commit` |
//! | [`queue`] | **every change of a job's state**: validation, claim, heartbeat, reports, checkpoints, finish, fail, release, cancel, pause, resume |
//! | [`reaper`] | takes runs back from silent workers; `tick` it every `lease.reap_every` |
//! | [`events`], [`checkpoints`] | lists; following a job; metrics per step |
//! | [`evals`] | evaluations, their runs and output items; claims of runs |
//! | [`reports`] | of jobs, one each: `begin`, `renew`; claims of those to be made |
//! | [`webhooks`] | endpoints that hear of events; their deliveries, claims of these, and the log |
//! | [`garbage`] | `collect` removes blobs that nothing refers to; call it every few seconds |
//! | [`blob`] | [`BlobKey`], streams in and out |
//! | `testing` | with the feature of that name: a scratch database and folder for tests |
//!
//! # What the store writes by itself
//!
//! Every event is written here, in the transaction of the change that it tells of, with the API's own texts:
//! the server passes reports and outcomes, never event texts. So are usage, outbox rows and models.
//!
//! # Rules for callers
//!
//! - A dropped future is harmless: transactions run in tasks of their own, and a claim that nobody
//!   receives is given back.
//! - [`Error::is_unavailable`] means: answer 503, try again. [`Error::LeaseLost`] means: stop that run.
//! - Between [`queue::claim`] and its answer call [`queue::verify_resume`].
//! - After a job becomes claimable ([`queue::finish_validation`], [`queue::resume`], [`queue::release`],
//!   [`jobs::create`]) wake the waiting loops; a poll once a second is the guarantee.
//! - Dropping an [`Uploaded`] removes its content again. For [`queue::finish`] upload the result files and
//!   pass them in; they become visible together with the model, or not at all.
//! - The fence of a run does not begin at 1: each claim to validate takes a number too.

mod messages;
mod text;

pub mod base_models;
pub mod blob;
pub mod checkpoints;
pub mod completions;
pub mod config;
pub mod db;
pub mod deletion;
pub mod error;
pub mod evals;
pub mod events;
pub mod files;
pub mod follow;
pub mod garbage;
pub mod idempotency;
pub mod jobs;
pub mod keys;
pub mod models;
pub mod page;
pub mod permissions;
pub mod projects;
pub mod queue;
pub mod reaper;
pub mod reports;
#[cfg(feature = "testing")]
pub mod testing;
pub mod uploads;
pub mod waiting;
pub mod webhooks;

use std::time::Duration;

pub use blob::{BlobKey, Blobs};
pub use config::{DatabaseConfig, LeaseConfig, StorageConfig};
pub use db::Db;
pub use error::{Conflict, Error, Result};
pub use files::Uploaded;
pub use keys::{KeyKind, Principal};
pub use page::{Order, Page, PageQuery};
pub use projects::Project;

/// The migrations, embedded.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations");

/// The database and the blob store.
#[derive(Debug, Clone)]
pub struct Store {
    pub db: Db,
    pub blobs: Blobs,
}

impl Store {
    /// Connects to both. Waits half a minute for a database that is just starting.
    pub async fn open(database: &DatabaseConfig, storage: &StorageConfig) -> Result<Self> {
        let db = Db::connect(database, Duration::from_secs(30)).await?;
        let blobs = Blobs::open(storage).await?;
        Ok(Self { db, blobs })
    }

    /// Applies the migrations that are missing.
    pub async fn migrate(&self) -> Result<()> {
        self.db.migrate().await
    }
}

/// A time span as the database takes it.
pub(crate) fn interval(span: Duration) -> sqlx::postgres::types::PgInterval {
    let microseconds = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    sqlx::postgres::types::PgInterval { months: 0, days: 0, microseconds }
}

/// The same, back from the database; months and days are never used.
pub(crate) fn span(interval: &sqlx::postgres::types::PgInterval) -> Duration {
    Duration::from_micros(interval.microseconds.unsigned_abs())
}
