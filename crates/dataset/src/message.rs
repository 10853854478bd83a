//! One message of a row: its keys, its role, its content, its calls.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::problem::{Problem, ProblemList, code};
use crate::row::short;

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
const KEYS: [&str; 8] =
    ["role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal"];
const ASSISTANT_KEYS: [&str; 3] = ["tool_calls", "function_call", "refusal"];

/// A list of messages in a row: how a fault in it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageList {
    pub path: &'static str,
    /// What one of it is called, before its number.
    pub noun: &'static str,
}

impl MessageList {
    pub const CHAT: Self = Self { path: "messages", noun: "message" };
    pub const INPUT: Self = Self { path: "input.messages", noun: "input message" };

    /// Names message `index` (from 0), as a path and in words.
    pub fn place(self, index: usize) -> (String, String) {
        (format!("{}[{index}]", self.path), format!("{} {}", self.noun, index + 1))
    }
}

/// Where a message stands, for reporting.
struct Place<'p> {
    line: u64,
    list: MessageList,
    index: usize,
    problems: &'p mut ProblemList,
}

impl Place<'_> {
    /// `below` is the path inside the message; `what` follows "Example 3, message 2 ".
    fn report(&mut self, code: &'static str, below: &str, what: &str) {
        let (path, words) = self.list.place(self.index);
        let message = format!("Example {}, {words} {what}", self.line);
        let dot = if below.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{below}");
        self.problems.push(Problem::of_line(code, self.line, message).at(path));
    }
}

/// Checks message `index` (from 0). `calls` gathers the ids and function names of earlier calls.
pub(crate) fn check_message(
    line: u64,
    list: MessageList,
    index: usize,
    message: &Value,
    calls: &mut HashSet<String>,
    problems: &mut ProblemList,
) {
    let mut place = Place { line, list, index, problems };
    let Value::Object(message) = message else {
        let what = format!("is {}, but must be an object", name_of_type(message));
        return place.report(code::DATA_TYPE, "", &what);
    };
    for key in message.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        let key = short(key);
        let what = format!("contains an unrecognized key \"{key}\"");
        place.report(code::MESSAGE_UNRECOGNIZED_KEY, &key, &what);
    }
    if message.get("name").is_some_and(|name| !name.is_string() && !name.is_null()) {
        place.report(code::DATA_TYPE, "name", "key 'name' must be a string");
    }
    let role = match message.get("role") {
        None => {
            let what = "Discriminator 'role' is missing in value";
            return place.report(code::MESSAGE_MISSING_KEY, "role", what);
        }
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.as_str(),
        Some(Value::String(role)) => {
            let (role, roles) = (short(role), ROLES.join(", "));
            let what = format!("has an unrecognized role \"{role}\", expected one of: {roles}");
            return place.report(code::UNRECOGNIZED_ROLE, "role", &what);
        }
        Some(other) => {
            let what = format!("key 'role' is {}, but must be a string", name_of_type(other));
            return place.report(code::UNRECOGNIZED_ROLE, "role", &what);
        }
    };
    let has_content = check_content(message, &mut place);
    if role == "assistant" {
        check_assistant(message, has_content, calls, &mut place);
    } else {
        check_other(role, message, has_content, calls, &mut place);
    }
}

/// Whether there is content, be it a faulty one.
fn check_content(message: &Map<String, Value>, place: &mut Place<'_>) -> Content {
    match message.get("content") {
        None | Some(Value::Null) => Content::Missing,
        Some(Value::String(text)) if text.is_empty() => Content::Empty,
        Some(Value::String(_)) => Content::Present,
        Some(Value::Array(parts)) if parts.is_empty() => Content::Empty,
        Some(Value::Array(parts)) => {
            for (index, part) in parts.iter().enumerate() {
                check_part(index, part, place);
            }
            Content::Present
        }
        Some(other) => {
            let found = name_of_type(other);
            let what = format!("key 'content' is {found}, but must be a string or a list of parts");
            place.report(code::DATA_TYPE, "content", &what);
            Content::Present
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Content {
    Missing,
    Empty,
    Present,
}

fn check_part(index: usize, part: &Value, place: &mut Place<'_>) {
    let below = format!("content[{index}]");
    match part.get("type").and_then(Value::as_str) {
        Some("text") if part.get("text").is_some_and(Value::is_string) => {}
        Some("text") | None => {
            let what =
                format!("part {} is not of the form {{\"type\":\"text\",\"text\":…}}", index + 1);
            place.report(code::DATA_TYPE, &below, &what);
        }
        Some(kind) => {
            let kind = short(kind);
            let what = format!("part {} is of type \"{kind}\"; only text is trained", index + 1);
            place.report(code::UNSUPPORTED_CONTENT, &below, &what);
        }
    }
}

fn check_assistant(
    message: &Map<String, Value>,
    content: Content,
    calls: &mut HashSet<String>,
    place: &mut Place<'_>,
) {
    match message.get("weight") {
        None => {}
        Some(Value::Number(weight)) if matches!(weight.as_i64(), Some(0 | 1)) => {}
        Some(_) => {
            place.report(code::INVALID_WEIGHT, "weight", "key 'weight' must be the integer 0 or 1");
        }
    }
    if let Some(refusal) = message.get("refusal")
        && !refusal.is_string()
        && !refusal.is_null()
    {
        place.report(code::DATA_TYPE, "refusal", "key 'refusal' must be a string");
    }
    let present = |key: &str| message.get(key).is_some_and(|value| !value.is_null());
    let speaks = content == Content::Present || ASSISTANT_KEYS.iter().any(|key| present(key));
    if !speaks {
        let what = "has role 'assistant' but no content, tool_calls or function_call";
        place.report(code::MISSING_CONTENT, "content", what);
    }
    match message.get("tool_calls") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) if !list.is_empty() => {
            for (index, call) in list.iter().enumerate() {
                check_tool_call(index, call, calls, place);
            }
        }
        Some(_) => {
            let what = "key 'tool_calls' must be a list of at least one call";
            place.report(code::INVALID_TOOL_CALL, "tool_calls", what);
        }
    }
    if let Some(call) = message.get("function_call")
        && !call.is_null()
    {
        match function_name(call) {
            Some(name) => {
                calls.insert(format!("function {name}"));
            }
            None => {
                let what = "key 'function_call' must have a name and arguments, both strings";
                place.report(code::INVALID_TOOL_CALL, "function_call", what);
            }
        }
    }
}

fn check_tool_call(index: usize, call: &Value, calls: &mut HashSet<String>, place: &mut Place<'_>) {
    let id = call.get("id").and_then(Value::as_str);
    let kind = call.get("type").and_then(Value::as_str);
    match (id, kind, call.get("function").and_then(function_name)) {
        (Some(id), Some("function"), Some(_)) => {
            calls.insert(format!("tool {id}"));
        }
        _ => {
            let what = format!(
                "tool call {} is not of the form {{\"id\":…,\"type\":\"function\",\
                 \"function\":{{\"name\":…,\"arguments\":…}}}} (arguments: JSON as a string)",
                index + 1
            );
            place.report(code::INVALID_TOOL_CALL, &format!("tool_calls[{index}]"), &what);
        }
    }
}

fn function_name(function: &Value) -> Option<&str> {
    let name = function.get("name")?.as_str()?;
    function.get("arguments")?.as_str()?;
    Some(name)
}

fn check_other(
    role: &str,
    message: &Map<String, Value>,
    content: Content,
    calls: &HashSet<String>,
    place: &mut Place<'_>,
) {
    if message.contains_key("weight") {
        let what = format!("has role '{role}', but 'weight' is for assistant messages only");
        place.report(code::WEIGHT_ON_NON_ASSISTANT, "weight", &what);
    }
    for key in ASSISTANT_KEYS {
        if message.get(key).is_some_and(|value| !value.is_null()) {
            let what = format!("has role '{role}', but '{key}' is for assistant messages only");
            place.report(code::MESSAGE_UNRECOGNIZED_KEY, key, &what);
        }
    }
    if content == Content::Missing {
        let what = format!("has role '{role}' but no content");
        place.report(code::MISSING_CONTENT, "content", &what);
    }
    let (key, answered) = match role {
        "tool" => ("tool_call_id", "tool"),
        "function" => ("name", "function"),
        _ => return,
    };
    let known = message
        .get(key)
        .and_then(Value::as_str)
        .is_some_and(|id| calls.contains(&format!("{answered} {id}")));
    if !known {
        let what = format!("has role '{role}', but its '{key}' answers no earlier call");
        place.report(code::TOOL_MESSAGE_WITHOUT_CALL, key, &what);
    }
}

pub(crate) fn name_of_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
