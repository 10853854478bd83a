//! `finetuned work`: a worker alone, on a GPU machine.

use anyhow::{Context as _, Result, bail};
use secrecy::ExposeSecret as _;

use crate::config::Config;
use crate::lifecycle;

pub async fn run(config: Config) -> Result<()> {
    if config.worker.token.expose_secret().is_empty() {
        bail!(
            "worker.token is not set: make one with `finetuned keys create --kind worker` where the \
             database is, and give it as FINETUNED_WORKER__TOKEN (or its file as \
             FINETUNED_WORKER__TOKEN_FILE)"
        );
    }
    let shutdown = lifecycle::shutdown_on_signals()?;
    worker::run(config.worker, shutdown).await.context("the worker cannot start")
}
