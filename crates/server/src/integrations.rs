//! `integrations` of a job: checked, kept, and shown again. Nothing is sent anywhere by this server; the job
//! says so in an event, because a silent integration would cost somebody the record of a run.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::extract::json::type_words;
use crate::faults::Faults;
use crate::hyperparameters::object_fields;

const MAX_INTEGRATIONS: usize = 5;
const MAX_TAGS: usize = 50;
const MAX_TAG_CHARACTERS: usize = 64;

/// What a job with an integration is told.
pub(crate) const WANDB_NOTE: &str = "This server sends nothing to Weights & Biases by itself. Once the job has \
    succeeded, `openai wandb sync`, or wandb's WandbLogger.sync with this server's client, uploads its \
    metrics from the result file.";

/// The integrations in the form in which the job shows them.
pub(crate) fn requested(value: Option<&Value>, faults: &mut Faults) -> Vec<Value> {
    let items = match value {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(items)) => items,
        Some(other) => {
            faults.push(ApiError::invalid_type("integrations", "an array", type_words(other)));
            return Vec::new();
        }
    };
    if items.len() > MAX_INTEGRATIONS {
        faults.push(ApiError::too_many("integrations", MAX_INTEGRATIONS, items.len()));
    }
    let one = |(i, item)| integration(item, &format!("integrations[{i}]"), faults);
    items.iter().take(MAX_INTEGRATIONS).enumerate().filter_map(one).collect()
}

fn integration(item: &Value, path: &str, faults: &mut Faults) -> Option<Value> {
    let Some(fields) = object_fields(Some(item), path, faults) else {
        if item.is_null() {
            faults.push(ApiError::invalid_type(path, "an object", "null"));
        }
        return None;
    };
    refuse_unknown(fields, path, &["type", "wandb"], faults);
    match required_text(fields, "type", path, faults)? {
        "wandb" => {}
        other => {
            let path = format!("{path}.type");
            faults.push(ApiError::unsupported_value(path, other, &["wandb"]));
            return None;
        }
    }
    let path = format!("{path}.wandb");
    let Some(wandb) = object_fields(fields.get("wandb"), &path, faults) else {
        if fields.get("wandb").is_none_or(Value::is_null) {
            faults.push(ApiError::missing(path));
        }
        return None;
    };
    refuse_unknown(wandb, &path, &["project", "name", "entity", "tags"], faults);
    let mut shown = json!({
        "project": required_text(wandb, "project", &path, faults),
        "name": text(wandb, "name", &path, faults),
        "entity": text(wandb, "entity", &path, faults),
    });
    if let Some(tags) = tags(wandb.get("tags"), &format!("{path}.tags"), faults) {
        shown["tags"] = json!(tags);
    }
    Some(json!({ "type": "wandb", "wandb": shown }))
}

fn refuse_unknown(fields: &Map<String, Value>, path: &str, known: &[&str], faults: &mut Faults) {
    for field in fields.keys().filter(|field| !known.contains(&field.as_str())) {
        faults.push(ApiError::unknown_parameter(format!("{path}.{field}")));
    }
}

fn required_text<'v>(
    fields: &'v Map<String, Value>,
    name: &str,
    path: &str,
    faults: &mut Faults,
) -> Option<&'v str> {
    match fields.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        Some(other) if !other.is_null() && !other.is_string() => {
            let path = format!("{path}.{name}");
            faults.push(ApiError::invalid_type(path, "a string", type_words(other)));
            None
        }
        _ => {
            faults.push(ApiError::missing(format!("{path}.{name}")));
            None
        }
    }
}

fn text<'v>(
    fields: &'v Map<String, Value>,
    name: &str,
    path: &str,
    faults: &mut Faults,
) -> Option<&'v str> {
    match fields.get(name)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => {
            let path = format!("{path}.{name}");
            faults.push(ApiError::invalid_type(path, "a string", type_words(other)));
            None
        }
    }
}

fn tags<'v>(value: Option<&'v Value>, path: &str, faults: &mut Faults) -> Option<Vec<&'v str>> {
    let items = match value? {
        Value::Null => return None,
        Value::Array(items) => items,
        other => {
            faults.push(ApiError::invalid_type(path, "an array", type_words(other)));
            return None;
        }
    };
    if items.len() > MAX_TAGS {
        faults.push(ApiError::too_many(path, MAX_TAGS, items.len()));
    }
    let mut tags = Vec::new();
    for (i, item) in items.iter().take(MAX_TAGS).enumerate() {
        let path = format!("{path}[{i}]");
        let Some(tag) = item.as_str() else {
            faults.push(ApiError::invalid_type(path, "a string", type_words(item)));
            continue;
        };
        let length = tag.chars().count();
        if length > MAX_TAG_CHARACTERS {
            faults.push(ApiError::too_long(&path, MAX_TAG_CHARACTERS, length));
        }
        tags.push(tag);
    }
    Some(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(value: Value) -> (Vec<Value>, Vec<String>) {
        let mut faults = Faults::default();
        let shown = requested(Some(&value), &mut faults);
        let params = faults.into_vec();
        (shown, params.iter().map(|fault| fault.param().unwrap_or_default().to_owned()).collect())
    }

    #[test]
    fn an_integration_is_shown_as_it_was_asked_for() {
        let asked =
            json!([{"type": "wandb", "wandb": {"project": "p", "entity": "e", "tags": ["a"]}}]);
        let shown = json!({"type": "wandb",
                           "wandb": {"project": "p", "name": null, "entity": "e", "tags": ["a"]}});
        assert_eq!(found(asked), (vec![shown], vec![]));
        assert_eq!(found(Value::Null), (vec![], vec![]));
    }

    #[test]
    fn every_fault_is_named_by_its_path() {
        let one = json!({"type": "wandb", "wandb": {"project": "p"}});
        assert_eq!(found(json!(vec![one.clone(); 6])).1, ["integrations"]);
        let long = "t".repeat(65);
        for (item, params) in [
            (json!({"type": "mlflow"}), vec!["integrations[0].type"]),
            (json!({"wandb": {"project": "p"}}), vec!["integrations[0].type"]),
            (json!({"type": "wandb"}), vec!["integrations[0].wandb"]),
            (json!({"type": "wandb", "wandb": {}}), vec!["integrations[0].wandb.project"]),
            (json!("wandb"), vec!["integrations[0]"]),
            (json!(null), vec!["integrations[0]"]),
            (
                json!({"type": "wandb", "wandb": {"project": 1, "name": 2, "tags": ["a", long, 3], "x": 4}}),
                vec![
                    "integrations[0].wandb.x",
                    "integrations[0].wandb.project",
                    "integrations[0].wandb.name",
                    "integrations[0].wandb.tags[1]",
                    "integrations[0].wandb.tags[2]",
                ],
            ),
            (
                json!({"type": "wandb", "wandb": {"project": "p", "tags": vec!["t"; 51]}}),
                vec!["integrations[0].wandb.tags"],
            ),
        ] {
            assert_eq!(found(json!([item])).1, params, "{item}");
        }
        assert_eq!(found(json!({})).1, ["integrations"]);
    }
}
