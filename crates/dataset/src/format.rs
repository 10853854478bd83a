//! What training rows teach, whatever the [`Shape`](crate::Shape) in which they are written.

use std::fmt;

use crate::shape::Shape;

/// What kind of training data a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Conversations of which the assistant's messages are trained.
    Chat,
    /// Two answers to one input, of which one is the better.
    Preference,
    /// One answer to an input, and whether it is a good one.
    Labelled,
    /// Continued pre-training.
    Text,
    /// Conversations that end with the user: the answers are graded, not given.
    Reinforcement,
}

/// What the rows of a file may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    One(Format),
    /// Chat or plain text, all rows alike: the first row that is one of them decides.
    Supervised,
}

impl From<Format> for Expected {
    fn from(format: Format) -> Self {
        Self::One(format)
    }
}

impl Expected {
    /// Whether a file may hold such rows.
    pub(crate) fn takes(self, format: Format) -> bool {
        match self {
            Self::One(one) => one == format,
            Self::Supervised => matches!(format, Format::Chat | Format::Text),
        }
    }

    /// What a row that looks like `shape` is taken for: items and conversations differ in their use.
    pub(crate) fn sees(self, shape: Shape) -> Shape {
        match (self, shape) {
            (Self::One(Format::Reinforcement), Shape::Messages | Shape::Chat) => {
                Shape::Reinforcement
            }
            _ => shape,
        }
    }

    /// OpenAI's shape, until a row shows another.
    pub(crate) fn usual(self) -> Shape {
        match self {
            Self::One(Format::Chat) | Self::Supervised => Shape::Messages,
            Self::One(Format::Preference) => Shape::Preference,
            Self::One(Format::Labelled) => Shape::Labelled,
            Self::One(Format::Text) => Shape::Text,
            Self::One(Format::Reinforcement) => Shape::Reinforcement,
        }
    }
}

impl Format {
    /// Sequences of tokens that a row becomes.
    pub fn sequences(self) -> usize {
        if self == Self::Preference { 2 } else { 1 }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chat => "chat messages",
            Self::Preference => "preference pairs",
            Self::Labelled => "labelled answers",
            Self::Text => "plain text",
            Self::Reinforcement => "reinforcement items",
        })
    }
}
