//! Handlers of the public API, one file per kind of object.

pub(crate) mod bad_lines;
pub(crate) mod completions;
pub(crate) mod estimate;
pub(crate) mod evals;
pub(crate) mod files;
pub(crate) mod graders;
pub(crate) mod health;
pub(crate) mod jobs;
pub(crate) mod models;
pub(crate) mod permissions;
pub(crate) mod preview;
pub(crate) mod reports;
pub(crate) mod scores;
pub(crate) mod stored;
pub(crate) mod texts;
pub(crate) mod uploads;
pub(crate) mod validation;
pub(crate) mod webhooks;
