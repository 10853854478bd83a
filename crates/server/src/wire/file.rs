//! Files as the API shows them.

use serde::Serialize;
use utoipa::ToSchema;

use super::list::Identified;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct File {
    #[schema(example = "file-0123456789abcdefABCDEF")]
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    pub bytes: u64,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub filename: String,
    pub purpose: String,
    /// `uploaded`, `processed` or `error`.
    pub status: &'static str,
    pub status_details: Option<String>,
}

impl Identified for File {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The answer to a deletion, of a file, a model or a stored completion.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Deleted {
    pub id: String,
    /// `file`, `model`, `checkpoint.permission` or `chat.completion.deleted`.
    pub object: &'static str,
    pub deleted: bool,
}
