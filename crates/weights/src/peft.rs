//! Adapter folders as PEFT writes and reads them: `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! Reading tolerates fields that it does not know, but refuses by name every setting that would
//! change what the adapter computes and that we do not do (`modules_to_save`, `fan_in_fan_out`, …):
//! better no model than a wrong one.

mod lora;
mod pattern;
mod virtual_tokens;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

pub use lora::{LoraConfig, SCORE_KEY, lora_a_key, lora_b_key, magnitude_key};
pub use pattern::Pattern;
pub use virtual_tokens::{VIRTUAL_TOKENS_KEY, VirtualTokensConfig};

use crate::{FileError, TensorFile, durable, files, write_safetensors};

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// PEFT's task of a model that has a score head.
const SEQUENCE_SCORES: &str = "SEQ_CLS";
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What an adapter folder says of its adapter, by PEFT's `peft_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterConfig {
    Lora(LoraConfig),
    Prompt(VirtualTokensConfig),
    Prefix(VirtualTokensConfig),
}

impl AdapterConfig {
    /// Reads the text of `adapter_config.json`.
    ///
    /// # Errors
    /// What is wrong, naming the field.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let Value::Object(fields) = value else { return Err("it is not a JSON object".into()) };
        let kind = match fields.get("peft_type") {
            None | Some(Value::Null) => return Err("peft_type is missing".into()),
            Some(kind) => kind.clone(),
        };
        let task = fields.get("task_type").filter(|task| !task.is_null());
        let is_lora = kind == "LORA";
        let known = |task: &Value| task == "CAUSAL_LM" || (is_lora && task == SEQUENCE_SCORES);
        if let Some(task) = task.filter(|task| !known(task)) {
            return refuse("task_type", task);
        }
        match kind.as_str() {
            Some("LORA") => LoraConfig::from_fields(fields).map(Self::Lora),
            Some("PROMPT_TUNING") => VirtualTokensConfig::from_fields(fields).map(Self::Prompt),
            Some("PREFIX_TUNING") => VirtualTokensConfig::from_fields(fields).map(Self::Prefix),
            _ => refuse("peft_type", &kind),
        }
    }

    /// The text of `adapter_config.json`, with the fields that other readers insist on.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Lora(config) => config.to_json(),
            Self::Prompt(config) | Self::Prefix(config) => config.to_json(),
        }
    }

    fn check_tensors(&self, file: &TensorFile) -> Result<(), String> {
        match self {
            Self::Lora(config) => lora::check_tensors(config, file),
            Self::Prompt(config) | Self::Prefix(config) => {
                virtual_tokens::check_tensors(config, file)
            }
        }
    }
}

/// Refuses the first of these fields that does not say "no": absent, null, false, `"none"` or empty.
fn refuse_settings(fields: &Map<String, Value>, names: &[&str]) -> Result<(), String> {
    for name in names {
        if let Some(value) = fields.get(*name).filter(|value| !says_no(value)) {
            return refuse(name, value);
        }
    }
    Ok(())
}

fn refuse<T>(name: &str, value: &Value) -> Result<T, String> {
    Err(format!("{name} = {value} is not supported"))
}

fn says_no(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Writes both files of an adapter into an existing folder, each durably: `(name, shape, values)`
/// of each tensor, row-major. The same adapter always gives the same bytes.
///
/// # Errors
/// File errors; values that are not as many as the shape says.
pub fn write_adapter<S: AsRef<[f32]>>(
    dir: &Path,
    config: &AdapterConfig,
    tensors: &[(String, Vec<usize>, S)],
) -> Result<(), FileError> {
    let entries = tensors
        .iter()
        .map(|(name, shape, values)| (name.as_str(), Dtype::F32, shape.clone(), values.as_ref()));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&dir.join(WEIGHTS_FILE), entries, &metadata)?;
    let path = dir.join(CONFIG_FILE);
    let text = format!("{:#}\n", config.to_json());
    durable::write_bytes(&path, text.as_bytes()).map_err(|e| FileError::io(&path, e))
}

/// Opens the folder of an adapter. Its tensors are of the names and widths that the configuration
/// promises.
///
/// # Errors
/// File errors; a setting or tensor that is not supported, by name.
pub fn read_adapter(dir: &Path) -> Result<(AdapterConfig, TensorFile), FileError> {
    let path = dir.join(CONFIG_FILE);
    let text = files::read_limited(&path, MAX_CONFIG_BYTES).map_err(|e| FileError::io(&path, e))?;
    let config = AdapterConfig::from_json(&text)
        .map_err(|reason| FileError::Adapter { path: path.clone(), reason })?;
    let file = TensorFile::open(&dir.join(WEIGHTS_FILE))?;
    let checked =
        if file.is_empty() { Err("it has no tensors".into()) } else { config.check_tensors(&file) };
    checked.map_err(|reason| FileError::Adapter { path: file.path().to_owned(), reason })?;
    Ok((config, file))
}
