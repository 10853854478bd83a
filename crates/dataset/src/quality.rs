//! What is doubtful about the data of a file whose rows have no fault: too few rows, copies,
//! contradictions, personal data, outputs that nobody meant.
//!
//! Everything here is a remark: rules about texts are wrong now and then, and a doubtful file may be what
//! somebody wants. Rows of all formats are looked at in one way, as instructions, input and output
//! ([`row::Row`]). Of a row only hashes and a small signature are kept. The rules, with their reasons and
//! limits, are described in `docs/DATA.md`.

mod facts;
mod gather;
mod labels;
mod language;
mod numbers;
mod outputs;
mod personal;
mod phrases;
mod repeats;
mod report;
mod row;
mod secrets;
mod sketch;
mod task;
mod words;

use serde::Serialize;

pub use labels::Label;
pub use task::{Sizes, Task};

use crate::remark::Remark;
pub(crate) use facts::Facts;
pub(crate) use gather::Gathered;
use repeats::RowIndex;
pub(crate) use row::Row;

/// The figures of a file, and what is doubtful about it.
#[derive(Debug, Clone, Serialize)]
pub struct Quality {
    /// A guess.
    pub task: Task,
    pub task_reason: &'static str,
    /// Rows that such a task usually needs.
    pub recommended_examples: Sizes,
    /// `too_few`, `minimum`, `good` or `excellent`, by those numbers.
    pub size: &'static str,
    /// Rows that were compared with each other: the first 250,000.
    pub compared_examples: u64,
    /// Rows that repeat an earlier one whole.
    pub exact_duplicates: u64,
    /// Rows whose input is nearly that of an earlier one.
    pub near_duplicates: u64,
    /// Rows whose input, or nearly, another row answers otherwise.
    pub contradictions: u64,
    /// Distinct pairs of words among those of the first inputs, from 0 to 1; none where there are few.
    pub input_diversity: Option<f64>,
    /// Of a classification: labels with their rows, the commonest first, at most 200.
    pub labels: Vec<Label>,
    /// Of inputs and outputs, where a language was recognised; the commonest first.
    pub input_languages: Vec<Count>,
    pub output_languages: Vec<Count>,
    /// Messages by role.
    pub messages: Vec<Count>,
    /// Rows with several assistant messages, or with tools.
    pub several_turns: u64,
    /// Rows with a system prompt or tools.
    pub with_instructions: u64,
    /// Rows with personal data, by kind.
    pub personal_data: Vec<Count>,
    /// What should be looked at, the gravest first.
    #[serde(skip)]
    pub(crate) remarks: Vec<Remark>,
    /// For comparison with another file.
    #[serde(skip)]
    pub(crate) rows: RowIndex,
}

/// How many of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    pub name: &'static str,
    pub count: u64,
}
