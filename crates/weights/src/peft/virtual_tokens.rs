//! Prompt and prefix tuning's part of PEFT's format: one tensor, with a row for each virtual token.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::refuse;
use crate::TensorFile;

/// The one tensor of the file, `[num_virtual_tokens, …]`.
pub const VIRTUAL_TOKENS_KEY: &str = "prompt_embeddings";

const MAX_TOKENS: u32 = 65_536;

/// The part of PEFT's `PromptTuningConfig` and `PrefixTuningConfig` that says what an adapter computes.
/// How it was initialised, and through what a prefix was projected in training, are over by then: the file
/// holds the result.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct VirtualTokensConfig {
    /// `PROMPT_TUNING` or `PREFIX_TUNING`.
    pub peft_type: String,
    #[serde(default)]
    pub task_type: Option<String>,
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    pub num_virtual_tokens: u32,
    /// Width of an embedding, or of the keys of a layer.
    #[serde(default)]
    pub token_dim: Option<u32>,
    #[serde(default)]
    pub num_attention_heads: Option<u32>,
    #[serde(default)]
    pub num_layers: Option<u32>,
    #[serde(default)]
    pub num_transformer_submodules: Option<u32>,
}

impl VirtualTokensConfig {
    /// From the fields of `adapter_config.json`.
    pub(super) fn from_fields(fields: Map<String, Value>) -> Result<Self, String> {
        let config: Self =
            serde_json::from_value(Value::Object(fields)).map_err(|e| e.to_string())?;
        if !(1..=MAX_TOKENS).contains(&config.num_virtual_tokens) {
            let found = config.num_virtual_tokens;
            return Err(format!("num_virtual_tokens is {found}; expected 1 to {MAX_TOKENS}"));
        }
        match config.num_transformer_submodules {
            None | Some(1) => Ok(config),
            Some(other) => refuse("num_transformer_submodules", &json!(other)),
        }
    }

    /// The fields of `adapter_config.json`, with those that PEFT insists on.
    pub(super) fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let others = match self.peft_type.as_str() {
            // Not TEXT, which PEFT refuses without a tokenizer though it reads the values from the file.
            "PROMPT_TUNING" => json!({
                "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": null,
                "tokenizer_name_or_path": null, "tokenizer_kwargs": null,
            }),
            _ => json!({
                "prefix_projection": false, "encoder_hidden_size": null, "init_weights": null,
            }),
        };
        if let (Value::Object(fields), Value::Object(others)) = (&mut value, others) {
            fields.extend(others);
            fields.insert("inference_mode".into(), true.into());
        }
        value
    }
}

/// There is the one tensor, and it has a row for each virtual token.
pub(super) fn check_tensors(config: &VirtualTokensConfig, file: &TensorFile) -> Result<(), String> {
    if let Some(other) = file.names().find(|name| *name != VIRTUAL_TOKENS_KEY) {
        return Err(format!("the tensor {other:?} is not supported"));
    }
    let shape = file.get(VIRTUAL_TOKENS_KEY).map_err(|e| e.to_string())?.shape;
    if shape.first() == Some(&(config.num_virtual_tokens as usize)) && shape.len() == 2 {
        return Ok(());
    }
    let count = config.num_virtual_tokens;
    Err(format!(
        "the tensor {VIRTUAL_TOKENS_KEY:?} has shape {shape:?}, but num_virtual_tokens is {count}"
    ))
}
