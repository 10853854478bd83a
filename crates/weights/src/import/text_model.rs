//! The language model of a folder's configuration, and where its tensors stand in the folder's files.

use serde_json::{Value, json};

use crate::families::{Family, SpecError};
use crate::spec::DecoderSpec;
use crate::{TensorFile, read_spec};

/// Models that hold a language model beside other parts: `model_type` and class of the whole, `model_type` of
/// the part whose configuration is `text_config`.
const WITH_OTHER_PARTS: &[(&str, &str, &str)] =
    &[("gemma3", "Gemma3ForConditionalGeneration", "gemma3_text")];

/// Where such models keep the language model's `model.…`, by version of the file.
const TEXT_PREFIXES: [&str; 2] = ["language_model.model.", "model.language_model."];
const OTHER_PARTS: [&str; 2] = ["vision_tower.", "multi_modal_projector."];

pub struct TextModel {
    pub family: &'static Family,
    pub spec: DecoderSpec,
    /// Flat, and complete: sizes that the folder's file left to transformers' defaults are written out, because
    /// not every reader knows these.
    pub config: Value,
    /// It is a part of a larger model.
    is_part: bool,
}

impl TextModel {
    pub fn read(config: &Value) -> Result<Self, SpecError> {
        let part = text_part(config);
        let is_part = part.is_some();
        let mut config = part.unwrap_or_else(|| config.clone());
        if !config["quantization_config"].is_null() {
            return Err(SpecError::Unsupported("a quantised model folder".into()));
        }
        let family = Family::of(&config)?;
        let spec = read_spec(&config)?;
        let sizes = [
            ("vocab_size", spec.vocab_size),
            ("num_attention_heads", spec.num_attention_heads),
            ("num_key_value_heads", spec.num_key_value_heads),
            ("max_position_embeddings", spec.max_position_embeddings),
        ];
        for (field, size) in sizes {
            if config.get(field).is_none() {
                config[field] = json!(size);
            }
        }
        Ok(Self { family, spec, config, is_part })
    }

    pub fn names(&self, file: &TensorFile) -> Names {
        let prefix = TEXT_PREFIXES.into_iter().filter(|_| self.is_part);
        let prefix = prefix
            .into_iter()
            .find(|prefix| file.names().any(|name| name.starts_with(prefix)))
            .unwrap_or("model.");
        Names { prefix, is_part: self.is_part }
    }
}

/// The flat configuration of the language model inside of a larger one.
fn text_part(config: &Value) -> Option<Value> {
    let model_type = config["model_type"].as_str()?;
    let class = config["architectures"][0].as_str();
    let (.., text_type) = WITH_OTHER_PARTS.iter().find(|(whole, whole_class, _)| {
        *whole == model_type && class.is_none_or(|class| class == *whole_class)
    })?;
    let mut text = config["text_config"].as_object()?.clone();
    let family = Family::by_model_type(text_type)?;
    text.insert("model_type".into(), json!(text_type));
    text.insert("architectures".into(), json!([family.class]));
    let outer = [
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "dtype",
        "torch_dtype",
        "tie_word_embeddings",
        "quantization_config",
    ];
    for field in outer {
        if let Some(value) = config.get(field).filter(|_| !text.contains_key(field)) {
            text.insert(field.into(), value.clone());
        }
    }
    Some(Value::Object(text))
}

/// How the folder's files name the tensors.
pub struct Names {
    /// What stands for `model.`.
    prefix: &'static str,
    is_part: bool,
}

impl Names {
    pub fn in_file(&self, name: &str) -> String {
        match name.strip_prefix("model.") {
            Some(rest) => format!("{}{rest}", self.prefix),
            None => name.to_owned(),
        }
    }

    pub fn is_of_another_part(&self, name: &str) -> bool {
        let name = name.strip_prefix("model.").unwrap_or(name);
        self.is_part && OTHER_PARTS.iter().any(|part| name.starts_with(part))
    }
}
