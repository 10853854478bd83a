//! What a file seems to be for, and how many rows such a task usually needs. A guess, and said as one.

use serde::Serialize;

use crate::format::Format;

/// A kind of task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "&str")]
pub enum Task {
    Classification,
    Extraction,
    Code,
    /// Texts without a question: knowledge of a field.
    Domain,
    /// Everything else: how to answer.
    Style,
}

/// Usual numbers of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sizes {
    pub minimum: u64,
    pub good: u64,
    pub excellent: u64,
}

/// Shares of the outputs of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shares {
    pub are_labels: bool,
    pub json: f64,
    pub code: f64,
}

impl Task {
    pub(crate) fn guess(format: Format, shares: Shares) -> Self {
        match shares {
            _ if format == Format::Text => Self::Domain,
            Shares { json, .. } if json >= 0.8 => Self::Extraction,
            Shares { are_labels: true, .. } => Self::Classification,
            Shares { code, .. } if code >= 0.5 => Self::Code,
            _ => Self::Style,
        }
    }

    /// As in the figures.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Extraction => "extraction",
            Self::Code => "code",
            Self::Domain => "domain",
            Self::Style => "style",
        }
    }

    /// Rules of thumb of the field, not of this model.
    pub fn sizes(self) -> Sizes {
        let [minimum, good, excellent] = match self {
            Self::Classification => [50, 500, 5_000],
            Self::Extraction => [100, 1_000, 10_000],
            Self::Style => [200, 1_000, 5_000],
            Self::Domain => [500, 5_000, 50_000],
            Self::Code => [1_000, 10_000, 100_000],
        };
        Sizes { minimum, good, excellent }
    }

    /// Why it was guessed.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Classification => "the outputs are a few short labels",
            Self::Extraction => "most outputs are JSON",
            Self::Code => "most outputs have a block of code",
            Self::Domain => "the rows are plain texts",
            Self::Style => "the outputs are texts",
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Extraction => "extraction of data",
            Self::Code => "writing of code",
            Self::Domain => "knowledge of a field",
            Self::Style => "a way to answer",
        }
    }
}

impl From<Task> for &str {
    fn from(task: Task) -> Self {
        task.as_str()
    }
}

impl Sizes {
    /// `too_few`, `minimum`, `good` or `excellent`.
    pub fn rating(self, rows: u64) -> &'static str {
        match rows {
            rows if rows >= self.excellent => "excellent",
            rows if rows >= self.good => "good",
            rows if rows >= self.minimum => "minimum",
            _ => "too_few",
        }
    }
}
