//! Extractors carry policy: who calls, which page, which id, what body. Handlers receive checked
//! values.

pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod json;
pub(crate) mod page;
pub(crate) mod path;
pub(crate) mod upload;

pub(crate) use auth::{Asker, Caller, Worker};
pub(crate) use json::{Json, JsonObject, JsonOrNothing, from_value};
pub(crate) use page::{Filters, Flag, Page};
pub(crate) use path::{Id, Ids, Segments};
