//! The right of other projects to use a model.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::list::Identified;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreatePermissions {
    /// The projects that may use the model.
    #[schema(min_items = 1, max_items = 100)]
    pub project_ids: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Permission {
    #[schema(example = "cp_0123456789abcdefABCDEF")]
    pub id: String,
    pub created_at: i64,
    /// The project that may use the model.
    pub project_id: String,
    /// Always `checkpoint.permission`.
    pub object: &'static str,
}

impl Identified for Permission {
    fn id(&self) -> &str {
        &self.id
    }
}
