//! What one line of a file amounts to: the sequences that it trains, or its faults.
//!
//! Rows of every format end here as sequences of tokens: one of a chat row, two of a pair (the
//! preferred answer first), one or more of a text.

use crate::check::Limits;
use crate::error::TemplateError;
use crate::format::Format;
use crate::labelled::read_labelled;
use crate::mask::Example;
use crate::preference::read_pair;
use crate::problem::{Problem, ProblemList, code};
use crate::row::{Conversation, read_object, read_row};
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
    pub format: Option<Format>,
    pub problems: ProblemList,
    /// The sequences of a row without fault.
    pub examples: Vec<Example>,
    /// Whether it has something to train on, before anything is cut off.
    pub trains: bool,
    /// Whether it uses keys of an older version of its format.
    pub old_keys: bool,
    /// Of a labelled row without fault.
    pub label: Option<bool>,
}

/// What a line looks like, as far as it can be read at all.
pub(crate) fn format_of(bytes: &[u8]) -> Option<Format> {
    let text = std::str::from_utf8(bytes).ok()?;
    Format::of(&read_object(0, text, &mut ProblemList::new(0))?)
}

/// Checks a line as a row of `format`.
pub(crate) fn inspect(
    tokenizer: &ChatTokenizer,
    limits: Limits,
    format: Format,
    row: &RawRow,
) -> Finding {
    let mut finding = Finding {
        number: row.number,
        format: None,
        problems: ProblemList::new(limits.max_problems),
        examples: Vec::new(),
        trains: true,
        old_keys: false,
        label: None,
    };
    let conversations = match std::str::from_utf8(&row.bytes) {
        Ok(text) if format == Format::Text => {
            encode_text(tokenizer, limits.max_seq_len, text, &mut finding);
            return finding;
        }
        Ok(text) => read(format, text, &mut finding),
        Err(error) => {
            finding.problems.push(invalid_utf8(row, error.valid_up_to()));
            Vec::new()
        }
    };
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
    }
    finding
}

/// The sequences of a row of text; none when it has a fault.
fn encode_text(tokenizer: &ChatTokenizer, max_seq_len: usize, row: &str, finding: &mut Finding) {
    let (line, problems) = (finding.number, &mut finding.problems);
    let Some(row) = read_object(line, row, problems) else { return };
    finding.format = Format::of(&row);
    let Some(text) = read_text(line, row, problems) else { return };
    let (code, fault) = match tokenizer.control.find(&text) {
        Some(token) => (code::SPECIAL_TOKEN, format!("contains an invalid token: {token}")),
        None => match tokenizer.encode_text(&text, max_seq_len) {
            Ok(examples) => return finding.examples = examples,
            Err(error) => (code::TOKENIZER, format!("cannot be encoded: {error}")),
        },
    };
    let problem = Problem::of_line(code, line, format!("Example {line} {fault}"));
    problems.push(problem.at(text::KEY));
}

/// The conversations of a row in the expected format; none when it has a fault.
fn read(expected: Format, text: &str, finding: &mut Finding) -> Vec<Conversation> {
    let problems = &mut finding.problems;
    if !matches!(expected, Format::Preference | Format::Labelled) {
        let (format, conversation) = read_row(finding.number, text, problems);
        finding.format = format;
        return conversation.into_iter().collect();
    }
    let Some(row) = read_object(finding.number, text, problems) else { return Vec::new() };
    finding.format = Format::of(&row);
    if expected == Format::Labelled {
        let labelled = read_labelled(finding.number, row, problems);
        finding.label = labelled.as_ref().map(|(_, label)| *label);
        return labelled.into_iter().map(|(conversation, _)| conversation).collect();
    }
    match read_pair(finding.number, row, problems) {
        Some(pair) => {
            finding.old_keys = pair.old_keys;
            pair.conversations.into()
        }
        None => Vec::new(),
    }
}

fn invalid_utf8(row: &RawRow, at: usize) -> Problem {
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
                let (path, words) = conversation.place(index);
                let message = format!(
                    "Example {line} message contains an invalid token: {token} ({words}, key '{key}')"
                );
                let problem = Problem::of_line(code::SPECIAL_TOKEN, line, message);
                problems.push(problem.at(format!("{path}.{key}")));
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
    let of = match conversation.answer_start() {
        0 => String::new(),
        // The error counts the messages of input and answer together.
        _ => place.as_ref().map(|(_, words)| format!("{words}: ")).unwrap_or_default(),
    };
    let message = format!("Example {line}, {of}{error}");
    let problem = Problem::of_line(code::CHAT_TEMPLATE, line, message);
    match place {
        Some((path, _)) => problem.at(path),
        None => problem,
    }
}
