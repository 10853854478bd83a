//! The whole configuration: every crate's section, composed. What a key means stands in
//! `config/default.toml`, which is also the lowest layer.

mod layers;
mod print;

pub use layers::{Flag, SYSTEM_FILE, Sources};

use std::path::PathBuf;

use anyhow::Result;
use domain::TrainingOptions;
use figment::Figment;
use serde::Deserialize;
use store::{DatabaseConfig, LeaseConfig, StorageConfig};

use crate::telemetry;

/// The built-in defaults as a commented file.
pub const DEFAULTS: &str = include_str!("../../../config/default.toml");

/// All sections.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: server::Config,
    pub database: DatabaseConfig,
    pub storage: StorageConfig,
    pub worker: worker::Config,
    pub lease: LeaseConfig,
    pub training: TrainingOptions,
    pub limits: server::LimitsConfig,
    pub costs: server::CostsConfig,
    pub graders: server::GradersConfig,
    pub webhooks: server::WebhooksConfig,
    pub up: Up,
    pub log: telemetry::Config,
}

/// Section `[up]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Up {
    /// Everything that `finetuned up` keeps.
    pub data_dir: PathBuf,
    /// Models in this folder are imported at the start; it may be absent.
    pub models_dir: PathBuf,
    /// The folder of the private database's programs; none: they are searched for.
    pub postgres_bin: Option<PathBuf>,
}

impl Default for Up {
    fn default() -> Self {
        Self { data_dir: "data".into(), models_dir: ".deps/models".into(), postgres_bin: None }
    }
}

/// The configuration together with its merged layers, which know the source of every value.
pub struct Loaded {
    pub config: Config,
    figment: Figment,
}

impl Loaded {
    pub fn from_sources(sources: &Sources) -> Result<Self> {
        let figment = sources.merge(DEFAULTS)?;
        let config = layers::extract(&figment)?;
        Ok(Self { config, figment })
    }

    /// As TOML with sources, for `config print`.
    pub fn render(&self, redact: bool) -> Result<String> {
        print::render(&self.figment, redact)
    }
}

#[cfg(test)]
mod tests;
