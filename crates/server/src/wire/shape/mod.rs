//! What stands inside the fields that handlers read by hand, so that an error can name the part that is wrong.
//! Only the description of the API uses these types; they hold no rule of their own.

#![expect(dead_code, reason = "only their schemas are used")]

pub(crate) mod eval;
pub(crate) mod grader;
pub(crate) mod job;
pub(crate) mod message;
pub(crate) mod options;

use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A JSON object whose fields are the caller's own.
#[derive(Serialize)]
pub(crate) struct FreeObject;

impl PartialSchema for FreeObject {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .description(Some("A JSON object of any fields."))
            .additional_properties(Some(AdditionalProperties::FreeForm(true)))
            .into()
    }
}

impl ToSchema for FreeObject {}

/// A text, or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Texts {
    One(String),
    Several(Vec<String>),
}
