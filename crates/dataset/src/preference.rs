//! One row of OpenAI's preference format: an input and two answers to it, the preferred one and the
//! other; checked key by key, all faults and not only the first.
//!
//! A row becomes two conversations that share their beginning; only the answers are trained. What a
//! row means to a model is not looked at here.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::message::{MessageList, check_message, name_of_type};
use crate::problem::{Problem, ProblemList, code};
use crate::row::{Conversation, check_keys, is_assistant, take_tools};

const PREFERRED: MessageList =
    MessageList { path: "preferred_output", noun: "preferred_output message" };
const NON_PREFERRED: MessageList =
    MessageList { path: "non_preferred_output", noun: "non_preferred_output message" };
/// What an early version of the specification called the answers.
const OLD_KEYS: [(&str, &str); 2] =
    [("preferred_completion", PREFERRED.path), ("non_preferred_completion", NON_PREFERRED.path)];
const ROW_KEYS: [&str; 3] = ["input", PREFERRED.path, NON_PREFERRED.path];
const INPUT_KEYS: [&str; 3] = ["messages", "tools", "parallel_tool_calls"];

/// One checked row.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The input with the preferred answer, and with the other one.
    pub conversations: [Conversation; 2],
    /// Whether the answers stood under their older names.
    pub old_keys: bool,
}

/// Checks a row; None when it has a fault.
pub(crate) fn read_pair(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<Pair> {
    let old_keys = rename_old_keys(&mut row);
    check_keys(line, &row, &ROW_KEYS, "", problems);
    let missing: Vec<&str> = ROW_KEYS.into_iter().filter(|&key| !row.contains_key(key)).collect();
    for key in &missing {
        let message = format!("Example {line} is missing key '{key}'.");
        problems.push(Problem::of_line(code::MISSING_KEY, line, message).at(*key));
    }
    let mut calls = HashSet::new();
    let (input, tools) = match row.remove("input") {
        Some(Value::Object(input)) => take_input(line, input, &mut calls, problems),
        Some(other) => {
            let found = name_of_type(&other);
            let message = format!("Example {line} key 'input' is {found}, but must be an object");
            problems.push(Problem::of_line(code::DATA_TYPE, line, message).at("input"));
            Default::default()
        }
        None => Default::default(),
    };
    let mut answer = |list: MessageList| {
        let answer = row.remove(list.path)?;
        take_answer(line, list, answer, &calls, problems)
    };
    let answers = (answer(PREFERRED), answer(NON_PREFERRED));
    let (Some(preferred), Some(other)) = answers else { return None };
    if !problems.is_empty() {
        return None;
    }
    let conversation =
        |list, answer: &[Value]| Conversation::with_answer(line, (&input, &tools), (list, answer));
    let conversations = [conversation(PREFERRED, &preferred), conversation(NON_PREFERRED, &other)];
    Some(Pair { conversations, old_keys })
}

fn rename_old_keys(row: &mut Map<String, Value>) -> bool {
    let mut renamed = false;
    for (old, new) in OLD_KEYS {
        if !row.contains_key(new)
            && let Some(value) = row.remove(old)
        {
            row.insert(new.to_owned(), value);
            renamed = true;
        }
    }
    renamed
}

/// Messages and tools of the input.
pub(crate) fn take_input(
    line: u64,
    mut input: Map<String, Value>,
    calls: &mut HashSet<String>,
    problems: &mut ProblemList,
) -> (Vec<Value>, Vec<Value>) {
    check_keys(line, &input, &INPUT_KEYS, "input.", problems);
    let tools = take_tools(line, &mut input, "input.", problems);
    let list = MessageList::INPUT;
    let messages = match input.remove("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        other => {
            let found = match &other {
                None => "missing",
                Some(Value::Array(_)) => "an empty list",
                Some(other) => name_of_type(other),
            };
            let message = format!(
                "Example {line} key 'input.messages' is {found}, but must be a list of at least \
                 one message"
            );
            let problem = Problem::of_line(code::MISSING_MESSAGES_LIST, line, message);
            problems.push(problem.at(list.path));
            return (Vec::new(), tools);
        }
    };
    for (index, message) in messages.iter().enumerate() {
        check_message(line, list, index, message, calls, problems);
        refuse_weight(line, list, index, message, problems);
    }
    (messages, tools)
}

/// The messages of an answer: at least one assistant's, and results of tools between them.
pub(crate) fn take_answer(
    line: u64,
    list: MessageList,
    answer: Value,
    calls: &HashSet<String>,
    problems: &mut ProblemList,
) -> Option<Vec<Value>> {
    let path = list.path;
    let Value::Array(messages) = answer else {
        let found = name_of_type(&answer);
        let message = format!("Example {line} key '{path}' is {found}, but must be a list");
        problems.push(Problem::of_line(code::DATA_TYPE, line, message).at(path));
        return None;
    };
    let mut calls = calls.clone();
    for (index, message) in messages.iter().enumerate() {
        check_message(line, list, index, message, &mut calls, problems);
        refuse_weight(line, list, index, message, problems);
        let role = message.get("role").and_then(Value::as_str);
        if let Some(role @ ("system" | "developer" | "user" | "function")) = role {
            let (place, words) = list.place(index);
            let text = format!(
                "Example {line}, {words} has role '{role}', but an answer holds messages of the \
                 roles 'assistant' and 'tool' only"
            );
            let problem = Problem::of_line(code::UNRECOGNIZED_ROLE, line, text);
            problems.push(problem.at(format!("{place}.role")));
        }
    }
    if !messages.iter().any(is_assistant) {
        let message = format!("Example {line} key '{path}' has no assistant message");
        let problem = Problem::of_line(code::EXAMPLE_MISSING_ASSISTANT_MESSAGE, line, message);
        problems.push(problem.at(path));
    }
    Some(messages)
}

fn refuse_weight(
    line: u64,
    list: MessageList,
    index: usize,
    message: &Value,
    problems: &mut ProblemList,
) {
    // On other roles `check_message` has refused it already.
    if is_assistant(message) && message.get("weight").is_some() {
        let (place, words) = list.place(index);
        let text = format!(
            "Example {line}, {words} has a 'weight', which preference rows do not have: exactly \
             the answers are trained"
        );
        let problem = Problem::of_line(code::MESSAGE_UNRECOGNIZED_KEY, line, text);
        problems.push(problem.at(format!("{place}.weight")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(row: Value) -> (Option<Pair>, Vec<(&'static str, String)>) {
        let mut problems = ProblemList::new(usize::MAX);
        let pair = read_pair(4, row.as_object().unwrap().clone(), &mut problems);
        let found = problems.kept.into_iter().map(|p| (p.code, p.path.unwrap_or_default()));
        (pair, found.collect())
    }

    fn says(role: &str, text: &str) -> Value {
        json!({"role": role, "content": text})
    }

    fn row() -> Value {
        json!({
            "input": {"messages": [says("user", "q")], "tools": [], "parallel_tool_calls": true},
            "preferred_output": [says("assistant", "good")],
            "non_preferred_output": [says("assistant", "bad")],
        })
    }

    #[test]
    fn a_pair_is_two_conversations_of_which_the_answers_are_trained() {
        let (pair, problems) = read(row());
        assert_eq!(problems, []);
        let pair = pair.unwrap();
        let [preferred, other] = &pair.conversations;
        assert_eq!(preferred.messages(), [says("user", "q"), says("assistant", "good")]);
        assert_eq!(other.messages(), [says("user", "q"), says("assistant", "bad")]);
        assert_eq!(preferred.trained(), [false, true]);
        assert_eq!(other.place(1).0, "non_preferred_output[0]");
        assert_eq!(other.place(0).0, "input.messages[0]");
        assert!(!pair.old_keys);
    }

    #[test]
    fn an_assistants_message_of_the_input_is_not_trained() {
        let mut row = row();
        row["input"]["messages"] =
            json!([says("user", "a"), says("assistant", "b"), says("user", "c")]);
        let pair = read(row).0.unwrap();
        assert_eq!(pair.conversations[0].trained(), [false, false, false, true]);
    }

    #[test]
    fn the_older_names_of_the_answers_are_taken_and_noticed() {
        let mut row = row();
        let fields = row.as_object_mut().unwrap();
        for (old, new) in OLD_KEYS {
            let value = fields.remove(new).unwrap();
            fields.insert(old.to_owned(), value);
        }
        assert!(read(row).0.unwrap().old_keys);
    }

    #[test]
    fn every_fault_is_named_with_its_place() {
        type Spoil = fn(&mut Value);
        let cases: [(Spoil, &str, &str); 9] = [
            (|r| drop(r.as_object_mut().unwrap().remove("input")), code::MISSING_KEY, "input"),
            (|r| r["input"] = json!([]), code::DATA_TYPE, "input"),
            (|r| r["input"]["messages"] = json!([]), code::MISSING_MESSAGES_LIST, "input.messages"),
            (|r| r["input"]["x"] = json!(1), code::UNRECOGNIZED_KEY, "input.x"),
            (|r| r["input"]["tools"] = json!({}), code::DATA_TYPE, "input.tools"),
            (
                |r| r["preferred_output"] = json!([]),
                code::EXAMPLE_MISSING_ASSISTANT_MESSAGE,
                "preferred_output",
            ),
            (|r| r["preferred_output"] = json!("good"), code::DATA_TYPE, "preferred_output"),
            (
                |r| r["non_preferred_output"][0]["weight"] = json!(1),
                code::MESSAGE_UNRECOGNIZED_KEY,
                "non_preferred_output[0].weight",
            ),
            (
                |r| {
                    r["non_preferred_output"] = json!([says("assistant", "a"), says("user", "b")]);
                },
                code::UNRECOGNIZED_ROLE,
                "non_preferred_output[1].role",
            ),
        ];
        for (spoil, code, path) in cases {
            let mut row = row();
            spoil(&mut row);
            let (pair, problems) = read(row);
            assert!(pair.is_none());
            assert_eq!(problems, [(code, path.to_owned())]);
        }
        let all = read(json!({"input": {}, "preferred_output": [], "extra": 1})).1;
        assert_eq!(all.len(), 4, "{all:?}");
    }
}
