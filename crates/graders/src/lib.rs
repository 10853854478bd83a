//! Graders in OpenAI's definitions: what they say, and everything about them that needs no model and no
//! process: templates, string checks, text metrics, formulas, and what to ask a judge and how to read its
//! answer.
//!
//! [`Grader::parse`] reads a definition; [`Grader::check`] refuses what can never work, for graders that are
//! kept; the modules under it compute. What it does not do: talk to models, run Python, know of jobs or evals
//! beyond which graders fit them. The server does these.

pub mod compare;
mod definition;
mod errors;
mod fault;
pub mod formula;
pub mod judge;
mod parse;
pub mod similarity;
pub mod string_check;
pub mod template;

pub use definition::{
    Grader, Kind, LabelModel, Multi, Operation, Python, SamplingParams, ScoreModel, StringCheck,
    TextSimilarity,
};
pub use errors::{Errors, Failure};
pub use fault::Fault;
pub use similarity::{Measure, Metric};
pub use template::{Variables, sample_of_text};
