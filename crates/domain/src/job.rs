//! A job's states and the transitions between them.
//!
//! The same rules stand in three places that check each other: here, in the migrations' CHECKs and trigger,
//! and in the `WHERE` of every statement of `store::queue`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The status of a job, in OpenAI's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// The files are being checked; no worker is involved.
    ValidatingFiles,
    /// Waiting for a worker.
    Queued,
    /// A worker holds the lease.
    Running,
    /// Stopped at a checkpoint, on request; `resume` queues it again.
    Paused,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobStatus {
    pub const ALL: [Self; 7] = [
        Self::ValidatingFiles,
        Self::Queued,
        Self::Running,
        Self::Paused,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ValidatingFiles => "validating_files",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// A terminal status never changes again.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether a job in this status may move to `next`.
    pub fn may_become(self, next: Self) -> bool {
        use JobStatus::*;
        match self {
            ValidatingFiles => matches!(next, Queued | Failed | Cancelled),
            Queued => matches!(next, Running | Paused | Failed | Cancelled),
            Running => matches!(next, Queued | Paused | Succeeded | Failed | Cancelled),
            Paused => matches!(next, Queued | Failed | Cancelled),
            Succeeded | Failed | Cancelled => false,
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a job status")]
pub struct UnknownStatus(String);

impl FromStr for JobStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// The training method of a job, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodType {
    Supervised,
    Dpo,
    Reinforcement,
}

impl MethodType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo => "dpo",
            Self::Reinforcement => "reinforcement",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_reads_back_as_itself() {
        for status in JobStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        assert!("finished".parse::<JobStatus>().is_err());
    }

    #[test]
    fn terminal_is_exactly_what_has_no_way_out() {
        for status in JobStatus::ALL {
            let has_exit = JobStatus::ALL.into_iter().any(|next| status.may_become(next));
            assert_eq!(status.is_terminal(), !has_exit, "{status}");
        }
    }
}
