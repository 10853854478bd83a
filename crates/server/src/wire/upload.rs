//! Uploads in parts on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::file::File;

/// `POST /uploads`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateUpload {
    pub filename: String,
    /// `fine-tune` for training files.
    pub purpose: String,
    /// Size of the whole content.
    pub bytes: i64,
    /// Free text.
    pub mime_type: String,
    pub expires_after: Option<ExpiresAfter>,
}

/// When a file expires.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpiresAfter {
    /// Only `created_at`.
    pub anchor: String,
    /// 3600 to 2592000.
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
