//! Checks a file as it streams by: every fault with its line, token counts, bounded memory.
//!
//! Rows are gathered in small batches and tokenised on all cores; faults come out in the order of
//! lines. Blank lines, a byte order mark and carriage returns are accepted.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;

use crate::error::TemplateError;
use crate::format::Format;
use crate::lines::{Line, LineSplitter};
use crate::mask::Example;
use crate::order::Dataset;
use crate::problem::{Problem, ProblemList, code};
use crate::row::{Conversation, read_row};
use crate::stats::{RowCounts, Stats};
use crate::tokenizer::ChatTokenizer;

/// Which file of a job is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRole {
    /// Needs at least 10 examples.
    Training,
    /// Needs at least one.
    Validation,
}

impl FileRole {
    fn name(self) -> &'static str {
        match self {
            Self::Training => "Training",
            Self::Validation => "Validation",
        }
    }
}

/// Bounds of a check.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub role: FileRole,
    pub min_examples: u64,
    /// Examples are cut to this many tokens.
    pub max_seq_len: usize,
    /// A longer line is a problem, and is never held in memory.
    pub max_line_bytes: usize,
    /// Problems that are kept; all are counted.
    pub max_problems: usize,
}

impl Limits {
    pub fn new(role: FileRole, max_seq_len: usize) -> Self {
        let min_examples = if role == FileRole::Training { 10 } else { 1 };
        Self { role, min_examples, max_seq_len, max_line_bytes: 4 << 20, max_problems: 1000 }
    }
}

/// What [`Checker::finish`] found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The first problems, in the order of lines; the file is good if there is none.
    pub problems: Vec<Problem>,
    /// All problems.
    pub total_problems: u64,
    pub stats: Stats,
}

/// Rows that are checked together hold at most about this many bytes.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_ROWS: usize = 1024;

struct Row {
    number: u64,
    /// Where the row begins in the file, in bytes.
    offset: u64,
    bytes: Vec<u8>,
}

/// What was found in one line.
struct Finding {
    number: u64,
    format: Option<Format>,
    problems: ProblemList,
    example: Option<Example>,
}

/// Checks a file that is pushed in chunks of any size.
pub struct Checker<'t> {
    splitter: LineSplitter,
    rows: Rows<'t>,
}

/// Everything behind the splitting into lines.
struct Rows<'t> {
    tokenizer: &'t ChatTokenizer,
    limits: Limits,
    batch: Vec<Row>,
    batch_bytes: usize,
    /// The format of the first row that has one.
    found: Option<Format>,
    problems: ProblemList,
    stats: Stats,
    /// Where examples go, if they are wanted.
    examples: Option<Vec<Example>>,
}

impl<'t> Checker<'t> {
    pub fn new(tokenizer: &'t ChatTokenizer, limits: Limits) -> Self {
        let rows = Rows {
            tokenizer,
            limits,
            batch: Vec::new(),
            batch_bytes: 0,
            found: None,
            problems: ProblemList::new(limits.max_problems),
            stats: Stats::default(),
            examples: None,
        };
        Self { splitter: LineSplitter::new(limits.max_line_bytes), rows }
    }

    /// Takes the next bytes of the file.
    pub fn push(&mut self, chunk: &[u8]) {
        let rows = &mut self.rows;
        self.splitter.push(chunk, &mut |line| rows.line(line));
    }

    /// Ends the file.
    pub fn finish(self) -> Checked {
        self.finish_with_examples().0
    }

    fn finish_with_examples(mut self) -> (Checked, Vec<Example>) {
        let rows = &mut self.rows;
        self.splitter.finish(&mut |line| rows.line(line));
        rows.flush();
        rows.check_whole();
        let rows = self.rows;
        let checked = Checked {
            problems: rows.problems.kept,
            total_problems: rows.problems.total,
            stats: rows.stats,
        };
        (checked, rows.examples.unwrap_or_default())
    }
}

impl Rows<'_> {
    fn line(&mut self, line: Line<'_>) {
        match line {
            Line::Whole { bytes, .. } if bytes.trim_ascii().is_empty() => {}
            Line::Whole { number, offset, bytes } => {
                self.stats.n_examples += 1;
                self.batch_bytes += bytes.len();
                self.batch.push(Row { number, offset, bytes: bytes.to_vec() });
                if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_ROWS {
                    self.flush();
                }
            }
            Line::TooLong { number } => {
                self.flush();
                self.stats.n_examples += 1;
                let limit = self.limits.max_line_bytes;
                let message = format!("Example {number} is longer than {limit} bytes");
                self.problems.push(Problem::of_line(code::LINE_TOO_LONG, number, message));
            }
        }
    }

    fn flush(&mut self) {
        let rows = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let (tokenizer, limits) = (self.tokenizer, self.limits);
        let findings: Vec<Finding> =
            rows.into_par_iter().map(|row| check_row(tokenizer, limits, &row)).collect();
        for finding in findings {
            self.take(finding);
        }
    }

    fn take(&mut self, finding: Finding) {
        if self.found.is_none() {
            self.found = finding.format;
            if let Some(found) = finding.format.filter(|&format| format != Format::Chat) {
                self.problems.push(unexpected_format(finding.number, found));
            }
        }
        let foreign = finding.format.is_some_and(|format| format != Format::Chat);
        if foreign && finding.format == self.found {
            // Said once for the whole file.
            return;
        }
        self.problems.append(finding.problems);
        let Some(example) = finding.example else { return };
        let counts = RowCounts {
            full: example.full_len,
            kept: example.input_ids.len(),
            targets: example.targets(),
        };
        self.stats.add(finding.number, counts);
        if let Some(examples) = &mut self.examples {
            examples.push(example);
        }
    }

    /// What only the whole file shows.
    fn check_whole(&mut self) {
        let (count, least) = (self.stats.n_examples, self.limits.min_examples);
        let name = self.limits.role.name();
        if count == 0 {
            let message = format!("{name} file is empty: it has no example");
            self.problems.push(Problem::of_file(code::EMPTY_FILE, message));
        } else if count < least {
            let message = format!(
                "{name} file has {count} example(s), but must have at least {least} examples"
            );
            self.problems.push(Problem::of_file(code::INVALID_N_EXAMPLES, message));
        } else if self.problems.is_empty() && self.stats.target_tokens == 0 {
            let message = format!(
                "{name} file has no token to train on: every assistant message has weight 0 or \
                 lies beyond the first {} tokens of its example",
                self.limits.max_seq_len
            );
            self.problems.push(Problem::of_file(code::NO_TARGET_TOKENS, message));
        }
    }
}

fn unexpected_format(line: u64, found: Format) -> Problem {
    let hint = match found {
        Format::Preference => " (train those with method 'dpo')",
        Format::PromptCompletion | Format::Chat => "",
    };
    let message = format!(
        "Unexpected file format, expected {} ('messages' in every example), but example {line} \
         looks like {found}{hint}",
        Format::Chat
    );
    Problem::of_line(code::UNEXPECTED_FORMAT, line, message)
}

fn check_row(tokenizer: &ChatTokenizer, limits: Limits, row: &Row) -> Finding {
    let mut problems = ProblemList::new(limits.max_problems);
    let (format, conversation) = match std::str::from_utf8(&row.bytes) {
        Ok(text) => read_row(row.number, text, &mut problems),
        Err(error) => {
            problems.push(invalid_utf8(row, error.valid_up_to()));
            (None, None)
        }
    };
    let example = conversation.and_then(|conversation| {
        find_special_tokens(tokenizer, &conversation, &mut problems);
        if !problems.is_empty() {
            return None;
        }
        match tokenizer.encode_example(&conversation, limits.max_seq_len) {
            Ok(example) => Some(example),
            Err(error) => {
                problems.push(not_encodable(row.number, &error));
                None
            }
        }
    });
    Finding { number: row.number, format, problems, example }
}

fn invalid_utf8(row: &Row, at: usize) -> Problem {
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

fn find_special_tokens(
    tokenizer: &ChatTokenizer,
    conversation: &Conversation,
    problems: &mut ProblemList,
) {
    let line = conversation.line();
    for (index, message) in conversation.messages().iter().enumerate() {
        let fields = message.as_object().into_iter().flatten();
        for (key, value) in fields {
            if let Some(token) = tokenizer.control.find_in(value) {
                let message = format!(
                    "Example {line}, message {} contains an invalid token: {token}",
                    index + 1
                );
                let problem = Problem::of_line(code::SPECIAL_TOKEN, line, message);
                problems.push(problem.at(format!("messages[{index}].{key}")));
            }
        }
    }
    for (index, tool) in conversation.tools().iter().enumerate() {
        if let Some(token) = tokenizer.control.find_in(tool) {
            let message =
                format!("Example {line}, tool {} contains an invalid token: {token}", index + 1);
            let problem = Problem::of_line(code::SPECIAL_TOKEN, line, message);
            problems.push(problem.at(format!("tools[{index}]")));
        }
    }
}

fn not_encodable(line: u64, error: &TemplateError) -> Problem {
    let problem = Problem::of_line(code::CHAT_TEMPLATE, line, format!("Example {line}, {error}"));
    match error.message() {
        Some(message) => problem.at(format!("messages[{}]", message - 1)),
        None => problem,
    }
}

/// Reads a checked file for training: every row as an [`Example`], in the order of lines, each cut
/// to `max_seq_len` tokens. Fails with all problems where the file has any; the minimum number of
/// examples is not asked for (the server has done that).
pub fn load(
    path: &Path,
    tokenizer: &ChatTokenizer,
    max_seq_len: usize,
) -> Result<Dataset, Vec<Problem>> {
    let limits = Limits { min_examples: 1, ..Limits::new(FileRole::Training, max_seq_len) };
    let mut checker = Checker::new(tokenizer, limits);
    checker.rows.examples = Some(Vec::new());
    let unreadable = |error: std::io::Error| {
        let message = format!("cannot read {}: {error}", path.display());
        vec![Problem::of_file(code::UNREADABLE_FILE, message)]
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = match file.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read.map_err(unreadable)?,
        };
        if read == 0 {
            break;
        }
        checker.push(&buffer[..read]);
    }
    let (checked, examples) = checker.finish_with_examples();
    if checked.problems.is_empty() { Ok(Dataset::new(examples)) } else { Err(checked.problems) }
}
