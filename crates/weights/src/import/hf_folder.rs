//! A Hugging Face folder into one of ours: the same files with one `model.safetensors`, after the
//! configuration, every tensor and the tokenizer were checked against each other.

use std::collections::HashSet;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use super::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, ImportError, TOKENIZER, TOKENIZER_CONFIG, highest_id,
    write_text,
};
use crate::family::{Expected, Family, MAX_DIMENSION, MAX_LAYERS, Shape};
use crate::files::read_limited;
use crate::{MODEL_FILE, TensorFile, TensorView, write_safetensors};

const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_TEXT_BYTES: u64 = 8 << 20;
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

pub fn import(source: &Path, folder: &Path) -> Result<(&'static str, u64), ImportError> {
    let Some((config_text, config)) = read_json(source, CONFIG, MAX_CONFIG_BYTES)? else {
        return Err(ImportError::UnknownSource { path: source.to_owned() });
    };
    let config = Config { path: &source.join(CONFIG), json: &config };
    let family = config.family()?;
    let shape = config.shape()?;
    let parameters = copy_weights(source, folder, family, &shape)?;
    write_text(folder, CONFIG, &config_text)?;
    copy_tokenizer(source, folder, shape.vocabulary)?;
    if let Some((text, _)) = read_json(source, GENERATION_CONFIG, MAX_CONFIG_BYTES)? {
        write_text(folder, GENERATION_CONFIG, &text)?;
    }
    Ok((family.model_type, parameters))
}

/// The text of a file, if it is there.
fn read_text(folder: &Path, name: &str, limit: u64) -> Result<Option<String>, ImportError> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_limited(&path, limit).map_err(|e| ImportError::io(&path, e))?;
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| ImportError::invalid(&path, "the file is not UTF-8"))
}

fn read_json(
    folder: &Path,
    name: &str,
    limit: u64,
) -> Result<Option<(String, Value)>, ImportError> {
    let Some(text) = read_text(folder, name, limit)? else { return Ok(None) };
    match serde_json::from_str::<Value>(&text) {
        Ok(value) if value.is_object() => Ok(Some((text, value))),
        Ok(_) => Err(ImportError::invalid(&folder.join(name), "it is not a JSON object")),
        Err(error) => Err(ImportError::invalid(&folder.join(name), error.to_string())),
    }
}

struct Config<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Config<'_> {
    fn family(&self) -> Result<&'static Family, ImportError> {
        let unsupported = |name: &str| ImportError::UnsupportedArchitecture {
            path: self.path.to_owned(),
            architecture: name.to_owned(),
        };
        let model_type = self.json["model_type"].as_str().unwrap_or_default();
        let family = Family::by_model_type(model_type).ok_or_else(|| unsupported(model_type))?;
        match self.json["architectures"][0].as_str() {
            Some(class) if class != family.class => return Err(unsupported(class)),
            _ => {}
        }
        if !self.json["quantization_config"].is_null() {
            return Err(ImportError::unsupported(self.path, "a quantised model folder"));
        }
        Ok(family)
    }

    fn optional_number(&self, field: &str, most: u64) -> Result<Option<usize>, ImportError> {
        let value = &self.json[field];
        if value.is_null() {
            return Ok(None);
        }
        match value.as_u64().filter(|number| (1..=most).contains(number)) {
            // At most 2^24.
            Some(number) => Ok(Some(number as usize)),
            None => Err(ImportError::invalid(
                self.path,
                format!("{field} is {value}; expected a whole number from 1 to {most}"),
            )),
        }
    }

    fn number(&self, field: &str, most: u64) -> Result<usize, ImportError> {
        self.optional_number(field, most)?
            .ok_or_else(|| ImportError::invalid(self.path, format!("{field} is missing")))
    }

    fn flag(&self, field: &str) -> bool {
        self.json[field].as_bool().unwrap_or(false)
    }

    fn shape(&self) -> Result<Shape, ImportError> {
        let dimension = |field| self.number(field, MAX_DIMENSION);
        let optional = |field| self.optional_number(field, MAX_DIMENSION);
        let (hidden, heads) = (dimension("hidden_size")?, dimension("num_attention_heads")?);
        let shape = Shape {
            vocabulary: dimension("vocab_size")?,
            hidden,
            feed_forward: dimension("intermediate_size")?,
            layers: self.number("num_hidden_layers", MAX_LAYERS)?,
            heads,
            key_value_heads: optional("num_key_value_heads")?.unwrap_or(heads),
            head_size: optional("head_dim")?.unwrap_or(hidden / heads),
            tied: self.flag("tie_word_embeddings"),
            attention_bias: self.flag("attention_bias"),
            mlp_bias: self.flag("mlp_bias"),
        };
        shape.check().map_err(|reason| ImportError::invalid(self.path, reason))?;
        Ok(shape)
    }
}

/// Writes the one weight file of the checked tensors; returns the number of weights.
fn copy_weights(
    source: &Path,
    folder: &Path,
    family: &Family,
    shape: &Shape,
) -> Result<u64, ImportError> {
    if !source.join(MODEL_FILE).exists() && !source.join("model.safetensors.index.json").exists() {
        let reason = "it has no safetensors weights (model.safetensors or its index)";
        return Err(ImportError::invalid(source, reason));
    }
    let file = TensorFile::open_folder(source)?;
    let expected = family.expected(shape);
    refuse_extra_tensors(&file, &expected, shape)?;
    let mut parameters = 0;
    let mut entries = Vec::with_capacity(expected.len());
    for tensor in &expected {
        let view = file.get(&tensor.hf)?;
        check_tensor(&file, tensor, &view)?;
        parameters += view.shape.iter().product::<usize>() as u64;
        entries.push((tensor.hf.as_str(), view.dtype, view.shape, view.data));
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    write_safetensors(&folder.join(MODEL_FILE), entries, &metadata)?;
    Ok(parameters)
}

fn check_tensor(
    file: &TensorFile,
    expected: &Expected,
    view: &TensorView<'_>,
) -> Result<(), ImportError> {
    let name = &expected.hf;
    if view.shape != expected.shape {
        let (found, wanted) = (&view.shape, &expected.shape);
        let reason = format!("tensor {name:?} has shape {found:?}; {CONFIG} asks for {wanted:?}");
        return Err(ImportError::invalid(file.path(), reason));
    }
    if !matches!(view.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        let dtype = view.dtype;
        let what = format!("the type {dtype:?} of tensor {name:?} (F32, F16 and BF16 are)");
        return Err(ImportError::unsupported(file.path(), what));
    }
    Ok(())
}

fn refuse_extra_tensors(
    file: &TensorFile,
    expected: &[Expected],
    shape: &Shape,
) -> Result<(), ImportError> {
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.hf.as_str()).collect();
    // Both are computed from others: a second name of the embedding, and a table of old files.
    let derived = |name: &str| {
        (shape.tied && name == "lm_head.weight") || name.ends_with(".rotary_emb.inv_freq")
    };
    match file.names().find(|name| !known.contains(name) && !derived(name)) {
        Some(name) => Err(ImportError::unsupported(file.path(), format!("the tensor {name:?}"))),
        None => Ok(()),
    }
}

fn copy_tokenizer(source: &Path, folder: &Path, vocabulary: usize) -> Result<(), ImportError> {
    let path = source.join(TOKENIZER);
    let Some(text) = read_text(source, TOKENIZER, MAX_TOKENIZER_BYTES)? else {
        return Err(ImportError::invalid(&path, "the file is missing; only this form is read"));
    };
    let tokens =
        highest_id::after(&text).map_err(|e| ImportError::invalid(&path, e.to_string()))?;
    if tokens > vocabulary as u64 {
        let reason = format!("it has ids up to {tokens}, but vocab_size is {vocabulary}");
        return Err(ImportError::invalid(&path, reason));
    }
    write_text(folder, TOKENIZER, &text)?;

    let config = read_json(source, TOKENIZER_CONFIG, MAX_TEXT_BYTES)?;
    let mut template = read_text(source, CHAT_TEMPLATE, MAX_TEXT_BYTES)?;
    if let Some((text, config)) = config {
        write_text(folder, TOKENIZER_CONFIG, &text)?;
        template = template.or_else(|| chat_template(&config["chat_template"]));
    }
    match template {
        Some(template) => write_text(folder, CHAT_TEMPLATE, &template),
        None => Ok(()),
    }
}

/// One template, or the one called "default" of several.
fn chat_template(value: &Value) -> Option<String> {
    let template = match value {
        Value::Array(several) => {
            &several.iter().find(|template| template["name"] == "default")?["template"]
        }
        one => one,
    };
    template.as_str().map(str::to_owned)
}
