//! Events of jobs as they happen, for any number of readers.
//!
//! One poller per process asks the database which of the jobs that somebody reads have moved, and hands their
//! new events to all readers at once: the cost grows with what happens, not with who watches. Events that
//! another server has written arrive the same way; a bell within this process only spares the wait.

mod hub;
mod stream;

pub(crate) use hub::{Hub, run};
pub(crate) use stream::open;
