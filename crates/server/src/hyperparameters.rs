//! Requested hyperparameters and options, checked at creation. What they amount to is told by `resolve`.

use domain::hyperparameters::{EarlyStoppingRequest, TARGET_MODULES};
use domain::{Auto, Hyperparameters, LoraRequest, TrainingOptions};
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;
use crate::faults::Faults;
use crate::inference::prompt::integer;
use crate::tuning::find_tuning_faults;

/// A hyperparameters object of a request; `path` names it in refusals.
pub(crate) fn requested(
    object: Option<&Value>,
    path: &str,
    faults: &mut Faults,
) -> Hyperparameters {
    match object_fields(object, path, faults) {
        Some(fields) => requested_common(fields, path, faults),
        None => Hyperparameters::default(),
    }
}

/// The fields of an object; none when it is absent or null.
pub(crate) fn object_fields<'v>(
    object: Option<&'v Value>,
    path: &str,
    faults: &mut Faults,
) -> Option<&'v Map<String, Value>> {
    match object {
        None | Some(Value::Null) => None,
        Some(Value::Object(fields)) => Some(fields),
        Some(other) => {
            faults.push(ApiError::invalid_type(path, "an object", type_words(other)));
            None
        }
    }
}

/// What every method knows; any other field is refused.
pub(crate) fn requested_common<'v>(
    fields: impl IntoIterator<Item = (&'v String, &'v Value)>,
    path: &str,
    faults: &mut Faults,
) -> Hyperparameters {
    let mut hyperparameters = Hyperparameters::default();
    for (name, value) in fields {
        let path = format!("{path}.{name}");
        match name.as_str() {
            "n_epochs" => hyperparameters.n_epochs = auto_integer(value, &path, 50, faults),
            "batch_size" => hyperparameters.batch_size = auto_integer(value, &path, 256, faults),
            "learning_rate_multiplier" => {
                hyperparameters.learning_rate_multiplier =
                    auto_decimal(value, &path, (0.0, None), faults);
            }
            _ => faults.push(ApiError::unknown_parameter(path)),
        }
    }
    hyperparameters
}

/// `auto`, or an integer from 1 to `most`.
pub(crate) fn auto_integer(value: &Value, path: &str, most: i64, faults: &mut Faults) -> Auto<u32> {
    let wrong = || ApiError::invalid_type(path, "one of 'auto' or integer", type_words(value));
    let whole = match value {
        Value::Null => return Auto::Auto,
        Value::String(word) if word == "auto" => return Auto::Auto,
        // Some clients write every number as a decimal: 3.0 is 3.
        Value::Number(number) => number.as_i64().or_else(|| {
            number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15).map(|n| n as i64)
        }),
        _ => None,
    };
    let whole = whole.ok_or_else(wrong).and_then(|whole| integer(path, whole, 1, most));
    faults.take(whole).map_or(Auto::Auto, |whole| Auto::Value(whole as u32))
}

/// `auto`, or a number above the first bound and at most the second.
pub(crate) fn auto_decimal(
    value: &Value,
    path: &str,
    (above, most): (f64, Option<f64>),
    faults: &mut Faults,
) -> Auto<f64> {
    match value {
        Value::Null => Auto::Auto,
        Value::String(word) if word == "auto" => Auto::Auto,
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            faults.check_decimal(number, path, above, most);
            Auto::Value(number)
        }
        other => {
            faults.push(ApiError::invalid_type(path, "one of 'auto' or number", type_words(other)));
            Auto::Auto
        }
    }
}

/// Whether the extension object's values can be trained with: the first fault, if there is one.
pub(crate) fn check_options(options: &TrainingOptions, path: &str) -> ApiResult<()> {
    let mut faults = Faults::default();
    find_option_faults(options, path, &mut faults);
    faults.into_result()
}

/// Every value of the extension object that cannot be trained with; `path` names it in refusals.
pub(crate) fn find_option_faults(options: &TrainingOptions, path: &str, faults: &mut Faults) {
    let at = |field: &str| format!("{path}.{field}");
    if let Some(rate) = options.learning_rate {
        faults.check(
            rate > 0.0 && rate <= 1.0,
            &at("learning_rate"),
            "above 0 and at most 1",
            rate,
        );
    }
    if let Some(ratio) = options.warmup_ratio {
        faults.check((0.0..=1.0).contains(&ratio), &at("warmup_ratio"), "from 0 to 1", ratio);
    }
    if let Some(decay) = options.weight_decay {
        faults.check((0.0..1.0).contains(&decay), &at("weight_decay"), "from 0 to below 1", decay);
    }
    if let Some(norm) = options.max_grad_norm {
        let is_right = norm >= 0.0 && norm.is_finite();
        faults.check(is_right, &at("max_grad_norm"), "of at least 0", norm);
    }
    for (field, tokens) in
        [("max_seq_len", options.max_seq_len), ("micro_batch_tokens", options.micro_batch_tokens)]
    {
        if let Some(tokens) = tokens {
            let is_right = (16..=1_048_576).contains(&tokens);
            faults.check(is_right, &at(field), "from 16 to 1048576", tokens);
        }
    }
    if let Some(rule) = &options.early_stopping {
        check_early_stopping(rule, &at("early_stopping"), faults);
    }
    find_tuning_faults(options, path, faults);
    if let Some(lora) = &options.lora {
        check_lora(lora, &at("lora"), faults);
    }
}

fn check_early_stopping(rule: &EarlyStoppingRequest, path: &str, faults: &mut Faults) {
    let at = |field: &str| format!("{path}.{field}");
    if let Some(patience) = rule.patience {
        faults.check((1..=100).contains(&patience), &at("patience"), "from 1 to 100", patience);
    }
    if let Some(delta) = rule.min_delta {
        let is_right = delta >= 0.0 && delta.is_finite();
        faults.check(is_right, &at("min_delta"), "of at least 0", delta);
    }
    if let Some(steps) = rule.evaluation_steps {
        faults.check(steps >= 1, &at("evaluation_steps"), "of at least 1", steps);
    }
}

fn check_lora(lora: &LoraRequest, path: &str, faults: &mut Faults) {
    let at = |field: &str| format!("{path}.{field}");
    if let Some(rank) = lora.rank {
        faults.check((1..=512).contains(&rank), &at("rank"), "from 1 to 512", rank);
    }
    if let Some(alpha) = lora.alpha {
        let is_right = alpha > 0.0 && alpha <= 4096.0;
        faults.check(is_right, &at("alpha"), "above 0 and at most 4096", alpha);
    }
    if let Some(dropout) = lora.dropout {
        let is_right = (0.0..0.95).contains(&dropout);
        faults.check(is_right, &at("dropout"), "from 0 to below 0.95", dropout);
    }
    if lora.dora == Some(true) && lora.dropout.is_some_and(|dropout| dropout > 0.0) {
        let path = at("dropout");
        let message = format!("Invalid '{path}': dropout is not supported together with 'dora'.");
        faults.invalid(path, message);
    }
    if let Some(modules) = &lora.target_modules {
        check_target_modules(modules, &at("target_modules"), faults);
    }
    for (key, rank) in lora.rank_pattern.iter().flatten() {
        let path = format!("{}.{key}", at("rank_pattern"));
        check_pattern_key(key, lora, &path, faults);
        faults.check((1..=512).contains(rank), &path, "from 1 to 512", rank);
    }
    for (key, &alpha) in lora.alpha_pattern.iter().flatten() {
        let path = format!("{}.{key}", at("alpha_pattern"));
        check_pattern_key(key, lora, &path, faults);
        let is_right = alpha > 0.0 && alpha <= 4096.0;
        faults.check(is_right, &path, "above 0 and at most 4096", alpha);
    }
}

fn check_target_modules(modules: &[String], path: &str, faults: &mut Faults) {
    if modules.is_empty() {
        faults.invalid(path, format!("Invalid '{path}': name at least one module."));
    }
    for (i, module) in modules.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if !TARGET_MODULES.contains(&module.as_str()) {
            faults.push(ApiError::unsupported_value(path, module, &TARGET_MODULES));
        } else if modules[..i].contains(module) {
            let message = format!("Invalid '{path}': '{module}' is named twice.");
            faults.invalid(path, message);
        }
    }
}

/// A key names a target module, or the end of its path: `q_proj`, `layers.3.mlp.down_proj`.
fn check_pattern_key(key: &str, lora: &LoraRequest, path: &str, faults: &mut Faults) {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let module = key.rsplit('.').next().unwrap_or_default();
    let is_target = match &lora.target_modules {
        Some(modules) => modules.iter().any(|target| target == module),
        None => TARGET_MODULES.contains(&module),
    };
    if is_target && key.chars().all(plain) {
        return;
    }
    let message = format!(
        "Invalid '{path}': expected a target module's name or the end of its path, such as \
         'q_proj' or 'layers.3.mlp.down_proj', but got '{key}' instead."
    );
    faults.invalid(path, message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requested_values_are_checked() {
        let good = json!({"n_epochs": 3.0, "batch_size": "auto", "learning_rate_multiplier": 0.5});
        let mut faults = Faults::default();
        let good = requested(Some(&good), "hyperparameters", &mut faults);
        assert_eq!((good.n_epochs, faults.is_empty()), (Auto::Value(3), true));
        for (object, code, param) in [
            (json!({"n_epochs": 0}), "integer_below_min_value", "h.n_epochs"),
            (json!({"n_epochs": 51}), "integer_above_max_value", "h.n_epochs"),
            (json!({"n_epochs": 1.5}), "invalid_type", "h.n_epochs"),
            (json!({"batch_size": "many"}), "invalid_type", "h.batch_size"),
            (
                json!({"learning_rate_multiplier": 0}),
                "decimal_below_min_value",
                "h.learning_rate_multiplier",
            ),
            (json!({"beta": 0.1}), "unknown_parameter", "h.beta"),
            (json!([]), "invalid_type", "h"),
        ] {
            let mut faults = Faults::default();
            requested(Some(&object), "h", &mut faults);
            let error = faults.into_result().unwrap_err().envelope().error;
            assert_eq!((error.code.as_deref(), error.param.as_deref()), (Some(code), Some(param)));
        }
    }

    #[test]
    fn options_out_of_range_are_refused_by_path() {
        for (options, param) in [
            (json!({"learning_rate": 0.0}), "finetuned.learning_rate"),
            (json!({"warmup_ratio": 1.5}), "finetuned.warmup_ratio"),
            // The engine refuses it too, so it must not get that far.
            (json!({"weight_decay": 1.0}), "finetuned.weight_decay"),
            (json!({"max_grad_norm": -1.0}), "finetuned.max_grad_norm"),
            (json!({"max_seq_len": 8}), "finetuned.max_seq_len"),
            (json!({"micro_batch_tokens": 1}), "finetuned.micro_batch_tokens"),
            (json!({"tuning": "full", "quantization": "nf4"}), "finetuned.quantization"),
            (json!({"tuning": "full", "lora": {"rank": 8}}), "finetuned.lora"),
            (json!({"early_stopping": {"patience": 0}}), "finetuned.early_stopping.patience"),
            (json!({"early_stopping": {"min_delta": -1.0}}), "finetuned.early_stopping.min_delta"),
            (json!({"lora": {"rank": 0}}), "finetuned.lora.rank"),
            (json!({"lora": {"target_modules": []}}), "finetuned.lora.target_modules"),
            (
                json!({"lora": {"target_modules": ["q_proj", "lm_head"]}}),
                "finetuned.lora.target_modules[1]",
            ),
            (json!({"lora": {"dora": true, "dropout": 0.1}}), "finetuned.lora.dropout"),
            (
                json!({"lora": {"rank_pattern": {"q_proj": 0}}}),
                "finetuned.lora.rank_pattern.q_proj",
            ),
            (
                json!({"lora": {"target_modules": ["q_proj"], "alpha_pattern": {"k_proj": 1.0}}}),
                "finetuned.lora.alpha_pattern.k_proj",
            ),
            (
                json!({"lora": {"rank_pattern": {"*_proj": 4}}}),
                "finetuned.lora.rank_pattern.*_proj",
            ),
        ] {
            let options: TrainingOptions = serde_json::from_value(options).unwrap();
            let error = check_options(&options, "finetuned").unwrap_err().envelope().error;
            assert_eq!(error.param.as_deref(), Some(param));
        }
    }
}
