//! Rows of files as questions with an expected answer, whatever format they have, and a fair choice of a few out of
//! a file that is read once.

use std::collections::HashMap;
use std::io;

use dataset::Converter;
use graders::compare::Random;
use serde_json::{Value, json};
use store::files::FileRow;

use crate::lanes::examine::stream;
use crate::state::AppState;

/// The longest row of which an example is made, in bytes of its JSON: hundreds are held at once.
const MAX_ROW_BYTES: usize = 256 << 10;
/// More different outputs are no labels; longer ones are none either, in characters.
const MAX_LABELS: usize = 200;
const MAX_LABEL_CHARACTERS: usize = 60;
/// Rows per label, at least.
const ROWS_PER_LABEL: usize = 5;

/// A question and the answer that the row gives.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Example {
    /// As problems of the file name the row.
    pub number: u64,
    /// Everything before the last answer.
    pub messages: Vec<Value>,
    pub tools: Vec<Value>,
    pub expected: String,
}

/// A file's examples, as far as they are kept.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// In the order of the file.
    pub examples: Vec<Example>,
    /// Also those that were not kept.
    pub of: u64,
    /// Every different output with its rows, unless there are too many to be labels.
    outputs: Option<HashMap<String, usize>>,
}

impl Example {
    /// None for a row that has no answer to expect: a text, a completion that was judged bad.
    pub(crate) fn of(number: u64, row: &Value) -> Option<Self> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let (mut messages, tools) = match row.get("input") {
            Some(input) => {
                if row.get("label") == Some(&Value::Bool(false)) {
                    return None;
                }
                let answer = row.get("preferred_output").or_else(|| row.get("completion"))?;
                let mut messages = list(&input["messages"]);
                messages.extend(list(answer));
                (messages, list(&input["tools"]))
            }
            None => (list(row.get("messages")?), list(&row["tools"])),
        };
        let last = messages.iter().rposition(|message| message["role"] == "assistant")?;
        let expected = text_of(&messages[last]);
        messages.truncate(last);
        for message in &mut messages {
            if let Value::Object(fields) = message {
                // It says what is trained, which is no business of a chat.
                fields.shift_remove("weight");
            }
        }
        let has_question = messages.iter().any(|message| message["role"] != "system");
        has_question.then_some(Self { number, messages, tools, expected })
    }

    /// The words of the last message before the answer.
    pub(crate) fn question(&self) -> String {
        self.messages.last().map(text_of).unwrap_or_default()
    }
}

/// A message as one text: its content, or its calls as JSON.
pub(crate) fn text_of(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) if !text.is_empty() => return text.clone(),
        Value::Array(parts) => {
            return parts.iter().filter_map(|part| part["text"].as_str()).collect();
        }
        _ => {}
    }
    let Some(calls) = message["tool_calls"].as_array().filter(|calls| !calls.is_empty()) else {
        return String::new();
    };
    let call = |call: &Value| {
        let function = &call["function"];
        let arguments = &function["arguments"];
        // Written as a text, they differ in spaces that mean nothing.
        let read = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
        json!({"name": function["name"], "arguments": read.unwrap_or_else(|| arguments.clone())})
    };
    Value::from(calls.iter().map(call).collect::<Vec<_>>()).to_string()
}

/// Reads a file once and keeps `most` of its examples, each as likely as any other. `wants` chooses by number.
pub(crate) async fn gather(
    state: &AppState,
    file: &FileRow,
    most: usize,
    seed: u64,
    wants: impl Fn(u64) -> bool + Send + 'static,
) -> store::Result<Gathered> {
    let max_row_bytes = state.config.max_line_bytes.as_u64() as usize;
    stream(state, file, move |mut chunks| {
        let mut random = Random::new(seed);
        let mut gathered = Gathered { outputs: Some(HashMap::new()), ..Gathered::default() };
        let mut converter = Converter::new(max_row_bytes, |number, row: Value| {
            if wants(number)
                && let Some(example) = Example::of(number, &row)
            {
                gathered.add(example, most, &mut random);
            }
            io::Result::Ok(())
        });
        while let Some(chunk) = chunks.blocking_recv()? {
            converter.push(&chunk);
        }
        converter.finish().ok()?;
        gathered.examples.sort_by_key(|example| example.number);
        Some(gathered)
    })
    .await
}

impl Gathered {
    fn add(&mut self, example: Example, most: usize, random: &mut Random) {
        self.count_output(example.expected.trim());
        let size: usize = example.messages.iter().map(|message| message.to_string().len()).sum();
        if size + example.expected.len() > MAX_ROW_BYTES {
            return;
        }
        self.of += 1;
        if self.examples.len() < most {
            self.examples.push(example);
        } else {
            let place = random.below(self.of as usize);
            if let Some(kept) = self.examples.get_mut(place) {
                *kept = example;
            }
        }
    }

    fn count_output(&mut self, output: &str) {
        let Some(outputs) = &mut self.outputs else { return };
        let is_label = !output.is_empty() && output.chars().count() <= MAX_LABEL_CHARACTERS;
        if !is_label || outputs.len() == MAX_LABELS && !outputs.contains_key(output) {
            self.outputs = None;
            return;
        }
        *outputs.entry(output.to_owned()).or_default() += 1;
    }

    /// The labels, the commonest first, if the outputs of the file are labels.
    pub(crate) fn labels(&self) -> Option<Vec<String>> {
        let outputs = self.outputs.as_ref()?;
        let rows: usize = outputs.values().sum();
        if outputs.is_empty() || rows < ROWS_PER_LABEL * outputs.len() {
            return None;
        }
        let mut labels: Vec<(&String, &usize)> = outputs.iter().collect();
        labels.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        Some(labels.into_iter().map(|(label, _)| label.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_is_expected_and_all_before_it_is_asked() {
        let row = json!({"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
        ], "tools": [{"type": "function"}]});
        let example = Example::of(3, &row).unwrap();
        assert_eq!((example.number, example.expected.as_str(), example.tools.len()), (3, "d", 1));
        assert_eq!(example.messages.len(), 3);
        assert_eq!(example.messages[1], json!({"role": "assistant", "content": "b"}));
        assert_eq!(example.question(), "c");
    }

    #[test]
    fn pairs_expect_what_is_preferred_and_bad_completions_nothing() {
        let input = json!({"messages": [{"role": "user", "content": "q"}]});
        let says = |text: &str| json!([{"role": "assistant", "content": text}]);
        let pair = json!({"input": input, "preferred_output": says("a"), "non_preferred_output": says("b")});
        assert_eq!(Example::of(1, &pair).unwrap().expected, "a");
        let labelled =
            |label: bool| json!({"input": input, "completion": says("a"), "label": label});
        assert_eq!(Example::of(1, &labelled(true)).unwrap().expected, "a");
        assert_eq!(Example::of(1, &labelled(false)), None);
        assert_eq!(Example::of(1, &json!({"text": "t"})), None);
    }

    #[test]
    fn calls_are_compared_as_json_whatever_their_spaces() {
        let call = |arguments: &str| {
            text_of(&json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}]}))
        };
        assert_eq!(call("{\"a\": 1}"), r#"[{"name":"f","arguments":{"a":1}}]"#);
        assert_eq!(call("{\"a\": 1}"), call("{\"a\":1}"));
        assert_eq!(call("no json"), r#"[{"name":"f","arguments":"no json"}]"#);
    }

    fn gathered(outputs: &[&str], most: usize) -> Gathered {
        let mut gathered = Gathered { outputs: Some(HashMap::new()), ..Gathered::default() };
        let mut random = Random::new(1);
        for (i, output) in (1..).zip(outputs) {
            let messages = vec![json!({"role": "user", "content": "q"})];
            let expected = (*output).to_owned();
            let example = Example { number: i, messages, tools: Vec::new(), expected };
            gathered.add(example, most, &mut random);
        }
        gathered
    }

    #[test]
    fn few_short_outputs_that_come_again_are_labels() {
        let many = ["no", "yes", "yes", "no", "yes"].repeat(4);
        assert_eq!(gathered(&many, 9).labels().unwrap(), ["yes", "no"]);
        assert_eq!(gathered(&["a", "b", "c", "d", "e", "f"], 9).labels(), None);
        assert_eq!(gathered(&["long ".repeat(20).as_str(); 20], 9).labels(), None);
    }

    #[test]
    fn a_choice_out_of_many_is_of_the_wanted_size_and_the_same_again() {
        let many = ["x"; 500];
        let numbers =
            |most| gathered(&many, most).examples.iter().map(|e| e.number).collect::<Vec<_>>();
        assert_eq!(numbers(50).len(), 50);
        assert_eq!(numbers(50), numbers(50));
        assert!(numbers(50).iter().any(|number| *number > 250));
        assert_eq!((numbers(900).len(), gathered(&many, 50).of), (500, 500));
    }
}
