//! What webhooks say and how they are signed. Who is told, and when, is in the store and in the lane.

pub(crate) mod message;
pub(crate) mod request;
pub(crate) mod signature;
