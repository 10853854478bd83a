//! CSV: a header whose names show what the rows are, and a record for each row; separated by commas,
//! semicolons or tabs, with quotes as in RFC 4180.
//!
//! A row's number is the line on which its record begins: cells may hold line breaks.

use csv_core::{ReadFieldResult, Reader, ReaderBuilder};

use super::table::{Columns, MAX_COLUMNS};
use super::{Emit, Row};
use crate::problem::{Problem, code};

const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];
/// Bytes of a field that are taken at once.
const PIECE: usize = 4 << 10;

#[derive(Debug)]
pub(crate) struct CsvSplitter {
    reader: Reader,
    columns: Columns,
    max_row_bytes: usize,
    record: Record,
    is_header: bool,
    /// Of the next byte.
    line: u64,
    offset: u64,
}

/// The record that is being read.
#[derive(Debug, Default)]
struct Record {
    /// Of its first byte; none before that.
    begins: Option<(u64, u64)>,
    cells: Vec<u8>,
    /// Where in `cells` each ends.
    ends: Vec<usize>,
    is_too_long: bool,
    /// All of them, also where no more are kept.
    fields: usize,
}

impl CsvSplitter {
    /// None where the line names no columns that show what the rows are.
    pub fn of_header(line: &[u8], max_row_bytes: usize) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        SEPARATORS.into_iter().find_map(|separator| {
            let columns = Columns::of(names(line, separator)?)?;
            Some(Self {
                reader: reader(separator),
                columns,
                max_row_bytes,
                record: Record::default(),
                is_header: true,
                line: 1,
                offset: 0,
            })
        })
    }

    pub fn push(&mut self, mut chunk: &[u8], emit: Emit<'_>) {
        loop {
            if self.record.begins.is_none() {
                // Blank lines, and the second half of "\r\n".
                let blank = chunk.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                chunk = self.pass(chunk, blank);
            }
            if chunk.is_empty() {
                return;
            }
            let read = self.read(chunk, emit);
            chunk = &chunk[read.min(chunk.len())..];
        }
    }

    pub fn finish(&mut self, emit: Emit<'_>) {
        while self.record.begins.is_some() {
            self.read(&[], emit);
        }
    }

    /// Reads at most one piece of a field; how many bytes of the chunk it was. An empty chunk ends the file.
    fn read(&mut self, chunk: &[u8], emit: Emit<'_>) -> usize {
        let begins = *self.record.begins.get_or_insert((self.line, self.offset));
        let mut piece = [0; PIECE];
        let (result, read, written) = self.reader.read_field(chunk, &mut piece);
        self.pass(chunk, read);
        self.record.add(&piece[..written], self.max_row_bytes);
        match result {
            ReadFieldResult::InputEmpty | ReadFieldResult::OutputFull => {}
            ReadFieldResult::Field { record_end } => {
                self.record.end_field();
                if record_end {
                    self.end_record(begins, emit);
                }
            }
            ReadFieldResult::End => self.record = Record::default(),
        }
        read
    }

    fn pass<'c>(&mut self, chunk: &'c [u8], count: usize) -> &'c [u8] {
        let (passed, rest) = chunk.split_at(count);
        self.line += passed.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.offset += passed.len() as u64;
        rest
    }

    fn end_record(&mut self, (number, offset): (u64, u64), emit: Emit<'_>) {
        if std::mem::take(&mut self.is_header) {
            self.record.clear();
            return;
        }
        if self.record.is_too_long {
            emit(Row::TooLong { number });
        } else if self.record.fields != self.columns.len() {
            emit(Row::Faulty(wrong_count(number, self.record.fields, self.columns.len())));
        } else {
            match self.columns.object(number, self.record.cells()) {
                Ok(row) if row.len() > self.max_row_bytes => emit(Row::TooLong { number }),
                Ok(row) => emit(Row::Whole { number, offset, bytes: &row }),
                Err(problem) => emit(Row::Faulty(problem)),
            }
        }
        self.record.clear();
    }
}

impl Record {
    fn add(&mut self, piece: &[u8], max_row_bytes: usize) {
        self.is_too_long |= self.cells.len() + piece.len() > max_row_bytes;
        match self.is_too_long {
            true => self.cells = Vec::new(),
            false => self.cells.extend_from_slice(piece),
        }
    }

    fn end_field(&mut self) {
        self.fields += 1;
        if self.ends.len() < MAX_COLUMNS {
            self.ends.push(self.cells.len());
        }
    }

    fn cells(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.cells[start..end])
    }

    /// Ready for the next, in the same memory.
    fn clear(&mut self) {
        self.cells.clear();
        self.ends.clear();
        (self.begins, self.is_too_long, self.fields) = (None, false, 0);
    }
}

fn reader(separator: u8) -> Reader {
    ReaderBuilder::new().delimiter(separator).build()
}

/// The fields of one line.
fn names(line: &str, separator: u8) -> Option<Vec<String>> {
    let mut reader = reader(separator);
    let (mut rest, mut buffer) = (line.as_bytes(), vec![0; line.len() + 1]);
    let mut names = Vec::new();
    while names.len() <= MAX_COLUMNS {
        let (result, read, written) = reader.read_field(rest, &mut buffer);
        rest = &rest[read..];
        match result {
            ReadFieldResult::InputEmpty => {
                // What was written so far is the beginning of the line's last field.
                let (_, _, more) = reader.read_field(&[], &mut buffer[written..]);
                names.push(name(&buffer[..written + more])?);
                return Some(names);
            }
            ReadFieldResult::Field { .. } => names.push(name(&buffer[..written])?),
            ReadFieldResult::OutputFull | ReadFieldResult::End => return Some(names),
        }
    }
    None
}

fn name(bytes: &[u8]) -> Option<String> {
    Some(std::str::from_utf8(bytes).ok()?.trim().to_owned())
}

fn wrong_count(number: u64, found: usize, wanted: usize) -> Problem {
    let message = format!(
        "Example {number} has {found} column(s), but the header names {wanted}: a cell with a separator, a \
         quote or a line break in it stands in quotes, and its quotes are doubled"
    );
    Problem::of_line(code::DATA_TYPE, number, message)
}
