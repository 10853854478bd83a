//! Writing a tuned model: a complete folder in Hugging Face's layout, made from new weights and from the other
//! files of the model that they were tuned from.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use crate::files::read_limited;
use crate::{FileError, MODEL_FILE, TensorData, durable, write_safetensors};

const CONFIG: &str = "config.json";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_FILE_BYTES: u64 = 128 << 20;
/// What else a model needs to answer, here or in another program; those that exist are copied.
const OTHERS: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// True for a folder that holds a whole model and not an adapter.
pub fn is_model(dir: &Path) -> bool {
    dir.join(CONFIG).is_file() && dir.join(MODEL_FILE).is_file()
}

/// Writes a model of f32 tensors into an existing folder; `base` is the folder of the model that it was tuned
/// from.
///
/// # Errors
/// File errors, and a base whose files are damaged.
pub fn write_model<D: TensorData>(
    dir: &Path,
    base: &Path,
    tensors: impl IntoIterator<Item = (String, Vec<usize>, D)>,
) -> Result<(), FileError> {
    let entries = tensors.into_iter().map(|(name, shape, data)| (name, Dtype::F32, shape, data));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&dir.join(MODEL_FILE), entries, &metadata)?;
    let read = |name: &str, limit: u64| {
        let path = base.join(name);
        read_limited(&path, limit).map_err(|error| FileError::io(&path, error))
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        durable::write_bytes(&path, bytes).map_err(|error| FileError::io(&path, error))
    };
    let config = in_f32(&read(CONFIG, MAX_CONFIG_BYTES)?)
        .map_err(|error| FileError::invalid(&base.join(CONFIG), error.to_string()))?;
    write(CONFIG, config.as_bytes())?;
    for name in OTHERS.into_iter().filter(|name| base.join(name).is_file()) {
        write(name, &read(name, MAX_FILE_BYTES)?)?;
    }
    Ok(())
}

/// The configuration with the type of the new weights: without it other programs round them to the base's.
fn in_f32(config: &[u8]) -> serde_json::Result<String> {
    let mut config: Value = serde_json::from_slice(config)?;
    if let Some(fields) = config.as_object_mut() {
        // The old and the new name of the field.
        let name = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        fields.insert(name.to_owned(), "float32".into());
    }
    Ok(format!("{config:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_the_weights_is_said_under_the_name_that_the_base_uses() {
        let text = |config: &str| in_f32(config.as_bytes()).unwrap();
        assert!(text(r#"{"dtype": "bfloat16"}"#).contains(r#""dtype": "float32""#));
        assert!(text(r#"{"torch_dtype": "bfloat16"}"#).contains(r#""torch_dtype": "float32""#));
        assert!(text("{}").contains(r#""torch_dtype": "float32""#));
    }
}
