//! `data_source` of a run: where its rows come from, and what is asked of which model for each of them.
//!
//! It is read twice from the same text: when the run is created, so that what is wrong is refused, and when it
//! is executed.

use domain::FileId;
use serde_json::{Map, Value, json};
use store::completions::Filter;
use time::OffsetDateTime;

use super::definition::{given, known_only, object, strings, word};
use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;
use crate::inference::prompt::integer;

const PATH: &str = "data_source";
const TYPES: [&str; 3] = ["jsonl", "completions", "responses"];
/// The last second of the year 9999.
const LATEST: i64 = 253_402_300_799;
const ROLES: [&str; 4] = ["system", "developer", "user", "assistant"];

pub(crate) struct Plan {
    pub source: Source,
    /// None: the rows bring their samples along.
    pub asking: Option<Asking>,
}

#[derive(Clone)]
pub(crate) enum Source {
    Content(Vec<Value>),
    File(FileId),
    Stored(Stored),
}

/// Chat completions that were kept, the newest first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    pub filter: Filter,
    /// No more than so many of them.
    pub limit: Option<usize>,
}

/// What is asked of a model.
pub(crate) struct Asking {
    pub model: String,
    pub input: Input,
    /// Fields of a chat request.
    pub params: Map<String, Value>,
    pub shown: ShownParams,
}

/// What an output item says about the sampling.
pub(crate) struct ShownParams {
    pub temperature: f64,
    pub top_p: f64,
    pub seed: i64,
    /// 0 where no limit was given.
    pub max_completion_tokens: i64,
}

pub(crate) enum Input {
    Template(Vec<Message>),
    /// The path of a value in the row, such as `item.messages`.
    Reference(String),
}

/// A message whose texts are templates; they are joined without anything between.
pub(crate) struct Message {
    pub role: String,
    pub texts: Vec<String>,
}

impl Plan {
    pub(crate) fn parse(data_source: &Value) -> ApiResult<Self> {
        let fields = object(data_source, PATH)?;
        let kind = word(fields, PATH, "type")?;
        match kind {
            "jsonl" => known_only(fields, &["type", "source"], PATH)?,
            "completions" | "responses" => known_only(
                fields,
                &["type", "source", "input_messages", "model", "sampling_params"],
                PATH,
            )?,
            other => return Err(ApiError::unsupported_value("data_source.type", other, &TYPES)),
        }
        let source =
            given(fields, "source").ok_or_else(|| ApiError::missing("data_source.source"))?;
        let source = parse_source(source, kind)?;
        let asking = if kind == "jsonl" { None } else { asking(fields, kind)? };
        Ok(Self { source, asking })
    }

    /// The model that is asked; empty if none is.
    pub(crate) fn model(&self) -> &str {
        self.asking.as_ref().map_or("", |asking| &asking.model)
    }

    pub(crate) fn file(&self) -> Option<&FileId> {
        match &self.source {
            Source::File(file) => Some(file),
            Source::Content(_) | Source::Stored(_) => None,
        }
    }
}

fn parse_source(source: &Value, kind: &str) -> ApiResult<Source> {
    const PATH: &str = "data_source.source";
    let fields = object(source, PATH)?;
    match word(fields, PATH, "type")? {
        "file_content" => {
            known_only(fields, &["type", "content"], PATH)?;
            let path = "data_source.source.content";
            match given(fields, "content") {
                Some(Value::Array(rows)) if rows.is_empty() => Err(ApiError::Parameter {
                    code: Some("empty_array"),
                    param: path.to_owned(),
                    message: format!(
                        "Invalid '{path}': empty array. A run needs at least one row."
                    ),
                }),
                Some(Value::Array(rows)) => Ok(Source::Content(rows.clone())),
                Some(other) => Err(ApiError::invalid_type(path, "an array", type_words(other))),
                None => Err(ApiError::missing(path)),
            }
        }
        "file_id" => {
            known_only(fields, &["type", "id"], PATH)?;
            Ok(Source::File(word(fields, PATH, "id")?.into()))
        }
        "stored_completions" if kind == "completions" => stored(fields).map(Source::Stored),
        "responses" if kind == "responses" => Err(ApiError::invalid_value(
            "data_source.source.type",
            "Invalid 'data_source.source.type': this server keeps no responses. Use 'file_content' or 'file_id'.",
        )),
        other => Err(ApiError::unsupported_value(
            "data_source.source.type",
            other,
            match kind {
                "completions" => &["file_content", "file_id", "stored_completions"],
                _ => &["file_content", "file_id"],
            },
        )),
    }
}

fn stored(fields: &Map<String, Value>) -> ApiResult<Stored> {
    const PATH: &str = "data_source.source";
    let known = ["type", "metadata", "model", "created_after", "created_before", "limit"];
    known_only(fields, &known, PATH)?;
    let model = match given(fields, "model") {
        Some(_) => Some(word(fields, PATH, "model")?.to_owned()),
        None => None,
    };
    let metadata = match given(fields, "metadata") {
        Some(pairs) => strings(pairs, &format!("{PATH}.metadata"))?,
        None => Default::default(),
    };
    let number = |key: &str, least: i64, most: i64| {
        let Some(value) = given(fields, key) else { return Ok(None) };
        let path = format!("{PATH}.{key}");
        match value.as_i64() {
            Some(number) => integer(&path, number, least, most).map(Some),
            None => Err(ApiError::invalid_type(path, "an integer", type_words(value))),
        }
    };
    let time = |key: &str| -> ApiResult<Option<OffsetDateTime>> {
        let seconds = number(key, 0, LATEST)?;
        Ok(seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()))
    };
    let filter = Filter {
        model,
        metadata,
        created_after: time("created_after")?,
        created_before: time("created_before")?,
    };
    let limit = number("limit", 1, i64::from(u32::MAX))?;
    Ok(Stored { filter, limit: limit.map(|limit| limit as usize) })
}

fn asking(fields: &Map<String, Value>, kind: &str) -> ApiResult<Option<Asking>> {
    let Some(input) = given(fields, "input_messages") else { return Ok(None) };
    let input = parse_input(input)?;
    let model = word(fields, PATH, "model")?.to_owned();
    let empty = Map::new();
    let sampling = match given(fields, "sampling_params") {
        Some(value) => object(value, "data_source.sampling_params")?,
        None => &empty,
    };
    let (params, shown) = sampling_params(sampling, kind)?;
    Ok(Some(Asking { model, input, params, shown }))
}

fn parse_input(input: &Value) -> ApiResult<Input> {
    const PATH: &str = "data_source.input_messages";
    let fields = object(input, PATH)?;
    match word(fields, PATH, "type")? {
        "template" => {
            known_only(fields, &["type", "template"], PATH)?;
            let path = format!("{PATH}.template");
            let messages = match given(fields, "template") {
                Some(Value::Array(messages)) if !messages.is_empty() => messages,
                Some(Value::Array(_)) => {
                    let message = format!("Invalid '{path}': a model needs at least one message.");
                    return Err(ApiError::invalid_value(path, message));
                }
                Some(other) => {
                    return Err(ApiError::invalid_type(path, "an array", type_words(other)));
                }
                None => return Err(ApiError::missing(path)),
            };
            let numbered = messages.iter().enumerate();
            let messages = numbered.map(|(i, m)| message(m, &format!("{path}[{i}]")));
            Ok(Input::Template(messages.collect::<ApiResult<_>>()?))
        }
        "item_reference" => {
            known_only(fields, &["type", "item_reference"], PATH)?;
            let reference = word(fields, PATH, "item_reference")?.trim();
            let reference = reference.strip_prefix("{{").unwrap_or(reference);
            let reference = reference.strip_suffix("}}").unwrap_or(reference).trim();
            if !reference.starts_with("item.") && !reference.starts_with("item[") {
                let path = format!("{PATH}.item_reference");
                let message =
                    format!("Invalid '{path}': it must begin with 'item.', as in 'item.input'.");
                return Err(ApiError::invalid_value(path, message));
            }
            Ok(Input::Reference(reference.to_owned()))
        }
        other => Err(ApiError::unsupported_value(
            format!("{PATH}.type"),
            other,
            &["template", "item_reference"],
        )),
    }
}

fn message(message: &Value, path: &str) -> ApiResult<Message> {
    let fields = object(message, path)?;
    let role = word(fields, path, "role")?;
    if !ROLES.contains(&role) {
        return Err(ApiError::unsupported_value(format!("{path}.role"), role, &ROLES));
    }
    let content =
        given(fields, "content").ok_or_else(|| ApiError::missing(format!("{path}.content")))?;
    let texts = texts(content, &format!("{path}.content"))?;
    if let Some(why) = texts.iter().find_map(|text| graders::template::check(text).err()) {
        let message = format!("Invalid '{path}.content': {why}.");
        return Err(ApiError::invalid_value(format!("{path}.content"), message));
    }
    Ok(Message { role: role.to_owned(), texts })
}

/// The texts of a content: a string, a block, or several of them.
pub(super) fn texts(content: &Value, path: &str) -> ApiResult<Vec<String>> {
    match content {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(blocks) => {
            let numbered = blocks.iter().enumerate();
            numbered.map(|(i, block)| self::block(block, &format!("{path}[{i}]"))).collect()
        }
        one => Ok(vec![block(one, path)?]),
    }
}

fn block(block: &Value, path: &str) -> ApiResult<String> {
    if let Value::String(text) = block {
        return Ok(text.clone());
    }
    let fields = object(block, path)?;
    match word(fields, path, "type")? {
        "input_text" | "output_text" | "text" => Ok(match fields.get("text") {
            Some(Value::String(text)) => text.clone(),
            Some(other) => {
                let path = format!("{path}.text");
                return Err(ApiError::invalid_type(path, "a string", type_words(other)));
            }
            None => return Err(ApiError::missing(format!("{path}.text"))),
        }),
        kind @ ("input_image" | "input_audio" | "input_file") => {
            let message = format!(
                "Invalid '{path}': the models of this server read text only, not '{kind}'."
            );
            Err(ApiError::invalid_value(path, message))
        }
        other => Err(ApiError::unsupported_value(
            format!("{path}.type"),
            other,
            &["input_text", "output_text"],
        )),
    }
}

/// The parameters as a chat request has them, and as output items show them.
fn sampling_params(
    fields: &Map<String, Value>,
    kind: &str,
) -> ApiResult<(Map<String, Value>, ShownParams)> {
    const PATH: &str = "data_source.sampling_params";
    // The examples of OpenAI's pages spell it with an s.
    const LIMITS: [&str; 2] = ["max_completion_tokens", "max_completions_tokens"];
    let mut known = vec!["temperature", "top_p", "seed", "reasoning_effort", "tools"];
    known.extend(LIMITS);
    known.push(if kind == "responses" { "text" } else { "response_format" });
    known_only(fields, &known, PATH)?;
    let number = |key: &str, default: f64| match given(fields, key) {
        None => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| {
            ApiError::invalid_type(format!("{PATH}.{key}"), "a number", type_words(value))
        }),
    };
    let integer = |key: &str| match given(fields, key) {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(number) => Ok(Some(number)),
            None => {
                let path = format!("{PATH}.{key}");
                Err(ApiError::invalid_type(path, "an integer", type_words(value)))
            }
        },
    };
    let (temperature, top_p) = (number("temperature", 1.0)?, number("top_p", 1.0)?);
    let seed = integer("seed")?.unwrap_or(42);
    let limit = match integer(LIMITS[0])? {
        None => integer(LIMITS[1])?,
        some => some,
    };
    let mut params = Map::new();
    params.insert("temperature".to_owned(), json!(temperature));
    params.insert("top_p".to_owned(), json!(top_p));
    params.insert("seed".to_owned(), json!(seed));
    if let Some(limit) = limit {
        params.insert("max_completion_tokens".to_owned(), json!(limit));
    }
    if let Some(effort) = given(fields, "reasoning_effort") {
        params.insert("reasoning_effort".to_owned(), effort.clone());
    }
    if let Some(tools) = given(fields, "tools") {
        params.insert("tools".to_owned(), chat_tools(tools, &format!("{PATH}.tools"))?);
    }
    let format = match kind {
        "responses" => fields.get("text").and_then(|text| given(text.as_object()?, "format")),
        _ => given(fields, "response_format"),
    };
    if let Some(format) = format {
        params.insert("response_format".to_owned(), chat_format(format));
    }
    let max_completion_tokens = limit.unwrap_or(0);
    Ok((params, ShownParams { temperature, top_p, seed, max_completion_tokens }))
}

/// Tools in the form of chat requests; the form of responses has the function's fields outside.
fn chat_tools(tools: &Value, path: &str) -> ApiResult<Value> {
    let Value::Array(tools) = tools else {
        return Err(ApiError::invalid_type(path, "an array", type_words(tools)));
    };
    let chat_tool = |(i, tool): (usize, &Value)| {
        let path = format!("{path}[{i}]");
        let fields = object(tool, &path)?;
        match word(fields, &path, "type")? {
            "function" if fields.contains_key("function") => Ok(tool.clone()),
            "function" => {
                let mut function = fields.clone();
                function.shift_remove("type");
                Ok(json!({"type": "function", "function": function}))
            }
            other => Err(ApiError::unsupported_value(format!("{path}.type"), other, &["function"])),
        }
    };
    tools.iter().enumerate().map(chat_tool).collect()
}

/// A format in the form of chat requests; the form of responses has the schema's fields outside.
fn chat_format(format: &Value) -> Value {
    match format.as_object() {
        Some(fields)
            if fields.get("type") == Some(&json!("json_schema"))
                && !fields.contains_key("json_schema") =>
        {
            let mut schema = fields.clone();
            schema.shift_remove("type");
            json!({"type": "json_schema", "json_schema": schema})
        }
        _ => format.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Value {
        json!({"type": "file_content", "content": [{"item": {"q": "x"}}]})
    }

    fn param(data_source: Value) -> String {
        let Err(error) = Plan::parse(&data_source) else { panic!("{data_source} was accepted") };
        error.envelope().error.param.unwrap()
    }

    #[test]
    fn both_kinds_of_sampling_become_chat_parameters() {
        let template = json!({"type": "template", "template": [
            {"type": "message", "role": "developer", "content": {"type": "input_text", "text": "Be brief."}},
            {"role": "user", "content": [{"type": "input_text", "text": "{{item.q}}"}, {"type": "output_text", "text": "!"}]},
        ]});
        let chat = json!({"type": "completions", "model": "m", "source": rows(), "input_messages": template,
            "sampling_params": {"temperature": 0, "max_completions_tokens": 9, "seed": null,
                                "response_format": {"type": "json_object"},
                                "tools": [{"type": "function", "function": {"name": "f"}}]}});
        let asking = Plan::parse(&chat).unwrap().asking.unwrap();
        assert_eq!(asking.params["max_completion_tokens"], 9);
        assert_eq!((asking.params["seed"].clone(), asking.shown.seed), (json!(42), 42));
        assert_eq!(asking.params["response_format"]["type"], "json_object");
        let Input::Template(messages) = asking.input else { panic!("a template") };
        assert_eq!(messages[1].texts, ["{{item.q}}", "!"]);

        let responses = json!({"type": "responses", "model": "m", "source": rows(),
            "input_messages": {"type": "item_reference", "item_reference": "item.q"},
            "sampling_params": {"text": {"format": {"type": "json_schema", "name": "s", "schema": {}}},
                                "tools": [{"type": "function", "name": "f", "parameters": {}}]}});
        let asking = Plan::parse(&responses).unwrap().asking.unwrap();
        assert_eq!(asking.params["tools"][0]["function"]["name"], "f");
        assert_eq!(asking.params["response_format"]["json_schema"]["name"], "s");
        assert!(matches!(asking.input, Input::Reference(path) if path == "item.q"));
    }

    #[test]
    fn what_is_wrong_is_named_by_path() {
        let template = |message: Value| {
            json!({"type": "completions", "model": "m", "source": rows(),
                   "input_messages": {"type": "template", "template": [message]}})
        };
        for (data_source, expected) in [
            (json!({"type": "csv"}), "data_source.type"),
            (json!({"type": "jsonl"}), "data_source.source"),
            (json!({"type": "jsonl", "source": {}}), "data_source.source.type"),
            (json!({"type": "jsonl", "source": rows(), "model": "m"}), "data_source.model"),
            (
                json!({"type": "jsonl", "source": {"type": "file_content", "content": []}}),
                "data_source.source.content",
            ),
            (json!({"type": "jsonl", "source": {"type": "file_id"}}), "data_source.source.id"),
            (
                json!({"type": "responses", "source": {"type": "responses"}}),
                "data_source.source.type",
            ),
            (
                json!({"type": "completions", "source": rows(),
                       "input_messages": {"type": "item_reference", "item_reference": "item.q"}}),
                "data_source.model",
            ),
            (
                json!({"type": "completions", "model": "m", "source": rows(),
                       "input_messages": {"type": "item_reference", "item_reference": "q"}}),
                "data_source.input_messages.item_reference",
            ),
            (
                template(json!({"role": "robot", "content": "x"})),
                "data_source.input_messages.template[0].role",
            ),
            (template(json!({"role": "user"})), "data_source.input_messages.template[0].content"),
            (
                template(json!({"role": "user", "content": "{{ other.x }}"})),
                "data_source.input_messages.template[0].content",
            ),
            (
                template(
                    json!({"role": "user", "content": {"type": "input_image", "image_url": "u"}}),
                ),
                "data_source.input_messages.template[0].content",
            ),
        ] {
            assert_eq!(param(data_source), expected);
        }
    }
}
