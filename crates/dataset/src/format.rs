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
}

impl Format {
    /// Sequences of tokens that a row becomes.
    pub fn sequences(self) -> usize {
        if self == Self::Preference { 2 } else { 1 }
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
        })
    }
}
