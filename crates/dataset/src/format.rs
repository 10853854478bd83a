//! The formats of training rows, recognised by the keys of a row.

use std::fmt;

use serde_json::{Map, Value};

/// What kind of training data a row looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"messages": […]}`: supervised chat.
    Chat,
    /// `{"input": …, "preferred_output": …, "non_preferred_output": …}`.
    Preference,
    /// `{"input": …, "completion": …, "label": true}`.
    Labelled,
    /// `{"prompt": …, "completion": …}`.
    PromptCompletion,
    /// `{"text": …}`: continued pre-training.
    Text,
}

/// What the rows of a file may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    One(Format),
    /// Chat or plain text, all rows alike: the first row that is one of them decides.
    Supervised,
}

impl From<Format> for Expected {
    fn from(format: Format) -> Self {
        Self::One(format)
    }
}

impl Expected {
    /// Whether a file may hold such rows.
    pub(crate) fn takes(self, format: Format) -> bool {
        match self {
            Self::One(one) => one == format,
            Self::Supervised => matches!(format, Format::Chat | Format::Text),
        }
    }

    /// The format that is known before any row is.
    pub(crate) fn known(self) -> Option<Format> {
        match self {
            Self::One(format) => Some(format),
            Self::Supervised => None,
        }
    }
}

impl Format {
    /// Sequences of tokens that a row becomes.
    pub fn sequences(self) -> usize {
        if self == Self::Preference { 2 } else { 1 }
    }

    /// The word for it in figures about a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Preference => "preference",
            Self::Labelled => "labelled",
            Self::PromptCompletion => "prompt_completion",
            Self::Text => "text",
        }
    }

    pub(crate) fn of(row: &Map<String, Value>) -> Option<Self> {
        let has = |key: &str| row.contains_key(key);
        if has("label") && has("completion") {
            Some(Self::Labelled)
        } else if has("messages") {
            Some(Self::Chat)
        } else if has("preferred_output")
            || has("non_preferred_output")
            || has("preferred_completion")
            || (has("chosen") && has("rejected"))
        {
            Some(Self::Preference)
        } else if has("prompt") && has("completion") {
            Some(Self::PromptCompletion)
        } else if has(crate::text::KEY) {
            Some(Self::Text)
        } else {
            None
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chat => "chat messages",
            Self::Preference => "preference pairs",
            Self::Labelled => "labelled answers",
            Self::PromptCompletion => "prompt/completion pairs",
            Self::Text => "plain text",
        })
    }
}
