//! Rows one after another, in the order of lines: counts, and what is kept for comparison.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use super::facts::Facts;
use super::labels::Labels;
use super::language::{Language, NAMES};
use super::outputs::Form;
use super::personal::KINDS;
use super::phrases;
use super::repeats::RowIndex;
use super::row::Roles;
use super::sketch::Sketch;
use crate::tally::Tally;

/// Pairs of words whose variety is measured: a fixed number, because a longer text repeats itself more.
pub(crate) const DIVERSITY_SAMPLE: usize = 20_000;
/// Shingles that wait for the phrases of the file to be known, at most: 16 MB.
const MAX_WAITING: usize = 2 << 20;
/// Different sets of keys that are counted.
const MAX_KEY_SETS: usize = 1000;

/// What is known of a file so far.
#[derive(Default)]
pub(crate) struct Gathered {
    /// Rows that wait until the phrases of the file are known.
    waiting: Vec<Facts>,
    waiting_shingles: usize,
    phrases: Option<HashSet<u64>>,
    pub index: RowIndex,
    pub counts: Counts,
}

/// Counts of rows.
#[derive(Default)]
pub(crate) struct Counts {
    pub rows: u64,
    pub with_output: u64,
    pub with_instructions: Tally,
    pub without_instructions: Tally,
    pub without_user: Tally,
    pub several_turns: u64,
    pub roles: Roles,
    pub labels: Labels,
    pub empty: Tally,
    pub refusals: Tally,
    pub repeated: Tally,
    pub prose: u64,
    pub open: Tally,
    pub code: u64,
    pub json: u64,
    pub no_json: Tally,
    /// Rows by the keys of their output.
    pub key_sets: HashMap<u64, Tally>,
    pub personal: [Tally; KINDS.len()],
    /// By language, of inputs and of outputs.
    pub languages: [[Tally; NAMES.len()]; 2],
    pub sampled: usize,
    pub distinct: HashSet<u64>,
}

impl Gathered {
    /// Takes a batch of rows, in the order of lines.
    pub fn add(&mut self, rows: Vec<Facts>) {
        rows.iter().for_each(|row| self.counts.add(row));
        if self.phrases.is_some() {
            return self.sketch(rows);
        }
        self.waiting_shingles += rows.iter().map(|row| row.shingles.len()).sum::<usize>();
        self.waiting.extend(rows);
        if self.waiting.len() >= phrases::SAMPLE || self.waiting_shingles >= MAX_WAITING {
            self.learn();
        }
    }

    /// No row comes any more.
    pub fn end(&mut self) {
        if self.phrases.is_none() {
            self.learn();
        }
    }

    fn learn(&mut self) {
        let rows = std::mem::take(&mut self.waiting);
        let inputs = rows.iter().map(|row| (row.kept.input, row.shingles.as_slice()));
        self.phrases = Some(phrases::learn(inputs));
        self.sketch(rows);
    }

    fn sketch(&mut self, mut rows: Vec<Facts>) {
        let none = HashSet::new();
        let phrases = self.phrases.as_ref().unwrap_or(&none);
        let sketches: Vec<Option<Sketch>> = rows
            .par_iter_mut()
            .map(|row| {
                row.shingles.retain(|shingle| !phrases.contains(shingle));
                Sketch::of(&row.shingles)
            })
            .collect();
        for (row, sketch) in rows.iter().zip(sketches) {
            self.counts.sample(&row.shingles);
            self.index.add(row.kept, sketch);
        }
    }
}

impl Counts {
    fn add(&mut self, row: &Facts) {
        let line = row.kept.line;
        self.rows += 1;
        self.with_instructions.add_if(row.has_instructions, line);
        self.without_instructions.add_if(!row.has_instructions, line);
        self.several_turns += u64::from(row.has_tools_or_turns);
        for (sum, count) in [
            (&mut self.roles.system, row.roles.system),
            (&mut self.roles.user, row.roles.user),
            (&mut self.roles.assistant, row.roles.assistant),
            (&mut self.roles.tool, row.roles.tool),
        ] {
            *sum += count;
        }
        for (kind, tally) in self.personal.iter_mut().enumerate() {
            tally.add_if(row.personal.has(kind as u8), line);
        }
        for (tallies, language) in self.languages.iter_mut().zip(row.languages) {
            let of = |language: Language| usize::from(language);
            language.map(of).into_iter().for_each(|language| tallies[language].add(line));
        }
        let Some(outputs) = row.outputs else { return };
        self.with_output += 1;
        self.without_user.add_if(row.roles.user == 0, line);
        // A text that is too long for a label says so by its length alone.
        self.labels.add(row.short_output.as_deref().unwrap_or(TOO_LONG), line);
        self.empty.add_if(outputs.is_empty, line);
        self.refusals.add_if(outputs.refuses, line);
        self.repeated.add_if(outputs.repeats, line);
        self.prose += u64::from(outputs.is_prose);
        self.open.add_if(outputs.is_open, line);
        self.code += u64::from(outputs.has_code);
        match outputs.form {
            Form::Text => self.no_json.add(line),
            Form::Json(keys) => {
                self.json += 1;
                if let Some(keys) = keys
                    && (self.key_sets.len() < MAX_KEY_SETS || self.key_sets.contains_key(&keys))
                {
                    self.key_sets.entry(keys).or_default().add(line);
                }
            }
        }
    }

    fn sample(&mut self, shingles: &[u64]) {
        let room = DIVERSITY_SAMPLE - self.sampled;
        let taken = &shingles[..shingles.len().min(room)];
        self.sampled += taken.len();
        self.distinct.extend(taken);
    }
}

/// Any text beyond the length of labels.
const TOO_LONG: &str = "................................................................";
