//! The report of a job: the tuned model against the model that it was tuned from, with and without examples in the
//! prompt, on rows that were held out. Who makes reports is the lane's business.
//!
//! `docs/REPORT.md` defines every figure. What is not here: training, and rows that were trained on.

pub(crate) mod asking;
pub(crate) mod content;
pub(crate) mod examples;
pub(crate) mod measures;
pub(crate) mod shots;
mod verdict;

use serde::{Deserialize, Serialize};
use store::jobs::JobRow;

pub(crate) const MAX_ROWS: i64 = 1000;
pub(crate) const MAX_SHOTS: i64 = 32;

/// What a report is to contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wish {
    /// Held-out rows that are asked, at most.
    pub rows: usize,
    /// Examples in the prompt of the contender that has some; 0: there is none.
    pub few_shot: usize,
    /// Chooses the rows, and the resamples of the bootstrap.
    pub seed: u64,
}

impl Wish {
    /// What is made unless something else is asked for.
    pub(crate) fn of_job(job: &JobRow) -> Self {
        Self { rows: 50, few_shot: 4, seed: u64::from(job.seed) }
    }
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The model that the job started from.
    Base,
    /// The same, with training rows in its prompt.
    FewShot,
    Tuned,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::FewShot => "few_shot",
            Self::Tuned => "tuned",
        }
    }
}
