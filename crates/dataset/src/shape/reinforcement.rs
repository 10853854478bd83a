//! Items of reinforcement fine-tuning: a conversation that ends with the user, and free keys for graders.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::message::{MessageList, check_message};
use crate::problem::{Problem, ProblemList, code};
use crate::row::{Conversation, Source, take_tools};

pub(super) fn read(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<Conversation> {
    let list = MessageList::CHAT;
    let tools = take_tools(line, &mut row, "", problems);
    let Some(Value::Array(messages)) = row.remove(list.path) else {
        let message = format!("Example {line} is missing key 'messages', a list of messages.");
        let problem = Problem::of_line(code::MISSING_MESSAGES_LIST, line, message);
        problems.push(problem.at(list.path));
        return None;
    };
    let mut calls = HashSet::new();
    let role = |message: &Value| message.get("role").and_then(Value::as_str).map(str::to_owned);
    for (index, message) in messages.iter().enumerate() {
        check_message(line, list, index, message, &mut calls, problems);
        if role(message).as_deref() == Some("system") {
            let (path, words) = list.place(index);
            let text = format!(
                "Example {line}, {words}: System messages are not supported in 'reinforcement' \
                 examples; use the role 'developer'"
            );
            let problem = Problem::of_line(code::UNRECOGNIZED_ROLE, line, text);
            problems.push(problem.at(format!("{path}.role")));
        }
    }
    if messages.last().and_then(role).as_deref() != Some("user") {
        let message = format!("Example {line} must end with a message of the role 'user'");
        let problem = Problem::of_line(code::UNRECOGNIZED_ROLE, line, message);
        problems.push(problem.at(list.path));
    }
    let trained = vec![false; messages.len()];
    problems.is_empty().then(|| Conversation::new(line, messages, tools, trained, Source::Chat))
}
