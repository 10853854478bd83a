//! Alpaca's rows: an instruction, perhaps an input to it, and the output.
//!
//! The user says the instruction, and after a line break the input. A row's `history` stands before: pairs
//! of what the user and the assistant said.

use serde_json::{Map, Value};

use super::turns::Turns;
use crate::problem::{ProblemList, code};
use crate::row::Conversation;

/// `text` is the rendered prompt that some copies of the data set carry along.
const KEYS: [&str; 6] = ["instruction", "input", "output", "system", "history", "text"];

pub(super) fn read(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<Conversation> {
    let mut turns = Turns::new(line, problems);
    turns.check_keys(&row, &KEYS, "");
    turns.take_system(&mut row);
    turns.take_history(row.remove("history"));
    let instruction = turns.text("instruction", row.remove("instruction"));
    let input = turns.optional_text("input", row.remove("input"));
    if let Some(mut text) = instruction {
        if let Some(input) = input {
            text.push('\n');
            text.push_str(&input);
        }
        turns.say("user", text, "instruction");
    }
    if let Some(output) = turns.text("output", row.remove("output")) {
        turns.say("assistant", output, "output");
    }
    turns.finish("output")
}

impl Turns<'_> {
    fn take_history(&mut self, history: Option<Value>) {
        let pairs = match history {
            None | Some(Value::Null) => return,
            Some(Value::Array(pairs)) => pairs,
            Some(other) => return self.wrong_type("history", &other, "a list of pairs"),
        };
        for (index, pair) in pairs.into_iter().enumerate() {
            let path = format!("history[{index}]");
            let texts = pair.as_array().map_or(&[][..], Vec::as_slice);
            let [Value::String(asked), Value::String(answered)] = texts else {
                let what = "is not a pair of texts: what the user and the assistant said";
                self.fault(code::DATA_TYPE, &path, what);
                continue;
            };
            self.say("user", asked.clone(), &format!("{path}[0]"));
            self.say("assistant", answered.clone(), &format!("{path}[1]"));
        }
    }
}
