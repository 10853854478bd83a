//! `finetuned up`: everything on one machine. The same server and worker as in a cluster, only started
//! here, with a database and a storage folder of their own.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use store::{KeyKind, Project, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{models, serve};
use crate::backend;
use crate::config::Config;
use crate::data_dir::{DataDir, write_file};
use crate::first_keys;
use crate::lifecycle::{self, Part};
use crate::output;
use crate::postgres::Postgres;
use crate::readiness;

/// How long the server may take from its start to readiness.
const READY_LIMIT: Duration = Duration::from_secs(60);

pub async fn run(mut config: Config) -> Result<()> {
    let shutdown = lifecycle::shutdown_on_signals()?;
    let data_dir = DataDir::open(&config.up.data_dir)?;
    // What an ended process has left would send clients to a port that is somebody else's by now.
    let _ = std::fs::remove_file(data_dir.url());
    let postgres = match &config.database.url {
        Some(_) => None,
        None => {
            let postgres = backend::start_postgres(&config, &data_dir, Vec::new()).await?;
            config.database.url = Some(postgres.url().into());
            Some(postgres)
        }
    };
    let result = with_database(config, &data_dir, postgres.as_ref(), &shutdown).await;
    let _ = std::fs::remove_file(data_dir.url());
    if let Some(postgres) = postgres {
        backend::stop_postgres(postgres).await;
    }
    result
}

async fn with_database(
    mut config: Config,
    data_dir: &DataDir,
    postgres: Option<&Postgres>,
    shutdown: &CancellationToken,
) -> Result<()> {
    config.storage = backend::storage(&config.storage, data_dir.path())?;
    let prepared = tokio::select! {
        prepared = prepare(&config, data_dir) => prepared?,
        () = shutdown.cancelled() => return Ok(()),
    };
    if postgres.is_none() {
        tracing::info!("using the database of database.url");
    }
    let listener = serve::bind(&config.server.listen).await?;
    run_parts(config, data_dir, prepared, listener, shutdown).await
}

/// What stands before the first request can be served.
struct Prepared {
    store: Store,
    worker_token: secrecy::SecretString,
    /// Where the user finds the API key.
    api_key: String,
    models: BTreeSet<String>,
}

async fn prepare(config: &Config, data_dir: &DataDir) -> Result<Prepared> {
    let store = Store::open(&config.database, &config.storage).await?;
    store.migrate().await.context("cannot bring the database up to date")?;
    let project = backend::default_project(&store.db).await?;
    let (api_key, worker_token) = first_keys(&store, &project, data_dir).await?;
    let scratch = data_dir.work().join("imports");
    // Folders of an import that was killed.
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("cannot create {}", scratch.display()))?;
    let models = models::import_folder(&store, &project, &config.up.models_dir, &scratch).await?;
    Ok(Prepared { store, worker_token, api_key, models })
}

async fn first_keys(
    store: &Store,
    project: &Project,
    data_dir: &DataDir,
) -> Result<(String, secrecy::SecretString)> {
    let db = &store.db;
    let api_key = if first_keys::from_environment(db, project).await? {
        format!("the value of {}", first_keys::API_KEY_VARIABLE)
    } else {
        let path = data_dir.api_key();
        first_keys::from_file(db, project, KeyKind::Project, &path).await?;
        format!("in {}", path.display())
    };
    let path = data_dir.worker_token();
    let token = first_keys::from_file(db, project, KeyKind::Worker, &path).await?;
    Ok((api_key, token))
}

async fn run_parts(
    config: Config,
    data_dir: &DataDir,
    prepared: Prepared,
    listener: TcpListener,
    shutdown: &CancellationToken,
) -> Result<()> {
    let base_url = serve::base_url(&config, &listener)?;
    let local_url = serve::local_url(&listener)?;
    let address = listener.local_addr()?;
    let Prepared { store, worker_token, api_key, models } = prepared;
    let db = store.db.clone();

    let server_config = server::Config {
        // There is no balancer that would have to notice.
        drain_delay: Duration::ZERO,
        ..serve::server_config(&config)
    };
    let mut server =
        Part::start("server", |stop| server::serve(server_config, store, listener, stop));
    let worker_config = worker_config(&config, data_dir, &local_url, worker_token);
    let mut worker = Part::start("worker", |stop| work(worker_config, stop));

    let announce = async {
        readiness::wait(address, READY_LIMIT).await?;
        write_file(&data_dir.url(), &format!("{base_url}\n"), 0o644)?;
        announce(&base_url, &api_key, &models)?;
        std::future::pending::<Result<()>>().await
    };
    let result = tokio::select! {
        error = server.failure() => Err(error),
        error = worker.failure() => Err(error),
        result = announce => result,
        () = shutdown.cancelled() => Ok(()),
    };
    if let Err(error) = &result {
        tracing::error!("ending: {error:#}");
    }
    // The worker first: it brings its last checkpoints to the server.
    let worker = worker.stop().await;
    let server = server.stop().await;
    db.close().await;
    result.and(worker).and(server)
}

fn worker_config(
    config: &Config,
    data_dir: &DataDir,
    server_url: &str,
    token: secrecy::SecretString,
) -> worker::Config {
    let mut worker = config.worker.clone();
    worker.server_urls = vec![server_url.to_owned()];
    worker.token = token;
    if worker.work_dir == worker::Config::default().work_dir {
        worker.work_dir = data_dir.work();
    }
    worker
}

/// The worker; without an engine program the rest goes on, so that files, jobs and the reason can be
/// looked at.
async fn work(config: worker::Config, stop: CancellationToken) -> Result<()> {
    match worker::run(config, stop.clone()).await {
        Err(error @ worker::Error::EngineMissing { .. }) => {
            tracing::error!("no worker: jobs stay queued and chat is not answered: {error}");
            stop.cancelled().await;
            Ok(())
        }
        result => result.map_err(Into::into),
    }
}

fn announce(base_url: &str, api_key: &str, models: &BTreeSet<String>) -> Result<()> {
    let names: Vec<&str> = models.iter().map(String::as_str).collect();
    let names = match names.as_slice() {
        [] => "none yet; `finetuned models import PATH` adds one".to_owned(),
        names => names.join(", "),
    };
    output::line(format_args!("Base URL: {base_url}"))?;
    output::line(format_args!("API key:  {api_key}"))?;
    output::line(format_args!("Models:   {names}"))?;
    output::line("ready")?;
    Ok(())
}
