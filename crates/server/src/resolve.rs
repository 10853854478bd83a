//! What requested hyperparameters and options amount to once the files are counted: a value for each, and
//! why it is that one. What may be requested is checked before, in `hyperparameters`.

use domain::hyperparameters::{
    EarlyStopping, EarlyStoppingRequest, FULL_RATE_DIVISOR, GradientCheckpointing, OptimizerKind,
    Precision, Quantization, Schedule, Tuning, VIRTUAL_TOKENS_LEARNING_RATE, auto_batch_size,
    auto_epochs, auto_learning_rate,
};
use domain::plan::{LoraConfig, ResolvedHyperparameters};
use domain::preference::{LEARNING_RATE_DIVISOR, LossType};
use domain::{Hyperparameters, LoraRequest, TrainingOptions};

use crate::reasons::{self, Chooser, Reasons};
use crate::tuning::{resolve_virtual_tokens, tuning_and_base};

const DEFAULT_MAX_SEQ_LEN: u32 = 2048;
const DEFAULT_MICRO_BATCH_TOKENS: u32 = 2048;
const DEFAULT_WARMUP_RATIO: f64 = 0.03;
const DEFAULT_MAX_GRAD_NORM: f64 = 1.0;
const KTO_MIN_AUTO_BATCH: u32 = 8;
const DEFAULT_CHECKPOINT_STEPS: u64 = 50;
const DEFAULT_PATIENCE: u32 = 2;

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
    resolve_with_reasons(wish, job, operator, seed, measured).0
}

/// The same, with the reason of each value.
pub(crate) fn resolve_with_reasons(
    wish: &Hyperparameters,
    job: &TrainingOptions,
    operator: &TrainingOptions,
    seed: u64,
    measured: &Measured,
) -> (ResolvedHyperparameters, Reasons) {
    let mut choose = Chooser::new(job, operator);
    let (n_epochs, batch_size, multiplier) = choose_wishes(&mut choose, wish, measured.n_examples);
    let total_steps =
        measured.n_examples.div_ceil(u64::from(batch_size.max(1))) * u64::from(n_epochs);
    let (tuning, quantization) = choose_tuning(&mut choose);
    let loss_type = wish.preference.map(|wish| wish.loss_type);
    let resolved = ResolvedHyperparameters {
        n_epochs,
        batch_size,
        learning_rate_multiplier: multiplier,
        learning_rate: choose_rate(&mut choose, tuning, loss_type, multiplier, measured),
        schedule: choose.option(
            "schedule",
            |options| options.schedule,
            Schedule::Linear,
            "a rate that falls to 0 needs no tuning",
        ),
        warmup_steps: choose_warmup(&mut choose, total_steps),
        weight_decay: choose.option("weight_decay", |o| o.weight_decay, 0.0, "none"),
        optimizer: choose.option(
            "optimizer",
            |options| options.optimizer,
            OptimizerKind::default(),
            "exact moments; 'adamw_8bit' keeps them in a quarter of the room",
        ),
        max_grad_norm: choose.option(
            "max_grad_norm",
            |options| options.max_grad_norm,
            DEFAULT_MAX_GRAD_NORM,
            "one bad batch does not throw the model off",
        ),
        max_seq_len: choose_length(&mut choose, measured.context_length),
        micro_batch_tokens: choose.option(
            "micro_batch_tokens",
            |options| options.micro_batch_tokens,
            DEFAULT_MICRO_BATCH_TOKENS,
            "a matter of memory and speed; results do not depend on it",
        ),
        checkpoint_steps: choose.option(
            "checkpoint_steps",
            |options| options.checkpoint_steps,
            DEFAULT_CHECKPOINT_STEPS,
            "at most so many steps are lost when a machine dies",
        ),
        gradient_checkpointing: choose.option(
            "gradient_checkpointing",
            |options| options.gradient_checkpointing,
            GradientCheckpointing::None,
            "the fastest; a worker that lacks the memory computes more of it again by itself",
        ),
        early_stopping: choose_early_stopping(&mut choose, measured.has_validation),
        quantization,
        precision: choose.option(
            "precision",
            |options| options.precision,
            Precision::Auto,
            "bf16 on a GPU and fp32 on a CPU, decided by the worker that takes the job",
        ),
        tuning,
        virtual_tokens: resolve_virtual_tokens(job, operator),
        lora: choose_lora(&mut choose, tuning),
        preference: wish.preference.map(|preference| Box::new(preference.resolve())),
        seed,
    };
    (resolved, choose.reasons)
}

/// OpenAI's three: epochs, batch size, multiplier.
fn choose_wishes(
    choose: &mut Chooser<'_>,
    wish: &Hyperparameters,
    n_examples: u64,
) -> (u32, u32, f64) {
    let n_epochs = choose.wish("n_epochs", wish.n_epochs.value(), || {
        let epochs = auto_epochs(n_examples);
        (epochs, reasons::of_epochs(n_examples, epochs))
    });
    let is_kto = wish.preference.is_some_and(|wish| wish.loss_type == LossType::Kto);
    let batch_size = choose.wish("batch_size", wish.batch_size.value(), || {
        let size = auto_batch_size(n_examples);
        // KTO measures its baseline on the batch.
        let size = if is_kto { size.max(KTO_MIN_AUTO_BATCH) } else { size };
        (size, reasons::of_batch_size(n_examples, size, is_kto))
    });
    let multiplier =
        choose.wish("learning_rate_multiplier", wish.learning_rate_multiplier.value(), || {
            (1.0, "the rate stays what the service would choose".to_owned())
        });
    (n_epochs, batch_size, multiplier)
}

fn choose_tuning(choose: &mut Chooser<'_>) -> (Tuning, Quantization) {
    let both = tuning_and_base(choose.job, choose.operator);
    let meant = |options: &TrainingOptions| {
        options.tuning.or(options.lora.as_ref().map(|_| Tuning::Lora)).filter(|&t| t == both.0)
    };
    let tuning = match (choose.source(meant), both.0) {
        (Some(source), _) => source,
        (None, Tuning::Lora) => "built in: little memory, and the base model can be shared",
        (None, _) => "what is left of the request's and the operator's wishes",
    };
    choose.because("tuning", tuning);
    let said = |options: &TrainingOptions| options.quantization.filter(|&q| q == both.1);
    let base = match choose.source(said) {
        Some(source) => source,
        None if both.0 == Tuning::Full => "every weight is trained, so none can be quantised",
        None => "built in: the base model as it is",
    };
    choose.because("quantization", base);
    both
}

fn choose_rate(
    choose: &mut Chooser<'_>,
    tuning: Tuning,
    loss_type: Option<LossType>,
    multiplier: f64,
    measured: &Measured,
) -> f64 {
    if let Some(rate) = choose.job.learning_rate {
        choose.because("learning_rate", "the request says so; the multiplier does not count");
        return rate;
    }
    let (rate, mut reason) = supervised_rate(tuning, choose.operator, measured.hidden_size);
    // A fresh head has as much to learn as a supervised adapter.
    let divisor = match loss_type {
        Some(LossType::Reward) | None => 1.0,
        Some(_) => LEARNING_RATE_DIVISOR,
    };
    if divisor > 1.0 {
        reason = format!(
            "{reason}; divided by {divisor}, because preferences move a tuned model little"
        );
    }
    if multiplier != 1.0 {
        reason = format!("{reason}; times the multiplier {multiplier}");
    }
    choose.because("learning_rate", reason);
    rate / divisor * multiplier
}

/// Of one source, steps win over a ratio; of two sources, the job wins.
fn choose_warmup(choose: &mut Chooser<'_>, total_steps: u64) -> u64 {
    let steps_of = |options: &TrainingOptions| {
        let by_ratio = |ratio: f64| ((total_steps as f64 * ratio).ceil() as u64).min(total_steps);
        options.warmup_steps.or(options.warmup_ratio.map(by_ratio))
    };
    let built_in = (total_steps as f64 * DEFAULT_WARMUP_RATIO).ceil() as u64;
    let why = format!("3 % of {total_steps} steps, so that the optimizer's moments settle first");
    choose.option("warmup_steps", steps_of, built_in, &why).min(total_steps)
}

fn choose_length(choose: &mut Chooser<'_>, context_length: Option<u32>) -> u32 {
    let wanted = choose.option(
        "max_seq_len",
        |options| options.max_seq_len,
        DEFAULT_MAX_SEQ_LEN,
        "longer rows are rare, and memory grows with the longest",
    );
    let length = max_seq_len(choose.job, choose.operator, context_length);
    if length < wanted {
        let room = "the base model's context has no room for more";
        choose.because("max_seq_len", format!("{room} ({wanted} were wanted)"));
    }
    length
}

fn choose_early_stopping(choose: &mut Chooser<'_>, has_validation: bool) -> Option<EarlyStopping> {
    let rule = choose.job.early_stopping.as_ref().or(choose.operator.early_stopping.as_ref());
    let reason = match choose.source(|options| options.early_stopping.clone()) {
        Some(_) if !has_validation => "it needs validation rows, and there are none",
        Some(source) => source,
        None => "built in: all epochs are trained, and the last checkpoint is the result",
    };
    choose.because("early_stopping", reason);
    rule.filter(|_| has_validation).map(resolve_early_stopping)
}

fn choose_lora(choose: &mut Chooser<'_>, tuning: Tuning) -> LoraConfig {
    let lora = resolve_lora(choose.job.lora.as_ref(), choose.operator.lora.as_ref());
    if tuning == Tuning::Lora {
        let rank = choose
            .source(|options| options.lora.as_ref()?.rank)
            .unwrap_or("built in: enough for most tasks; more rows of a harder task may use more");
        choose.because("lora.rank", rank);
        let alpha = choose
            .source(|options| options.lora.as_ref()?.alpha)
            .unwrap_or("twice the rank, which keeps the update's size when only the rank changes");
        choose.because("lora.alpha", alpha);
    }
    lora
}

/// The learning rate of a multiplier of 1. The operator's is for what the operator's jobs train when they do
/// not say.
fn supervised_rate(tuning: Tuning, operator: &TrainingOptions, hidden_size: u64) -> (f64, String) {
    let is_default = tuning == operator.tuning.unwrap_or_default();
    if let Some(rate) = operator.learning_rate.filter(|_| is_default) {
        return (rate, reasons::OPERATOR.to_owned());
    }
    let rate = match tuning {
        Tuning::Lora => auto_learning_rate(hidden_size),
        Tuning::Full => auto_learning_rate(hidden_size) / FULL_RATE_DIVISOR,
        Tuning::Prompt | Tuning::Prefix => VIRTUAL_TOKENS_LEARNING_RATE,
    };
    (rate, reasons::of_learning_rate(tuning, hidden_size))
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
    use domain::Auto;

    use super::*;

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
    fn reasons_name_who_has_said_it_or_the_rule() {
        let wish = Hyperparameters { n_epochs: Auto::Value(5), ..Hyperparameters::default() };
        let operator = TrainingOptions { schedule: Some(Schedule::Cosine), ..Default::default() };
        let job = TrainingOptions { max_seq_len: Some(4096), ..Default::default() };
        let (all, reasons) = resolve_with_reasons(&wish, &job, &operator, 7, &MEASURED);
        assert_eq!((all.n_epochs, all.schedule, all.max_seq_len), (5, Schedule::Cosine, 1024));
        assert_eq!(reasons["n_epochs"], "the request says so");
        assert!(reasons["schedule"].starts_with("the operator's default"));
        assert!(reasons["max_seq_len"].contains("no room for more (4096 were wanted)"));
        assert!(reasons["batch_size"].contains("0.2 % of 100 examples, and at least 4"));
        assert!(reasons["learning_rate"].contains("this model has 2000"));
        assert_eq!(reasons["tuning"], "built in: little memory, and the base model can be shared");
        assert!(reasons["early_stopping"].starts_with("built in"));
        for (n_examples, word) in [(10, "are few"), (1000, "three times"), (50_000, "are many")] {
            let measured = Measured { n_examples, has_validation: false, ..MEASURED };
            let wish = Hyperparameters::default();
            let (_, reasons) = resolve_with_reasons(&wish, &job, &operator, 7, &measured);
            assert!(reasons["n_epochs"].contains(word), "{}", reasons["n_epochs"]);
        }
    }
}
