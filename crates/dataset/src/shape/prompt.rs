//! Rows of a prompt and its completion: one user's message and the assistant's answer to it.
//!
//! The same under the names that other data sets give the two. Both may be lists of messages; only the
//! completion is trained then.

use serde_json::{Map, Value};

use super::turns::Turns;
use crate::message::MessageList;
use crate::problem::{ProblemList, code};
use crate::row::Conversation;

/// Names of the two, the first that fit are taken.
const PAIRS: [(&str, &str); 5] = [
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("input", "output"),
];

pub(super) fn keys_of(row: &Map<String, Value>) -> Option<(&'static str, &'static str)> {
    PAIRS
        .into_iter()
        .find(|(asked, answered)| row.contains_key(*asked) && row.contains_key(*answered))
}

pub(super) fn read(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<Conversation> {
    let (asked, answered) = keys_of(&row).unwrap_or(PAIRS[0]);
    let mut turns = Turns::new(line, problems);
    turns.check_keys(&row, &[asked, answered, "system", "tools"], "");
    turns.take_system(&mut row);
    turns.take_tools(&mut row);
    turns.take_text_or_messages(asked, "user", row.remove(asked));
    turns.mask_all();
    turns.take_text_or_messages(answered, "assistant", row.remove(answered));
    turns.finish(answered)
}

impl Turns<'_> {
    /// A text is one message of `role`.
    pub fn take_text_or_messages(&mut self, key: &'static str, role: &str, value: Option<Value>) {
        let Some(Value::Array(messages)) = value else {
            if let Some(text) = self.text(key, value) {
                self.say(role, text, key);
            }
            return;
        };
        if messages.is_empty() {
            return self.fault(code::MISSING_MESSAGES_LIST, key, "is an empty list");
        }
        let list = MessageList { path: key, noun: key };
        self.add_messages(list, messages);
    }
}
