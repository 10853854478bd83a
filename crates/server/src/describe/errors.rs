//! The answers that any call may give instead of success, and the headers of all answers.

use serde_json::{Value, json};

/// (status, name, when).
const ERRORS: [(&str, &str, &str); 10] = [
    (
        "400",
        "BadRequest",
        "Something in the request is wrong; `param` names it where it is one field.",
    ),
    ("401", "Unauthorized", "No key, or a wrong one."),
    ("403", "Forbidden", "The key is of another kind, or may not do this."),
    ("404", "NotFound", "Something that the request names is not there."),
    ("408", "RequestTimeout", "The body did not arrive in time."),
    ("413", "PayloadTooLarge", "The body, or the file in it, is larger than its limit."),
    ("429", "TooManyRequests", "Too many requests, or too many tokens, in a short time."),
    ("431", "HeadTooLarge", "The headers are larger than their limit."),
    ("500", "ServerError", "The server's own fault; its log has the details."),
    ("503", "Unavailable", "Passing trouble: another try may succeed."),
];
/// Those of an answer that another try may change.
const RETRY_HEADERS: [(&str, &str, &str); 3] = [
    ("retry-after", "Seconds after which another try makes sense.", "integer"),
    ("retry-after-ms", "The same in milliseconds.", "integer"),
    ("x-should-retry", "Whether another try makes sense at all: `true` or `false`.", "string"),
];
/// Those of every answer: (name, what it is, schema's type).
const HEADERS: [(&str, &str, &str); 3] = [
    ("x-request-id", "The request's id, in the log too.", "string"),
    ("openai-processing-ms", "How long the answer took.", "integer"),
    ("openai-version", "The version of the API.", "string"),
];

pub(super) fn headers() -> Value {
    let all = HEADERS.into_iter().map(|(name, what, kind)| {
        (name.to_owned(), json!({"description": what, "schema": {"type": kind}}))
    });
    Value::Object(all.collect())
}

pub(super) fn responses() -> Value {
    let all = ERRORS.into_iter().map(|(status, name, when)| {
        let mut headers = usual_headers();
        if status == "429" || status == "503" {
            for (name, what, kind) in RETRY_HEADERS {
                headers[name] = json!({"description": what, "schema": {"type": kind}});
            }
        }
        let schema = json!({"$ref": "#/components/schemas/ErrorEnvelope"});
        let content = json!({"application/json": {"schema": schema}});
        (name.to_owned(), json!({"description": when, "headers": headers, "content": content}))
    });
    Value::Object(all.collect())
}

fn usual_headers() -> Value {
    let reference = |name: &str| json!({"$ref": format!("#/components/headers/{name}")});
    Value::Object(
        HEADERS.into_iter().map(|(name, ..)| (name.to_owned(), reference(name))).collect(),
    )
}

/// Adds to a call what it may answer besides that what it says itself.
pub(super) fn add(operation: &mut Value, path: &str) {
    let takes_body = operation.get("requestBody").is_some();
    let names_something = path.contains('{') || takes_body;
    let has_parameters = operation.get("parameters").is_some();
    let is_open = operation["security"] == json!([{}]);
    let applies = |status: &str| match status {
        "400" => has_parameters || takes_body,
        "404" => names_something,
        "408" | "413" => takes_body,
        _ => true,
    };
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    // A range of statuses would say nothing of each.
    responses.retain(|status, _| status.parse::<u16>().is_ok());
    for response in responses.values_mut() {
        response["headers"] = usual_headers();
        if response["description"].as_str().unwrap_or_default().is_empty() {
            response["description"] = "The answer.".into();
        }
    }
    for (status, name, _) in ERRORS {
        if !is_open && applies(status) && !responses.contains_key(status) {
            let reference = json!({"$ref": format!("#/components/responses/{name}")});
            responses.insert(status.to_owned(), reference);
        }
    }
}
