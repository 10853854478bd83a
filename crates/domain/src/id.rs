//! Identifiers: one newtype per kind of object, so that a file's id cannot be passed where a job's is meant.
//!
//! The text is a prefix (OpenAI's own) and a version-7 UUID in base 62, so ids sort by creation time and
//! stay within the 22–24 alphanumeric characters that clients have seen.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A 128-bit number as 22 base-62 digits, most significant first, so that text order is number order.
fn base62(mut number: u128) -> String {
    let mut digits = [b'0'; 22];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(number % 62) as usize];
        number /= 62;
    }
    String::from_utf8_lossy(&digits).into_owned()
}

/// `length` random base-62 characters (at most 21), from the random bits of a version-4 UUID.
pub fn random_suffix(length: usize) -> String {
    // The low digits: the high ones carry the UUID's fixed version and variant bits.
    let text = base62(Uuid::new_v4().as_u128());
    text[text.len() - length.min(21)..].to_owned()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A new id; later ids sort after earlier ones.
            #[expect(clippy::new_without_default, reason = "an id is drawn, not defaulted")]
            pub fn new() -> Self {
                Self(format!("{}{}", $prefix, base62(Uuid::now_v7().as_u128())))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        // Ids that arrive from outside are opaque: an unknown one is "not found", never malformed.
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    )*};
}

ids! {
    /// An uploaded or produced file.
    FileId = "file-";
    /// An upload: a file that comes in parts.
    UploadId = "upload_";
    /// A part of an upload.
    PartId = "part_";
    /// A fine-tuning job.
    JobId = "ftjob-";
    /// An event of a job.
    EventId = "ftevent-";
    /// A checkpoint of a job.
    CheckpointId = "ftckpt_";
    /// The right of another project to use a model.
    PermissionId = "cp_";
    /// A project: every row belongs to one.
    ProjectId = "proj_";
    /// An organisation.
    OrganizationId = "org-";
    /// An API key's public part.
    ApiKeyId = "key_";
    /// One HTTP request.
    RequestId = "req_";
    /// One chat completion.
    CompletionId = "chatcmpl-";
    /// An evaluation: graders over a data source.
    EvalId = "eval_";
    /// A run of an evaluation.
    EvalRunId = "evalrun_";
    /// What one row of a run's data source has led to.
    OutputItemId = "outputitem_";
    /// One completion of a text.
    TextCompletionId = "cmpl-";
    /// A webhook endpoint: where a project wants to hear of events.
    WebhookEndpointId = "whe_";
    /// An event as webhooks tell it.
    WebhookEventId = "evt_";
    /// The delivery of an event to an endpoint.
    WebhookDeliveryId = "whd_";
}

/// The name under which a model answers: a base model's (`smollm2-135m-instruct`), a tuned model's
/// (`ft:base:org:suffix:8chars`) or a checkpoint's (`…:ckpt-step-n`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(String);

impl ModelId {
    /// A new tuned model's name. An empty suffix leaves two colons in a row, as OpenAI's names do.
    pub fn tuned(base: &str, organization: &str, suffix: Option<&str>) -> Self {
        let suffix = suffix.map(sanitize_suffix).unwrap_or_default();
        Self(format!("ft:{base}:{organization}:{suffix}:{}", random_suffix(8)))
    }

    /// The name of an intermediate checkpoint: eight characters of its own, and the step.
    pub fn checkpoint(base: &str, organization: &str, suffix: Option<&str>, step: u64) -> Self {
        let Self(tuned) = Self::tuned(base, organization, suffix);
        Self(format!("{tuned}:ckpt-step-{step}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_tuned(&self) -> bool {
        self.0.starts_with("ft:")
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for ModelId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for ModelId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A suffix as it stands in a model name: `[A-Za-z0-9_.-]`, everything else becomes `-`; never a colon.
fn sanitize_suffix(suffix: &str) -> String {
    suffix
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '-' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_carry_their_prefix_and_sort_by_creation() {
        let ids: Vec<JobId> = (0..100).map(|_| JobId::new()).collect();
        assert!(ids.iter().all(|id| id.as_str().len() == "ftjob-".len() + 22));
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "version-7 UUIDs are monotonic");
    }

    #[test]
    fn a_model_name_never_gains_a_colon_from_its_suffix() {
        let name = ModelId::tuned("base", "org", Some("my: new/model"));
        assert!(name.as_str().starts_with("ft:base:org:my--new-model:"), "{name}");
        assert_eq!(name.as_str().matches(':').count(), 4);
        assert!(ModelId::tuned("base", "org", None).as_str().starts_with("ft:base:org::"));
    }
}
