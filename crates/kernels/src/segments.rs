//! Which rows of a packed batch see which: each segment's queries see the keys of some ranges of rows first,
//! all of them, and then their own segment's up to themselves.
//!
//! A document by itself has no rows before it. Two answers to one prompt are three segments, of which the
//! prompt comes before each of the others; learned keys stand in rows behind all queries, before every
//! document. Why rows are arranged so is not known here.

use std::ops::Range;

/// Rows whose queries attend together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub rows: Range<usize>,
    /// Rows whose keys stand before the segment's own, first to last; of other segments, or behind all queries.
    pub before: Vec<Range<usize>>,
}

impl Segment {
    /// Keys before its own.
    pub(crate) fn keys_before(&self) -> usize {
        self.before.iter().map(Range::len).sum()
    }

    /// Keys that its last query sees, without a window.
    pub(crate) fn keys(&self) -> usize {
        self.keys_before() + self.rows.len()
    }

    /// The rows of a range of its keys, in pieces that are contiguous.
    pub(crate) fn pieces(&self, keys: Range<usize>) -> impl Iterator<Item = Piece> {
        let ranges = self.before.iter().chain(std::iter::once(&self.rows));
        let mut first = 0;
        ranges.enumerate().filter_map(move |(index, rows)| {
            let (start, end) = (first, first + rows.len());
            first = end;
            let part = keys.start.max(start)..keys.end.min(end);
            (!part.is_empty()).then(|| Piece {
                column: part.start - keys.start,
                key: part.start,
                row: rows.start + (part.start - start),
                len: part.len(),
                is_own: index == self.before.len(),
            })
        })
    }
}

/// Keys that stand in rows one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where they begin in the range that was asked for.
    pub column: usize,
    /// Where they begin among the segment's keys.
    pub key: usize,
    /// Where they begin in the batch.
    pub row: usize,
    pub len: usize,
    /// Whether they are the segment's own.
    pub is_own: bool,
}

/// The segments of a packed batch: their rows cover the batch in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments(Vec<Segment>);

impl Segments {
    /// # Panics
    /// When the segments' rows do not follow each other from 0 on.
    pub fn new(segments: Vec<Segment>) -> Self {
        let mut end = 0;
        for segment in &segments {
            let rows = &segment.rows;
            assert!(rows.start == end && rows.end >= end, "segments cover the rows in order");
            end = rows.end;
        }
        Self(segments)
    }

    /// Documents that see nothing but themselves, by their first rows and, last, the number of rows.
    ///
    /// # Panics
    /// When the numbers do not begin with 0 or do not ascend.
    pub fn documents(cu_seqlens: &[i32]) -> Self {
        let rows = cu_seqlens.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
        Self::new(rows.map(|rows| Segment { rows, before: Vec::new() }).collect())
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Segment> {
        self.0.iter()
    }

    /// Rows with queries.
    pub fn rows(&self) -> usize {
        self.0.last().map_or(0, |segment| segment.rows.end)
    }

    /// Checks that all keys are in a batch of so many rows.
    pub(crate) fn check(&self, rows: usize) {
        let mut before = self.0.iter().flat_map(|segment| &segment.before);
        assert!(before.all(|range| range.end <= rows), "keys are rows of the batch");
        assert!(self.rows() <= rows, "queries are rows of the batch");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_their_ranges() {
        let segment = Segment { rows: 10..14, before: vec![2..5, 20..22] };
        assert_eq!((segment.keys_before(), segment.keys()), (5, 9));
        let rows = |keys: Range<usize>| -> Vec<(usize, usize, usize, bool)> {
            let pieces = segment.pieces(keys);
            pieces.map(|piece| (piece.column, piece.row, piece.len, piece.is_own)).collect()
        };
        assert_eq!(rows(0..9), [(0, 2, 3, false), (3, 20, 2, false), (5, 10, 4, true)]);
        assert_eq!(rows(1..4), [(0, 3, 2, false), (2, 20, 1, false)]);
        assert_eq!(rows(6..8), [(0, 11, 2, true)]);
    }

    #[test]
    #[should_panic(expected = "in order")]
    fn rows_that_nobody_owns_are_refused() {
        let alone = |rows| Segment { rows, before: Vec::new() };
        Segments::new(vec![alone(0..3), alone(4..5)]);
    }
}
