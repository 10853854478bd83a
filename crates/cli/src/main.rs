//! `finetuned`: reads the command line and the configuration, and hands over to a command. Wiring only.
//!
//! Exit status: 0 when all went well, 1 after a failure (one line on standard error says which), 2 for a
//! wrong command line, 130 after a second signal.

mod arguments;
mod backend;
mod commands;
mod config;
mod data_dir;
mod first_keys;
mod lifecycle;
mod output;
mod postgres;
mod readiness;
mod telemetry;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use crate::arguments::{Arguments, Command};
use crate::config::{Loaded, Sources};

/// How long work in threads, such as an import, may go on after the end.
const END_LIMIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before everything else: this step must stay small and start no threads.
    if let Command::RunGuarded(guarded) = &arguments.command {
        let Err(error) = commands::run_guarded::run(guarded);
        eprintln!("{error:#}");
        return ExitCode::from(125);
    }
    if let Command::GradePython(asked) = &arguments.command {
        let Err(error) = commands::grade_python::run(asked);
        eprintln!("{error:#}");
        return ExitCode::from(sandbox::NOT_LOCKED);
    }
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("finetuned: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    // One TLS provider for the whole process. An error only says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let loaded = load(&arguments).context("the configuration is not usable")?;
    telemetry::init(&loaded.config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous run-time")?;
    let result = runtime.block_on(dispatch(loaded, arguments.command));
    runtime.shutdown_timeout(END_LIMIT);
    result
}

fn load(arguments: &Arguments) -> Result<Loaded> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Loaded::from_sources(&Sources {
        system_file: Some(config::SYSTEM_FILE.into()),
        file: arguments.global.config.clone(),
        environment,
        flags: arguments.flags(),
    })
}

async fn dispatch(loaded: Loaded, command: Command) -> Result<ExitCode> {
    let config = &loaded.config;
    match command {
        Command::Up(_) => commands::up::run(loaded.config).await?,
        Command::Serve(_) => commands::serve::run(loaded.config).await?,
        Command::Work(_) => commands::work::run(loaded.config).await?,
        Command::Migrate => commands::migrate::run(config).await?,
        Command::Keys(command) => commands::keys::run(config, command).await?,
        Command::Projects(command) => commands::projects::run(config, command).await?,
        Command::Models(command) => commands::models::run(config, command).await?,
        Command::Jobs(command) => commands::jobs::run(config, command).await?,
        Command::Data(command) => return commands::data::run(config, command).await,
        Command::Estimate(asked) => commands::estimate::run(&asked)?,
        Command::Config(command) => commands::config::run(&loaded, &command)?,
        Command::Doctor => return commands::doctor::run(config).await,
        Command::Postgres(arguments) => commands::postgres::run(config, arguments).await?,
        // Handled before the run-time was started.
        Command::RunGuarded(_) | Command::GradePython(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}
