//! Rows that say the same: exact and near copies, contradictions, and rows that are in another file too.
//!
//! Of every row some hashes and a [`Sketch`] are kept, of the first [`MAX_ROWS`] rows.

use std::collections::HashSet;

use super::sketch::{BANDS, Sketch};
use crate::tally::Tally;

/// About 300 bytes each, so 75 MB at most.
const MAX_ROWS: usize = 250_000;
const NO_SKETCH: u32 = u32::MAX;

/// What is kept of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub line: u64,
    /// Instructions: the same input under other instructions is another question.
    pub instructions: u64,
    /// The text of the input.
    pub input: u64,
    /// The words of the input.
    pub words: u64,
    /// The words of the input that have a digit: "item 12" and "item 13" are never nearly the same.
    pub numbers: u64,
    pub output: u64,
    /// The rejected answer of a pair, the label of a labelled answer.
    pub other: u64,
}

/// The rows of a file, for comparison.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowIndex {
    rows: Vec<Kept>,
    /// Places in `sketches`, by row.
    sketch_of: Vec<u32>,
    sketches: Vec<Sketch>,
    /// Rows that are not in it.
    left_out: u64,
}

/// How equal inputs with different outputs are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// One output for an input.
    One,
    /// The outputs are labels, and nearly the same input has the same one.
    Labels,
    /// Several pairs for an input, of which none may say the opposite of another.
    Pairs,
    /// Several answers for an input, each with one verdict.
    Verdicts,
    /// No output.
    None,
}

#[derive(Debug, Default)]
pub(crate) struct Repeats {
    pub exact: Tally,
    pub near: Tally,
    pub contradictions: Tally,
}

impl RowIndex {
    pub(crate) fn add(&mut self, row: Kept, sketch: Option<Sketch>) {
        if self.rows.len() == MAX_ROWS {
            self.left_out += 1;
            return;
        }
        self.rows.push(row);
        self.sketch_of.push(match sketch {
            Some(sketch) => {
                self.sketches.push(sketch);
                self.sketches.len() as u32 - 1
            }
            None => NO_SKETCH,
        });
    }

    pub(crate) fn compared(&self) -> u64 {
        self.rows.len() as u64
    }

    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    fn sketch(&self, row: usize) -> Option<&Sketch> {
        self.sketches.get(self.sketch_of[row] as usize)
    }

    pub(crate) fn repeats(&self, answers: Answers) -> Repeats {
        let rows = &self.rows;
        let mut exact = vec![false; rows.len()];
        let mut contradicts = vec![false; rows.len()];
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        let key = |at: u32| {
            let row = &rows[at as usize];
            (row.instructions, row.input, row.output, row.other)
        };
        order.sort_unstable_by_key(|&at| (key(at), at));
        for group in order.chunk_by(|&a, &b| key(a) == key(b)) {
            group[1..].iter().for_each(|&at| exact[at as usize] = true);
        }
        let question = |at: u32| (rows[at as usize].instructions, rows[at as usize].input);
        for group in order.chunk_by(|&a, &b| question(a) == question(b)) {
            mark_contradictions(rows, group, answers, &mut contradicts);
        }
        let mut near = vec![false; rows.len()];
        self.near_pairs(rows.len(), &mut |earlier, later| {
            let differ = rows[earlier].output != rows[later].output;
            if differ && answers == Answers::Labels {
                contradicts[earlier] = true;
                contradicts[later] = true;
            } else if !exact[later] {
                near[later] = true;
            }
        });
        let tally = |marks: &[bool]| {
            let mut tally = Tally::default();
            let marked = rows.iter().zip(marks).filter(|(_, mark)| **mark);
            marked.for_each(|(row, _)| tally.add(row.line));
            tally
        };
        Repeats { exact: tally(&exact), near: tally(&near), contradictions: tally(&contradicts) }
    }

    /// Rows of `other` whose input is, or nearly is, that of a row here.
    pub(crate) fn shared_with(&self, other: &Self) -> Tally {
        let here = self.rows.len();
        let mut both = self.clone();
        let moved = both.sketches.len() as u32;
        both.rows.extend(&other.rows);
        both.sketch_of.extend(other.sketch_of.iter().map(|&at| match at {
            NO_SKETCH => NO_SKETCH,
            at => at + moved,
        }));
        both.sketches.extend(&other.sketches);
        let questions: HashSet<(u64, u64)> =
            self.rows.iter().map(|row| (row.instructions, row.input)).collect();
        let known = |row: &Kept| questions.contains(&(row.instructions, row.input));
        let mut shared: Vec<bool> = other.rows.iter().map(known).collect();
        both.near_pairs(here, &mut |_, later| {
            if let Some(later) = later.checked_sub(here) {
                shared[later] = true;
            }
        });
        let mut tally = Tally::default();
        let marked = other.rows.iter().zip(&shared).filter(|(_, shared)| **shared);
        marked.for_each(|(row, _)| tally.add(row.line));
        tally
    }

    /// Calls `found` with pairs of rows whose inputs are nearly, but not wholly, the same. Of the earlier
    /// rows only the first `sources` are looked at.
    fn near_pairs(&self, sources: usize, found: &mut dyn FnMut(usize, usize)) {
        let rows = &self.rows;
        let scope = |row: &Kept| (row.instructions, row.numbers);
        let mut keyed: Vec<(u64, u32)> =
            rows.iter().enumerate().map(|(at, row)| (row.words, at as u32)).collect();
        let same_words = |a: &Kept, b: &Kept| a.words == b.words && scope(a) == scope(b);
        runs(&mut keyed, sources, &mut |earlier, later| {
            let (a, b) = (&rows[earlier], &rows[later]);
            if a.input != b.input && same_words(a, b) {
                found(earlier, later);
            }
        });
        for band in 0..BANDS {
            keyed.clear();
            let sketched = (0..rows.len()).filter_map(|at| Some((at, self.sketch(at)?)));
            keyed.extend(sketched.map(|(at, sketch)| (sketch.band(band), at as u32)));
            runs(&mut keyed, sources, &mut |earlier, later| {
                let (a, b) = (&rows[earlier], &rows[later]);
                if a.words != b.words
                    && scope(a) == scope(b)
                    && let (Some(a), Some(b)) = (self.sketch(earlier), self.sketch(later))
                    && a.is_like(b)
                {
                    found(earlier, later);
                }
            });
        }
    }
}

/// Calls `compare` for rows of equal keys: each with the first one and the few before it, so that a run of
/// any length costs no more than its length.
fn runs(keyed: &mut [(u64, u32)], sources: usize, compare: &mut dyn FnMut(usize, usize)) {
    /// Earlier rows that a row is compared with, beside the first.
    const BEFORE: usize = 3;
    keyed.sort_unstable();
    for run in keyed.chunk_by(|a, b| a.0 == b.0) {
        // Rows stand in their order within a run.
        let limit = run.partition_point(|(_, at)| (*at as usize) < sources);
        for (place, &(_, later)) in run.iter().enumerate().skip(1) {
            let end = place.min(limit);
            let start = end.saturating_sub(BEFORE);
            let first = (start > 0).then_some(0);
            for earlier in first.into_iter().chain(start..end) {
                compare(run[earlier].1 as usize, later as usize);
            }
        }
    }
}

/// `group`: rows of one question, equal outputs beside each other.
fn mark_contradictions(rows: &[Kept], group: &[u32], answers: Answers, marks: &mut [bool]) {
    let row = |at: u32| &rows[at as usize];
    let mut mark_if = |some: &[u32], differ: bool| {
        if differ {
            some.iter().for_each(|&at| marks[at as usize] = true);
        }
    };
    match answers {
        Answers::None => {}
        Answers::One | Answers::Labels => {
            mark_if(group, group.iter().any(|&at| row(at).output != row(group[0]).output));
        }
        Answers::Verdicts => {
            for same in group.chunk_by(|&a, &b| row(a).output == row(b).output) {
                mark_if(same, same.iter().any(|&at| row(at).other != row(same[0]).other));
            }
        }
        Answers::Pairs if group.len() > 1 => {
            let pairs: HashSet<(u64, u64)> =
                group.iter().map(|&at| (row(at).output, row(at).other)).collect();
            for at in group {
                let (preferred, other) = (row(*at).output, row(*at).other);
                let swapped = preferred != other && pairs.contains(&(other, preferred));
                mark_if(std::slice::from_ref(at), swapped);
            }
        }
        Answers::Pairs => {}
    }
}
