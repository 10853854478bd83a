//! A row → what the model is asked, and its answer → what graders read and output items show.

use std::time::Duration;

use graders::{Variables, sample_of_text, template};
use serde_json::{Map, Value, json};
use store::Project;
use store::evals::runs::ModelUsage;

use super::plan::{Asking, Input, texts};
use crate::error::{ApiError, ErrorChain};
use crate::inference;
use crate::state::AppState;
use crate::wire::completion::{Completion, CreateCompletion, Usage};

/// Tries of one answer: workers come and go, and a run waits for them.
const ATTEMPTS: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Why a row could not be judged.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ItemError {
    pub code: String,
    pub message: String,
}

impl ItemError {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    fn of(error: &ApiError) -> Self {
        if let ApiError::Internal(source) = error {
            tracing::error!(
                error = ErrorChain(source.as_ref()).to_string(),
                "an eval's answer failed"
            );
        }
        let body = error.envelope().error;
        Self { code: body.code.unwrap_or(body.r#type), message: body.message }
    }
}

/// What graders read, and what the output item shows.
pub(crate) struct Sampled {
    pub sample: Value,
    pub shown: Value,
    pub usage: Vec<(String, ModelUsage)>,
}

/// The messages for a row.
pub(crate) fn messages(asking: &Asking, item: &Value) -> Result<Vec<Value>, ItemError> {
    let variables = Variables { item, sample: &Value::Null };
    let invalid = |why: String| ItemError::new("invalid_item", why);
    match &asking.input {
        Input::Template(template) => {
            let message = |message: &super::plan::Message| {
                let mut content = String::new();
                for text in &message.texts {
                    let rendered = template::render(text, variables);
                    content += &rendered.map_err(|errors| invalid(errors.summary()))?;
                }
                Ok(json!({"role": message.role, "content": content}))
            };
            template.iter().map(message).collect()
        }
        Input::Reference(path) => {
            let variable = format!("{{{{ {path} }}}}");
            let found = template::render(&variable, variables);
            let found = found.map_err(|errors| invalid(errors.summary()))?.into_owned();
            // Messages are rendered as JSON; whatever else it is, it is what the user says.
            let found = match serde_json::from_str(&found) {
                Ok(messages @ (Value::Array(_) | Value::Object(_))) => messages,
                _ => Value::String(found),
            };
            trajectory(&found).map_err(|why| invalid(format!("{path}: {why}")))
        }
    }
}

/// A value of a row as messages: a text of the user, or messages in the form of chats or of evals.
fn trajectory(value: &Value) -> Result<Vec<Value>, String> {
    let messages = match value {
        Value::String(text) => return Ok(vec![json!({"role": "user", "content": text})]),
        Value::Array(messages) => messages.as_slice(),
        one @ Value::Object(_) => std::slice::from_ref(one),
        _ => return Err("expected a text or messages".to_owned()),
    };
    let message = |(i, message): (usize, &Value)| {
        let Value::Object(fields) = message else {
            return Err(format!("[{i}]: expected an object"));
        };
        let mut fields = fields.clone();
        if fields.get("type") == Some(&json!("message")) {
            fields.shift_remove("type");
        }
        // Blocks of evals become one text; what is neither is left to the check of the chat.
        if let Some(content) = fields.get("content").filter(|content| !content.is_null()) {
            let text =
                texts(content, &format!("[{i}].content")).map_err(|e| e.to_string())?.concat();
            fields.insert("content".to_owned(), text.into());
        }
        Ok(Value::Object(fields))
    };
    messages.iter().enumerate().map(message).collect()
}

/// Asks the model, again and again while no worker is to be had.
pub(crate) async fn ask(
    state: &AppState,
    project: &Project,
    asking: &Asking,
    messages: Vec<Value>,
) -> Result<Sampled, ItemError> {
    let mut body = asking.params.clone();
    body.insert("model".to_owned(), asking.model.clone().into());
    body.insert("messages".to_owned(), messages.clone().into());
    let completion = complete(state, project, &Value::Object(body)).await?;
    Ok(sampled(asking, &messages, completion))
}

/// Answers the body of a chat request, trying again while no worker is to be had.
pub(crate) async fn complete(
    state: &AppState,
    project: &Project,
    body: &Value,
) -> Result<Completion, ItemError> {
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        let request: CreateCompletion = serde_json::from_value(body.clone())
            .map_err(|error| ItemError::new("invalid_request_error", error.to_string()))?;
        match inference::complete(state, project, request, None).await {
            Ok(completion) => return Ok(completion),
            Err(ApiError::Unavailable { message, .. }) if attempt < ATTEMPTS => {
                tracing::debug!(attempt, message, "an answer has to be asked for again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(ItemError::of(&error)),
        }
    }
    unreachable!("the loop above has no end")
}

fn sampled(asking: &Asking, messages: &[Value], completion: Completion) -> Sampled {
    let usage = completion.usage;
    let reason = completion.choices.first().map_or("stop", |choice| choice.finish_reason);
    let choices = json!(completion.choices);
    let message = choices.pointer("/0/message").cloned().unwrap_or_default();
    let sample = sample(&json!(completion.model), choices);
    let answer = shown_message(&message);
    let mut shown = shown_sample(Some(asking), None);
    shown["input"] = messages.iter().map(shown_message).collect();
    shown["output"] = json!([answer]);
    shown["finish_reason"] = reason.into();
    shown["usage"] = shown_usage(&usage);
    Sampled { sample, shown, usage: vec![(completion.model, model_usage(&usage))] }
}

/// What graders read of a model's answer, whose first choice it is about.
pub(super) fn sample(model: &Value, choices: Value) -> Value {
    let message = choices.pointer("/0/message").cloned().unwrap_or_default();
    let text = message.get("content").and_then(Value::as_str).unwrap_or_default();
    let mut sample = sample_of_text(text);
    sample["model"] = model.clone();
    sample["output_tools"] = message.get("tool_calls").cloned().unwrap_or_else(|| json!([]));
    sample["choices"] = choices;
    sample
}

/// A sample that the row brought along, or none at all.
pub(crate) fn brought(sample: Option<Value>) -> Sampled {
    let mut shown = shown_sample(None, None);
    let Some(Value::Object(fields)) = sample else {
        return Sampled { sample: json!({}), shown, usage: Vec::new() };
    };
    let text = fields.get("output_text").and_then(Value::as_str);
    let mut sample = match text {
        Some(text) => sample_of_text(text),
        None => json!({}),
    };
    if let Some(text) = text {
        shown["output"] = json!([{"role": "assistant", "content": text}]);
    }
    if let Some(model) = fields.get("model").and_then(Value::as_str) {
        shown["model"] = model.into();
    }
    for (key, value) in fields {
        sample[key] = value;
    }
    Sampled { sample, shown, usage: Vec::new() }
}

/// An output item's sample before anything was asked. Every key is there, because strict clients need it.
pub(crate) fn shown_sample(asking: Option<&Asking>, error: Option<&ItemError>) -> Value {
    let params = asking.map(|asking| &asking.shown);
    json!({
        "input": [],
        "output": [],
        "finish_reason": "",
        "model": asking.map_or("", |asking| &asking.model),
        "usage": shown_usage(&Usage::default()),
        "error": {
            "code": error.map_or("", |error| &error.code),
            "message": error.map_or("", |error| &error.message),
        },
        "temperature": params.map_or(1.0, |params| params.temperature),
        "max_completion_tokens": params.map_or(0, |params| params.max_completion_tokens),
        "top_p": params.map_or(1.0, |params| params.top_p),
        "seed": params.map_or(0, |params| params.seed),
    })
}

fn shown_usage(usage: &Usage) -> Value {
    json!({
        "total_tokens": usage.total_tokens,
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.prompt_tokens_details.cached_tokens,
    })
}

fn model_usage(usage: &Usage) -> ModelUsage {
    ModelUsage {
        invocations: 1,
        prompt_tokens: usage.prompt_tokens.into(),
        completion_tokens: usage.completion_tokens.into(),
        cached_tokens: usage.prompt_tokens_details.cached_tokens.into(),
    }
}

/// Role, content and calls of a message; the content of a shown message is always a text.
fn shown_message(message: &Value) -> Value {
    let mut shown = Map::new();
    let text = |key: &str| message.get(key).and_then(Value::as_str).unwrap_or_default();
    shown.insert("role".to_owned(), text("role").into());
    shown.insert("content".to_owned(), text("content").into());
    for key in ["tool_calls", "tool_call_id"] {
        if let Some(value) = message.get(key).filter(|value| !value.is_null()) {
            shown.insert(key.to_owned(), value.clone());
        }
    }
    Value::Object(shown)
}
