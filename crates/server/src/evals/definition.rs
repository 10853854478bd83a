//! `POST /evals`: the body → a checked definition. Definitions are brought from elsewhere, so whatever OpenAI
//! takes is taken, in the form in which it is sent and in the form in which it comes back.

use std::collections::BTreeMap;

use graders::Grader;
use serde_json::{Map, Value, json};
use store::evals::{EvalChange, NewEval};

use super::schema::Schema;
use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;
use crate::request::check_metadata;
use crate::wire::eval::{CreateEval, UpdateEval};

const CONFIG_TYPES: [&str; 3] = ["custom", "logs", "stored_completions"];
const MAX_CRITERIA: usize = 100;
const MAX_NAME_CHARACTERS: usize = 512;

/// One grader of an evaluation.
pub(crate) struct Criterion {
    /// Unique within the evaluation; results are reported under it.
    pub id: String,
    pub grader: Grader,
}

pub(crate) fn new_eval(body: CreateEval) -> ApiResult<NewEval> {
    let name = body.name.unwrap_or_default();
    check_name(&name)?;
    check_metadata(body.metadata.as_ref())?;
    let data_source_config = config(&body.data_source_config)?;
    let testing_criteria = testing_criteria(body.testing_criteria)?;
    // What is wrapped once more must still be readable.
    for (field, value) in
        [("data_source_config", &data_source_config), ("testing_criteria", &testing_criteria)]
    {
        if serde_json::from_str::<Value>(&value.to_string()).is_err() {
            let message = format!("Invalid '{field}': it is nested too deeply.");
            return Err(ApiError::invalid_value(field, message));
        }
    }
    Ok(NewEval { name, data_source_config, testing_criteria, metadata: body.metadata })
}

pub(crate) fn change(body: UpdateEval) -> ApiResult<EvalChange> {
    if let Some(name) = &body.name {
        check_name(name)?;
    }
    check_metadata(body.metadata.as_ref().and_then(Option::as_ref))?;
    Ok(EvalChange { name: body.name, metadata: body.metadata })
}

pub(crate) fn check_name(name: &str) -> ApiResult<()> {
    let length = name.chars().count();
    if length > MAX_NAME_CHARACTERS {
        return Err(ApiError::too_long("name", MAX_NAME_CHARACTERS, length));
    }
    Ok(())
}

/// The configuration as it is shown.
fn config(config: &Value) -> ApiResult<Value> {
    const PATH: &str = "data_source_config";
    let fields = object(config, PATH)?;
    let kind = word(fields, PATH, "type")?;
    let known: &[&str] = match kind {
        // `schema` is what comes back from OpenAI; `item_schema` is what is sent.
        "custom" => &["type", "item_schema", "include_sample_schema", "schema", "metadata"],
        "logs" | "stored_completions" => &["type", "metadata", "schema"],
        other => {
            return Err(ApiError::unsupported_value(format!("{PATH}.type"), other, &CONFIG_TYPES));
        }
    };
    known_only(fields, known, PATH)?;
    if kind != "custom" {
        let mut shown = json!({"type": kind, "schema": envelope(json!({"type": "object"}), true)});
        if let Some(metadata) = given(fields, "metadata") {
            shown["metadata"] = json!(strings(metadata, "data_source_config.metadata")?);
        }
        return Ok(shown);
    }
    let flag = match given(fields, "include_sample_schema") {
        None => None,
        Some(Value::Bool(flag)) => Some(*flag),
        Some(other) => {
            let path = format!("{PATH}.include_sample_schema");
            return Err(ApiError::invalid_type(path, "a boolean", type_words(other)));
        }
    };
    if let Some(item_schema) = given(fields, "item_schema") {
        let path = format!("{PATH}.item_schema");
        object(item_schema, &path)?;
        Schema::new(item_schema, &path)?;
        let schema = envelope(item_schema.clone(), flag.unwrap_or(false));
        return Ok(json!({"type": "custom", "schema": schema}));
    }
    let schema =
        given(fields, "schema").ok_or_else(|| ApiError::missing(format!("{PATH}.item_schema")))?;
    let path = format!("{PATH}.schema");
    object(schema, &path)?;
    let item = schema.pointer("/properties/item").unwrap_or(&Value::Bool(true));
    Schema::new(item, &format!("{path}.properties.item"))?;
    Ok(json!({"type": "custom", "schema": schema}))
}

/// A row's schema around an item's.
fn envelope(item: Value, with_sample: bool) -> Value {
    let mut schema = json!({"type": "object", "properties": {"item": item}, "required": ["item"]});
    if with_sample {
        schema["properties"]["sample"] = json!({
            "type": "object",
            "properties": {
                "model": {"type": "string"},
                "choices": {"type": "array", "items": {"type": "object"}},
                "output_text": {"type": "string"},
                "output_json": {},
                "output_tools": {"type": "array", "items": {"type": "object"}},
            },
        });
        schema["required"] = json!(["item", "sample"]);
    }
    schema
}

/// The schema that a row's item must fit, if there is one.
pub(crate) fn item_schema(config: &Value) -> Option<&Value> {
    (config.get("type")? == "custom").then(|| config.pointer("/schema/properties/item")).flatten()
}

/// The graders as they came, each with an id.
fn testing_criteria(mut criteria: Vec<Value>) -> ApiResult<Value> {
    const PATH: &str = "testing_criteria";
    if criteria.is_empty() {
        return Err(ApiError::Parameter {
            code: Some("empty_array"),
            param: PATH.to_owned(),
            message: format!(
                "Invalid '{PATH}': empty array. Expected an array with minimum length 1, but got an empty \
                 array instead."
            ),
        });
    }
    if criteria.len() > MAX_CRITERIA {
        return Err(ApiError::Parameter {
            code: Some("array_above_max_length"),
            param: PATH.to_owned(),
            message: format!(
                "Invalid '{PATH}': array too long. Expected an array with maximum length {MAX_CRITERIA}, but \
                 got an array with length {} instead.",
                criteria.len()
            ),
        });
    }
    let mut ids: Vec<String> = Vec::new();
    for (i, criterion) in criteria.iter_mut().enumerate() {
        let path = format!("{PATH}[{i}]");
        let grader = grader(criterion, &path)?;
        let Some(fields) = criterion.as_object_mut() else { continue };
        let brought = fields.get("id").and_then(Value::as_str).map(str::to_owned);
        let id = brought
            .filter(|id| !ids.contains(id))
            .unwrap_or_else(|| format!("{}-{}", grader.name, uuid::Uuid::new_v4()));
        fields.entry("name").or_insert_with(|| grader.name.clone().into());
        fields.insert("id".to_owned(), id.clone().into());
        ids.push(id);
    }
    Ok(Value::Array(criteria))
}

/// A criterion's grader: all of it but the id, which OpenAI shows and does not take.
fn grader(criterion: &Value, path: &str) -> ApiResult<Grader> {
    let mut definition = criterion.clone();
    if let Some(fields) = definition.as_object_mut() {
        fields.shift_remove("id");
    }
    Ok(Grader::parse_for_eval(&definition, path)?)
}

/// The stored criteria of an evaluation.
pub(crate) fn criteria(stored: &Value) -> ApiResult<Vec<Criterion>> {
    let all = stored.as_array().into_iter().flatten().enumerate();
    all.map(|(i, criterion)| {
        let grader = grader(criterion, &format!("testing_criteria[{i}]"))?;
        let id = criterion.get("id").and_then(Value::as_str).unwrap_or(&grader.name).to_owned();
        Ok(Criterion { id, grader })
    })
    .collect()
}

/// A filter's pairs: values that are no strings are taken by their JSON, as clients read strings only.
pub(super) fn strings(value: &Value, path: &str) -> ApiResult<BTreeMap<String, String>> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pairs = object(value, path)?.iter().map(|(key, value)| (key.clone(), text(value)));
    let pairs: BTreeMap<String, String> = pairs.collect();
    check_metadata(Some(&pairs))?;
    Ok(pairs)
}

pub(super) fn object<'v>(value: &'v Value, path: &str) -> ApiResult<&'v Map<String, Value>> {
    value.as_object().ok_or_else(|| ApiError::invalid_type(path, "an object", type_words(value)))
}

/// A field that is neither absent nor null.
pub(super) fn given<'v>(fields: &'v Map<String, Value>, key: &str) -> Option<&'v Value> {
    fields.get(key).filter(|value| !value.is_null())
}

/// A field that must hold a text.
pub(super) fn word<'v>(
    fields: &'v Map<String, Value>,
    path: &str,
    key: &str,
) -> ApiResult<&'v str> {
    let path = format!("{path}.{key}");
    match given(fields, key) {
        Some(Value::String(word)) => Ok(word),
        Some(other) => Err(ApiError::invalid_type(path, "a string", type_words(other))),
        None => Err(ApiError::missing(path)),
    }
}

pub(super) fn known_only(fields: &Map<String, Value>, known: &[&str], path: &str) -> ApiResult<()> {
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(ApiError::unknown_parameter(format!("{path}.{key}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> Value {
        json!({"type": "string_check", "name": "same", "input": "{{sample.output_text}}",
               "reference": "{{ item.label }}", "operation": "eq"})
    }

    fn eval(config: Value, criteria: Value) -> ApiResult<NewEval> {
        let body = json!({"data_source_config": config, "testing_criteria": criteria});
        new_eval(serde_json::from_value(body).unwrap())
    }

    fn item_config() -> Value {
        json!({"type": "custom", "item_schema": {"type": "object", "required": ["label"]}})
    }

    fn param(result: ApiResult<NewEval>) -> String {
        result.map(|_| ()).unwrap_err().envelope().error.param.unwrap()
    }

    #[test]
    fn a_configuration_comes_back_with_the_schema_of_rows() {
        let config = eval(item_config(), json!([check()])).unwrap().data_source_config;
        assert_eq!(config["schema"]["properties"]["item"]["required"], json!(["label"]));
        assert_eq!(config["schema"]["required"], json!(["item"]));
        assert_eq!(item_schema(&config).unwrap()["type"], "object");
        // What came back is taken as it is.
        let again = eval(config.clone(), json!([check()])).unwrap().data_source_config;
        assert_eq!(again, config);

        let logs = json!({"type": "logs", "metadata": {"use_case": "chat", "version": 2}});
        let logs = eval(logs, json!([check()])).unwrap().data_source_config;
        assert_eq!(logs["metadata"], json!({"use_case": "chat", "version": "2"}));
        assert!(item_schema(&logs).is_none());
        assert!(logs["schema"]["properties"]["sample"].is_object());
        assert!(eval(logs, json!([check()])).is_ok());
    }

    #[test]
    fn every_criterion_has_an_id_of_its_own() {
        let shown = eval(item_config(), json!([check(), check()])).unwrap().testing_criteria;
        let all = criteria(&shown).unwrap();
        assert!(all[0].id.starts_with("same-") && all[0].id != all[1].id);
        let again = eval(item_config(), shown.clone()).unwrap().testing_criteria;
        assert_eq!(again, shown);
        let doubled = json!([shown[0], shown[0]]);
        let ids = criteria(&eval(item_config(), doubled).unwrap().testing_criteria).unwrap();
        assert_ne!(ids[0].id, ids[1].id);
    }

    #[test]
    fn what_is_wrong_is_named_by_path() {
        let good = || json!([check()]);
        for (config, criteria, expected) in [
            (json!({}), good(), "data_source_config.type"),
            (json!({"type": "files"}), good(), "data_source_config.type"),
            (json!({"type": "custom"}), good(), "data_source_config.item_schema"),
            (
                json!({"type": "custom", "item_schema": []}),
                good(),
                "data_source_config.item_schema",
            ),
            (
                json!({"type": "custom", "item_schema": {"type": "row"}}),
                good(),
                "data_source_config.item_schema.type",
            ),
            (json!({"type": "logs", "model": "m"}), good(), "data_source_config.model"),
            (item_config(), json!([]), "testing_criteria"),
            (item_config(), json!([check(), {"type": "vibes"}]), "testing_criteria[1].type"),
            (
                item_config(),
                json!([{"type": "text_similarity", "name": "n", "input": "a", "reference": "b",
                        "evaluation_metric": "bleu"}]),
                "testing_criteria[0].pass_threshold",
            ),
        ] {
            assert_eq!(param(eval(config, criteria)), expected);
        }
    }
}
