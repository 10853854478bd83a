//! One row of labelled answers (for KTO): an input, one answer to it, and whether the answer is a good
//! one.
//!
//! The shape is that of preference rows as far as it goes: `{"input": {"messages": […]}, "completion":
//! […], "label": true}`. The common shape of other trainers is taken too: `prompt` or `messages` (a list,
//! or a text for one user's message) instead of `input`, and a text as `completion`.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::message::{MessageList, name_of_type};
use crate::preference::{take_answer, take_input};
use crate::problem::{Problem, ProblemList, code};
use crate::row::{Conversation, check_keys};

const COMPLETION: MessageList = MessageList { path: "completion", noun: "completion message" };
const ROW_KEYS: [&str; 3] = ["input", COMPLETION.path, "label"];

/// Checks a row: its conversation, of which the answer is trained, and its label. None when it has a
/// fault.
pub(crate) fn read_labelled(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<(Conversation, bool)> {
    to_own_shape(&mut row);
    check_keys(line, &row, &ROW_KEYS, "", problems);
    for key in ROW_KEYS.into_iter().filter(|&key| !row.contains_key(key)) {
        let message = format!("Example {line} is missing key '{key}'.");
        problems.push(Problem::of_line(code::MISSING_KEY, line, message).at(key));
    }
    let mut wrong_type = |key: &str, found: &Value, wanted: &str| {
        let found = name_of_type(found);
        let message = format!("Example {line} key '{key}' is {found}, but must be {wanted}");
        problems.push(Problem::of_line(code::DATA_TYPE, line, message).at(key));
    };
    let label = match row.remove("label") {
        Some(Value::Bool(label)) => Some(label),
        Some(other) => {
            wrong_type("label", &other, "true or false");
            None
        }
        None => None,
    };
    let mut calls = HashSet::new();
    let (input, tools) = match row.remove("input") {
        Some(Value::Object(input)) => take_input(line, input, &mut calls, problems),
        Some(other) => {
            wrong_type("input", &other, "an object");
            Default::default()
        }
        None => Default::default(),
    };
    let answer = row
        .remove(COMPLETION.path)
        .and_then(|answer| take_answer(line, COMPLETION, answer, &calls, problems));
    let (answer, label) = (answer?, label?);
    problems.is_empty().then(|| {
        let conversation = Conversation::with_answer(line, (&input, &tools), (COMPLETION, &answer));
        (conversation, label)
    })
}

/// Rewrites the shapes of other trainers.
fn to_own_shape(row: &mut Map<String, Value>) {
    let message = |role: &str, text: &Value| json!([{"role": role, "content": text}]);
    if !row.contains_key("input")
        && let Some(prompt) = row.remove("prompt").or_else(|| row.remove("messages"))
    {
        let messages = if prompt.is_string() { message("user", &prompt) } else { prompt };
        let mut input = Map::from_iter([("messages".to_owned(), messages)]);
        for key in ["tools", "parallel_tool_calls"] {
            input.extend(row.remove(key).map(|value| (key.to_owned(), value)));
        }
        row.insert("input".to_owned(), Value::Object(input));
    }
    if let Some(completion) = row.get_mut(COMPLETION.path)
        && completion.is_string()
    {
        *completion = message("assistant", completion);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was read, and the codes and paths of faults.
    type Read = (Option<(Conversation, bool)>, Vec<(&'static str, String)>);

    fn read(row: Value) -> Read {
        let mut problems = ProblemList::new(usize::MAX);
        let labelled = read_labelled(2, row.as_object().unwrap().clone(), &mut problems);
        let found = problems.kept.into_iter().map(|p| (p.code, p.path.unwrap_or_default()));
        (labelled, found.collect())
    }

    #[test]
    fn every_shape_is_the_same_conversation() {
        let question = json!([{"role": "user", "content": "q"}]);
        let answer = json!([{"role": "assistant", "content": "a"}]);
        for row in [
            json!({"input": {"messages": question}, "completion": answer, "label": false}),
            json!({"messages": question, "completion": answer, "label": false}),
            json!({"prompt": question, "completion": "a", "label": false, "tools": []}),
            json!({"prompt": "q", "completion": "a", "label": false}),
        ] {
            let (labelled, problems) = read(row);
            assert_eq!(problems, []);
            let (conversation, label) = labelled.unwrap();
            assert_eq!(conversation.messages(), [question[0].clone(), answer[0].clone()]);
            assert_eq!((conversation.trained(), label), (&[false, true][..], false));
            assert_eq!(conversation.place(1).0, "completion[0]");
        }
    }

    #[test]
    fn every_fault_is_named_with_its_place() {
        let (labelled, problems) = read(json!({"prompt": [], "completion": [], "label": "yes"}));
        assert!(labelled.is_none());
        let paths: Vec<&str> = problems.iter().map(|(_, path)| path.as_str()).collect();
        assert_eq!(paths, ["label", "input.messages", "completion"]);
        let (_, problems) = read(json!({"label": true, "rating": 5}));
        let paths: Vec<&str> = problems.iter().map(|(_, path)| path.as_str()).collect();
        assert_eq!(paths, ["rating", "input", "completion"]);
    }
}
