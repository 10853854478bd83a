//! Requests for text on their way to a worker and answers on their way back.

pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod broker;
pub(crate) mod chunks;
mod form;
pub(crate) mod keeper;
pub(crate) mod prompt;
mod sse;
pub(crate) mod text;
mod tools;
mod whole;

pub(crate) use ask::complete;
