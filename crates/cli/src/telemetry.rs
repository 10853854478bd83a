//! Logging: to standard error, as text for a person and as JSON lines for a machine. Standard output
//! belongs to results.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Section `[log]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A filter as in `RUST_LOG`, which wins over it: `info`, `debug`, `info,server=debug`, …
    pub level: String,
    pub format: Format,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".into(), format: Format::Auto }
    }
}

/// The database driver repeats the server's notices; they are shown only to who asks for them.
fn with_quiet_driver(level: &str) -> String {
    if level.contains("sqlx") { level.to_owned() } else { format!("{level},sqlx=warn") }
}

/// Installs the process's subscriber; call once.
pub fn init(config: &Config) -> Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).with_context(|| format!("RUST_LOG={text} is not a filter"))?
        }
        _ => EnvFilter::try_new(with_quiet_driver(&config.level))
            .with_context(|| format!("log.level = '{}' is not a filter", config.level))?,
    };
    let is_terminal = std::io::stderr().is_terminal();
    let is_json = match config.format {
        Format::Auto => !is_terminal,
        Format::Text => false,
        Format::Json => true,
    };
    let registry = tracing_subscriber::registry().with(filter);
    if is_json {
        let layer = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(std::io::stderr);
        registry.with(layer).try_init()
    } else {
        let has_colour = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(has_colour)
            .with_target(false)
            .with_writer(std::io::stderr);
        registry.with(layer).try_init()
    }
    .context("logging was set up twice")
}
