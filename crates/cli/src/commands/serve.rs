//! `finetuned serve`: a server alone. The database and the storage are given, and so are the workers.

use anyhow::{Context as _, Result, bail};
use secrecy::ExposeSecret as _;
use store::{KeyKind, Store};
use tokio::net::TcpListener;

use crate::backend;
use crate::config::Config;
use crate::first_keys;
use crate::lifecycle;
use crate::output;

pub async fn run(config: Config) -> Result<()> {
    if config.database.url.is_none() {
        bail!("database.url is not set (`finetuned up` needs none: it keeps a private database)");
    }
    if config.storage.url.is_none() {
        bail!("storage.url is not set: file:///folder or s3://bucket/prefix");
    }
    let shutdown = lifecycle::shutdown_on_signals()?;
    let store = Store::open(&config.database, &config.storage).await?;
    register_keys(&store, &config).await?;
    let listener = bind(&config.server.listen).await?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    output::line(format_args!("Base URL: {}", base_url(&config, &listener)?))?;
    let db = store.db.clone();
    server::serve(server_config(&config), store, listener, shutdown).await?;
    db.close().await;
    Ok(())
}

/// Keys that come with the environment, so that a cluster needs no command between the first start of
/// the server and that of the workers. Skipped while the schema is missing: the server says so itself.
async fn register_keys(store: &Store, config: &Config) -> Result<()> {
    let has_worker_token = !config.worker.token.expose_secret().is_empty();
    if !has_worker_token && std::env::var_os(first_keys::API_KEY_VARIABLE).is_none() {
        return Ok(());
    }
    let project = backend::default_project(&store.db).await?;
    first_keys::from_environment(&store.db, &project).await?;
    if has_worker_token {
        let (kind, token) = (KeyKind::Worker, &config.worker.token);
        first_keys::ensure(&store.db, &project, kind, "worker.token", token).await?;
    }
    Ok(())
}

/// The server's section, with what other sections say about it.
pub fn server_config(config: &Config) -> server::Config {
    // What the operator grants the engines is what there is, unless the server is told otherwise.
    let memory = [config.server.device_memory, config.worker.engine_memory];
    let device_memory = memory.into_iter().find(|memory| memory.as_u64() > 0).unwrap_or_default();
    server::Config {
        device_memory,
        costs: config.costs.clone(),
        training: config.training.clone(),
        lease: config.lease.clone(),
        limits: config.limits.clone(),
        graders: server::GradersConfig {
            // The running program itself, even after its file has been replaced.
            launcher: Some("/proc/self/exe".into()),
            ..config.graders.clone()
        },
        webhooks: config.webhooks.clone(),
        ..config.server.clone()
    }
}

/// A connection is an open file, and the usual limit of 1,024 is for programs that count them in a bit set. What the
/// operator allows at most is taken; that there is no more is told by accepting connections.
fn allow_many_connections() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

pub async fn bind(address: &str) -> Result<TcpListener> {
    allow_many_connections();
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose another address with --listen (port 0: any)")
    })
}

/// The base URL for clients of the API.
pub fn base_url(config: &Config, listener: &TcpListener) -> Result<String> {
    let root = match &config.server.public_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => local_url(listener)?,
    };
    Ok(format!("{root}/v1"))
}

/// How this machine itself reaches the server.
pub fn local_url(listener: &TcpListener) -> Result<String> {
    let mut address = listener.local_addr().context("the listener has no address")?;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(format!("http://{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_local_url_has_the_real_port_and_an_address_to_call() {
        for (listen, host) in [("0.0.0.0:0", "127.0.0.1"), ("127.0.0.1:0", "127.0.0.1")] {
            let listener = bind(listen).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(local_url(&listener).unwrap(), format!("http://{host}:{port}"));
        }
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let taken = bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = bind(&address).await.unwrap_err().to_string();
        assert!(error.contains(&address), "{error}");
    }
}
