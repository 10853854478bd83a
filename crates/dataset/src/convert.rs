//! Rows of any format and container, written as JSON lines in OpenAI's form. No model is needed: what only a
//! tokenizer or a chat template shows is not looked at.

use std::io::{self, Read, Write};

use serde_json::{Map, Value, json};

use crate::check::mixed;
use crate::container::{Container, ContainerKind, Row};
use crate::format::Format;
use crate::inspect::{RawRow, invalid_utf8};
use crate::problem::{Problem, ProblemList, code};
use crate::row::{Conversation, read_object};
use crate::shape::{Read as ReadRow, Shape};
use crate::text::read_text;

/// Faults that are kept.
const MAX_PROBLEMS: usize = 1000;

/// What became of a file.
#[derive(Debug)]
pub struct Converted {
    /// Rows that were written: those without fault.
    pub rows: u64,
    /// None when no row shows one.
    pub shape: Option<Shape>,
    pub container: ContainerKind,
    /// The first 1000 faults, in the order of rows.
    pub problems: Vec<Problem>,
    pub total_problems: u64,
}

/// Reads a file and writes its rows, at most one of which is held; each has at most `max_row_bytes`.
pub fn convert(
    from: &mut impl Read,
    to: &mut impl Write,
    max_row_bytes: usize,
) -> io::Result<Converted> {
    let mut converter = Converter::new(max_row_bytes, |_, row| writeln!(to, "{row}"));
    let mut buffer = vec![0; 1 << 16];
    while converter.rows.given.is_ok() {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => converter.push(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    converter.finish()
}

/// The same for a file that comes in pieces: gives each row without fault, with its number, to `each`, until that
/// fails.
pub struct Converter<F> {
    container: Container,
    rows: Rows<F>,
}

impl<F: FnMut(u64, Value) -> io::Result<()>> Converter<F> {
    pub fn new(max_row_bytes: usize, each: F) -> Self {
        let rows = Rows {
            each,
            given: Ok(()),
            max_row_bytes,
            shape: None,
            count: 0,
            problems: ProblemList::new(MAX_PROBLEMS),
        };
        Self { container: Container::new(max_row_bytes), rows }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.container.push(bytes, &mut |row| self.rows.take(row));
    }

    /// Ends the file.
    pub fn finish(mut self) -> io::Result<Converted> {
        self.container.finish(&mut |row| self.rows.take(row));
        let container = self.container.kind();
        let Rows { given, problems, shape, count: rows, .. } = self.rows;
        given?;
        let ProblemList { kept: problems, total: total_problems, .. } = problems;
        Ok(Converted { rows, shape, container, problems, total_problems })
    }
}

struct Rows<F> {
    each: F,
    given: io::Result<()>,
    max_row_bytes: usize,
    shape: Option<Shape>,
    count: u64,
    problems: ProblemList,
}

impl<F: FnMut(u64, Value) -> io::Result<()>> Rows<F> {
    fn take(&mut self, row: Row<'_>) {
        match row {
            Row::Whole { bytes, .. } if bytes.trim_ascii().is_empty() => {}
            Row::Whole { number, offset, bytes } => {
                let mut problems = ProblemList::new(MAX_PROBLEMS);
                let row = RawRow { number, offset, bytes: bytes.to_vec() };
                if let Some(row) = self.openais(&row, &mut problems).filter(|_| self.given.is_ok())
                {
                    self.given = (self.each)(number, row);
                    self.count += 1;
                }
                self.problems.append(problems);
            }
            Row::TooLong { number } => {
                let message =
                    format!("Example {number} is longer than {} bytes", self.max_row_bytes);
                self.problems.push(Problem::of_line(code::LINE_TOO_LONG, number, message));
            }
            Row::Faulty(problem) => self.problems.push(problem),
        }
    }

    /// None for a row with a fault.
    fn openais(&mut self, row: &RawRow, problems: &mut ProblemList) -> Option<Value> {
        let text = match std::str::from_utf8(&row.bytes) {
            Ok(text) => text,
            Err(error) => {
                problems.push(invalid_utf8(row, error.valid_up_to()));
                return None;
            }
        };
        let object = read_object(row.number, text, problems)?;
        let Some(found) = Shape::of(&object) else {
            let message = format!(
                "Example {} has the keys of no known format; docs/FORMATS.md lists them",
                row.number
            );
            problems.push(Problem::of_line(code::UNEXPECTED_FORMAT, row.number, message));
            return None;
        };
        let expected = *self.shape.get_or_insert(found);
        let Some(joined) = expected.joined(found) else {
            problems.push(mixed(row.number, expected, found));
            return None;
        };
        self.shape = Some(joined);
        let original = Value::Object(object.clone());
        if found == Shape::Text {
            return read_text(row.number, object, problems).map(|_| original);
        }
        let read = found.read(row.number, object, problems);
        if read.conversations.is_empty() || !problems.is_empty() {
            return None;
        }
        match found {
            Shape::Messages | Shape::Chat | Shape::Reinforcement => Some(original),
            Shape::Preference if !read.old_keys => Some(original),
            _ => Some(written(found.format(), &read)),
        }
    }
}

fn written(format: Format, read: &ReadRow) -> Value {
    let first = &read.conversations[0];
    let answer = |conversation: &Conversation| {
        Value::from(conversation.messages()[conversation.answer_start()..].to_vec())
    };
    match format {
        Format::Preference => json!({
            "input": with_tools(first, first.answer_start()),
            "preferred_output": answer(first),
            "non_preferred_output": answer(&read.conversations[1]),
        }),
        Format::Labelled => json!({
            "input": with_tools(first, first.answer_start()),
            "completion": answer(first),
            "label": read.label,
        }),
        _ => with_tools(first, first.messages().len()),
    }
}

/// The first messages, and what can be called.
fn with_tools(conversation: &Conversation, count: usize) -> Value {
    let messages = Value::from(conversation.messages()[..count].to_vec());
    let mut object = Map::from_iter([("messages".to_owned(), messages)]);
    if !conversation.tools().is_empty() {
        object.insert("tools".to_owned(), conversation.tools().to_vec().into());
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    fn of(file: &str) -> (Vec<Value>, Converted) {
        let mut out = Vec::new();
        let converted = convert(&mut file.as_bytes(), &mut out, 1 << 20).unwrap();
        let text = String::from_utf8(out).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (rows.collect(), converted)
    }

    fn good(file: &str) -> Vec<Value> {
        let (rows, converted) = of(file);
        assert_eq!(converted.problems, [], "{file}");
        assert_eq!(converted.rows, rows.len() as u64);
        rows
    }

    #[test]
    fn every_format_becomes_openais_and_stays_what_it_is() {
        let says = |role: &str, text: &str| json!({"role": role, "content": text});
        let (asked, answered) = (says("user", "q"), says("assistant", "a"));
        let chat = json!({"messages": [asked, answered]});
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let pair = json!({"input": {"messages": [asked], "tools": [tool]},
                          "preferred_output": [answered], "non_preferred_output": [says("assistant", "b")]});
        let labelled =
            json!({"input": {"messages": [asked]}, "completion": [answered], "label": false});
        let cases = [
            (json!({"instruction": "q", "output": "a"}), &chat),
            (
                json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
                &chat,
            ),
            (
                json!({"system": "", "messages": [asked, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}),
                &chat,
            ),
            (
                json!({"prompt": "q", "chosen": "a", "rejected": "b", "tools": [{"name": "f", "input_schema": {}}]}),
                &pair,
            ),
            (
                json!({"input": {"messages": [asked], "tools": [tool]}, "preferred_completion": [answered],
                    "non_preferred_completion": [says("assistant", "b")]}),
                &pair,
            ),
            (json!({"prompt": "q", "completion": "a", "label": false}), &labelled),
        ];
        for (row, expected) in cases {
            assert_eq!(good(&row.to_string()), slice::from_ref(expected), "{row}");
        }
        // What is OpenAI's, or a text, is left alone; so is what has been converted.
        let own =
            json!({"messages": [asked, answered], "tools": [tool], "parallel_tool_calls": false});
        for row in [&own, &chat, &pair, &labelled, &json!({"text": "t"})] {
            assert_eq!(good(&row.to_string()), slice::from_ref(row));
        }
        assert_eq!(good("question,answer\nq,a\n"), [chat]);
    }

    #[test]
    fn what_is_not_trained_is_not_trained_afterwards() {
        let row = json!({"prompt": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "q"}],
                         "completion": "a"});
        let weights: Vec<_> = good(&row.to_string())[0]["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message.get("weight").cloned())
            .collect();
        assert_eq!(weights, [Some(json!(0)), None, None]);
    }

    #[test]
    fn faults_are_told_by_row_and_field() {
        let (rows, converted) = of("instruction,output\nq,a\nq,\n");
        assert_eq!((rows.len(), converted.rows, converted.total_problems), (1, 1, 1));
        let problem = &converted.problems[0];
        assert_eq!((problem.line, problem.path.as_deref()), (Some(3), Some("output")));
        let (_, mixed) =
            of("{\"text\":\"a\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"foo\":1}\n");
        let codes: Vec<_> = mixed.problems.iter().map(|p| (p.code, p.line)).collect();
        assert_eq!(codes, [(code::UNEXPECTED_FORMAT, Some(2)), (code::UNEXPECTED_FORMAT, Some(3))]);
    }
}
