//! Checks a file as it streams by: every fault with its line, token counts, bounded memory.
//!
//! Rows are gathered in small batches and tokenised on all cores; faults come out in the order of
//! rows. Blank lines, a byte order mark and carriage returns are accepted.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;

use crate::container::{Container, ContainerKind, Row};
use crate::format::{Expected, Format};
use crate::inspect::{Finding, RawRow, inspect, shape_of};
use crate::mask::Example;
use crate::order::Dataset;
use crate::problem::{Problem, ProblemList, code};
use crate::quality::{Facts, Gathered, Quality};
use crate::shape::Shape;
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
    /// The field of a request that names the file.
    pub fn field(self) -> &'static str {
        match self {
            Self::Training => "training_file",
            Self::Validation => "validation_file",
        }
    }
}

impl fmt::Display for FileRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Training => "Training",
            Self::Validation => "Validation",
        })
    }
}

/// Bounds of a check.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub role: FileRole,
    /// What the rows may be.
    pub expected: Expected,
    pub min_examples: u64,
    /// Examples are cut to this many tokens.
    pub max_seq_len: usize,
    /// A longer line is a problem, and is never held in memory.
    pub max_line_bytes: usize,
    /// Problems that are kept; all are counted.
    pub max_problems: usize,
    /// Whether the quality of the rows is looked at.
    pub quality: bool,
}

impl Limits {
    pub fn new(role: FileRole, expected: impl Into<Expected>, max_seq_len: usize) -> Self {
        let expected = expected.into();
        let min_examples = if role == FileRole::Training { 10 } else { 1 };
        let (max_line_bytes, max_problems) = (4 << 20, 1000);
        let quality = true;
        Self { role, expected, min_examples, max_seq_len, max_line_bytes, max_problems, quality }
    }
}

/// What [`Checker::finish`] found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The first problems, in the order of lines; the file is good if there is none.
    pub problems: Vec<Problem>,
    /// All problems.
    pub total_problems: u64,
    /// What the rows teach.
    pub format: Format,
    /// How they are written.
    pub shape: Shape,
    /// What holds them.
    pub container: ContainerKind,
    pub stats: Stats,
    /// Of the rows without fault, if it was asked for.
    pub quality: Option<Quality>,
}

/// Rows that are checked together hold at most about this many bytes.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_ROWS: usize = 1024;

/// Checks a file that is pushed in chunks of any size.
pub struct Checker<'t> {
    pub(crate) container: Container,
    pub(crate) rows: Rows<'t>,
}

/// Everything behind the cutting into rows.
pub(crate) struct Rows<'t> {
    tokenizer: &'t ChatTokenizer,
    limits: Limits,
    batch: Vec<RawRow>,
    batch_bytes: usize,
    /// The shape of the first row that may be taken: what every row must have.
    decided: Option<Shape>,
    /// The shape of the first row that has one.
    pub found: Option<Shape>,
    pub problems: ProblemList,
    stats: Stats,
    gathered: Gathered,
    /// Where examples go, if they are wanted.
    pub examples: Option<Vec<Example>>,
    labels: Vec<bool>,
}

impl<'t> Checker<'t> {
    pub fn new(tokenizer: &'t ChatTokenizer, limits: Limits) -> Self {
        let rows = Rows {
            tokenizer,
            limits,
            batch: Vec::new(),
            batch_bytes: 0,
            decided: None,
            found: None,
            problems: ProblemList::new(limits.max_problems),
            stats: Stats::default(),
            gathered: Gathered::default(),
            examples: None,
            labels: Vec::new(),
        };
        Self { container: Container::new(limits.max_line_bytes), rows }
    }

    /// Takes the next bytes of the file.
    pub fn push(&mut self, chunk: &[u8]) {
        let rows = &mut self.rows;
        self.container.push(chunk, &mut |row| rows.row(row));
    }

    /// Ends the file.
    pub fn finish(self) -> Checked {
        self.finish_with_data().0
    }

    fn finish_with_data(mut self) -> (Checked, Dataset) {
        let rows = &mut self.rows;
        self.container.finish(&mut |row| rows.row(row));
        rows.flush();
        rows.check_whole();
        let rows = self.rows;
        let (format, shape) = (rows.format(), rows.shape());
        let counted = match format {
            Format::Text => rows.stats.n_sequences,
            _ => rows.stats.n_examples,
        };
        let limits = rows.limits;
        let quality = limits.quality.then(|| rows.gathered.report(limits.role, format, counted));
        let checked = Checked {
            problems: rows.problems.kept,
            total_problems: rows.problems.total,
            format,
            shape,
            container: self.container.kind(),
            stats: rows.stats,
            quality,
        };
        let mut data = Dataset::grouped(rows.examples.unwrap_or_default(), format.sequences());
        data.labels = rows.labels;
        data.format = format;
        (checked, data)
    }
}

impl Rows<'_> {
    fn format(&self) -> Format {
        self.shape().format()
    }

    pub fn shape(&self) -> Shape {
        self.decided.unwrap_or(self.limits.expected.usual())
    }

    pub fn row(&mut self, row: Row<'_>) {
        match row {
            Row::Whole { bytes, .. } if bytes.trim_ascii().is_empty() => {}
            Row::Whole { number, offset, bytes } => {
                self.stats.n_examples += 1;
                self.batch_bytes += bytes.len();
                self.batch.push(RawRow { number, offset, bytes: bytes.to_vec() });
                if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_ROWS {
                    self.flush();
                }
            }
            Row::TooLong { number } => {
                let limit = self.limits.max_line_bytes;
                let message = format!("Example {number} is longer than {limit} bytes");
                self.blame(Problem::of_line(code::LINE_TOO_LONG, number, message));
            }
            Row::Faulty(problem) => self.blame(problem),
        }
    }

    /// Takes the fault of a row that cannot be read, or of its container.
    fn blame(&mut self, problem: Problem) {
        self.flush();
        self.stats.n_examples += u64::from(problem.line.is_some());
        self.problems.push(problem);
    }

    pub fn flush(&mut self) {
        let rows = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let (tokenizer, limits) = (self.tokenizer, self.limits);
        if self.decided.is_none() {
            let mut shapes = rows.iter().filter_map(|row| shape_of(limits.expected, &row.bytes));
            self.decided = shapes.find(|shape| limits.expected.takes(shape.format()));
        }
        let shape = self.shape();
        let findings: Vec<Finding> =
            rows.into_par_iter().map(|row| inspect(tokenizer, limits, shape, &row)).collect();
        let facts = findings.into_iter().filter_map(|finding| self.take(finding)).collect();
        self.gathered.add(facts);
    }

    /// What is to be known of a row whose tokens count.
    fn take(&mut self, finding: Finding) -> Option<Facts> {
        let (format, shape) = (self.format(), self.shape());
        let foreign = finding.shape.filter(|&found| shape.joined(found).is_none());
        if let Some(other) = foreign.filter(|other| self.limits.expected.takes(other.format())) {
            self.problems.push(mixed(finding.number, shape, other));
            return None;
        }
        if self.decided.is_some() {
            self.decided = finding.shape.and_then(|found| shape.joined(found)).or(self.decided);
        }
        if self.found.is_none() {
            self.found = finding.shape;
            if let Some(found) = foreign {
                let expected = self.limits.expected;
                self.problems.push(unexpected_format(finding.number, shape, expected, found));
            }
        }
        if foreign.is_some() && finding.shape == self.found {
            // Said once for the whole file.
            return None;
        }
        let counts = counts(self.tokenizer, format, &finding);
        self.problems.append(finding.problems);
        if finding.examples.is_empty() {
            return None;
        }
        self.stats.add(finding.number, counts);
        self.stats.n_old_keys += u64::from(finding.old_keys);
        if format == Format::Preference
            && let [a, b] = finding.examples.as_slice()
            && a.input_ids == b.input_ids
        {
            self.stats.add_equal_pair(finding.number);
        }
        if let Some(label) = finding.label {
            self.stats.n_undesirable += u64::from(!label);
        }
        if let Some(examples) = &mut self.examples {
            examples.extend(finding.examples);
            self.labels.extend(finding.label);
        }
        finding.facts
    }

    /// What only the whole file shows.
    fn check_whole(&mut self) {
        let format = self.format();
        let least = self.limits.min_examples;
        let count = match format {
            // A book is one row, and many examples.
            Format::Text => self.stats.n_examples.max(self.stats.n_sequences),
            _ => self.stats.n_examples,
        };
        let name = self.limits.role;
        if count == 0 {
            let message = format!("{name} file is empty: it has no example");
            self.problems.push(Problem::of_file(code::EMPTY_FILE, message));
        } else if count < least {
            let message = format!(
                "{name} file has {count} example(s), but must have at least {least} examples"
            );
            self.problems.push(Problem::of_file(code::INVALID_N_EXAMPLES, message));
        } else if self.problems.is_empty()
            && self.stats.target_tokens == 0
            && format != Format::Reinforcement
        {
            let why = match format {
                Format::Preference | Format::Labelled => "of every example an answer lies",
                _ => "every assistant message has weight 0 or lies",
            };
            let message = format!(
                "{name} file has no token to train on: {why} beyond the first {} tokens of its \
                 example",
                self.limits.max_seq_len
            );
            self.problems.push(Problem::of_file(code::NO_TARGET_TOKENS, message));
        }
    }
}

/// Counts of a row by its sequences. A pair of which one answer was cut off has no targets.
fn counts(tokenizer: &ChatTokenizer, format: Format, finding: &Finding) -> RowCounts {
    let examples = &finding.examples;
    let targets = || examples.iter().map(Example::targets);
    let lengths = || examples.iter().map(|example| example.full_len);
    let is_text = format == Format::Text;
    let is_open = |example: &Example| {
        let last = example.input_ids.last().zip(example.is_target.last());
        example.truncated
            && last.is_some_and(|(id, trained)| *trained && !tokenizer.stop_ids().contains(id))
    };
    RowCounts {
        full: lengths().sum(),
        // The sequences of a text are its pieces.
        longest: if is_text { lengths().sum() } else { lengths().max().unwrap_or(0) },
        kept: examples.iter().map(|example| example.input_ids.len()).sum(),
        targets: if targets().any(|count| count == 0) { 0 } else { targets().sum() },
        trains: finding.trains,
        loses_end: !is_text && examples.iter().any(is_open),
        sequences: if is_text { examples.len() } else { 1 },
    }
}

pub(crate) fn mixed(line: u64, shape: Shape, found: Shape) -> Problem {
    let message = format!(
        "Example {line} looks like {found}, but the first rows of the file are {shape}: all rows \
         of a file must be of one kind"
    );
    Problem::of_line(code::UNEXPECTED_FORMAT, line, message)
}

fn unexpected_format(line: u64, shape: Shape, expected: Expected, found: Shape) -> Problem {
    let format = shape.format();
    let wanted = match format {
        Format::Preference => {
            "'input', 'preferred_output' and 'non_preferred_output' in every example"
        }
        Format::Labelled => "'input', 'completion' and 'label' in every example",
        Format::Text => "'text' in every example",
        Format::Chat | Format::Reinforcement => "'messages' in every example",
    };
    let or_text = match expected {
        Expected::Supervised => ", or plain text ('text' in every example)",
        Expected::One(_) => "",
    };
    let hint = match found.format() {
        Format::Preference => " (train those with method 'dpo')",
        Format::Chat | Format::Text if matches!(format, Format::Chat | Format::Text) => {
            " (the validation file must hold what the training file does)"
        }
        Format::Chat | Format::Text => " (train those with method 'supervised')",
        Format::Labelled => " (train those with method 'dpo' and loss_type 'kto')",
        Format::Reinforcement => " (those are for method 'reinforcement')",
    };
    let missing = match found.format() {
        Format::Reinforcement => "has no assistant message",
        _ => &format!("is missing key '{}'", shape.first_key()),
    };
    let message = format!(
        "Unexpected file format, expected {format} ({wanted}){or_text}, but example {line} looks \
         like {found}{hint}. Example {line} {missing}."
    );
    Problem::of_line(code::UNEXPECTED_FORMAT, line, message)
}

/// Reads a checked file of such rows for training: every sequence of a row as an [`Example`], in the
/// order of lines, each cut to `max_seq_len` tokens (texts: split). Fails with all problems where the file has
/// any; the minimum number of examples is not asked for (the server has done that).
pub fn load(
    path: &Path,
    expected: impl Into<Expected>,
    tokenizer: &ChatTokenizer,
    max_seq_len: usize,
) -> Result<Dataset, Vec<Problem>> {
    let limits = Limits::new(FileRole::Training, expected, max_seq_len);
    let limits = Limits { min_examples: 1, quality: false, ..limits };
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
    let (checked, data) = checker.finish_with_data();
    if checked.problems.is_empty() { Ok(data) } else { Err(checked.problems) }
}
