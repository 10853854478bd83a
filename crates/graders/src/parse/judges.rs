//! The graders that ask a model: their messages, ranges, labels and sampling options.

use serde_json::Value;

use super::fields::Fields;
use super::{MAX_NAME_LENGTH, MAX_TEMPLATE_BYTES};
use crate::definition::{Kind, LabelModel, SamplingParams, ScoreModel};
use crate::fault::Fault;
use crate::template;

const ROLES: [&str; 4] = ["user", "assistant", "system", "developer"];
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
const MAX_MESSAGES: usize = 64;
const MAX_BLOCKS: usize = 64;
const MAX_LABELS: usize = 256;

pub(super) fn score_model(fields: &Fields<'_>) -> Result<Kind, Fault> {
    Ok(Kind::ScoreModel(ScoreModel {
        model: model(fields)?,
        input: messages(fields)?,
        range: range(fields)?,
        sampling_params: sampling_params(fields)?,
    }))
}

pub(super) fn label_model(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let (model, input) = (model(fields)?, messages(fields)?);
    let labels = texts(fields, "labels")?;
    let passing_labels = texts(fields, "passing_labels")?;
    if labels.is_empty() {
        return Err(Fault::invalid(fields.at("labels"), "there is no label in it."));
    }
    if let Some(i) = passing_labels.iter().position(|label| !labels.contains(label)) {
        let path = fields.at(&format!("passing_labels[{i}]"));
        let why = format!("'{}' is not among the labels.", passing_labels[i]);
        return Err(Fault::invalid(path, why));
    }
    let sampling_params = sampling_params(fields)?;
    Ok(Kind::LabelModel(LabelModel { model, input, labels, passing_labels, sampling_params }))
}

/// Refuses templates that can never be rendered.
pub(super) fn check_templates(input: &[Value], path: &str) -> Result<(), Fault> {
    for (i, message) in input.iter().enumerate() {
        for text in texts_of(&message["content"]) {
            template::check(text)
                .map_err(|why| Fault::invalid(format!("{path}.input[{i}].content"), why))?;
        }
    }
    Ok(())
}

/// All texts of a message's content, which has been checked.
pub(crate) fn texts_of(content: &Value) -> Vec<&str> {
    match content {
        Value::String(text) => vec![text],
        Value::Array(blocks) => blocks.iter().flat_map(texts_of).collect(),
        block => block.get("text").and_then(Value::as_str).into_iter().collect(),
    }
}

fn model(fields: &Fields<'_>) -> Result<String, Fault> {
    let model = fields.bounded_text("model", MAX_NAME_LENGTH)?;
    if model.is_empty() {
        return Err(Fault::invalid(fields.at("model"), "the name is empty."));
    }
    Ok(model.to_owned())
}

fn texts(fields: &Fields<'_>, key: &str) -> Result<Vec<String>, Fault> {
    let list = fields.list(key, MAX_LABELS)?;
    let text = |(i, value): (usize, &Value)| match value {
        Value::String(text) if text.len() > MAX_NAME_LENGTH => {
            Err(Fault::too_long(fields.at(&format!("{key}[{i}]")), MAX_NAME_LENGTH, text.len()))
        }
        Value::String(text) => Ok(text.clone()),
        other => Err(Fault::wrong_type(fields.at(&format!("{key}[{i}]")), "a string", other)),
    };
    list.iter().enumerate().map(text).collect()
}

fn range(fields: &Fields<'_>) -> Result<Option<(f64, f64)>, Fault> {
    let Some(value) = fields.optional("range") else { return Ok(None) };
    let path = fields.at("range");
    let Value::Array(list) = value else {
        return Err(Fault::wrong_type(path, "an array", value));
    };
    let [low, high] = list.as_slice() else {
        let why = format!("expected two numbers, [lowest, highest], but got {}.", list.len());
        return Err(Fault::invalid(path, why));
    };
    let number = |i: usize, value: &Value| {
        value.as_f64().ok_or_else(|| Fault::wrong_type(format!("{path}[{i}]"), "a number", value))
    };
    let (low, high) = (number(0, low)?, number(1, high)?);
    if low >= high {
        let why = "the first number must be less than the second.";
        return Err(Fault::invalid(path, why));
    }
    Ok(Some((low, high)))
}

fn messages(fields: &Fields<'_>) -> Result<Vec<Value>, Fault> {
    let list = fields.list("input", MAX_MESSAGES)?;
    let path = fields.at("input");
    if list.is_empty() {
        return Err(Fault::invalid(path, "there is no message in it."));
    }
    for (i, message) in list.iter().enumerate() {
        check_message(message, &format!("{path}[{i}]"))?;
    }
    Ok(list.to_vec())
}

fn check_message(message: &Value, path: &str) -> Result<(), Fault> {
    let fields = Fields::of(message, path)?;
    let role = fields.text("role")?;
    if !ROLES.contains(&role) {
        return Err(Fault::unsupported(fields.at("role"), role, &ROLES));
    }
    if let Some(word) = fields.optional_text("type", MAX_NAME_LENGTH)?
        && word != "message"
    {
        return Err(Fault::unsupported(fields.at("type"), word, &["message"]));
    }
    fields.refuse_others(&[&["role", "type", "content"]])?;
    let (content, path) = (fields.required("content")?, fields.at("content"));
    match content {
        Value::Array(blocks) if blocks.len() > MAX_BLOCKS => {
            Err(Fault::too_many(path, MAX_BLOCKS, blocks.len()))
        }
        Value::Array(blocks) => blocks
            .iter()
            .enumerate()
            .try_for_each(|(i, block)| check_block(block, &format!("{path}[{i}]"))),
        one => check_block(one, &path),
    }
}

fn check_block(block: &Value, path: &str) -> Result<(), Fault> {
    let fields = match block {
        Value::String(text) if text.len() > MAX_TEMPLATE_BYTES => {
            return Err(Fault::too_long(path.to_owned(), MAX_TEMPLATE_BYTES, text.len()));
        }
        Value::String(_) => return Ok(()),
        Value::Object(_) => Fields::of(block, path)?,
        other => {
            let expected = "one of a string, an object or an array";
            return Err(Fault::wrong_type(path.to_owned(), expected, other));
        }
    };
    match fields.text("type")? {
        // `text` is what chat calls it, and what people write.
        "input_text" | "output_text" | "text" => {
            fields.bounded_text("text", MAX_TEMPLATE_BYTES)?;
            // Texts of stored answers carry annotations and log-probabilities.
            fields.refuse_others(&[&["type", "text", "annotations", "logprobs"]])
        }
        word @ ("input_image" | "input_audio") => {
            let why = format!("the models of this server read text only, not '{word}'.");
            Err(Fault::invalid(path.to_owned(), why))
        }
        other => Err(Fault::unsupported(fields.at("type"), other, &["input_text", "output_text"])),
    }
}

fn sampling_params(fields: &Fields<'_>) -> Result<Option<SamplingParams>, Fault> {
    let Some(value) = fields.optional("sampling_params") else { return Ok(None) };
    let path = fields.at("sampling_params");
    let fields = Fields::of(value, &path)?;
    let between = |key: &str, high: f64| match fields.number(key)? {
        Some(number) if !(0.0..=high).contains(&number) => {
            let why = format!("expected a number from 0 to {high}, but got {number} instead.");
            Err(Fault::invalid(fields.at(key), why))
        }
        number => Ok(number),
    };
    let tokens = |key: &str| match fields.integer(key)? {
        Some(number) => u32::try_from(number).ok().filter(|n| *n > 0).map(Some).ok_or_else(|| {
            let why = format!("expected a whole number from 1 on, but got {number} instead.");
            Fault::invalid(fields.at(key), why)
        }),
        None => Ok(None),
    };
    let effort = fields.optional_text("reasoning_effort", MAX_NAME_LENGTH)?;
    if let Some(word) = effort
        && !EFFORTS.contains(&word)
    {
        return Err(Fault::unsupported(fields.at("reasoning_effort"), word, &EFFORTS));
    }
    fields.refuse_others(&[&[
        "seed",
        "top_p",
        "temperature",
        "max_completions_tokens",
        "max_completion_tokens",
        "reasoning_effort",
    ]])?;
    Ok(Some(SamplingParams {
        seed: fields.integer("seed")?,
        top_p: between("top_p", 1.0)?,
        temperature: between("temperature", 2.0)?,
        // The first is OpenAI's spelling, the second what everybody writes.
        max_completion_tokens: match tokens("max_completions_tokens")? {
            None => tokens("max_completion_tokens")?,
            some => some,
        },
        reasoning_effort: effort.map(str::to_owned),
    }))
}
