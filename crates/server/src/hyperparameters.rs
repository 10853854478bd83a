//! Requested hyperparameters and options: checked at creation, resolved once the files are counted.

use domain::hyperparameters::{
    EarlyStopping, EarlyStoppingRequest, FULL_RATE_DIVISOR, Precision, Schedule, TARGET_MODULES,
    Tuning, VIRTUAL_TOKENS_LEARNING_RATE, auto_batch_size, auto_epochs, auto_learning_rate,
};
use domain::plan::{LoraConfig, ResolvedHyperparameters};
use domain::preference::{LEARNING_RATE_DIVISOR, LossType};
use domain::{Auto, Hyperparameters, LoraRequest, TrainingOptions};
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};
use crate::extract::json::type_words;
use crate::faults::Faults;
use crate::inference::prompt::integer;
use crate::tuning::{find_tuning_faults, resolve_virtual_tokens, tuning_and_base};

const DEFAULT_MAX_SEQ_LEN: u32 = 2048;
const DEFAULT_MICRO_BATCH_TOKENS: u32 = 2048;
const DEFAULT_WARMUP_RATIO: f64 = 0.03;
const DEFAULT_MAX_GRAD_NORM: f64 = 1.0;
const KTO_MIN_AUTO_BATCH: u32 = 8;
const DEFAULT_CHECKPOINT_STEPS: u64 = 50;
const DEFAULT_PATIENCE: u32 = 2;

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

/// What resolving needs to know of the files and the base model.
pub(crate) struct Measured {
    /// What batches are counted in.
    pub n_examples: u64,
    pub has_validation: bool,
    pub hidden_size: u64,
    /// The base model's context length, in tokens.
    pub context_length: Option<u32>,
}

/// Every `auto` → a value: the job's wish, else the operator's default, else the rule of `domain`.
pub(crate) fn resolve(
    wish: &Hyperparameters,
    job: &TrainingOptions,
    operator: &TrainingOptions,
    seed: u64,
    measured: &Measured,
) -> ResolvedHyperparameters {
    let n_epochs = wish.n_epochs.unwrap_or_else(|| auto_epochs(measured.n_examples));
    let is_kto = wish.preference.is_some_and(|wish| wish.loss_type == LossType::Kto);
    let batch_size = wish.batch_size.unwrap_or_else(|| {
        let size = auto_batch_size(measured.n_examples);
        // KTO measures its baseline on the batch.
        if is_kto { size.max(KTO_MIN_AUTO_BATCH) } else { size }
    });
    let steps_per_epoch = measured.n_examples.div_ceil(u64::from(batch_size.max(1)));
    let total_steps = steps_per_epoch * u64::from(n_epochs);
    let multiplier = wish.learning_rate_multiplier.unwrap_or_else(|| 1.0);
    let (tuning, quantization) = tuning_and_base(job, operator);
    let supervised_rate = supervised_rate(tuning, operator, measured.hidden_size);
    let base_rate = match wish.preference.map(|wish| wish.loss_type) {
        // A fresh head has as much to learn as a supervised adapter.
        Some(LossType::Reward) => supervised_rate,
        Some(_) => supervised_rate / LEARNING_RATE_DIVISOR,
        None => supervised_rate,
    };
    // Of one source, steps win over a ratio; of two sources, the job wins.
    let warmup_of = |options: &TrainingOptions| {
        let by_ratio = |ratio: f64| ((total_steps as f64 * ratio).ceil() as u64).min(total_steps);
        options.warmup_steps.or(options.warmup_ratio.map(by_ratio))
    };
    let warmup_steps = warmup_of(job)
        .or_else(|| warmup_of(operator))
        .unwrap_or_else(|| (total_steps as f64 * DEFAULT_WARMUP_RATIO).ceil() as u64)
        .min(total_steps);
    ResolvedHyperparameters {
        n_epochs,
        batch_size,
        learning_rate_multiplier: multiplier,
        learning_rate: job.learning_rate.unwrap_or(base_rate * multiplier),
        schedule: job.schedule.or(operator.schedule).unwrap_or(Schedule::Linear),
        warmup_steps,
        weight_decay: job.weight_decay.or(operator.weight_decay).unwrap_or(0.0),
        optimizer: job.optimizer.or(operator.optimizer).unwrap_or_default(),
        max_grad_norm: job
            .max_grad_norm
            .or(operator.max_grad_norm)
            .unwrap_or(DEFAULT_MAX_GRAD_NORM),
        max_seq_len: max_seq_len(job, operator, measured.context_length),
        micro_batch_tokens: job
            .micro_batch_tokens
            .or(operator.micro_batch_tokens)
            .unwrap_or(DEFAULT_MICRO_BATCH_TOKENS),
        checkpoint_steps: job
            .checkpoint_steps
            .or(operator.checkpoint_steps)
            .unwrap_or(DEFAULT_CHECKPOINT_STEPS),
        gradient_checkpointing: job
            .gradient_checkpointing
            .or(operator.gradient_checkpointing)
            .unwrap_or_default(),
        early_stopping: job
            .early_stopping
            .as_ref()
            .or(operator.early_stopping.as_ref())
            .filter(|_| measured.has_validation)
            .map(resolve_early_stopping),
        quantization,
        precision: job.precision.or(operator.precision).unwrap_or(Precision::Auto),
        tuning,
        virtual_tokens: resolve_virtual_tokens(job, operator),
        lora: resolve_lora(job.lora.as_ref(), operator.lora.as_ref()),
        preference: wish.preference.map(|preference| Box::new(preference.resolve())),
        seed,
    }
}

/// The learning rate of a multiplier of 1. The operator's is for what the operator's jobs train when they do
/// not say.
fn supervised_rate(tuning: Tuning, operator: &TrainingOptions, hidden_size: u64) -> f64 {
    let is_default = tuning == operator.tuning.unwrap_or_default();
    operator.learning_rate.filter(|_| is_default).unwrap_or_else(|| match tuning {
        Tuning::Lora => auto_learning_rate(hidden_size),
        Tuning::Full => auto_learning_rate(hidden_size) / FULL_RATE_DIVISOR,
        Tuning::Prompt | Tuning::Prefix => VIRTUAL_TOKENS_LEARNING_RATE,
    })
}

/// Tokens after which an example is cut: never more than the base model's context has room for.
pub(crate) fn max_seq_len(
    job: &TrainingOptions,
    operator: &TrainingOptions,
    context_length: Option<u32>,
) -> u32 {
    let wanted = job.max_seq_len.or(operator.max_seq_len).unwrap_or(DEFAULT_MAX_SEQ_LEN);
    let virtual_tokens = resolve_virtual_tokens(job, operator).map_or(0, |tokens| tokens.count);
    wanted.min(context_length.unwrap_or(u32::MAX).saturating_sub(virtual_tokens))
}

fn resolve_early_stopping(rule: &EarlyStoppingRequest) -> EarlyStopping {
    EarlyStopping {
        patience: rule.patience.unwrap_or(DEFAULT_PATIENCE),
        min_delta: rule.min_delta.unwrap_or(0.0),
        evaluation_steps: rule.evaluation_steps.unwrap_or(0),
    }
}

fn resolve_lora(job: Option<&LoraRequest>, operator: Option<&LoraRequest>) -> LoraConfig {
    let built_in = LoraConfig::default();
    let both = [job, operator];
    fn first<T>(of: [Option<&LoraRequest>; 2], get: fn(&LoraRequest) -> Option<T>) -> Option<T> {
        of.into_iter().flatten().find_map(get)
    }
    let rank = first(both, |l| l.rank).unwrap_or(built_in.rank);
    let dora = first(both, |l| l.dora).unwrap_or(built_in.dora);
    // The operator's dropout does not stand in the way of a job that wants weight decomposition.
    let dropout = if dora { Some(0.0) } else { first(both, |l| l.dropout) };
    LoraConfig {
        rank,
        // Twice the rank keeps the update's size when only the rank is chosen.
        alpha: first(both, |l| l.alpha).unwrap_or(2.0 * f64::from(rank)),
        dropout: dropout.unwrap_or(built_in.dropout),
        target_modules: first(both, |l| l.target_modules.clone())
            .unwrap_or(built_in.target_modules),
        rslora: first(both, |l| l.rslora).unwrap_or(built_in.rslora),
        dora,
        rank_pattern: first(both, |l| l.rank_pattern.clone()).unwrap_or_default(),
        alpha_pattern: first(both, |l| l.alpha_pattern.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::hyperparameters::Quantization;
    use serde_json::json;

    const MEASURED: Measured = Measured {
        n_examples: 100,
        has_validation: true,
        hidden_size: 2000,
        context_length: Some(1024),
    };

    fn resolved(
        wish: &Hyperparameters,
        job: TrainingOptions,
        operator: TrainingOptions,
    ) -> ResolvedHyperparameters {
        resolve(wish, &job, &operator, 7, &MEASURED)
    }

    #[test]
    fn every_auto_becomes_a_value() {
        let all = resolved(&Hyperparameters::default(), Default::default(), Default::default());
        assert_eq!((all.n_epochs, all.batch_size, all.warmup_steps), (3, 4, 3));
        assert_eq!((all.learning_rate_multiplier, all.learning_rate), (1.0, 5e-4));
        assert_eq!((all.max_seq_len, all.seed), (1024, 7));
        assert_eq!(all.lora, LoraConfig::default());
        assert_eq!((all.tuning, all.virtual_tokens), (Tuning::Lora, None));
    }

    #[test]
    fn virtual_tokens_take_room_and_a_rate_of_their_own() {
        let job = TrainingOptions { tuning: Some(Tuning::Prefix), ..Default::default() };
        let operator = TrainingOptions { learning_rate: Some(1e-4), ..Default::default() };
        let all = resolved(&Hyperparameters::default(), job, operator);
        assert_eq!((all.learning_rate, all.max_seq_len), (VIRTUAL_TOKENS_LEARNING_RATE, 1004));
        assert_eq!((all.virtual_positions(), all.rows_per_document()), (20, 0));
    }

    #[test]
    fn the_job_wins_over_the_operator_and_both_over_the_built_in() {
        let operator = TrainingOptions {
            learning_rate: Some(1e-3),
            warmup_steps: Some(9),
            lora: Some(LoraRequest { rank: Some(8), ..Default::default() }),
            ..Default::default()
        };
        let wish = Hyperparameters {
            learning_rate_multiplier: Auto::Value(2.0),
            ..Hyperparameters::default()
        };
        let ours = resolved(&wish, Default::default(), operator.clone());
        assert_eq!((ours.learning_rate, ours.warmup_steps), (2e-3, 9));
        assert_eq!((ours.lora.rank, ours.lora.alpha), (8, 16.0));

        let job = TrainingOptions {
            learning_rate: Some(3e-4),
            warmup_ratio: Some(1.0),
            lora: Some(LoraRequest { alpha: Some(5.0), ..Default::default() }),
            ..Default::default()
        };
        let theirs = resolved(&wish, job, operator);
        assert_eq!((theirs.learning_rate, theirs.warmup_steps), (3e-4, 75));
        assert_eq!((theirs.lora.rank, theirs.lora.alpha), (8, 5.0));
    }

    #[test]
    fn full_tuning_learns_at_a_tenth_of_the_rate_on_a_base_that_is_not_quantised() {
        let full = || TrainingOptions { tuning: Some(Tuning::Full), ..Default::default() };
        let nf4 =
            || TrainingOptions { quantization: Some(Quantization::Nf4), ..Default::default() };
        let of = |job, operator| {
            let all = resolved(&Hyperparameters::default(), job, operator);
            (all.tuning, all.quantization, all.learning_rate)
        };
        let whole = (Tuning::Full, Quantization::None, 5e-5);
        assert_eq!(of(full(), Default::default()), whole);
        assert_eq!(of(full(), nf4()), whole, "the job wins");
        assert_eq!(of(nf4(), full()), (Tuning::Lora, Quantization::Nf4, 5e-4), "here too");
    }

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
