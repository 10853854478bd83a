//! A conversation that is put together from another shape's row, each message with the place that it came
//! from.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::message::{MessageList, check_message, name_of_type};
use crate::problem::{Problem, ProblemList, code};
use crate::row::{Conversation, Source, is_assistant, short};

/// Keys of data sets that say where a row is from; they are not looked at.
const ORIGIN_KEYS: [&str; 7] =
    ["id", "source", "category", "dataset", "metadata", "score_chosen", "score_rejected"];

pub(super) struct Turns<'p> {
    pub line: u64,
    messages: Vec<Value>,
    /// For each message, its path in the row.
    places: Vec<String>,
    trained: Vec<bool>,
    pub tools: Vec<Value>,
    /// What [`check_message`] gathers of calls.
    pub calls: HashSet<String>,
    pub problems: &'p mut ProblemList,
}

impl<'p> Turns<'p> {
    pub fn new(line: u64, problems: &'p mut ProblemList) -> Self {
        let (messages, places, trained, tools) = Default::default();
        Self { line, messages, places, trained, tools, calls: HashSet::new(), problems }
    }

    /// `what` follows the path: `is empty`.
    pub fn fault(&mut self, code: &'static str, path: &str, what: &str) {
        let message = format!("Example {}: '{path}' {what}", self.line);
        self.problems.push(Problem::of_line(code, self.line, message).at(path));
    }

    pub fn wrong_type(&mut self, path: &str, found: &Value, wanted: &str) {
        let found = name_of_type(found);
        self.fault(code::DATA_TYPE, path, &format!("is {found}, but must be {wanted}"));
    }

    /// Refuses keys that have no meaning; `within` is the object's own path with its dot, or empty.
    pub fn check_keys(&mut self, object: &Map<String, Value>, known: &[&str], within: &str) {
        for key in object.keys() {
            let is_origin = within.is_empty() && ORIGIN_KEYS.contains(&key.as_str());
            if !known.contains(&key.as_str()) && !is_origin {
                let key = format!("{within}{}", short(key));
                let message = format!("Example {} contains an extra \"{key}\".", self.line);
                let problem = Problem::of_line(code::UNRECOGNIZED_KEY, self.line, message);
                self.problems.push(problem.at(key));
            }
        }
    }

    /// A text that must be there and say something.
    pub fn text(&mut self, path: &str, value: Option<Value>) -> Option<String> {
        match value {
            Some(Value::String(text)) if !text.trim().is_empty() => return Some(text),
            Some(Value::String(_)) => self.fault(code::MISSING_CONTENT, path, "is empty"),
            Some(other) => self.wrong_type(path, &other, "a string"),
            None => self.fault(code::MISSING_KEY, path, "is missing"),
        }
        None
    }

    /// A text that may be missing, null or empty.
    pub fn optional_text(&mut self, path: &str, value: Option<Value>) -> Option<String> {
        match value {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text).filter(|text| !text.is_empty()),
            Some(other) => {
                self.wrong_type(path, &other, "a string");
                None
            }
        }
    }

    /// A list that must be there and hold something.
    pub fn list(&mut self, path: &str, value: Option<Value>) -> Vec<Value> {
        match value {
            Some(Value::Array(list)) if !list.is_empty() => return list,
            Some(Value::Array(_)) => {
                self.fault(code::MISSING_MESSAGES_LIST, path, "is an empty list");
            }
            Some(other) => self.wrong_type(path, &other, "a list"),
            None => self.fault(code::MISSING_KEY, path, "is missing"),
        }
        Vec::new()
    }

    /// Takes `system` as the first message.
    pub fn take_system(&mut self, row: &mut Map<String, Value>) {
        let system = row.remove("system");
        if let Some(text) = self.optional_text("system", system) {
            self.say("system", text, "system");
        }
    }

    /// Adds a message of text.
    pub fn say(&mut self, role: &str, text: String, path: &str) {
        self.add(json!({"role": role, "content": text}), path);
    }

    /// Adds a message, which must be a good one of OpenAI's.
    pub fn add(&mut self, message: Value, path: &str) {
        self.trained.push(is_assistant(&message));
        self.messages.push(message);
        self.places.push(path.to_owned());
    }

    /// Leaves the last message out of what is trained.
    pub fn mask_last(&mut self) {
        if let Some(last) = self.trained.last_mut() {
            *last = false;
        }
        if let Some(Value::Object(last)) = self.messages.last_mut() {
            last.insert("weight".to_owned(), 0.into());
        }
    }

    /// Leaves all messages so far out of what is trained.
    pub fn mask_all(&mut self) {
        self.trained.fill(false);
        for message in self.messages.iter_mut().filter(|message| is_assistant(message)) {
            message["weight"] = 0.into();
        }
    }

    /// Adds messages in OpenAI's form, and checks them.
    pub fn add_messages(&mut self, list: MessageList, messages: Vec<Value>) {
        for (index, message) in messages.into_iter().enumerate() {
            check_message(self.line, list, index, &message, &mut self.calls, self.problems);
            self.add(message, &list.place(index).0);
        }
    }

    /// Whether what follows the first `shared` messages is an answer: the assistant's messages, and
    /// results of tools.
    pub fn check_answer(&mut self, list: MessageList, shared: usize) {
        let role = |message: &Value| message.get("role").and_then(Value::as_str).map(str::to_owned);
        let answer: Vec<_> = self.messages.iter().map(role).enumerate().skip(shared).collect();
        for (index, role) in &answer {
            let path = list.place(*index).0;
            if let Some(role @ ("system" | "developer" | "user" | "function")) = role.as_deref() {
                let what = format!(
                    "is '{role}', but an answer holds messages of the roles 'assistant' and 'tool' \
                     only: both lists must begin with the same messages"
                );
                self.fault(code::UNRECOGNIZED_ROLE, &format!("{path}.role"), &what);
            }
            if self.messages[*index].get("weight").is_some() {
                let what = "has no meaning here: exactly the answers are trained";
                self.fault(code::MESSAGE_UNRECOGNIZED_KEY, &format!("{path}.weight"), what);
            }
        }
        if !answer.is_empty()
            && !answer.iter().any(|(_, role)| role.as_deref() == Some("assistant"))
        {
            self.fault(
                code::EXAMPLE_MISSING_ASSISTANT_MESSAGE,
                list.path,
                "has no assistant message",
            );
        }
    }

    /// Adds a call, as OpenAI writes it.
    pub fn call(&mut self, id: &str, name: &str, arguments: &Value) -> Value {
        self.calls.insert(format!("tool {id}"));
        let arguments = match arguments {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    }

    /// The conversation; none when the row has a fault. `list` is what must hold an assistant's message.
    pub fn finish(self, list: &str) -> Option<Conversation> {
        let Self { line, messages, places, trained, tools, problems, .. } = self;
        if problems.is_empty() && !messages.iter().any(is_assistant) {
            let message = format!("Example {line} has no assistant message");
            let problem = Problem::of_line(code::EXAMPLE_MISSING_ASSISTANT_MESSAGE, line, message);
            problems.push(problem.at(list));
        }
        let source = Source::Own { answer_start: 0, places };
        problems.is_empty().then(|| Conversation::new(line, messages, tools, trained, source))
    }

    /// Messages and places, for shapes that need more than one conversation of them.
    pub fn into_parts(self) -> (Vec<Value>, Vec<String>, Vec<Value>) {
        (self.messages, self.places, self.tools)
    }
}
