//! Cuts a stream of bytes into lines, holding at most one line of at most `max_line_bytes`.
//!
//! A longer line is skipped to its newline and reported by number, never held. Lines come without their
//! newline and carriage return, the first one without a byte order mark.

use crate::container::{Emit, Row};

pub(crate) struct LineSplitter {
    max_line_bytes: usize,
    /// The beginning of a line that no newline has ended yet.
    pending: Vec<u8>,
    skipping: bool,
    /// 1-based number and file offset of the line that is being read.
    number: u64,
    offset: u64,
}

impl LineSplitter {
    pub fn new(max_line_bytes: usize) -> Self {
        Self { max_line_bytes, pending: Vec::new(), skipping: false, number: 1, offset: 0 }
    }

    pub fn push(&mut self, mut chunk: &[u8], emit: Emit<'_>) {
        while let Some(newline) = chunk.iter().position(|&byte| byte == b'\n') {
            let (head, rest) = chunk.split_at(newline);
            self.end_line(head, emit);
            self.offset += head.len() as u64 + 1;
            chunk = &rest[1..];
        }
        self.offset += chunk.len() as u64;
        if self.skipping {
            return;
        }
        // Three more bytes for a byte order mark and one for a carriage return.
        if self.pending.len() + chunk.len() > self.max_line_bytes + 4 {
            emit(Row::TooLong { number: self.number });
            self.skipping = true;
            self.pending = Vec::new();
        } else {
            self.pending.extend_from_slice(chunk);
        }
    }

    /// Hands out a last line that has no newline.
    pub fn finish(&mut self, emit: Emit<'_>) {
        if !self.skipping && !self.pending.is_empty() {
            self.end_line(&[], emit);
        }
    }

    fn end_line(&mut self, tail: &[u8], emit: Emit<'_>) {
        if !self.skipping {
            let start = self.offset - self.pending.len() as u64;
            if self.pending.is_empty() {
                self.emit(tail, start, emit);
            } else {
                let mut line = std::mem::take(&mut self.pending);
                if line.len() + tail.len() <= self.max_line_bytes + 4 {
                    line.extend_from_slice(tail);
                    self.emit(&line, start, emit);
                } else {
                    emit(Row::TooLong { number: self.number });
                }
                line.clear();
                self.pending = line;
            }
        }
        self.skipping = false;
        self.number += 1;
    }

    fn emit(&self, line: &[u8], start: u64, emit: Emit<'_>) {
        let number = self.number;
        let mut bytes = line;
        let mut offset = start;
        if number == 1
            && let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf")
        {
            bytes = rest;
            offset += 3;
        }
        bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        if bytes.len() > self.max_line_bytes {
            emit(Row::TooLong { number });
        } else {
            emit(Row::Whole { number, offset, bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Number, and offset and bytes where the line is whole.
    type Seen = (u64, Option<(u64, Vec<u8>)>);

    fn split(bytes: &[u8], chunk: usize, limit: usize) -> Vec<Seen> {
        let mut splitter = LineSplitter::new(limit);
        let mut out = Vec::new();
        let mut emit = |line: Row<'_>| match line {
            Row::Whole { number, offset, bytes } => {
                out.push((number, Some((offset, bytes.to_vec()))))
            }
            Row::TooLong { number } => out.push((number, None)),
            Row::Faulty(problem) => panic!("{problem}"),
        };
        for part in bytes.chunks(chunk) {
            splitter.push(part, &mut emit);
        }
        splitter.finish(&mut emit);
        out
    }

    #[test]
    fn accepts_a_byte_order_mark_and_both_newlines() {
        let lines = split(b"\xef\xbb\xbfab\r\ncd\n\nef", 3, 100);
        let expected = [
            (1, Some((3, b"ab".to_vec()))),
            (2, Some((7, b"cd".to_vec()))),
            (3, Some((10, b"".to_vec()))),
            (4, Some((11, b"ef".to_vec()))),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_line_over_the_limit_is_named_and_not_held() {
        let mut bytes = b"ok\n".to_vec();
        bytes.extend(std::iter::repeat_n(b'x', 1 << 20));
        bytes.extend(b"\nafter\n");
        let lines = split(&bytes, 4096, 1000);
        assert_eq!(lines[1], (2, None));
        assert_eq!(lines[2].0, 3);

        let mut splitter = LineSplitter::new(1000);
        for part in bytes.chunks(4096) {
            splitter.push(part, &mut |_| {});
            assert!(splitter.pending.capacity() <= 1 << 14);
        }
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(
            bytes in vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a')], 0..80),
            chunk in 1usize..90,
            limit in 1usize..20,
        ) {
            prop_assert_eq!(split(&bytes, chunk, limit), split(&bytes, bytes.len().max(1), limit));
        }

        #[test]
        fn every_line_is_seen_once(
            bytes in vec(prop_oneof![Just(b'\n'), Just(b'a')], 0..80),
        ) {
            let mut expected: Vec<Vec<u8>> =
                bytes.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            let seen = split(&bytes, 7, 1000).into_iter();
            prop_assert_eq!(seen.map(|(_, l)| l.unwrap().1).collect::<Vec<_>>(), expected);
        }
    }
}
