//! Rows of Anthropic's messages: a top-level `system`, and content as text or blocks.
//!
//! Calls become OpenAI's `tool_calls`; each result in a user's turn becomes a `tool` message. What a block
//! says beside its text (`cache_control`, `citations`, `is_error`) is not carried.

use serde_json::{Map, Value};

use super::turns::Turns;
use crate::message::name_of_type;
use crate::problem::{ProblemList, code};
use crate::row::{Conversation, short};

const LIST: &str = "messages";
/// Types of content blocks that OpenAI's messages do not have.
const BLOCKS: [&str; 9] = [
    "tool_use",
    "tool_result",
    "image",
    "document",
    "thinking",
    "redacted_thinking",
    "search_result",
    "server_tool_use",
    "web_search_tool_result",
];

/// Whether a message has a block that only Anthropic's messages have.
pub(super) fn marks(message: &Value) -> bool {
    let blocks = message.get("content").and_then(Value::as_array);
    blocks.into_iter().flatten().any(|block| {
        block.get("type").and_then(Value::as_str).is_some_and(|kind| BLOCKS.contains(&kind))
    })
}

pub(super) fn read(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<Conversation> {
    let mut turns = Turns::new(line, problems);
    turns.check_keys(&row, &["system", LIST, "tools"], "");
    let system = row.remove("system").filter(|system| !system.is_null());
    if let Some(text) = system.and_then(|system| turns.joined_text("system", system))
        && !text.is_empty()
    {
        turns.say("system", text, "system");
    }
    turns.take_tools(&mut row);
    let messages = turns.list(LIST, row.remove(LIST));
    for (index, message) in messages.into_iter().enumerate() {
        turns.take_message(&format!("{LIST}[{index}]"), message);
    }
    turns.finish(LIST)
}

impl Turns<'_> {
    fn take_message(&mut self, path: &str, message: Value) {
        let Value::Object(mut message) = message else {
            return self.wrong_type(path, &message, "an object");
        };
        self.check_keys(&message, &["role", "content"], &format!("{path}."));
        let content = message.remove("content");
        let below = format!("{path}.content");
        let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
        match (role, content) {
            ("user" | "assistant", Some(Value::String(text))) => {
                if text.is_empty() {
                    self.fault(code::MISSING_CONTENT, &below, "is empty");
                } else {
                    self.say(role, text, &below);
                }
            }
            ("user", Some(Value::Array(blocks))) => self.take_users_blocks(&below, blocks),
            ("assistant", Some(Value::Array(blocks))) => self.take_answer(&below, blocks),
            ("user" | "assistant", None) => self.fault(code::MISSING_CONTENT, &below, "is missing"),
            ("user" | "assistant", Some(other)) => {
                self.wrong_type(&below, &other, "a string or a list of blocks");
            }
            ("system", _) => {
                let what =
                    "is 'system', which stands in the top-level 'system' of Anthropic's rows";
                self.fault(code::UNRECOGNIZED_ROLE, &format!("{path}.role"), what);
            }
            _ => {
                let what = "must be 'user' or 'assistant' in Anthropic's rows";
                self.fault(code::UNRECOGNIZED_ROLE, &format!("{path}.role"), what);
            }
        }
    }

    /// Text and results, in their order.
    fn take_users_blocks(&mut self, path: &str, blocks: Vec<Value>) {
        let mut text = String::new();
        let mut said = false;
        for (index, mut block) in blocks.into_iter().enumerate() {
            let place = format!("{path}[{index}]");
            match block.get("type").and_then(Value::as_str) {
                Some("text") => {
                    text.push_str(&self.text_of(&place, block).unwrap_or_default());
                }
                Some("tool_result") => {
                    if !text.is_empty() {
                        self.say("user", std::mem::take(&mut text), path);
                    }
                    self.take_result(&place, &mut block);
                    said = true;
                }
                kind => {
                    let kind = kind.map(str::to_owned);
                    self.refuse_block(&place, kind.as_deref(), "'text' and 'tool_result'");
                    said = true;
                }
            }
        }
        if !text.is_empty() {
            self.say("user", text, path);
        } else if !said {
            self.fault(code::MISSING_CONTENT, path, "is empty");
        }
    }

    fn take_result(&mut self, place: &str, block: &mut Value) {
        let id = block.get("tool_use_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !self.calls.contains(&format!("tool {id}")) {
            let what = "answers no earlier 'tool_use'";
            self.fault(code::TOOL_MESSAGE_WITHOUT_CALL, &format!("{place}.tool_use_id"), what);
        }
        let content = block.get_mut("content").map(Value::take).unwrap_or_default();
        let text = match content {
            Value::Null => Some(String::new()),
            content => self.joined_text(&format!("{place}.content"), content),
        };
        let text = text.unwrap_or_default();
        let message = serde_json::json!({"role": "tool", "tool_call_id": id, "content": text});
        self.add(message, place);
    }

    /// One message: text, then calls.
    fn take_answer(&mut self, path: &str, blocks: Vec<Value>) {
        let mut text = String::new();
        let mut calls = Vec::new();
        let before = self.problems.total;
        for (index, block) in blocks.into_iter().enumerate() {
            let place = format!("{path}[{index}]");
            match block.get("type").and_then(Value::as_str) {
                Some("text") if calls.is_empty() => {
                    text.push_str(&self.text_of(&place, block).unwrap_or_default());
                }
                Some("text") => {
                    let what = "is text behind a 'tool_use', which has no place in a chat \
                                template: put it before, or into the next turn";
                    self.fault(code::UNSUPPORTED_CONTENT, &place, what);
                }
                Some("tool_use") => calls.extend(self.take_call(&place, &block)),
                kind => {
                    let kind = kind.map(str::to_owned);
                    self.refuse_block(&place, kind.as_deref(), "'text' and 'tool_use'");
                }
            }
        }
        if text.is_empty() && calls.is_empty() {
            if self.problems.total == before {
                self.fault(code::MISSING_CONTENT, path, "is empty");
            }
            return;
        }
        let mut message = Map::from_iter([("role".to_owned(), "assistant".into())]);
        if !text.is_empty() {
            message.insert("content".to_owned(), text.into());
        }
        if !calls.is_empty() {
            message.insert("tool_calls".to_owned(), calls.into());
        }
        self.add(Value::Object(message), path);
    }

    fn take_call(&mut self, place: &str, block: &Value) -> Option<Value> {
        let text = |key: &str| block.get(key).and_then(Value::as_str);
        let (Some(id), Some(name), Some(input @ Value::Object(_))) =
            (text("id"), text("name"), block.get("input"))
        else {
            let what =
                "is not of the form {\"type\":\"tool_use\",\"id\":…,\"name\":…,\"input\":{…}}";
            self.fault(code::INVALID_TOOL_CALL, place, what);
            return None;
        };
        Some(self.call(id, name, input))
    }

    fn text_of(&mut self, place: &str, mut block: Value) -> Option<String> {
        match block.get_mut("text").map(Value::take) {
            Some(Value::String(text)) => Some(text),
            _ => {
                let what = "is not of the form {\"type\":\"text\",\"text\":…}";
                self.fault(code::DATA_TYPE, place, what);
                None
            }
        }
    }

    /// The text of a string or of a list of text blocks.
    fn joined_text(&mut self, path: &str, content: Value) -> Option<String> {
        let blocks = match content {
            Value::String(text) => return Some(text),
            Value::Array(blocks) => blocks,
            other => {
                let found = name_of_type(&other);
                let what = format!("is {found}, but must be a string or a list of text blocks");
                self.fault(code::DATA_TYPE, path, &what);
                return None;
            }
        };
        let mut text = String::new();
        for (index, block) in blocks.into_iter().enumerate() {
            let place = format!("{path}[{index}]");
            match block.get("type").and_then(Value::as_str) {
                Some("text") => text.push_str(&self.text_of(&place, block)?),
                kind => {
                    let kind = kind.map(str::to_owned);
                    self.refuse_block(&place, kind.as_deref(), "'text'");
                    return None;
                }
            }
        }
        Some(text)
    }

    fn refuse_block(&mut self, place: &str, kind: Option<&str>, taken: &str) {
        match kind {
            Some(kind) => {
                let kind = short(kind);
                let what = format!("is a block of type \"{kind}\"; only {taken} are read here");
                self.fault(code::UNSUPPORTED_CONTENT, place, &what);
            }
            None => self.fault(code::DATA_TYPE, place, "is no content block: it has no 'type'"),
        }
    }
}
