//! What a file holds its rows in, told by its first bytes: JSON lines, one JSON array, CSV, or Parquet.
//!
//! Whatever it is, each row is handed out as the JSON text of one object, with its number, so that rows are
//! read and blamed in one way. Nothing here looks into a row; at most one row is held.

mod array;
mod csv;
mod table;

use std::fmt;

use self::array::ArraySplitter;
use self::csv::CsvSplitter;
use crate::lines::LineSplitter;
use crate::problem::Problem;

/// How a file holds its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerKind {
    /// One JSON object a line.
    Lines,
    /// One JSON array of objects.
    Array,
    /// A header that names columns, and a record for each row.
    Csv,
}

impl ContainerKind {
    /// The word for it in figures about a file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lines => "jsonl",
            Self::Array => "json",
            Self::Csv => "csv",
        }
    }
}

impl fmt::Display for ContainerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lines => "JSON lines",
            Self::Array => "a JSON array",
            Self::Csv => "CSV",
        })
    }
}

/// What a container hands out. `number` is the 1-based line on which the row begins; in an array, which may
/// stand on one line, its place among the rows.
pub(crate) enum Row<'a> {
    /// The text of one JSON value, not yet read; may be blank.
    Whole {
        number: u64,
        /// Of its first byte in the file.
        offset: u64,
        bytes: &'a [u8],
    },
    /// Longer than a row may be.
    TooLong { number: u64 },
    /// Not to be had from its container.
    Faulty(Problem),
}

/// Takes what a container hands out.
pub(crate) type Emit<'e> = &'e mut dyn FnMut(Row<'_>);

/// Cuts a file that is pushed in chunks of any size into its rows.
pub(crate) enum Container {
    /// The first bytes, until they tell what it is.
    Unknown {
        max_row_bytes: usize,
        seen: Vec<u8>,
    },
    Lines(LineSplitter),
    Array(ArraySplitter),
    Csv(Box<CsvSplitter>),
}

/// A first line that is longer is none of CSV's headers.
const MAX_HEADER: usize = 64 << 10;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl Container {
    pub fn new(max_row_bytes: usize) -> Self {
        Self::Unknown { max_row_bytes, seen: Vec::new() }
    }

    /// JSON lines until it is known better.
    pub fn kind(&self) -> ContainerKind {
        match self {
            Self::Unknown { .. } | Self::Lines(_) => ContainerKind::Lines,
            Self::Array(_) => ContainerKind::Array,
            Self::Csv(_) => ContainerKind::Csv,
        }
    }

    pub fn push(&mut self, chunk: &[u8], emit: Emit<'_>) {
        match self {
            Self::Unknown { max_row_bytes, seen } => {
                seen.extend_from_slice(chunk);
                if let Some(known) = recognise(*max_row_bytes, seen, false) {
                    self.become_known(known, emit);
                }
            }
            Self::Lines(lines) => lines.push(chunk, emit),
            Self::Array(array) => array.push(chunk, emit),
            Self::Csv(csv) => csv.push(chunk, emit),
        }
    }

    /// Hands out what the end of the file completes.
    pub fn finish(&mut self, emit: Emit<'_>) {
        match self {
            Self::Unknown { max_row_bytes, seen } => {
                if let Some(known) = recognise(*max_row_bytes, seen, true) {
                    self.become_known(known, emit);
                    self.finish(emit);
                }
            }
            Self::Lines(lines) => lines.finish(emit),
            Self::Array(array) => array.finish(emit),
            Self::Csv(csv) => csv.finish(emit),
        }
    }

    fn become_known(&mut self, known: Self, emit: Emit<'_>) {
        if let Self::Unknown { seen, .. } = std::mem::replace(self, known) {
            self.push(&seen, emit);
        }
    }
}

/// What a file that begins so is; none while more of it is needed, which never is at its end.
fn recognise(max_row_bytes: usize, seen: &[u8], is_end: bool) -> Option<Container> {
    let lines = || Some(Container::Lines(LineSplitter::new(max_row_bytes)));
    let text = seen.strip_prefix(BYTE_ORDER_MARK).unwrap_or(seen);
    let text = text.trim_ascii_start();
    match text.first() {
        Some(b'{') => return lines(),
        Some(b'[') => return Some(Container::Array(ArraySplitter::new(max_row_bytes))),
        _ => {}
    }
    let first_line = match text.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        Some(end) => &text[..end],
        None if is_end || seen.len() > MAX_HEADER => text,
        None => return None,
    };
    match CsvSplitter::of_header(first_line, max_row_bytes) {
        Some(csv) => Some(Container::Csv(Box::new(csv))),
        None => lines(),
    }
}

#[cfg(test)]
mod tests;
