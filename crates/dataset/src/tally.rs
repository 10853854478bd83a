//! How many rows, and which ones first.

use crate::stats::push_line;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub count: u64,
    /// The first 1000, in their order.
    pub lines: Vec<u64>,
}

impl Tally {
    pub fn add(&mut self, line: u64) {
        self.count += 1;
        push_line(&mut self.lines, line);
    }

    /// Adds the rows of another, which stand behind those that are here or between them.
    pub fn extend(&mut self, other: &Self) {
        self.count += other.count;
        other.lines.iter().for_each(|line| push_line(&mut self.lines, *line));
        self.lines.sort_unstable();
    }

    pub fn add_if(&mut self, holds: bool, line: u64) {
        if holds {
            self.add(line);
        }
    }
}
