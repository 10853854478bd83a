//! Families: each reads its `config.json` into a [`DecoderSpec`].

mod llama;

use serde_json::Value;

use crate::load::LoadError;
use crate::spec::DecoderSpec;

/// The description that a `config.json` stands for.
///
/// # Errors
/// For a family that is not supported, naming it, and for fields that are missing or make no sense.
pub(crate) fn read_config(config: &Value) -> Result<DecoderSpec, LoadError> {
    match config["model_type"].as_str() {
        Some("llama") => llama::read(config),
        Some(other) => Err(LoadError::Unsupported(format!(
            "model_type '{other}' in config.json; supported: 'llama'"
        ))),
        None => Err(LoadError::Config("config.json names no model_type".into())),
    }
}
