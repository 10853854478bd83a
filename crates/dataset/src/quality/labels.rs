//! The outputs of a file as labels: few different short ones, each many times.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::words::{hash_of, pair, words};
use crate::tally::Tally;

/// More different outputs are no labels.
const MAX_LABELS: usize = 200;
/// Longer outputs are no labels, in characters.
const MAX_CHARACTERS: usize = 60;
/// Outputs that are too long, at most: labelled data has a stray sentence now and then.
const STRAY: f64 = 0.02;
/// Rows per label, at least: fewer are answers that happen to be short.
const ROWS_PER_LABEL: usize = 5;
/// A model that always says the commonest label is right ten times as often as with the rarest.
const IMBALANCE: u64 = 10;
/// A label of so few rows, in a file of 20 times as many, is likely misspelled.
const RARE: u64 = 2;
const RARE_IN: u64 = 200;

/// One label and its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Label {
    pub label: String,
    pub examples: u64,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' {}", self.label, self.examples)
    }
}

/// Gathers outputs as long as they may be labels.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    found: HashMap<String, Tally>,
    too_long: u64,
    all: u64,
    gave_up: bool,
}

/// What is wrong with labels.
#[derive(Debug, Default)]
pub(crate) struct LabelFaults {
    /// The commonest and the rarest that is no misspelling, if they are far apart.
    pub imbalance: Option<(Label, Label)>,
    /// Rows whose label differs from a commoner one in case, space or marks alone.
    pub spelled: Tally,
    /// Rows of labels that hardly any row has.
    pub rare: Tally,
}

impl Labels {
    pub fn add(&mut self, output: &str, line: u64) {
        self.all += 1;
        let output = output.trim();
        if output.chars().nth(MAX_CHARACTERS).is_some() {
            self.too_long += 1;
        } else if let Some(known) = self.found.get_mut(output) {
            known.add(line);
        } else if self.found.len() == MAX_LABELS {
            self.gave_up = true;
        } else if !self.gave_up && !output.is_empty() {
            let mut tally = Tally::default();
            tally.add(line);
            self.found.insert(output.to_owned(), tally);
        }
    }

    /// The labels, the commonest first; none where the outputs are no labels.
    pub fn found(&self) -> Option<Vec<Label>> {
        let often = self.found.values().filter(|rows| rows.count > 1).count();
        let once = self.found.len() - often;
        // What comes once may be a slip of the pen.
        let distinct = often + once / 4;
        let are_labels = !self.gave_up
            && often > 1
            && self.too_long as f64 <= STRAY * self.all as f64
            && distinct * ROWS_PER_LABEL <= self.all as usize;
        are_labels.then(|| {
            let label = |(label, rows): (&String, &Tally)| Label {
                label: label.clone(),
                examples: rows.count,
            };
            let mut labels: Vec<Label> = self.found.iter().map(label).collect();
            labels.sort_by(|a, b| b.examples.cmp(&a.examples).then(a.label.cmp(&b.label)));
            labels
        })
    }

    pub fn faults(&self, labels: &[Label]) -> LabelFaults {
        let mut faults = LabelFaults::default();
        let mut commonest: HashMap<u64, &str> = HashMap::new();
        let mut sound = Vec::new();
        for label in labels {
            let lines = || self.found.get(&label.label).into_iter();
            let first = *commonest.entry(words_of(&label.label)).or_insert(&label.label);
            if first != label.label {
                lines().for_each(|rows| faults.spelled.extend(rows));
            } else if label.examples <= RARE && self.all >= RARE_IN {
                lines().for_each(|rows| faults.rare.extend(rows));
            } else {
                sound.push(label);
            }
        }
        if let (Some(most), Some(least)) = (sound.first(), sound.last())
            && most.examples >= IMBALANCE * least.examples
        {
            faults.imbalance = Some(((*most).clone(), (*least).clone()));
        }
        faults
    }
}

fn words_of(label: &str) -> u64 {
    let hashes = words(label).map(|word| word.hash);
    match hashes.fold(None, |all, word| Some(pair(all.unwrap_or(1), word))) {
        Some(hash) => hash,
        // Marks alone, such as emoji, or "+" and "-".
        None => hash_of(label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(outputs: &[(&str, usize)]) -> Labels {
        let mut labels = Labels::default();
        let mut line = 0;
        for (output, times) in outputs {
            for _ in 0..*times {
                line += 1;
                labels.add(output, line);
            }
        }
        labels
    }

    #[test]
    fn few_short_outputs_that_come_often_are_labels() {
        let found = labels(&[("no", 20), ("yes", 30)]).found().unwrap();
        let found: Vec<_> = found.iter().map(|l| (l.label.as_str(), l.examples)).collect();
        assert_eq!(found, [("yes", 30), ("no", 20)]);
        let texts: Vec<String> = (0..50).map(|i| format!("answer {i}")).collect();
        let texts: Vec<(&str, usize)> = texts.iter().map(|text| (text.as_str(), 1)).collect();
        assert!(labels(&texts).found().is_none());
        assert!(labels(&[("yes", 30)]).found().is_none(), "one output is no choice");
        assert!(labels(&[("a", 30), ("b", 30), (&"long ".repeat(20), 30)]).found().is_none());
    }

    #[test]
    fn misspelled_rare_and_unbalanced_labels_are_named() {
        let labels =
            labels(&[("spam", 300), ("ham", 20), ("Spam.", 1), ("hamm", 1), ("+", 90), ("-", 90)]);
        let faults = labels.faults(&labels.found().unwrap());
        assert_eq!((faults.spelled.lines, faults.rare.lines), (vec![321], vec![322]));
        let (most, least) = faults.imbalance.unwrap();
        assert_eq!((most.label.as_str(), least.label.as_str()), ("spam", "ham"));
    }
}
