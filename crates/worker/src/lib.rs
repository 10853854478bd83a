//! The worker: claims runs, stages their files, supervises engine processes, passes reports and
//! checkpoints on, answers chat requests.
//!
//! It opens every connection (to the servers' internal API and nothing else), holds the secrets of
//! its leased runs only, and does no training itself: that is the engine, a child process per
//! device. Start with [`slot`], which is one run from claim to end.

mod backlog;
mod client;
mod config;
mod device;
mod engine;
mod heartbeat;
mod inference;
mod launch;
mod lease;
mod models;
mod preload;
mod reports;
mod retry;
mod run;
mod signals;
pub mod slot;
mod stage;
mod supervise;
mod transfer;
mod upload;
mod watchdog;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::Config;

use crate::client::Client;
use crate::engine::EngineHost;
use crate::inference::Catalog;
use crate::launch::Launch;
use crate::models::ModelCache;
use crate::retry::Backoff;
use crate::slot::Slot;

/// Why a worker cannot start. Once it runs, troubles are retried, or end a run, but not the worker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no server to work for: set `worker.server_urls`")]
    NoServer,
    #[error("worker.server_urls: '{0}' is not an http:// or https:// URL")]
    ServerUrl(String),
    #[error("worker.token has characters that an HTTP header cannot carry")]
    Token,
    #[error("the HTTP client cannot be set up: {0}")]
    Http(String),
    #[error("worker.devices: '{0}' is neither 'auto', 'cpu' nor 'cuda:N'")]
    Device(String),
    #[error("worker.devices: '{0}' is there twice; a device has one slot")]
    DeviceTwice(String),
    #[error(
        "no engine binary; looked for {}. Build it with `cargo build --release -p engine`, or set \
         `worker.engine` to where it is",
        list(looked)
    )]
    EngineMissing { looked: Vec<PathBuf> },
    #[error("{}: {source}", path.display())]
    WorkDir { path: PathBuf, source: std::io::Error },
    #[error("{} is in use by another worker; give each its own `worker.work_dir`", .0.display())]
    WorkDirInUse(PathBuf),
    #[error(transparent)]
    Cache(#[from] transfer::TransferError),
}

fn list(paths: &[PathBuf]) -> String {
    let texts: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    texts.join(", ")
}

/// Works until `shutdown`, then drains: stops claiming, checkpoints and releases runs, ends the
/// engines. Returns when all that is done, at the latest `drain_budget` after the shutdown (and the
/// engines' grace).
///
/// Needs a rustls crypto provider installed as the process's default.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let client = Client::new(&config.server_urls, &config.token)?;
    let devices = device::resolve(&config.devices)?;
    let threads = match config.threads {
        0 => (processors() / devices.len()).max(1),
        threads => threads,
    };
    let launches = devices
        .iter()
        .map(|device| {
            let mut launch = Launch::find(config.engine.as_deref(), device, threads)?;
            launch.memory = config.engine_memory.as_u64();
            Ok::<_, Error>(launch)
        })
        .collect::<Result<Vec<_>, _>>()?;
    // Absolute: engines get paths below it.
    let work_dir = open_work_dir(&config.work_dir)?;
    let _held = lock(&work_dir)?;
    stage::clean(&work_dir)?;
    let backoff = Backoff::new(config.retry_first, config.retry_longest);
    let cache = Arc::new(ModelCache::open(&work_dir, config.cached_adapters, backoff)?);
    let config = Arc::new(Config { work_dir, ..config });

    let name = worker_name();
    let slots: Vec<Arc<Slot>> = launches
        .into_iter()
        .map(|launch| {
            Arc::new(Slot {
                worker_id: format!("{name}:{}", launch.device),
                config: config.clone(),
                client: client.detached(),
                cache: cache.clone(),
                host: EngineHost::new(launch, config.engine_start_limit, config.engine_grace),
                draining: shutdown.clone(),
            })
        })
        .collect();
    tracing::info!(name, ?devices, servers = ?config.server_urls, "worker started");
    let mut tasks = start(&slots, &client);
    shutdown.cancelled().await;
    tracing::info!("draining");
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(config.drain_budget, drained).await.is_err() {
        tracing::warn!("the drain budget is used up; leases will run out by themselves");
    }
    tasks.shutdown().await;
    futures::future::join_all(slots.iter().map(|slot| slot.host.stop())).await;
    Ok(())
}

/// The loops of every slot.
fn start(slots: &[Arc<Slot>], client: &Client) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for slot in slots {
        let claims = slot.clone();
        tasks.spawn(async move { claims.serve_claims().await });
        let preload = slot.clone();
        tasks.spawn(async move { preload.preload().await });
        let servers = client.each();
        // All servers together get as many pollers as the engine may have generations.
        let pollers = slot.config.max_generations.div_ceil(servers.len());
        for server in servers {
            let catalog = Arc::new(Catalog::new(server));
            for _ in 0..pollers {
                let (slot, catalog) = (slot.clone(), catalog.clone());
                tasks.spawn(async move { slot.serve_chat(&catalog).await });
            }
        }
    }
    tasks
}

fn open_work_dir(path: &Path) -> Result<PathBuf, Error> {
    let at = |source| Error::WorkDir { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(at)?;
    path.canonicalize().map_err(at)
}

/// Held for the life of the process: scratch folders are cleaned at start, but never another
/// worker's.
fn lock(work_dir: &Path) -> Result<File, Error> {
    let path = work_dir.join("lock");
    let at = |source| Error::WorkDir { path: path.clone(), source };
    let file = File::create(&path).map_err(at)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::WorkDirInUse(work_dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(at(source)),
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The machine's name and eight characters of this process.
fn worker_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), domain::id::random_suffix(8))
}
