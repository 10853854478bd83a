//! `method` of a request for a job: which one, and its hyperparameters.
//!
//! Blocks that do not belong to `type` are ignored, whatever they hold: clients send all of them.

use domain::{Hyperparameters, MethodType};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::faults::Faults;
use crate::hyperparameters::{object_fields, requested};
use crate::preference::requested_dpo;
use crate::reinforcement;
use crate::wire::job::CreateJob;

const TYPES: [&str; 3] = ["supervised", "dpo", "reinforcement"];

/// The method and its hyperparameters; without any in its block, those at the top level.
pub(crate) fn method(body: &CreateJob, faults: &mut Faults) -> (MethodType, Hyperparameters) {
    let older = body.hyperparameters.as_ref();
    let Some(method) = &body.method else {
        return (MethodType::Supervised, requested(older, "hyperparameters", faults));
    };
    if method.hyperparameters.is_some() {
        // A block of this name belongs to no method, and ignoring it would train with other values.
        faults.push(ApiError::unknown_parameter("method.hyperparameters"));
    }
    match method.r#type.as_str() {
        "supervised" => {
            let path = "method.supervised";
            let block = block(method.supervised.as_ref(), path, &["hyperparameters"], faults);
            let inner = block.and_then(|block| block.get("hyperparameters"));
            let wish = match inner {
                None | Some(Value::Null) => requested(older, "hyperparameters", faults),
                inner => requested(inner, "method.supervised.hyperparameters", faults),
            };
            (MethodType::Supervised, wish)
        }
        "dpo" => (MethodType::Dpo, requested_dpo(method.dpo.as_ref(), older, faults)),
        "reinforcement" => {
            let block = method.reinforcement.as_ref();
            (MethodType::Reinforcement, reinforcement::requested(block, older, faults))
        }
        other => {
            if !faults.blame("method.type") {
                faults.push(ApiError::unsupported_value("method.type", other, &TYPES));
            }
            (MethodType::Supervised, Hyperparameters::default())
        }
    }
}

/// The fields of a method's block; any but the known ones are refused.
pub(crate) fn block<'v>(
    block: Option<&'v Value>,
    path: &str,
    known: &[&str],
    faults: &mut Faults,
) -> Option<&'v Map<String, Value>> {
    let fields = object_fields(block, path, faults)?;
    for field in fields.keys().filter(|field| !known.contains(&field.as_str())) {
        faults.push(ApiError::unknown_parameter(format!("{path}.{field}")));
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use domain::Auto;
    use serde_json::json;

    use super::*;

    fn read(extra: Value) -> (MethodType, Hyperparameters, Vec<ApiError>) {
        let mut body = json!({"model": "m", "training_file": "file-1"});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        let mut faults = Faults::default();
        let (kind, wish) = method(&serde_json::from_value(body).unwrap(), &mut faults);
        (kind, wish, faults.into_vec())
    }

    #[test]
    fn the_method_wins_over_the_older_place() {
        let (_, both, _) = read(json!({
            "hyperparameters": {"n_epochs": 2},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5}}},
        }));
        assert_eq!(both.n_epochs, Auto::Value(5));
        for method in [
            json!(null),
            json!({"type": "supervised"}),
            json!({"type": "supervised", "supervised": {}}),
        ] {
            let (_, older, _) = read(json!({"hyperparameters": {"n_epochs": 2}, "method": method}));
            assert_eq!(older.n_epochs, Auto::Value(2));
        }
    }

    #[test]
    fn blocks_of_other_methods_are_ignored_whatever_they_hold() {
        let (kind, wish, faults) = read(json!({"method": {
            "type": "supervised", "dpo": {"hyperparameters": {"beta": 9}}, "reinforcement": 7,
            "distillation": {"teacher": "x"},
        }}));
        assert_eq!(
            (kind, wish, faults.len()),
            (MethodType::Supervised, Hyperparameters::default(), 0)
        );
        let (kind, ..) = read(json!({"method": {"type": "dpo", "supervised": "x"}}));
        assert_eq!(kind, MethodType::Dpo);
    }

    #[test]
    fn what_is_no_method_is_refused_by_name() {
        for (method, param) in [
            (json!({"type": "magic"}), "method.type"),
            (json!({"type": "supervised", "hyperparameters": {}}), "method.hyperparameters"),
            (
                json!({"type": "supervised", "supervised": {"n_epochs": 3}}),
                "method.supervised.n_epochs",
            ),
            (json!({"type": "supervised", "supervised": []}), "method.supervised"),
        ] {
            let (_, _, faults) = read(json!({"method": method}));
            assert_eq!(faults.first().and_then(ApiError::param), Some(param));
        }
    }
}
