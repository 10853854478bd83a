//! ShareGPT's rows: `conversations` of `from` and `value`.
//!
//! A `function_call` holds the JSON of one call or of a list of calls; the `observation`s behind it answer
//! them in order.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::turns::Turns;
use crate::message::name_of_type;
use crate::problem::{ProblemList, code};
use crate::row::{Conversation, short};

pub(super) const TURNS: &str = "conversations";
const KEYS: [&str; 3] = [TURNS, "system", "tools"];

pub(super) fn read(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<Conversation> {
    let mut turns = Turns::new(line, problems);
    turns.check_keys(&row, &KEYS, "");
    turns.take_system(&mut row);
    turns.take_tools(&mut row);
    let mut unanswered = VecDeque::new();
    for (index, turn) in turns.list(TURNS, row.remove(TURNS)).into_iter().enumerate() {
        turns.take_turn(&format!("{TURNS}[{index}]"), turn, &mut unanswered);
    }
    turns.finish(TURNS)
}

impl Turns<'_> {
    /// `unanswered`: ids of calls that wait for their observation.
    fn take_turn(&mut self, path: &str, turn: Value, unanswered: &mut VecDeque<String>) {
        let Value::Object(mut turn) = turn else {
            return self.wrong_type(path, &turn, "an object");
        };
        self.check_keys(&turn, &["from", "value", "weight"], &format!("{path}."));
        let value = format!("{path}.value");
        let from = self.text(&format!("{path}.from"), turn.remove("from"));
        let text = self.text(&value, turn.remove("value"));
        let (Some(from), Some(text)) = (from, text) else { return };
        match from.as_str() {
            "system" => self.say("system", text, &value),
            "human" | "user" => self.say("user", text, &value),
            "gpt" | "assistant" => self.say("assistant", text, &value),
            "function_call" => self.take_calls(&value, &text, unanswered),
            "observation" | "tool" => match unanswered.pop_front() {
                Some(id) => {
                    let message = json!({"role": "tool", "tool_call_id": id, "content": text});
                    self.add(message, &value);
                }
                None => {
                    let what = "answers no earlier 'function_call'";
                    self.fault(code::TOOL_MESSAGE_WITHOUT_CALL, path, what);
                }
            },
            other => {
                let what = format!(
                    "is \"{}\", expected one of: system, human, user, gpt, assistant, \
                     function_call, observation, tool",
                    short(other)
                );
                self.fault(code::UNRECOGNIZED_ROLE, &format!("{path}.from"), &what);
            }
        }
        let is_answer = matches!(from.as_str(), "gpt" | "assistant" | "function_call");
        self.take_weight(&format!("{path}.weight"), turn.get("weight"), is_answer);
    }

    fn take_weight(&mut self, path: &str, weight: Option<&Value>, is_answer: bool) {
        match (weight.map(|weight| (weight, weight.as_i64())), is_answer) {
            (None, _) | (Some((_, Some(1))), true) => {}
            (Some((_, Some(0))), true) => self.mask_last(),
            (Some(_), true) => {
                self.fault(code::INVALID_WEIGHT, path, "must be the integer 0 or 1");
            }
            (Some(_), false) => {
                self.fault(
                    code::WEIGHT_ON_NON_ASSISTANT,
                    path,
                    "is for the assistant's turns only",
                );
            }
        }
    }

    fn take_calls(&mut self, path: &str, text: &str, unanswered: &mut VecDeque<String>) {
        let calls = match serde_json::from_str(text) {
            Ok(Value::Array(calls)) if !calls.is_empty() => calls,
            Ok(call @ Value::Object(_)) => vec![call],
            Ok(other) => {
                let found = name_of_type(&other);
                let what =
                    format!("is the JSON of {found}, but must be that of a call or of calls");
                return self.fault(code::INVALID_TOOL_CALL, path, &what);
            }
            Err(_) => {
                let what = "is not JSON of the form {\"name\":…,\"arguments\":{…}}";
                return self.fault(code::INVALID_TOOL_CALL, path, what);
            }
        };
        let mut list = Vec::new();
        for call in &calls {
            let name = call.get("name").and_then(Value::as_str);
            let arguments = call.get("arguments").or_else(|| call.get("parameters"));
            let (Some(name), Some(arguments)) = (name, arguments) else {
                let what = "is a call without 'name' or 'arguments'";
                return self.fault(code::INVALID_TOOL_CALL, path, what);
            };
            let id = format!("call_{}", self.calls.len() + 1);
            list.push(self.call(&id, name, arguments));
            unanswered.push_back(id);
        }
        self.add(json!({"role": "assistant", "tool_calls": list}), path);
    }
}
