//! A Hugging Face folder into one of ours: the same files with one `model.safetensors`, after the
//! configuration, every tensor and the tokenizer were checked against each other. Of a model that also
//! reads images, the language model is taken.

use std::collections::HashSet;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use super::text_model::{Names, TextModel};
use super::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, ImportError, TOKENIZER, TOKENIZER_CONFIG, highest_id,
    write_json, write_text,
};
use crate::files::read_limited;
use crate::spec::{DecoderSpec, TensorSpec};
use crate::{MODEL_FILE, TensorFile, TensorView, write_safetensors};

const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_TEXT_BYTES: u64 = 8 << 20;
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

pub fn import(source: &Path, folder: &Path) -> Result<(&'static str, u64), ImportError> {
    let Some((config_text, config)) = read_json(source, CONFIG, MAX_CONFIG_BYTES)? else {
        return Err(ImportError::UnknownSource { path: source.to_owned() });
    };
    let model =
        TextModel::read(&config).map_err(|error| ImportError::spec(&source.join(CONFIG), error))?;
    let parameters = copy_weights(source, folder, &model)?;
    if model.config == config {
        write_text(folder, CONFIG, &config_text)?;
    } else {
        write_json(folder, CONFIG, &model.config)?;
    }
    copy_tokenizer(source, folder, model.spec.vocab_size)?;
    if let Some((text, _)) = read_json(source, GENERATION_CONFIG, MAX_CONFIG_BYTES)? {
        write_text(folder, GENERATION_CONFIG, &text)?;
    }
    Ok((model.family.model_type, parameters))
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

/// Writes the one weight file of the checked tensors; returns the number of weights.
fn copy_weights(source: &Path, folder: &Path, model: &TextModel) -> Result<u64, ImportError> {
    if !source.join(MODEL_FILE).exists() && !source.join("model.safetensors.index.json").exists() {
        let reason = "it has no safetensors weights (model.safetensors or its index)";
        return Err(ImportError::invalid(source, reason));
    }
    let file = TensorFile::open_folder(source)?;
    let expected = model.spec.tensors();
    let names = model.names(&file);
    refuse_extra_tensors(&file, &expected, &names, &model.spec)?;
    let mut parameters = 0;
    let mut entries = Vec::with_capacity(expected.len());
    for tensor in &expected {
        let name = names.in_file(&tensor.name);
        let view = file.get(&name)?;
        check_tensor(&file, &name, &tensor.shape, &view)?;
        parameters += view.shape.iter().product::<usize>() as u64;
        entries.push((tensor.name.as_str(), view.dtype, view.shape, view.data));
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    write_safetensors(&folder.join(MODEL_FILE), entries, &metadata)?;
    Ok(parameters)
}

fn check_tensor(
    file: &TensorFile,
    name: &str,
    expected: &[usize],
    view: &TensorView<'_>,
) -> Result<(), ImportError> {
    if view.shape != expected {
        let found = &view.shape;
        let reason = format!("tensor {name:?} has shape {found:?}; {CONFIG} asks for {expected:?}");
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
    expected: &[TensorSpec],
    names: &Names,
    spec: &DecoderSpec,
) -> Result<(), ImportError> {
    let known: HashSet<String> =
        expected.iter().map(|tensor| names.in_file(&tensor.name)).collect();
    // Computed from others (a second name of the embedding, a table of old files), or no part of the
    // language model.
    let left_out = |name: &str| {
        (spec.tie_word_embeddings && name.ends_with("lm_head.weight"))
            || name.ends_with(".rotary_emb.inv_freq")
            || names.is_of_another_part(name)
    };
    match file.names().find(|name| !known.contains(*name) && !left_out(name)) {
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
