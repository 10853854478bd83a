//! A migrated scratch database and a scratch blob folder. For tests only (feature `testing`).
//!
//! `DATABASE_URL` names a Postgres on which databases may be created.

use crate::Store;
use crate::config::DatabaseConfig;
use crate::projects::Project;

pub struct TestStore {
    pub store: Store,
    pub project: Project,
    /// To open the same database a second time, as another server would.
    pub database: DatabaseConfig,
    /// The folder of the blobs.
    pub blobs: tempfile::TempDir,
}

impl TestStore {
    /// # Panics
    /// When `DATABASE_URL` is missing or its server cannot be reached.
    pub async fn new() -> Self {
        panic!("not written yet")
    }
}
