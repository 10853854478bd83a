//! How a command reaches the database and the storage: those that the configuration names, else the
//! private ones of the data folder, which another process may be running already.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use store::{Db, Project, StorageConfig, Store};

use crate::config::Config;
use crate::data_dir::DataDir;
use crate::postgres::{self, Options, Postgres};

/// How long a database that is just starting is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A private Postgres with the lock of its data folder.
struct Private {
    postgres: Postgres,
    _data_dir: DataDir,
}

/// An opened store, for one command.
pub struct Backend {
    pub store: Store,
    pub project: Project,
    private: Option<Private>,
}

/// What to do when the data folder has no database yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    Create,
    Refuse,
}

impl Backend {
    /// Opens the store. A private database that nobody runs is started for as long as this lives, and
    /// brought up to date; another's is left as it is.
    pub async fn open(config: &Config, absent: Absent) -> Result<Self> {
        let mut database = config.database.clone();
        let mut private = None;
        if database.url.is_none() {
            match postgres::running_url(&config.up.data_dir) {
                Some(url) => database.url = Some(url.into()),
                None => {
                    let started = start_private(config, absent).await?;
                    database.url = Some(started.postgres.url().into());
                    private = Some(started);
                }
            }
        }
        let opened = async {
            let storage = storage(&config.storage, &config.up.data_dir)?;
            let store = Store::open(&database, &storage).await?;
            if private.is_some() {
                store.migrate().await?;
            }
            let project = default_project(&store.db).await?;
            anyhow::Ok((store, project))
        };
        match opened.await {
            Ok((store, project)) => Ok(Self { store, project, private }),
            Err(error) => {
                stop(private).await;
                Err(error)
            }
        }
    }

    /// The project that was named, else the default one.
    pub async fn project_or_default(&self, id: Option<String>) -> Result<Project> {
        let Some(id) = id else { return Ok(self.project.clone()) };
        let found = store::projects::get(&self.store.db, &self.project, &id.as_str().into()).await;
        found.with_context(|| format!("'{id}': `finetuned projects list` shows what there is"))
    }

    pub async fn close(self) {
        self.store.db.close().await;
        stop(self.private).await;
    }
}

pub async fn default_project(db: &Db) -> Result<Project> {
    store::projects::default_project(db)
        .await
        .context("cannot read the default project (was `finetuned migrate` run?)")
}

async fn start_private(config: &Config, absent: Absent) -> Result<Private> {
    let path = &config.up.data_dir;
    if absent == Absent::Refuse && !postgres::exists(path) {
        bail!(
            "there is no database: {} holds none, and database.url is not set; run `finetuned up` \
             first, or name the folder of a running one with --data-dir",
            path.display()
        );
    }
    let data_dir = DataDir::open(path)?;
    let postgres = start_postgres(config, &data_dir, Vec::new()).await?;
    Ok(Private { postgres, _data_dir: data_dir })
}

/// Starts the private Postgres of an opened data folder.
pub async fn start_postgres(
    config: &Config,
    data_dir: &DataDir,
    settings: Vec<String>,
) -> Result<Postgres> {
    let options = Options {
        data_dir: data_dir.path().to_path_buf(),
        bin: config.up.postgres_bin.clone(),
        settings,
    };
    tokio::task::spawn_blocking(move || Postgres::start(&options))
        .await
        .context("the start of Postgres panicked")?
        .context("cannot start the private Postgres")
}

pub async fn stop_postgres(postgres: Postgres) {
    if tokio::task::spawn_blocking(move || postgres.stop()).await.is_err() {
        tracing::error!("the stop of Postgres panicked");
    }
}

async fn stop(private: Option<Private>) {
    if let Some(Private { postgres, _data_dir }) = private {
        stop_postgres(postgres).await;
    }
}

/// The configured storage, else the folder `blobs` of the data folder.
pub fn storage(configured: &StorageConfig, data_dir: &Path) -> Result<StorageConfig> {
    let mut storage = configured.clone();
    if storage.url.is_none() {
        let blobs = std::path::absolute(data_dir)
            .with_context(|| format!("cannot find {}", data_dir.display()))?
            .join("blobs");
        std::fs::create_dir_all(&blobs)
            .with_context(|| format!("cannot create {}", blobs.display()))?;
        storage.url = Some(format!("file://{}", postgres::percent_encoded(&blobs)));
    }
    Ok(storage)
}
