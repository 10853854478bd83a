//! What one line of a file amounts to: the sequences that it trains, or its faults.
//!
//! Rows of every format end here as sequences of tokens: one of a chat row, two of a pair (the
//! preferred answer first), one or more of a text.

use serde_json::{Map, Value};

use crate::check::Limits;
use crate::error::TemplateError;
use crate::format::Expected;
use crate::mask::Example;
use crate::problem::{Problem, ProblemList, code};
use crate::quality::{Facts, Row};
use crate::row::{Conversation, read_object};
use crate::shape::{Read, Shape};
use crate::text::{self, read_text};
use crate::tokenizer::ChatTokenizer;

/// A line as it stands in the file.
pub(crate) struct RawRow {
    pub number: u64,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// What was found in one line.
pub(crate) struct Finding {
    pub number: u64,
    /// What the row looks like.
    pub shape: Option<Shape>,
    pub problems: ProblemList,
    /// The sequences of a row without fault.
    pub examples: Vec<Example>,
    /// Whether it has something to train on, before anything is cut off.
    pub trains: bool,
    /// Whether it uses keys of an older version of its shape.
    pub old_keys: bool,
    /// Of a labelled row without fault.
    pub label: Option<bool>,
    /// Of a row without fault, if they are wanted.
    pub facts: Option<Facts>,
}

/// What a line looks like, as far as it can be read at all.
pub(crate) fn shape_of(expected: Expected, bytes: &[u8]) -> Option<Shape> {
    let text = std::str::from_utf8(bytes).ok()?;
    let row = read_object(0, text, &mut ProblemList::new(0))?;
    Shape::of(&row).map(|shape| expected.sees(shape))
}

/// Checks a line as a row of a file whose rows have this shape.
pub(crate) fn inspect(
    tokenizer: &ChatTokenizer,
    limits: Limits,
    shape: Shape,
    row: &RawRow,
) -> Finding {
    let mut finding = Finding {
        number: row.number,
        shape: None,
        problems: ProblemList::new(limits.max_problems),
        examples: Vec::new(),
        trains: true,
        old_keys: false,
        label: None,
        facts: None,
    };
    let text = match std::str::from_utf8(&row.bytes) {
        Ok(text) => text,
        Err(error) => {
            finding.problems.push(invalid_utf8(row, error.valid_up_to()));
            return finding;
        }
    };
    let Some(object) = read_object(row.number, text, &mut finding.problems) else { return finding };
    finding.shape = Shape::of(&object).map(|shape| limits.expected.sees(shape));
    if shape == Shape::Text {
        encode_text(tokenizer, limits, object, &mut finding);
        return finding;
    }
    // What shows no shape, or a foreign one, is blamed for what it lacks of this one.
    let joined = finding.shape.and_then(|found| shape.joined(found));
    let Read { conversations, label, old_keys } =
        joined.unwrap_or(shape).read(row.number, object, &mut finding.problems);
    (finding.label, finding.old_keys) = (label, old_keys);
    let problems = &mut finding.problems;
    for (index, conversation) in conversations.iter().enumerate() {
        find_special_tokens(tokenizer, conversation, index > 0, problems);
    }
    if !problems.is_empty() {
        return finding;
    }
    let trains = |conversation: &Conversation| conversation.trained().contains(&true);
    finding.trains = conversations.iter().all(trains);
    let mut told = None;
    for conversation in &conversations {
        match tokenizer.encode_example(conversation, limits.max_seq_len) {
            Ok(example) => finding.examples.push(example),
            // What is wrong with the input is wrong with both conversations, and is said once.
            Err(error) if told.as_ref() == Some(&error) => {}
            Err(error) => {
                problems.push(not_encodable(conversation, &error));
                told = Some(error);
            }
        }
    }
    if !problems.is_empty() {
        finding.examples.clear();
    } else if limits.quality {
        let row = Row::of_conversations(&conversations, finding.label);
        finding.facts = row.as_ref().map(Facts::of);
    }
    finding
}

/// The sequences of a row of text; none when it has a fault.
fn encode_text(
    tokenizer: &ChatTokenizer,
    limits: Limits,
    row: Map<String, Value>,
    finding: &mut Finding,
) {
    let (line, problems) = (finding.number, &mut finding.problems);
    let Some(text) = read_text(line, row, problems) else { return };
    let (code, fault) = match tokenizer.control.find(&text) {
        Some(token) => (code::SPECIAL_TOKEN, format!("contains an invalid token: {token}")),
        None => match tokenizer.encode_text(&text, limits.max_seq_len) {
            Ok(examples) => {
                finding.facts = limits.quality.then(|| Facts::of(&Row::of_text(line, &text)));
                return finding.examples = examples;
            }
            Err(error) => (code::TOKENIZER, format!("cannot be encoded: {error}")),
        },
    };
    let problem = Problem::of_line(code, line, format!("Example {line} {fault}"));
    problems.push(problem.at(text::KEY));
}

pub(crate) fn invalid_utf8(row: &RawRow, at: usize) -> Problem {
    let byte = row.bytes.get(at).copied().unwrap_or_default();
    let utf16 = row.number == 1
        && (row.bytes.starts_with(&[0xff, 0xfe]) || row.bytes.starts_with(&[0xfe, 0xff]));
    let hint = if utf16 { "; the file looks like UTF-16, save it as UTF-8" } else { "" };
    let message = format!(
        "Example {} is not valid UTF-8: byte 0x{byte:02X} at byte {at} of the line (byte {} of the \
         file){hint}",
        row.number,
        row.offset + at as u64
    );
    Problem::of_line(code::INVALID_UTF8, row.number, message)
}

/// `only_answer`: the input was looked at with another answer before.
fn find_special_tokens(
    tokenizer: &ChatTokenizer,
    conversation: &Conversation,
    only_answer: bool,
    problems: &mut ProblemList,
) {
    let line = conversation.line();
    let first = if only_answer { conversation.answer_start() } else { 0 };
    for (index, message) in conversation.messages().iter().enumerate().skip(first) {
        let fields = message.as_object().into_iter().flatten();
        for (key, value) in fields {
            if let Some(token) = tokenizer.control.find_in(value) {
                let (path, words) = conversation.place_of_field(index, key);
                let message =
                    format!("Example {line} message contains an invalid token: {token} ({words})");
                problems.push(Problem::of_line(code::SPECIAL_TOKEN, line, message).at(path));
            }
        }
    }
    if only_answer {
        return;
    }
    for (index, tool) in conversation.tools().iter().enumerate() {
        if let Some(token) = tokenizer.control.find_in(tool) {
            let message =
                format!("Example {line}, tool {} contains an invalid token: {token}", index + 1);
            let problem = Problem::of_line(code::SPECIAL_TOKEN, line, message);
            problems.push(problem.at(format!("{}[{index}]", conversation.tools_path())));
        }
    }
}

fn not_encodable(conversation: &Conversation, error: &TemplateError) -> Problem {
    let line = conversation.line();
    let place = error.message().map(|message| conversation.place(message - 1));
    let of = match &place {
        // The error counts all messages together, and the row does not.
        Some((_, words)) if !conversation.is_openais() => format!("{words}: "),
        _ => String::new(),
    };
    let message = format!("Example {line}, {of}{error}");
    let problem = Problem::of_line(code::CHAT_TEMPLATE, line, message);
    match place {
        Some((path, _)) => problem.at(path),
        None => problem,
    }
}
