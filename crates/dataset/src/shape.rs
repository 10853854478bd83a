//! The shapes in which rows are written, told apart by their keys, and what each is read as.
//!
//! Every shape ends as conversations in OpenAI's messages; a row's faults keep the paths of its own shape.
//! `docs/FORMATS.md` is the user's side of this file.

mod alpaca;
mod anthropic;
mod chosen;
mod prompt;
mod reinforcement;
mod sharegpt;
mod tools;
mod turns;

use std::fmt;

use serde_json::{Map, Value};

use crate::format::Format;
use crate::labelled::read_labelled;
use crate::preference::{Pair, read_pair};
use crate::problem::ProblemList;
use crate::row::{Conversation, ROW_KEYS, read_row};

/// How a row is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `{"messages": […]}` with nothing that only one of the two next shapes has.
    Messages,
    /// OpenAI's chat rows.
    Chat,
    /// `{"system": …, "messages": […]}` with Anthropic's content blocks and tools.
    Anthropic,
    /// `{"instruction": …, "input": …, "output": …}`.
    Alpaca,
    /// `{"conversations": [{"from": …, "value": …}]}`.
    ShareGpt,
    /// `{"prompt": …, "completion": …}`, also under other pairs of names.
    PromptCompletion,
    /// `{"input": …, "preferred_output": …, "non_preferred_output": …}`: OpenAI's pairs.
    Preference,
    /// `{"prompt": …, "chosen": …, "rejected": …}`.
    ChosenRejected,
    /// `{"input": …, "completion": …, "label": true}`.
    Labelled,
    /// `{"text": …}`.
    Text,
    /// `{"messages": […], …}` with the user's message last and keys for graders.
    Reinforcement,
}

/// What a row without fault amounts to.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// None when the row has a fault; two of a pair, the preferred answer first.
    pub conversations: Vec<Conversation>,
    pub label: Option<bool>,
    /// Whether it uses keys of an older version of its shape.
    pub old_keys: bool,
}

impl Shape {
    /// What a row looks like; none where nothing shows it.
    pub(crate) fn of(row: &Map<String, Value>) -> Option<Self> {
        let has = |key: &str| row.contains_key(key);
        if has("label") && has("completion") {
            Some(Self::Labelled)
        } else if let Some(messages) = row.get("messages") {
            Some(of_messages(row, messages.as_array().map_or(&[], Vec::as_slice)))
        } else if ["preferred_output", "non_preferred_output", "preferred_completion"]
            .into_iter()
            .any(has)
        {
            Some(Self::Preference)
        } else if has("chosen") && has("rejected") {
            Some(Self::ChosenRejected)
        } else if has(sharegpt::TURNS) {
            Some(Self::ShareGpt)
        } else if has("instruction") && has("output") {
            Some(Self::Alpaca)
        } else if prompt::keys_of(row).is_some() {
            Some(Self::PromptCompletion)
        } else {
            has(crate::text::KEY).then_some(Self::Text)
        }
    }

    /// What its rows teach.
    pub fn format(self) -> Format {
        match self {
            Self::Messages
            | Self::Chat
            | Self::Anthropic
            | Self::Alpaca
            | Self::ShareGpt
            | Self::PromptCompletion => Format::Chat,
            Self::Preference | Self::ChosenRejected => Format::Preference,
            Self::Labelled => Format::Labelled,
            Self::Text => Format::Text,
            Self::Reinforcement => Format::Reinforcement,
        }
    }

    /// The word for it in figures about a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages | Self::Chat => "chat",
            Self::Anthropic => "anthropic",
            Self::Alpaca => "alpaca",
            Self::ShareGpt => "sharegpt",
            Self::PromptCompletion => "prompt_completion",
            Self::Preference => "preference",
            Self::ChosenRejected => "chosen_rejected",
            Self::Labelled => "labelled",
            Self::Text => "text",
            Self::Reinforcement => "reinforcement",
        }
    }

    /// What a file of this shape is when a row of `other` comes: rows that show neither OpenAI's nor
    /// Anthropic's shape are both. None when the two cannot stand in one file.
    pub(crate) fn joined(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Messages, Self::Chat | Self::Anthropic) => Some(other),
            (Self::Chat | Self::Anthropic, Self::Messages) => Some(self),
            _ => (self == other).then_some(self),
        }
    }

    /// The key that a row of another shape lacks.
    pub(crate) fn first_key(self) -> &'static str {
        match self {
            Self::Messages | Self::Chat | Self::Anthropic | Self::Reinforcement => "messages",
            Self::Alpaca => "instruction",
            Self::ShareGpt => sharegpt::TURNS,
            Self::PromptCompletion => "prompt",
            Self::Preference => "input",
            Self::ChosenRejected => "chosen",
            Self::Labelled => "label",
            Self::Text => crate::text::KEY,
        }
    }

    /// Whether a table's column of this name holds the JSON of a value, and not a text.
    pub(crate) fn holds_json(self, column: &str) -> bool {
        match column {
            "input" => matches!(self, Self::Preference | Self::Labelled),
            "messages"
            | sharegpt::TURNS
            | "tools"
            | "functions"
            | "parallel_tool_calls"
            | "history"
            | "label" => true,
            _ => self == Self::Preference,
        }
    }

    /// Checks a row; what of it is no text ([`Self::Text`] is read elsewhere).
    pub(crate) fn read(
        self,
        line: u64,
        row: Map<String, Value>,
        problems: &mut ProblemList,
    ) -> Read {
        let conversation = match self {
            Self::Messages | Self::Chat | Self::Text => read_row(line, row, problems),
            Self::Anthropic => anthropic::read(line, row, problems),
            Self::Alpaca => alpaca::read(line, row, problems),
            Self::ShareGpt => sharegpt::read(line, row, problems),
            Self::PromptCompletion => prompt::read(line, row, problems),
            Self::Reinforcement => reinforcement::read(line, row, problems),
            Self::Preference => return Read::of_pair(read_pair(line, row, problems)),
            Self::ChosenRejected => return Read::of_pair(chosen::read(line, row, problems)),
            Self::Labelled => {
                let labelled = read_labelled(line, row, problems);
                let label = labelled.as_ref().map(|(_, label)| *label);
                let conversations = labelled.into_iter().map(|(conversation, _)| conversation);
                return Read { conversations: conversations.collect(), label, old_keys: false };
            }
        };
        Read { conversations: conversation.into_iter().collect(), ..Read::default() }
    }
}

impl Read {
    fn of_pair(pair: Option<Pair>) -> Self {
        match pair {
            Some(Pair { conversations, old_keys }) => {
                Self { conversations: conversations.into(), label: None, old_keys }
            }
            None => Self::default(),
        }
    }
}

fn of_messages(row: &Map<String, Value>, messages: &[Value]) -> Shape {
    let tools = row.get("tools").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let has = |key: &str| row.contains_key(key);
    if has("system")
        || tools.iter().any(|tool| tool.get("input_schema").is_some())
        || messages.iter().any(anthropic::marks)
    {
        return Shape::Anthropic;
    }
    let role = |message: &Value| message.get("role").and_then(Value::as_str).map(str::to_owned);
    let ends_with_user = messages.last().and_then(role).as_deref() == Some("user");
    let has_answer = messages.iter().any(crate::row::is_assistant);
    if ends_with_user && !has_answer && row.keys().any(|key| !ROW_KEYS.contains(&key.as_str())) {
        return Shape::Reinforcement;
    }
    let is_openais = |message: &Value| {
        !matches!(role(message).as_deref(), Some("user" | "assistant"))
            || message.as_object().is_some_and(|fields| {
                fields.keys().any(|key| !matches!(key.as_str(), "role" | "content"))
            })
    };
    if !tools.is_empty()
        || has("functions")
        || has("parallel_tool_calls")
        || messages.iter().any(is_openais)
    {
        return Shape::Chat;
    }
    Shape::Messages
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages | Self::Chat => "chat messages",
            Self::Anthropic => "Anthropic messages",
            Self::Alpaca => "Alpaca instructions",
            Self::ShareGpt => "ShareGPT conversations",
            Self::PromptCompletion => "prompt/completion pairs",
            Self::ChosenRejected => "chosen/rejected pairs",
            Self::Preference | Self::Labelled | Self::Text | Self::Reinforcement => {
                return self.format().fmt(f);
            }
        })
    }
}

#[cfg(test)]
mod tests;
