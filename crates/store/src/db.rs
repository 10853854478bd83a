//! Connections to Postgres, and transactions.
//!
//! Two pools: calls about leases have a small one for themselves, so that a crowd of API calls never
//! starves a heartbeat. Both survive restarts of Postgres: a dead connection is noticed when it is next
//! taken, and replaced. Session settings travel in the start-up packet; behind PgBouncer allow
//! `options` in `ignore_startup_parameters` and set the time limits there.

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use secrecy::ExposeSecret;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::Mutex;

use crate::config::DatabaseConfig;
use crate::error::{Error, Result};

/// Connections that calls about leases have for themselves.
const LEASE_CONNECTIONS: u32 = 4;
/// A transaction that its process has forgotten ends after this.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(60);
/// A transaction that lost to another (deadlock, serialisation) is tried again so often.
const RETRIES: u32 = 4;

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    pub(crate) pool: PgPool,
    pub(crate) lease_pool: PgPool,
    /// Claims take turns under an advisory lock; here only one per process waits for it with a connection.
    pub(crate) claims: Arc<Mutex<()>>,
}

/// Which pool a transaction uses.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lane {
    Api,
    Lease,
}

impl Db {
    /// Connects, waiting up to `patience` for a server that is just starting.
    pub async fn connect(config: &DatabaseConfig, patience: Duration) -> Result<Self> {
        let options = connect_options(config)?;
        wait_until_up(&options, patience).await?;
        let pool = |max: u32| {
            PgPoolOptions::new()
                .max_connections(max.max(1))
                .acquire_timeout(config.acquire_timeout)
                .idle_timeout(Duration::from_secs(600))
                .max_lifetime(Duration::from_secs(1800))
                .connect_lazy_with(options.clone())
        };
        let (pool, lease_pool) = (pool(config.max_connections), pool(LEASE_CONNECTIONS));
        Ok(Self { pool, lease_pool, claims: Arc::default() })
    }

    /// One round trip, for the readiness check.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("select 1").execute(&self.lease_pool).await?;
        Ok(())
    }

    /// Applies the migrations that are missing; several servers may call it at once. A database that a later
    /// version has migrated already is left as it is.
    pub async fn migrate(&self) -> Result<()> {
        // A connection of its own: a migration may run longer than any statement is allowed to.
        let options = (*self.pool.connect_options()).clone();
        let mut connection = options.options([("statement_timeout", "0")]).connect().await?;
        let migrator = sqlx::migrate::Migrator {
            migrations: crate::MIGRATOR.migrations.clone(),
            ignore_missing: true,
            ..sqlx::migrate::Migrator::DEFAULT
        };
        let outcome = migrator.run(&mut connection).await;
        connection.close().await.ok();
        Ok(outcome?)
    }

    /// Closes all connections, waiting for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
        self.lease_pool.close().await;
    }

    /// Runs `body` in a transaction: committed when it gives `Ok`, rolled back otherwise, tried again
    /// after a deadlock. It runs in a task of its own, since a caller whose future is dropped in the middle
    /// (a client that hangs up) must neither leave a half-open transaction in the pool nor stop half-way.
    pub(crate) async fn transact<A, T, F>(&self, lane: Lane, args: A, body: F) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c mut PgConnection, &'c A) -> BoxFuture<'c, Result<T>>,
        F: Send + Sync + 'static,
    {
        let pool = match lane {
            Lane::Api => self.pool.clone(),
            Lane::Lease => self.lease_pool.clone(),
        };
        in_task(async move {
            for attempt in 0.. {
                let mut transaction = pool.begin().await?;
                let outcome = body(&mut transaction, &args).await;
                let outcome = match outcome {
                    Ok(value) => match transaction.commit().await {
                        Ok(()) => return Ok(value),
                        Err(error) => Err(Error::from(error)),
                    },
                    Err(error) => {
                        transaction.rollback().await.ok();
                        Err(error)
                    }
                };
                match outcome {
                    Err(error) if error.is_lost_race() && attempt < RETRIES => {
                        tracing::debug!(%error, attempt, "transaction is tried again");
                    }
                    other => return other,
                }
            }
            unreachable!("the loop above has no end")
        })
        .await
    }
}

/// Runs a future in a task of its own, so that it is finished even if nobody waits for it any more.
pub(crate) async fn in_task<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Unavailable("the server is shutting down".to_owned())),
    }
}

fn connect_options(config: &DatabaseConfig) -> Result<PgConnectOptions> {
    let url = config.url.as_ref().ok_or_else(|| {
        Error::Config("database.url is not set; it names the Postgres to use".to_owned())
    })?;
    // The URL may hold a password: the message does not repeat it.
    let options = PgConnectOptions::from_str(url.expose_secret()).map_err(|error| {
        Error::Config(format!("database.url is not a postgres:// URL: {error}"))
    })?;
    let milliseconds = |time: Duration| time.as_millis().to_string();
    Ok(options.application_name("finetuned").options([
        ("statement_timeout", milliseconds(config.statement_timeout)),
        ("idle_in_transaction_session_timeout", milliseconds(IDLE_IN_TRANSACTION)),
    ]))
}

/// One plain connection, so that a wrong password or name is reported as such and not as a timeout.
async fn wait_until_up(options: &PgConnectOptions, patience: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let attempt = tokio::time::timeout(Duration::from_secs(5), options.connect()).await;
        let error = match attempt {
            Ok(Ok(connection)) => {
                connection.close().await.ok();
                return Ok(());
            }
            Ok(Err(error)) => Error::from(error),
            Err(_) => Error::Unavailable("database: no answer to a connection".to_owned()),
        };
        if !error.is_unavailable() || start.elapsed() >= patience {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
