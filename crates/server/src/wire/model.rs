//! Models as the API shows them: base models, tuned models, checkpoints.

use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    pub created: i64,
    pub owned_by: String,
    /// The base model that this one was tuned from; itself for a base model.
    pub root: String,
    /// The base model of a tuned one.
    pub parent: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    pub data: Vec<Model>,
}
