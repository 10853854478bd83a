//! Scores of reward models on the wire; an extension of this server's.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::completion::Usage;
use super::shape::message::{Message, Tool};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateScore {
    /// A reward model: the result of a job with `loss_type` `reward`, or one of its checkpoints.
    pub model: String,
    /// A whole conversation; its last message is the answer to be scored.
    #[schema(value_type = Vec<Message>, min_items = 1)]
    pub messages: Vec<Value>,
    #[schema(value_type = Option<Vec<Tool>>)]
    pub tools: Option<Vec<Value>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Score {
    /// Always `fine_tuning.score`.
    pub object: &'static str,
    pub model: String,
    /// Higher is better; only differences between answers to one input mean something.
    pub score: f64,
    pub usage: Usage,
}
