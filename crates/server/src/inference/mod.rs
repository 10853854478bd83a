//! Chat requests on their way to a worker and answers on their way back.

pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod broker;
pub(crate) mod prompt;

pub(crate) use ask::complete;
