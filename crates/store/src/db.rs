//! Connections to Postgres.

use std::time::Duration;

use crate::config::DatabaseConfig;
use crate::error::Result;

/// The database: a general pool, and a small one that calls about leases have for themselves, so that
/// a crowd of API calls never starves a heartbeat. Cheap to clone. Survives restarts of Postgres.
#[derive(Debug, Clone)]
pub struct Db {
    pub(crate) pool: sqlx::PgPool,
    pub(crate) lease_pool: sqlx::PgPool,
}

impl Db {
    /// Connects, waiting up to `patience` for a server that is just starting.
    pub async fn connect(config: &DatabaseConfig, patience: Duration) -> Result<Self> {
        let _ = (config, patience);
        crate::unwritten()
    }

    /// One round trip, for the readiness check.
    pub async fn ping(&self) -> Result<()> {
        crate::unwritten()
    }

    /// Applies the migrations that are missing; several servers may call it at once.
    pub async fn migrate(&self) -> Result<()> {
        crate::unwritten()
    }

    pub async fn close(&self) {}
}
