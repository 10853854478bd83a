//! A row as the checks of its quality see it, whatever its format: instructions, input, output.

use std::borrow::Cow;

use serde_json::Value;

use crate::row::{Conversation, is_assistant};

/// Borrowed from a row without fault.
pub(crate) struct Row<'r> {
    pub line: u64,
    /// System and developer messages, and tools.
    pub instructions: Cow<'r, str>,
    /// What else stands before the output; the whole row where there is no output.
    pub input: Cow<'r, str>,
    /// The last trained answer, of a pair the preferred one. None: plain text, or an open question.
    pub output: Option<Cow<'r, str>>,
    /// Trained answers before the last.
    pub earlier: Vec<Cow<'r, str>>,
    /// The answer that is not preferred.
    pub rejected: Option<Cow<'r, str>>,
    /// Of a labelled row: whether the output is a good one.
    pub label: Option<bool>,
    pub roles: Roles,
}

/// Messages of a row, by who speaks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Roles {
    pub system: u64,
    pub user: u64,
    pub assistant: u64,
    pub tool: u64,
}

impl<'r> Row<'r> {
    /// Of the conversations that a row became: one, or two of a pair.
    pub fn of_conversations(
        conversations: &'r [Conversation],
        label: Option<bool>,
    ) -> Option<Self> {
        let conversation = conversations.first()?;
        let messages = conversation.messages();
        let start = match conversation.answer_start() {
            0 => {
                let trained = conversation.trained().iter().rposition(|&trained| trained);
                let untrained = usize::from(messages.last().is_some_and(is_assistant));
                trained.unwrap_or(messages.len() - untrained)
            }
            start => start,
        };
        let (before, after) = messages.split_at(start);
        let is_pair = conversation.answer_start() > 0;
        let answer = if is_pair { after } else { &after[..after.len().min(1)] };
        let (instructions, input): (Vec<_>, Vec<_>) =
            before.iter().partition(|message| is_instruction(message));
        let tools = conversation.tools().iter().map(|tool| Cow::Owned(tool.to_string()));
        let earlier = before.iter().zip(conversation.trained()).filter(|(_, trained)| **trained);
        Some(Self {
            line: conversation.line(),
            instructions: joined(instructions.into_iter().map(text_of).chain(tools)),
            input: joined(input.into_iter().map(text_of)),
            output: (!answer.is_empty()).then(|| joined(answer.iter().map(text_of))),
            earlier: earlier.map(|(message, _)| text_of(message)).collect(),
            rejected: conversations
                .get(1)
                .map(|other| joined(other.messages()[other.answer_start()..].iter().map(text_of))),
            label,
            roles: Roles::of(messages),
        })
    }

    pub fn of_text(line: u64, text: &'r str) -> Self {
        Self {
            line,
            instructions: Cow::Borrowed(""),
            input: Cow::Borrowed(text),
            output: None,
            earlier: Vec::new(),
            rejected: None,
            label: None,
            roles: Roles::default(),
        }
    }

    /// What the row teaches to say: not a rejected or a bad answer.
    pub fn taught(&self) -> impl Iterator<Item = &str> {
        let output = self.output.as_deref().filter(|_| self.label != Some(false));
        self.earlier.iter().map(AsRef::as_ref).chain(output)
    }
}

impl Roles {
    fn of(messages: &[Value]) -> Self {
        let mut roles = Self::default();
        for message in messages {
            let count = match message.get("role").and_then(Value::as_str) {
                Some("user") => &mut roles.user,
                Some("assistant") => &mut roles.assistant,
                Some("tool" | "function") => &mut roles.tool,
                _ => &mut roles.system,
            };
            *count += 1;
        }
        roles
    }
}

fn is_instruction(message: &Value) -> bool {
    matches!(message.get("role").and_then(Value::as_str), Some("system" | "developer"))
}

/// What a message says, calls included.
fn text_of(message: &Value) -> Cow<'_, str> {
    let content = match message.get("content") {
        Some(Value::String(text)) => Cow::Borrowed(text.as_str()),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
            Cow::Owned(texts.collect())
        }
        _ => Cow::Borrowed(message.get("refusal").and_then(Value::as_str).unwrap_or_default()),
    };
    let calls = ["tool_calls", "function_call"].into_iter().filter_map(|key| message.get(key));
    let calls = calls.filter(|calls| !calls.is_null()).map(called).collect::<String>();
    if calls.is_empty() { content } else { Cow::Owned(format!("{content}{calls}")) }
}

/// Names and arguments of calls, without their ids, which differ from row to row.
fn called(calls: &Value) -> String {
    let of = |call: &Value| {
        let call = call.get("function").unwrap_or(call);
        let field = |key: &str| call.get(key).and_then(Value::as_str).unwrap_or_default();
        format!("{}({})", field("name"), field("arguments"))
    };
    match calls {
        Value::Array(calls) => calls.iter().map(of).collect(),
        call => of(call),
    }
}

fn joined<'r>(mut texts: impl Iterator<Item = Cow<'r, str>>) -> Cow<'r, str> {
    let Some(first) = texts.next() else { return Cow::Borrowed("") };
    texts.fold(first, |all, next| Cow::Owned(format!("{all}\n{next}")))
}
