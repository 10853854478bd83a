//! `method.dpo.hyperparameters`: checked at creation, and shown with the job.
//!
//! OpenAI has `beta`; `loss_type` and the numbers that belong to single losses extend it. What a loss
//! does not use is refused, because a number without effect would be taken for one with it.

use domain::preference::{LossType, Preference, PreferenceRequest};
use domain::{Auto, Hyperparameters};
use serde_json::{Map, Value, json};
use store::jobs::JobRow;

use crate::error::ApiError;
use crate::extract::json::type_words;
use crate::faults::Faults;
use crate::hyperparameters::{auto_decimal, object_fields, requested_common};
use crate::method;

const PATH: &str = "method.dpo.hyperparameters";

/// Hyperparameters of a job of the method `dpo`: those of its block, or the older ones at the top level.
pub(crate) fn requested_dpo(
    block: Option<&Value>,
    older: Option<&Value>,
    faults: &mut Faults,
) -> Hyperparameters {
    let block = method::block(block, "method.dpo", &["hyperparameters"], faults);
    let inner = block.and_then(|block| block.get("hyperparameters"));
    let (fields, path) = match object_fields(inner, PATH, faults) {
        Some(fields) => (Some(fields), PATH),
        None => (object_fields(older, "hyperparameters", faults), "hyperparameters"),
    };
    match fields {
        Some(fields) => requested(fields, path, faults),
        None => Hyperparameters { preference: Some(Default::default()), ..Default::default() },
    }
}

fn requested(fields: &Map<String, Value>, path: &str, faults: &mut Faults) -> Hyperparameters {
    const OURS: [&str; 7] = [
        "beta",
        "loss_type",
        "label_smoothing",
        "gamma",
        "desirable_weight",
        "undesirable_weight",
        "center_coefficient",
    ];
    let common = fields.iter().filter(|(name, _)| !OURS.contains(&name.as_str()));
    let hyperparameters = requested_common(common, path, faults);
    let at = |name: &str| format!("{path}.{name}");
    let loss_type = loss_type(fields.get("loss_type"), &at("loss_type"), faults);
    let is_reward = loss_type == LossType::Reward;
    let most = if loss_type == LossType::Simpo { 10.0 } else { 2.0 };
    let beta = match fields.get("beta") {
        Some(beta) => auto_decimal(beta, &at("beta"), (0.0, Some(most)), faults),
        None => Auto::Auto,
    };
    if is_reward && beta != Auto::Auto {
        let path = at("beta");
        let message = format!("Invalid '{path}': the loss 'reward' does not use it.");
        faults.invalid(path, message);
    }
    let mut own = |name: &str, is_taken: bool, range: std::ops::Range<f64>| {
        let path = at(name);
        let value = match fields.get(name) {
            None | Some(Value::Null) => return None,
            Some(value) => value
                .as_f64()
                .ok_or_else(|| ApiError::invalid_type(&path, "a number", type_words(value))),
        };
        let value = faults.take(value)?;
        if !is_taken {
            let loss = loss_type.as_str();
            let message = format!("Invalid '{path}': the loss '{loss}' does not use it.");
            faults.invalid(path, message);
            return None;
        }
        let wanted = format!("from {} to below {}", range.start, range.end);
        faults.check(range.contains(&value), &path, &wanted, value);
        Some(value)
    };
    let smoothed = loss_type.takes_label_smoothing();
    let is_kto = loss_type == LossType::Kto;
    let preference = PreferenceRequest {
        beta,
        loss_type,
        label_smoothing: own("label_smoothing", smoothed, 0.0..0.5),
        gamma: own("gamma", loss_type.takes_gamma(), 0.0..10.0),
        desirable_weight: own("desirable_weight", is_kto, 0.0..100.0),
        undesirable_weight: own("undesirable_weight", is_kto, 0.0..100.0),
        center_coefficient: own("center_coefficient", is_reward, 0.0..1.0),
    };
    if let Auto::Value(size @ 0..=1) = hyperparameters.batch_size
        && is_kto
    {
        let message = format!(
            "Invalid '{}': the loss 'kto' compares the answers of a batch; expected a value of at \
             least 2, but got {size} instead.",
            at("batch_size")
        );
        faults.invalid(at("batch_size"), message);
    }
    Hyperparameters { preference: Some(preference), ..hyperparameters }
}

fn loss_type(value: Option<&Value>, path: &str, faults: &mut Faults) -> LossType {
    let found = match value {
        None | Some(Value::Null) => return LossType::default(),
        Some(Value::String(name)) => LossType::ALL
            .into_iter()
            .find(|loss| loss.as_str() == name)
            .ok_or_else(|| ApiError::unsupported_value(path, name, &LossType::NAMES)),
        Some(other) => Err(ApiError::invalid_type(path, "a string", type_words(other))),
    };
    faults.take(found).unwrap_or_default()
}

/// The hyperparameters of the job's method as its object shows them: as requested, later as resolved.
pub(crate) fn shown(row: &JobRow, common: &Hyperparameters) -> Value {
    let resolved = row.resolved.as_ref().and_then(|resolved| resolved.preference.as_deref());
    shown_with(resolved, row.hyperparameters.preference, common)
}

/// [`shown`], of hyperparameters that belong to no job yet.
pub(crate) fn shown_with(
    resolved: Option<&Preference>,
    requested: Option<PreferenceRequest>,
    common: &Hyperparameters,
) -> Value {
    let mut shown = json!(common);
    let wish = match (resolved, requested) {
        (Some(resolved), _) => as_wish(resolved),
        (None, Some(wish)) => wish,
        (None, None) => return shown,
    };
    let loss_type = wish.loss_type;
    if loss_type != LossType::Reward {
        shown["beta"] = json!(wish.beta);
    }
    shown["loss_type"] = json!(loss_type);
    let is_kto = loss_type == LossType::Kto;
    for (name, value, is_used) in [
        ("label_smoothing", wish.label_smoothing, loss_type.takes_label_smoothing()),
        ("gamma", wish.gamma, loss_type.takes_gamma()),
        ("desirable_weight", wish.desirable_weight, is_kto),
        ("undesirable_weight", wish.undesirable_weight, is_kto),
        ("center_coefficient", wish.center_coefficient, loss_type == LossType::Reward),
    ] {
        if let Some(value) = value.filter(|_| is_used) {
            shown[name] = json!(value);
        }
    }
    shown
}

/// Resolved values in the form of a wish that leaves nothing open.
fn as_wish(resolved: &Preference) -> PreferenceRequest {
    PreferenceRequest {
        beta: Auto::Value(resolved.beta),
        loss_type: resolved.loss_type,
        label_smoothing: Some(resolved.label_smoothing),
        gamma: Some(resolved.gamma),
        desirable_weight: Some(resolved.desirable_weight),
        undesirable_weight: Some(resolved.undesirable_weight),
        center_coefficient: Some(resolved.center_coefficient),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ApiResult;

    fn asked(hyperparameters: Value) -> ApiResult<PreferenceRequest> {
        let block = json!({ "hyperparameters": hyperparameters });
        let mut faults = Faults::default();
        let read = requested_dpo(Some(&block), None, &mut faults);
        faults.into_result().map(|()| read.preference.unwrap())
    }

    #[test]
    fn openais_four_and_the_extensions_are_read() {
        let dpo = asked(json!({"beta": 0.2, "n_epochs": 2, "batch_size": "auto"})).unwrap();
        assert_eq!((dpo.beta, dpo.loss_type), (Auto::Value(0.2), LossType::Sigmoid));
        assert_eq!(asked(json!({"beta": "auto"})).unwrap(), PreferenceRequest::default());
        let simpo = asked(json!({"loss_type": "simpo", "beta": 2.5, "gamma": 1.4})).unwrap();
        assert_eq!((simpo.loss_type, simpo.gamma), (LossType::Simpo, Some(1.4)));
        let older = json!({"n_epochs": 4});
        let older = requested_dpo(None, Some(&older), &mut Faults::default());
        assert_eq!((older.n_epochs, older.preference), (Auto::Value(4), Some(Default::default())));
    }

    #[test]
    fn what_is_wrong_is_refused_by_path() {
        for (object, param) in [
            (json!({"beta": 0}), "beta"),
            (json!({"beta": 2.5}), "beta"),
            (json!({"beta": "low"}), "beta"),
            (json!({"loss_type": "magic"}), "loss_type"),
            (json!({"loss_type": 1}), "loss_type"),
            (json!({"label_smoothing": 0.5}), "label_smoothing"),
            (json!({"label_smoothing": "much"}), "label_smoothing"),
            (json!({"loss_type": "hinge", "label_smoothing": 0.1}), "label_smoothing"),
            (json!({"gamma": 1}), "gamma"),
            (json!({"loss_type": "simpo", "gamma": -1}), "gamma"),
            (json!({"epsilon": 1}), "epsilon"),
            (json!({"desirable_weight": 1}), "desirable_weight"),
            (json!({"loss_type": "kto", "undesirable_weight": -1}), "undesirable_weight"),
            (json!({"loss_type": "kto", "batch_size": 1}), "batch_size"),
            (json!({"loss_type": "reward", "beta": 0.1}), "beta"),
            (json!({"loss_type": "reward", "center_coefficient": 1}), "center_coefficient"),
            (json!({"center_coefficient": 0.01}), "center_coefficient"),
            (json!({"n_epochs": 0}), "n_epochs"),
        ] {
            let error = asked(object.clone()).unwrap_err().envelope().error;
            assert_eq!(error.param, Some(format!("{PATH}.{param}")), "{object}");
        }
        let mut faults = Faults::default();
        requested_dpo(Some(&json!({"beta": 1})), None, &mut faults);
        assert_eq!(faults.into_result().unwrap_err().param(), Some("method.dpo.beta"));
    }
}
