//! Stored completions on the wire: the completion as it was given, and the request's values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::completion::Completion;
use super::list::Identified;
use super::shape::message::Message;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoredCompletion {
    #[serde(skip)]
    pub id: String,
    #[serde(flatten)]
    #[schema(value_type = Completion)]
    pub fields: Map<String, Value>,
}

impl Identified for StoredCompletion {
    fn id(&self) -> &str {
        &self.id
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoredMessage {
    /// The completion's id and the message's number.
    pub id: String,
    #[serde(flatten)]
    #[schema(value_type = Message)]
    pub fields: Map<String, Value>,
}

impl Identified for StoredMessage {
    fn id(&self) -> &str {
        &self.id
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpdateCompletion {
    #[schema(value_type = BTreeMap<String, String>)]
    pub metadata: Option<BTreeMap<String, String>>,
}
