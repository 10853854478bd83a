//! One JSON array of rows, cut at the commas between its elements.
//!
//! Only strings and brackets are looked at, so that an element is found without being read; what is wrong
//! inside of one is told when it is. Blank elements are left out, as blank lines are.

use super::{Emit, Row};
use crate::problem::{Problem, code};

#[derive(Debug)]
pub(crate) struct ArraySplitter {
    max_row_bytes: usize,
    place: Place,
    /// The beginning of an element whose end has not come.
    pending: Vec<u8>,
    is_too_long: bool,
    /// The element's place among all, from 1.
    number: u64,
    /// Of the element's first byte, and of the next byte, in the file.
    start: u64,
    offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the array's own bracket.
    Before,
    /// Within so many brackets of an element.
    Within(u64),
    /// In a string within so many brackets.
    Text(u64),
    /// In a string, behind a backslash.
    Escape(u64),
    Behind,
    /// Behind the array, and what follows there has been blamed.
    Blamed,
}

impl ArraySplitter {
    pub fn new(max_row_bytes: usize) -> Self {
        Self {
            max_row_bytes,
            place: Place::Before,
            pending: Vec::new(),
            is_too_long: false,
            number: 1,
            start: 0,
            offset: 0,
        }
    }

    pub fn push(&mut self, chunk: &[u8], emit: Emit<'_>) {
        // Where in the chunk the element begins, or goes on.
        let mut from = 0;
        for (at, &byte) in chunk.iter().enumerate() {
            let place = self.place;
            self.place = match (place, byte) {
                (Place::Before, b'[') => {
                    (from, self.start) = (at + 1, self.offset + at as u64 + 1);
                    Place::Within(0)
                }
                (Place::Within(0), b',' | b']') => {
                    self.take(&chunk[from..at]);
                    self.end_element(emit);
                    (from, self.start) = (at + 1, self.offset + at as u64 + 1);
                    if byte == b',' { place } else { Place::Behind }
                }
                (Place::Within(depth), b'{' | b'[') => Place::Within(depth + 1),
                (Place::Within(depth), b'}' | b']') => Place::Within(depth.saturating_sub(1)),
                (Place::Within(depth), b'"') => Place::Text(depth),
                (Place::Text(depth), b'"') => Place::Within(depth),
                (Place::Text(depth), b'\\') => Place::Escape(depth),
                (Place::Escape(depth), _) => Place::Text(depth),
                (Place::Behind, byte) if !byte.is_ascii_whitespace() => {
                    emit(Row::Faulty(trailing(self.offset + at as u64)));
                    Place::Blamed
                }
                _ => place,
            };
        }
        if matches!(self.place, Place::Within(_) | Place::Text(_) | Place::Escape(_)) {
            self.take(&chunk[from..]);
        }
        self.offset += chunk.len() as u64;
    }

    pub fn finish(&mut self, emit: Emit<'_>) {
        if !matches!(self.place, Place::Behind | Place::Blamed) {
            let message = format!(
                "Example {} is cut off: the file begins with '[', but ends before the ']' that closes \
                 the list",
                self.number
            );
            emit(Row::Faulty(Problem::of_line(code::INVALID_JSON, self.number, message)));
        }
    }

    fn take(&mut self, part: &[u8]) {
        let part = if self.pending.is_empty() {
            let rest = part.trim_ascii_start();
            self.start += (part.len() - rest.len()) as u64;
            rest
        } else {
            part
        };
        if self.is_too_long || self.pending.len() + part.len() > self.max_row_bytes {
            self.is_too_long = true;
            self.pending = Vec::new();
        } else {
            self.pending.extend_from_slice(part);
        }
    }

    fn end_element(&mut self, emit: Emit<'_>) {
        let (number, offset) = (self.number, self.start);
        if self.is_too_long {
            emit(Row::TooLong { number });
        } else {
            emit(Row::Whole { number, offset, bytes: self.pending.trim_ascii_end() });
        }
        self.pending.clear();
        self.is_too_long = false;
        self.number += 1;
    }
}

fn trailing(offset: u64) -> Problem {
    let message = format!(
        "The file begins with a list of examples, but goes on behind the ']' that closes it (byte \
         {offset} of the file): put all examples into one list, or one object on each line"
    );
    Problem::of_file(code::INVALID_JSON, message)
}
