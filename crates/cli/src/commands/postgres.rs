//! `finetuned postgres`: the private database alone, in the foreground. Tests use it.

use anyhow::Result;

use crate::arguments;
use crate::backend;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::lifecycle;
use crate::output;

pub async fn run(config: &Config, arguments: arguments::Postgres) -> Result<()> {
    let shutdown = lifecycle::shutdown_on_signals()?;
    let data_dir = DataDir::open(&config.up.data_dir)?;
    let postgres = backend::start_postgres(config, &data_dir, arguments.settings).await?;
    output::line(postgres.url())?;
    shutdown.cancelled().await;
    backend::stop_postgres(postgres).await;
    drop(data_dir);
    Ok(())
}
