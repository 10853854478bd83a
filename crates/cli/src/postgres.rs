//! A private Postgres for `finetuned up`: found, initialised, started, watched and stopped by this process.
//!
//! It listens on a unix socket alone, inside a folder that only its own account may enter, so it needs no
//! password. Durability is left on. It ends with its parent, however that ends, and is started again when it
//! dies by itself. What this module does not do: upgrades between major versions, tuning, backups.

mod account;
mod binaries;
mod cluster;
mod location;
mod postmaster;
mod supervisor;

pub use binaries::Binaries;
pub use cluster::percent_encoded;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};

/// What a private cluster needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data folder of `finetuned`; the cluster usually lies in its `postgres` folder.
    pub data_dir: PathBuf,
    /// The folder of the server's programs, when the search is not wanted.
    pub bin: Option<PathBuf>,
    /// Further settings, `name=value`, passed with `-c`.
    pub settings: Vec<String>,
}

/// A running private cluster. Dropping it stops the server as [`Postgres::stop`] does.
#[derive(Debug)]
pub struct Postgres {
    url: String,
    stop: Option<mpsc::Sender<()>>,
    supervisor: Option<JoinHandle<()>>,
}

impl Postgres {
    /// Finds the programs, creates the cluster if there is none, starts it and waits until it answers.
    /// Blocks for about a second on the first start. The caller holds the lock of the data folder.
    pub fn start(options: &Options) -> Result<Self> {
        let cluster = cluster::Cluster::prepare(options)?;
        let url = cluster.url();
        let (stop, stopped) = mpsc::channel();
        let (report, ready) = mpsc::channel();
        // The server's parent-death signal follows the thread that started it, not the process: this
        // thread lives as long as the server should.
        let supervisor = std::thread::Builder::new()
            .name("postgres".into())
            .spawn(move || supervisor::run(&cluster, &report, &stopped))
            .context("cannot start the thread that watches Postgres")?;
        let mut postgres = Self { url, stop: Some(stop), supervisor: Some(supervisor) };
        match ready.recv() {
            Ok(Ok(())) => Ok(postgres),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                postgres.join();
                anyhow::bail!("the thread that watches Postgres ended before the server was ready")
            }
        }
    }

    /// A URL for `sqlx`, `psql` and everything else that speaks libpq's URLs.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops the server: connections are closed, everything committed is kept. Blocks until it is gone.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        drop(self.stop.take());
        if let Some(supervisor) = self.supervisor.take()
            && supervisor.join().is_err()
        {
            tracing::error!("the thread that watches Postgres panicked");
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.join();
    }
}

/// The URL of the cluster of a data folder that another process keeps running, if one does.
pub fn running_url(data_dir: &Path) -> Option<String> {
    let cluster = location::existing(&std::path::absolute(data_dir).ok()?)?;
    let status = postmaster::PidFile::read(&cluster)?;
    (status.is_ready && postmaster::is_postmaster_of(status.pid, &cluster))
        .then(|| cluster::url(&status.socket_dir))
}

/// Whether the data folder holds a private cluster, running or not.
pub fn exists(data_dir: &Path) -> bool {
    location::existing(data_dir).is_some()
}
