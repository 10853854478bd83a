//! Evaluations: definitions as they come, what a run reads and asks, and how one row is judged. Who executes a
//! run is the lane's business.

pub(crate) mod definition;
pub(crate) mod judging;
pub(crate) mod plan;
pub(crate) mod rows;
pub(crate) mod sampling;
pub(crate) mod schema;
pub(crate) mod show;
