//! The LoRA family's part of PEFT's format.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Pattern, SEQUENCE_SCORES, refuse, refuse_settings};
use crate::TensorFile;

const PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";
const MAGNITUDE_SUFFIX: &str = ".lora_magnitude_vector";
/// The name of a reward model's score head `[1, D]`.
pub const SCORE_KEY: &str = "base_model.model.score.weight";
/// What PEFT names in `modules_to_save` of a model that scores sequences.
const SCORE_MODULES: [&str; 2] = ["classifier", "score"];
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
pub struct LoraConfig {
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
    /// Whether a trained score head belongs to it: the task `SEQ_CLS`.
    #[serde(skip)]
    pub scores: bool,
}

impl LoraConfig {
    /// A plain LoRA adapter of a causal language model.
    pub fn new(
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

    /// What the update of one module is multiplied by.
    pub fn scale_of(&self, module: &str) -> f64 {
        let rank = f64::from(self.rank_of(module));
        let alpha = self.alpha_pattern.get(module).unwrap_or(self.lora_alpha);
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// From the fields of `adapter_config.json`.
    pub(super) fn from_fields(mut fields: Map<String, Value>) -> Result<Self, String> {
        let scores = fields.get("task_type").is_some_and(|task| task == SEQUENCE_SCORES);
        if scores {
            let saved = fields.remove("modules_to_save").unwrap_or_default();
            let names = saved.as_array().map(Vec::as_slice).unwrap_or_default();
            let known = |name: &Value| SCORE_MODULES.iter().any(|known| name == known);
            if !names.iter().all(known) || !names.iter().any(|name| name == "score") {
                return refuse("modules_to_save", &saved);
            }
        }
        refuse_settings(&fields, NOT_HONOURED)?;
        refuse_expressions(&fields)?;
        let config: Self =
            serde_json::from_value(Value::Object(fields)).map_err(|e| e.to_string())?;
        let config = Self { scores, ..config };
        config.check()?;
        Ok(config)
    }

    /// The fields of `adapter_config.json`, with those that other readers insist on.
    pub(super) fn to_json(&self) -> Value {
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
            if self.scores {
                fields.insert("task_type".into(), SEQUENCE_SCORES.into());
                fields.insert("modules_to_save".into(), SCORE_MODULES.to_vec().into());
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

/// Settings of other types than a plain list or name.
fn refuse_expressions(fields: &Map<String, Value>) -> Result<(), String> {
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

/// Every matrix A or B has its partner, and both are of the module's rank.
pub(super) fn check_tensors(config: &LoraConfig, file: &TensorFile) -> Result<(), String> {
    if config.scores && !file.contains(SCORE_KEY) {
        return Err(format!("it has no score head {SCORE_KEY:?}"));
    }
    for name in file.names().filter(|name| !(config.scores && *name == SCORE_KEY)) {
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
