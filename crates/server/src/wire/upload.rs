//! Uploads in parts on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::file::File;

/// `POST /uploads`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateUpload {
    #[schema(min_length = 1, max_length = 1024)]
    pub filename: String,
    /// `assistants`, `batch`, `fine-tune`, `vision`, `user_data` or `evals`.
    pub purpose: String,
    /// Size of the whole content.
    #[schema(minimum = 0)]
    pub bytes: i64,
    /// Free text.
    #[schema(max_length = 255)]
    pub mime_type: String,
    pub expires_after: Option<ExpiresAfter>,
}

/// When a file expires.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpiresAfter {
    /// Always `created_at`.
    pub anchor: String,
    #[schema(minimum = 3600, maximum = 2592000)]
    pub seconds: i64,
}

/// `POST /uploads/{upload_id}/complete`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompleteUpload {
    /// In the order of the content.
    pub part_ids: Vec<String>,
    /// Of the whole content, hexadecimal; it is compared.
    pub md5: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Upload {
    #[schema(example = "upload_0123456789abcdefABCDEF")]
    pub id: String,
    /// Always `upload`.
    pub object: &'static str,
    /// As announced.
    pub bytes: u64,
    pub created_at: i64,
    /// Of the upload, not of the file.
    pub expires_at: i64,
    pub filename: String,
    pub purpose: String,
    /// `pending`, `completed`, `cancelled` or `expired`.
    pub status: &'static str,
    /// What the upload has become.
    pub file: Option<File>,
    /// The parts received so far; only where one upload is retrieved, which OpenAI's API does not do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<UploadPart>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UploadPart {
    #[schema(example = "part_0123456789abcdefABCDEF")]
    pub id: String,
    /// Always `upload.part`.
    pub object: &'static str,
    pub created_at: i64,
    pub upload_id: String,
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
}
