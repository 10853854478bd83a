//! The description of the public API: what the handlers say of themselves, and what holds for all of them.
//!
//! Handlers describe what they take and what they answer when all is well. Added here, in one place: the errors
//! that any call may answer, the headers of every answer, keys, and closed sets of words, which stand in the
//! comments of fields only (see [`words`]).

mod errors;
mod words;

use axum::response::Html;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

/// A page that shows the description, for people. It needs nothing but this server.
const PAGE: &str = include_str!("page.html");
/// Only what the page itself contains, and only this server.
const POLICY: &str = "default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "finetuned",
        description = "OpenAI's files, fine-tuning, models and chat completions API on your own \
                       machines.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "Files", description = "Training data and results."),
        (name = "Uploads", description = "Large files, in parts."),
        (name = "Fine-tuning", description = "Jobs, their events and checkpoints, and who may use what they made."),
        (name = "Graders", description = "Scores of answers, by rules, by models, by programs."),
        (name = "Evals", description = "Graders over many rows."),
        (name = "Models", description = "Base models, tuned models and checkpoints."),
        (name = "Chat", description = "Answers to conversations, and those that were kept."),
        (name = "Completions", description = "Continuations of plain texts."),
        (name = "Webhooks", description = "Who is told what has happened."),
        (name = "Health", description = "Is the server there?"),
        (name = "Description", description = "This description.")
    ),
    security(("bearer" = []), ("api_key" = []))
)]
pub(crate) struct Description;

/// Everything that the routes do not say themselves.
pub(crate) fn complete(openapi: &utoipa::openapi::OpenApi) -> Value {
    let mut openapi = serde_json::to_value(openapi).expect("a description is JSON");
    openapi["components"]["securitySchemes"] = json!({
        "bearer": {"type": "http", "scheme": "bearer"},
        "api_key": {"type": "apiKey", "in": "header", "name": "api-key", "description": "As Azure's clients send it."},
    });
    openapi["components"]["responses"] = errors::responses();
    openapi["components"]["headers"] = errors::headers();
    for (path, item) in object_mut(&mut openapi["paths"]) {
        for operation in object_mut(item).values_mut() {
            split_summary(operation);
            tidy_parameters(operation);
            mark_binary(operation);
            errors::add(operation, path);
        }
    }
    name_items(&mut openapi["components"]["schemas"]);
    words::close(&mut openapi);
    openapi
}

/// `GET /openapi.json`: the API's description.
#[utoipa::path(get, path = "/openapi.json", tag = "Description", operation_id = "describe",
    security(()), responses((status = 200, body = std::collections::BTreeMap<String, Value>)))]
pub(crate) async fn openapi() -> axum::Json<Value> {
    axum::Json(crate::openapi())
}

/// A page that shows the API's description.
#[utoipa::path(get, path = "/docs", tag = "Description", operation_id = "readDocs", security(()),
    responses((status = 200, content_type = "text/html; charset=utf-8", body = String)))]
pub(crate) async fn docs() -> ([(&'static str, &'static str); 2], Html<&'static str>) {
    let headers = [("content-security-policy", POLICY), ("x-content-type-options", "nosniff")];
    (headers, Html(PAGE))
}

/// The first sentence says what a call does; the whole says the rest.
fn split_summary(operation: &mut Value) {
    let Some(text) = operation["summary"].as_str() else { return };
    let rest = operation["description"].as_str().unwrap_or_default();
    let text = format!("{text} {rest}").split_whitespace().collect::<Vec<_>>().join(" ");
    let summary = text.split_once(". ").map_or(text.as_str(), |(first, _)| first);
    let summary = summary.trim_end_matches('.').to_owned();
    operation["summary"] = summary.into();
    operation["description"] = text.into();
}

/// A parameter that is not there is not null.
fn tidy_parameters(operation: &mut Value) {
    for parameter in operation["parameters"].as_array_mut().into_iter().flatten() {
        let schema = &mut parameter["schema"];
        if let Some(types) = schema["type"].as_array() {
            schema["type"] = types.iter().find(|word| *word != "null").cloned().unwrap_or_default();
        }
    }
    if operation["parameters"].is_null() {
        object_mut(operation).remove("parameters");
    }
}

/// A list's items are written out where its type is a generic one; their schema has a name.
fn name_items(schemas: &mut Value) {
    for (name, schema) in object_mut(schemas) {
        if let Some(item) = name.strip_prefix("List_") {
            schema["properties"]["data"]["items"] =
                json!({"$ref": format!("#/components/schemas/{item}")});
        }
    }
}

/// Bytes are no list of numbers.
fn mark_binary(operation: &mut Value) {
    let responses = object_mut(&mut operation["responses"]).values_mut();
    let contents = responses.filter_map(|response| response.get_mut("content")?.as_object_mut());
    for (kind, content) in contents.flatten() {
        if kind == "application/octet-stream" || kind == "application/x-tar" {
            content["schema"] = json!({"type": "string", "format": "binary"});
        }
    }
}

fn object_mut(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("a description's parts are objects")
}
