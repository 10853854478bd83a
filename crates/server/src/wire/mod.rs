//! The shapes of the wire, in OpenAI's names and field order. They import nothing of the store's;
//! `convert` is where they meet rows.

pub(crate) mod advice;
pub(crate) mod completion;
pub(crate) mod error;
pub(crate) mod estimate;
pub(crate) mod eval;
pub(crate) mod event;
pub(crate) mod file;
pub(crate) mod grader;
pub(crate) mod job;
pub(crate) mod list;
pub(crate) mod model;
pub(crate) mod permission;
pub(crate) mod preview;
pub(crate) mod query;
pub(crate) mod report;
pub(crate) mod score;
pub(crate) mod shape;
pub(crate) mod stored;
pub(crate) mod text;
pub(crate) mod upload;
pub(crate) mod validation;
pub(crate) mod webhook;
