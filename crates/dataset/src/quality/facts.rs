//! What is kept of one row while its file is read: hashes, shingles, marks. Made beside the tokenising,
//! on all cores.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use super::language::{Language, language_of};
use super::outputs::Outputs;
use super::personal::Kinds;
use super::repeats::Kept;
use super::row::{Roles, Row};
use super::sketch::shingles;
use super::words::{pair, words};

pub(crate) struct Facts {
    pub kept: Kept,
    pub shingles: Vec<u64>,
    pub has_instructions: bool,
    pub has_tools_or_turns: bool,
    pub outputs: Option<Outputs>,
    /// The output, if it is short enough for a label.
    pub short_output: Option<String>,
    pub personal: Kinds,
    pub languages: [Option<Language>; 2],
    pub roles: Roles,
}

/// Longer outputs are no labels, whatever they say; in bytes.
const LONGEST_LABEL: usize = 256;

impl Facts {
    pub fn of(row: &Row<'_>) -> Self {
        let output = row.output.as_deref();
        let mut personal = Kinds::default();
        personal.find(&row.input);
        row.earlier.iter().map(AsRef::as_ref).chain(output).for_each(|text| personal.find(text));
        row.rejected.iter().for_each(|text| personal.find(text));
        let (all, numbers) = words(&row.input).fold((1, 1), |(all, numbers), word| {
            let numbers = if word.has_digit { pair(numbers, word.hash) } else { numbers };
            (pair(all, word.hash), numbers)
        });
        let other = match (&row.rejected, row.label) {
            (Some(rejected), _) => hash(rejected),
            (None, label) => label.map_or(0, |label| 1 + u64::from(label)),
        };
        let kept = Kept {
            line: row.line,
            instructions: hash(&row.instructions),
            input: hash(row.input.trim()),
            words: all,
            numbers,
            output: output.map_or(0, |output| hash(output.trim())),
            other,
        };
        Self {
            kept,
            shingles: shingles(&row.input),
            has_instructions: !row.instructions.is_empty(),
            has_tools_or_turns: row.roles.assistant > 1 || row.roles.tool > 0,
            outputs: output.map(|_| Outputs::of(row.taught())),
            short_output: output.filter(|text| text.len() <= LONGEST_LABEL).map(str::to_owned),
            personal,
            languages: [language_of(&row.input), output.and_then(language_of)],
            roles: row.roles,
        }
    }
}

/// The same in every run, so that a report is.
fn hash(text: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(text)
}
