//! Adapter folders as PEFT writes and reads them: `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! Reading tolerates fields that it does not know, but refuses by name every setting that would
//! change what the adapter computes and that we do not do (`modules_to_save`, `fan_in_fan_out`, …):
//! better no model than a wrong one.

mod pattern;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

pub use pattern::Pattern;

use crate::{FileError, TensorFile, durable, files, write_safetensors};

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";
const MAGNITUDE_SUFFIX: &str = ".lora_magnitude_vector";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_RANK: u32 = 65_536;

/// Fields that must say "no": absent, null, false, `"none"` or empty.
const NOT_HONOURED: &[&str] = &[
    "bias",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "megatron_config",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
];

/// Initialisations that leave the base model as it is; the others change it, so that their adapters
/// do not fit the original weights.
const HARMLESS_INITS: &[&str] = &["gaussian", "orthogonal", "eva"];

/// The part of PEFT's `LoraConfig` that says what an adapter of the LoRA family computes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Always `LORA`.
    pub peft_type: String,
    #[serde(default)]
    pub task_type: Option<String>,
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank.
    pub r: u32,
    /// The update is scaled by `lora_alpha / r`, or by `lora_alpha / √r` with `use_rslora`.
    #[serde(serialize_with = "whole_if_possible")]
    pub lora_alpha: f64,
    #[serde(default)]
    pub lora_dropout: f64,
    /// Last parts of the names of the adapted linear layers.
    pub target_modules: Vec<String>,
    #[serde(default)]
    pub use_rslora: bool,
    /// Weight-decomposed: a trained magnitude per output beside the matrices.
    #[serde(default)]
    pub use_dora: bool,
    /// Ranks of single modules, instead of `r`.
    #[serde(default)]
    pub rank_pattern: Pattern<u32>,
    /// Alphas of single modules, instead of `lora_alpha`.
    #[serde(default)]
    pub alpha_pattern: Pattern<f64>,
}

impl AdapterConfig {
    /// A plain LoRA adapter of a causal language model.
    pub fn lora(
        base_model: &str,
        rank: u32,
        alpha: f64,
        dropout: f64,
        target_modules: &[String],
    ) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base_model.into()),
            r: rank,
            lora_alpha: alpha,
            lora_dropout: dropout,
            target_modules: target_modules.to_vec(),
            ..Self::default()
        }
    }

    /// The rank of one module, named by its path: `model.layers.0.self_attn.q_proj`.
    pub fn rank_of(&self, module: &str) -> u32 {
        self.rank_pattern.get(module).unwrap_or(self.r)
    }

    /// Reads the text of `adapter_config.json`.
    ///
    /// # Errors
    /// What is wrong, naming the field.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let Value::Object(fields) = &value else { return Err("it is not a JSON object".into()) };
        refuse_what_is_not_honoured(fields)?;
        let config: Self = serde_json::from_value(value).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }

    /// The text of `adapter_config.json`, with the fields that other readers insist on.
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            for (name, value) in [
                ("bias", Value::from("none")),
                ("fan_in_fan_out", false.into()),
                ("init_lora_weights", true.into()),
                ("modules_to_save", Value::Null),
                ("inference_mode", true.into()),
            ] {
                fields.insert(name.into(), value);
            }
        }
        value
    }

    fn check(&self) -> Result<(), String> {
        let ranks =
            self.rank_pattern.iter().map(|(key, rank)| (format!("rank_pattern.{key}"), rank));
        for (name, rank) in ranks.chain([("r".to_owned(), self.r)]) {
            if !(1..=MAX_RANK).contains(&rank) {
                return Err(format!("{name} is {rank}; expected 1 to {MAX_RANK}"));
            }
        }
        self.rank_pattern.check("rank_pattern")?;
        self.alpha_pattern.check("alpha_pattern")?;
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(format!("lora_dropout is {}; expected 0 up to 1", self.lora_dropout));
        }
        if self.target_modules.is_empty() {
            return Err("target_modules is empty".into());
        }
        Ok(())
    }
}

/// PEFT writes whole alphas as integers, and some readers accept nothing else.
fn whole_if_possible<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        // Exact: it is whole and small.
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

fn refuse_what_is_not_honoured(fields: &Map<String, Value>) -> Result<(), String> {
    let refuse = |name: &str, value: &Value| Err(format!("{name} = {value} is not supported"));
    let text = |name: &str| fields.get(name).filter(|value| !value.is_null());
    match text("peft_type") {
        Some(Value::String(kind)) if kind == "LORA" => {}
        Some(other) => return refuse("peft_type", other),
        None => return Err("peft_type is missing".into()),
    }
    if let Some(task) = text("task_type").filter(|task| *task != "CAUSAL_LM") {
        return refuse("task_type", task);
    }
    for name in NOT_HONOURED {
        if let Some(value) = fields.get(*name).filter(|value| !says_no(value)) {
            return refuse(name, value);
        }
    }
    match fields.get("init_lora_weights") {
        Some(value @ Value::String(name)) if !HARMLESS_INITS.contains(&name.as_str()) => {
            refuse("init_lora_weights", value)
        }
        _ => match fields.get("target_modules") {
            Some(Value::Array(_)) | None => Ok(()),
            Some(other) => Err(format!("target_modules = {other}: only a list is supported")),
        },
    }
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

/// The name of matrix A `[r, in]` of a linear layer such as `model.layers.0.mlp.down_proj`.
pub fn lora_a_key(module: &str) -> String {
    format!("{PREFIX}{module}{A_SUFFIX}")
}

/// The name of matrix B `[out, r]` of a linear layer.
pub fn lora_b_key(module: &str) -> String {
    format!("{PREFIX}{module}{B_SUFFIX}")
}

/// The name of a weight-decomposed linear layer's magnitudes `[out]`.
pub fn magnitude_key(module: &str) -> String {
    format!("{PREFIX}{module}{MAGNITUDE_SUFFIX}")
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

/// Opens the folder of an adapter. Every matrix A or B then has its partner, and both are of the
/// module's rank.
///
/// # Errors
/// File errors; a setting or tensor that is not supported, by name.
pub fn read_adapter(dir: &Path) -> Result<(AdapterConfig, TensorFile), FileError> {
    let path = dir.join(CONFIG_FILE);
    let text = files::read_limited(&path, MAX_CONFIG_BYTES).map_err(|e| FileError::io(&path, e))?;
    let config = AdapterConfig::from_json(&text)
        .map_err(|reason| FileError::Adapter { path: path.clone(), reason })?;
    let file = TensorFile::open(&dir.join(WEIGHTS_FILE))?;
    check_tensors(&config, &file)
        .map_err(|reason| FileError::Adapter { path: file.path().to_owned(), reason })?;
    Ok((config, file))
}

fn check_tensors(config: &AdapterConfig, file: &TensorFile) -> Result<(), String> {
    if file.is_empty() {
        return Err("it has no tensors".into());
    }
    for name in file.names() {
        let path = name.strip_prefix(PREFIX).unwrap_or_default();
        let shape = file.get(name).map_err(|e| e.to_string())?.shape;
        let ends = [A_SUFFIX, B_SUFFIX, MAGNITUDE_SUFFIX];
        let found = ends.iter().find_map(|end| Some((*end, path.strip_suffix(end)?)));
        let (module, partner, rank) = match found {
            Some((A_SUFFIX, module)) => (module, lora_b_key(module), shape.first()),
            Some((B_SUFFIX, module)) => (module, lora_a_key(module), shape.get(1)),
            Some((_, module)) if config.use_dora => (module, lora_a_key(module), None),
            _ => return Err(format!("the tensor {name:?} is not supported")),
        };
        if !file.contains(&partner) {
            return Err(format!("the tensor {name:?} has no partner {partner:?}"));
        }
        let r = config.rank_of(module);
        if rank.is_some_and(|rank| *rank != r as usize) {
            return Err(format!("the tensor {name:?} has shape {shape:?}, but r is {r}"));
        }
    }
    Ok(())
}
