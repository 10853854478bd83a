//! `method.reinforcement`: checked as OpenAI's service checks it. No engine of this server trains with it yet,
//! which [`unavailable`] says, after everything else that is wrong.

use domain::Hyperparameters;
use graders::Grader;
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::extract::json::type_words;
use crate::faults::Faults;
use crate::hyperparameters::{auto_decimal, auto_integer, object_fields, requested_common};
use crate::method;

const PATH: &str = "method.reinforcement";
/// Steps and samples have no documented end.
const MOST: i64 = i32::MAX as i64;
const EFFORTS: [&str; 4] = ["default", "low", "medium", "high"];
/// What may judge by itself. `label_model` gives a label and no grade.
const GRADERS: [&str; 5] = ["string_check", "text_similarity", "python", "score_model", "multi"];

/// Faults of the block are found; the hyperparameters of every method are read.
pub(crate) fn requested(
    block: Option<&Value>,
    older: Option<&Value>,
    faults: &mut Faults,
) -> Hyperparameters {
    let known = ["grader", "hyperparameters", "response_format"];
    let block = method::block(block, PATH, &known, faults);
    let field =
        |name: &str| block.and_then(|block| block.get(name)).filter(|value| !value.is_null());
    check_grader(field("grader"), faults);
    if let Some(format) = field("response_format") {
        check_response_format(format, faults);
    }
    let path = format!("{PATH}.hyperparameters");
    match field("hyperparameters") {
        None => crate::hyperparameters::requested(older, "hyperparameters", faults),
        inner => match object_fields(inner, &path, faults) {
            Some(fields) => hyperparameters(fields, &path, faults),
            None => Hyperparameters::default(),
        },
    }
}

fn hyperparameters(
    fields: &Map<String, Value>,
    path: &str,
    faults: &mut Faults,
) -> Hyperparameters {
    const OURS: [&str; 4] =
        ["compute_multiplier", "eval_interval", "eval_samples", "reasoning_effort"];
    for (name, value) in fields {
        let path = format!("{path}.{name}");
        match name.as_str() {
            "compute_multiplier" => {
                auto_decimal(value, &path, (0.00001, Some(10.0)), faults);
            }
            "eval_interval" | "eval_samples" => {
                auto_integer(value, &path, MOST, faults);
            }
            "reasoning_effort" => check_word(value, &path, &EFFORTS, faults),
            _ => {}
        }
    }
    let common = fields.iter().filter(|(name, _)| !OURS.contains(&name.as_str()));
    requested_common(common, path, faults)
}

fn check_word(value: &Value, path: &str, words: &[&str], faults: &mut Faults) {
    match value {
        Value::Null => {}
        Value::String(word) if words.contains(&word.as_str()) => {}
        Value::String(word) => faults.push(ApiError::unsupported_value(path, word, words)),
        other => faults.push(ApiError::invalid_type(path, "a string", type_words(other))),
    }
}

fn check_grader(grader: Option<&Value>, faults: &mut Faults) {
    let path = format!("{PATH}.grader");
    let Some(grader) = grader else {
        faults.push(ApiError::missing(path));
        return;
    };
    if grader["type"] == "label_model" {
        faults.push(ApiError::unsupported_value(format!("{path}.type"), "label_model", &GRADERS));
        return;
    }
    let checked = Grader::parse(grader, &path).and_then(|grader| grader.check(&path));
    faults.take(checked.map_err(ApiError::from));
}

fn check_response_format(format: &Value, faults: &mut Faults) {
    let path = format!("{PATH}.response_format");
    let Some(fields) = object_fields(Some(format), &path, faults) else { return };
    match fields.get("type") {
        None | Some(Value::Null) => faults.push(ApiError::missing(format!("{path}.type"))),
        Some(kind) => check_word(kind, &format!("{path}.type"), &["json_schema"], faults),
    }
    let path = format!("{path}.json_schema");
    let Some(schema) = fields.get("json_schema").filter(|schema| !schema.is_null()) else {
        faults.push(ApiError::missing(path));
        return;
    };
    let Some(schema) = object_fields(Some(schema), &path, faults) else { return };
    match schema.get("name") {
        Some(Value::String(_)) => {}
        None | Some(Value::Null) => faults.push(ApiError::missing(format!("{path}.name"))),
        Some(other) => {
            let path = format!("{path}.name");
            faults.push(ApiError::invalid_type(path, "a string", type_words(other)));
        }
    }
    object_fields(schema.get("schema"), &format!("{path}.schema"), faults);
}

/// Said at creation, never by a job that has waited for its turn.
pub(crate) fn unavailable() -> ApiError {
    ApiError::invalid_value(
        "method.type",
        "The method 'reinforcement' is not available on this server. Supported values are: \
         'supervised' and 'dpo'.",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults_of(block: Value) -> Vec<String> {
        let mut faults = Faults::default();
        requested(Some(&block), None, &mut faults);
        let faults = faults.into_vec();
        faults
            .iter()
            .map(|fault| {
                let param = fault.param().unwrap_or_default();
                param.strip_prefix("method.reinforcement").unwrap_or(param).to_owned()
            })
            .collect()
    }

    #[test]
    fn what_openai_takes_is_taken() {
        let grader = json!({"type": "string_check", "name": "g", "operation": "eq",
                            "input": "{{sample.output_text}}", "reference": "{{item.answer}}"});
        let whole = json!({
            "grader": grader,
            "hyperparameters": {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 1,
                "compute_multiplier": 1.5, "eval_interval": 10, "eval_samples": "auto",
                "reasoning_effort": "medium"},
            "response_format": {"type": "json_schema",
                "json_schema": {"name": "answer", "strict": true, "schema": {"type": "object"}}},
        });
        assert_eq!(faults_of(whole), Vec::<String>::new());
    }

    #[test]
    fn every_fault_is_named_by_its_path() {
        let grader = json!({"type": "string_check", "name": "g", "operation": "eq",
                            "input": "{{sample.output_text}}", "reference": "{{item.answer}}"});
        for (block, params) in [
            (json!({}), vec![".grader"]),
            (json!({"grader": 3}), vec![".grader"]),
            (json!({"grader": {}}), vec![".grader.type"]),
            (json!({"grader": {"type": "label_model"}}), vec![".grader.type"]),
            (json!({"grader": grader, "colour": 1}), vec![".colour"]),
            (
                json!({"grader": grader, "hyperparameters": {"compute_multiplier": 0.00001,
                    "eval_interval": 0, "eval_samples": 1.5, "reasoning_effort": "auto",
                    "n_epochs": 51, "beta": 0.1}}),
                vec![
                    ".hyperparameters.compute_multiplier",
                    ".hyperparameters.eval_interval",
                    ".hyperparameters.eval_samples",
                    ".hyperparameters.reasoning_effort",
                    ".hyperparameters.beta",
                    ".hyperparameters.n_epochs",
                ],
            ),
            (
                json!({"grader": grader, "hyperparameters": {"compute_multiplier": 10.5}}),
                vec![".hyperparameters.compute_multiplier"],
            ),
            (
                json!({"grader": grader, "response_format": {"type": "text"}}),
                vec![".response_format.type", ".response_format.json_schema"],
            ),
            (
                json!({"grader": grader, "response_format": {"type": "json_schema",
                    "json_schema": {"schema": 1}}}),
                vec![".response_format.json_schema.name", ".response_format.json_schema.schema"],
            ),
        ] {
            let mut found = faults_of(block.clone());
            let mut params: Vec<String> = params.into_iter().map(str::to_owned).collect();
            found.sort();
            params.sort();
            assert_eq!(found, params, "{block}");
        }
    }
}
