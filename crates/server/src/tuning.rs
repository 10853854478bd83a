//! What a job trains: the choice, and which options belong to which.

use domain::hyperparameters::{Quantization, Tuning, VirtualTokensRequest};
use domain::plan::VirtualTokens;
use domain::{LoraRequest, TrainingOptions};

use crate::error::ApiError;
use crate::faults::Faults;

/// What peft's examples take.
const DEFAULT_VIRTUAL_TOKENS: u32 = 20;
const MAX_VIRTUAL_TOKENS: u32 = 1024;
const MAX_INIT_TEXT_BYTES: usize = 16 << 10;
/// The shortest text that can be trained on.
const LEAST_TOKENS: u32 = 16;

/// Options of another tuning than the one that is named, and values out of range.
pub(crate) fn find_tuning_faults(options: &TrainingOptions, path: &str, faults: &mut Faults) {
    let at = |field: &str| format!("{path}.{field}");
    let tuning = options.tuning.unwrap_or_default();
    let misplaced = |field: &str, of: &str| {
        let path = at(field);
        let message = format!(
            "Invalid '{path}': it belongs to the tuning {of}, but the tuning is '{}'.",
            tuning.as_str()
        );
        ApiError::invalid_value(path, message)
    };
    if options.lora.is_some() && tuning != Tuning::Lora {
        faults.push(misplaced("lora", "'lora'"));
    }
    let is_quantised = options.quantization.is_some_and(|form| form != Quantization::None);
    if tuning == Tuning::Full && is_quantised {
        let path = at("quantization");
        let message = format!(
            "Invalid '{path}': with 'tuning': 'full' every weight is trained, so none can be quantised."
        );
        faults.invalid(path, message);
    }
    let Some(tokens) = &options.virtual_tokens else { return };
    if !tuning.has_virtual_tokens() {
        faults.push(misplaced("virtual_tokens", "'prompt' or 'prefix'"));
    }
    let at = |field: &str| at(&format!("virtual_tokens.{field}"));
    if let Some(count) = tokens.count {
        let wanted = format!("from 1 to {MAX_VIRTUAL_TOKENS}");
        faults.check((1..=MAX_VIRTUAL_TOKENS).contains(&count), &at("count"), &wanted, count);
    }
    match &tokens.init_text {
        Some(text) if text.trim().is_empty() => {
            let path = at("init_text");
            let message = format!("Invalid '{path}': the text is empty.");
            faults.invalid(path, message);
        }
        Some(text) if text.len() > MAX_INIT_TEXT_BYTES => {
            faults.push(ApiError::too_long(&at("init_text"), MAX_INIT_TEXT_BYTES, text.len()));
        }
        _ => {}
    }
}

/// What a reward model is trained with: LoRA, whatever the operator's other jobs train. Any other choice is
/// refused.
pub(crate) fn choose_for_reward(options: &mut TrainingOptions, path: &str, faults: &mut Faults) {
    match options.tuning {
        None | Some(Tuning::Lora) => options.tuning = Some(Tuning::Lora),
        Some(other) => {
            let path = format!("{path}.tuning");
            let message = format!(
                "Invalid '{path}': a reward model ('loss_type': 'reward') is trained with 'lora', but \
                 got '{}' instead.",
                other.as_str()
            );
            faults.invalid(path, message);
        }
    }
}

/// The job's choice, else the operator's. A job that names options of LoRA means LoRA.
fn resolve_tuning(job: &TrainingOptions, operator: &TrainingOptions) -> Tuning {
    let meant = job.lora.as_ref().map(|_: &LoraRequest| Tuning::Lora);
    job.tuning.or(meant).or(operator.tuning).unwrap_or_default()
}

/// What is trained on which base. A quantised base carries adapters only: what the job asks for wins over the
/// operator's other wish.
pub(crate) fn tuning_and_base(
    job: &TrainingOptions,
    operator: &TrainingOptions,
) -> (Tuning, Quantization) {
    let tuning = resolve_tuning(job, operator);
    let quantization = job.quantization.or(operator.quantization).unwrap_or_default();
    match (tuning, quantization) {
        (Tuning::Full, Quantization::Nf4) if job.tuning.is_none() => (Tuning::Lora, quantization),
        (Tuning::Full, Quantization::Nf4) => (tuning, Quantization::None),
        both => both,
    }
}

/// None for a tuning that has none.
pub(crate) fn resolve_virtual_tokens(
    job: &TrainingOptions,
    operator: &TrainingOptions,
) -> Option<VirtualTokens> {
    let both = [&job.virtual_tokens, &operator.virtual_tokens];
    fn first<T>(
        of: [&Option<VirtualTokensRequest>; 2],
        get: fn(&VirtualTokensRequest) -> Option<T>,
    ) -> Option<T> {
        of.into_iter().flatten().find_map(get)
    }
    resolve_tuning(job, operator).has_virtual_tokens().then(|| VirtualTokens {
        count: first(both, |tokens| tokens.count).unwrap_or(DEFAULT_VIRTUAL_TOKENS),
        init_text: first(both, |tokens| tokens.init_text.clone()),
    })
}

/// Why a model's context has no room for the virtual tokens and a text; none when it has.
pub(crate) fn too_many_virtual_tokens(
    job: &TrainingOptions,
    operator: &TrainingOptions,
    context_length: Option<u32>,
) -> Option<String> {
    let (tokens, context) = (resolve_virtual_tokens(job, operator)?, context_length?);
    let count = tokens.count;
    (count.saturating_add(LEAST_TOKENS) > context).then(|| {
        format!(
            "The base model reads {context} tokens; {count} virtual tokens leave no room for a text. \
             Lower 'finetuned.virtual_tokens.count'."
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(value: serde_json::Value) -> TrainingOptions {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn options_of_another_tuning_are_refused_by_path() {
        for (value, param) in [
            (json!({"tuning": "prompt", "lora": {"rank": 4}}), "finetuned.lora"),
            (json!({"tuning": "lora", "virtual_tokens": {}}), "finetuned.virtual_tokens"),
            (json!({"virtual_tokens": {"count": 8}}), "finetuned.virtual_tokens"),
            (
                json!({"tuning": "prefix", "virtual_tokens": {"count": 0}}),
                "finetuned.virtual_tokens.count",
            ),
            (
                json!({"tuning": "prompt", "virtual_tokens": {"init_text": " "}}),
                "finetuned.virtual_tokens.init_text",
            ),
            (
                json!({"tuning": "prompt", "virtual_tokens": {"init_text": "x".repeat(20_000)}}),
                "finetuned.virtual_tokens.init_text",
            ),
        ] {
            let mut faults = Faults::default();
            find_tuning_faults(&options(value), "finetuned", &mut faults);
            let error = faults.into_result().unwrap_err();
            assert_eq!(error.param(), Some(param));
        }
        for value in [json!({}), json!({"tuning": "lora", "lora": {}}), json!({"tuning": "prefix"})]
        {
            let mut faults = Faults::default();
            find_tuning_faults(&options(value), "finetuned", &mut faults);
            assert!(faults.is_empty());
        }
    }

    #[test]
    fn a_reward_model_is_trained_with_lora_whatever_the_operator_prefers() {
        let operator = options(json!({"tuning": "full"}));
        for value in [json!({}), json!({"tuning": "lora"}), json!({"lora": {"rank": 4}})] {
            let mut job = options(value);
            let mut faults = Faults::default();
            choose_for_reward(&mut job, "finetuned", &mut faults);
            assert!(faults.is_empty());
            assert_eq!(resolve_tuning(&job, &operator), Tuning::Lora);
        }
        for tuning in ["full", "prompt", "prefix"] {
            let mut job = options(json!({ "tuning": tuning }));
            let mut faults = Faults::default();
            choose_for_reward(&mut job, "finetuned", &mut faults);
            assert_eq!(faults.into_result().unwrap_err().param(), Some("finetuned.tuning"));
        }
    }

    #[test]
    fn what_the_job_says_wins_over_the_operator() {
        let operator = options(json!({"tuning": "prompt", "virtual_tokens": {"count": 7}}));
        let none = TrainingOptions::default();
        assert_eq!(resolve_tuning(&none, &operator), Tuning::Prompt);
        assert_eq!(resolve_virtual_tokens(&none, &operator).unwrap().count, 7);
        let lora = options(json!({"lora": {"rank": 4}}));
        assert_eq!(resolve_tuning(&lora, &operator), Tuning::Lora);
        assert_eq!(resolve_virtual_tokens(&lora, &operator), None);
        let prefix = options(json!({"tuning": "prefix", "virtual_tokens": {"init_text": "Hi"}}));
        let tokens = resolve_virtual_tokens(&prefix, &none).unwrap();
        assert_eq!((tokens.count, tokens.init_text.as_deref()), (20, Some("Hi")));
    }

    #[test]
    fn virtual_tokens_must_leave_room_for_a_text() {
        let job = options(json!({"tuning": "prefix", "virtual_tokens": {"count": 100}}));
        let room = |context| too_many_virtual_tokens(&job, &TrainingOptions::default(), context);
        assert!(room(Some(115)).unwrap().contains("100 virtual tokens"));
        assert_eq!((room(Some(116)), room(None)), (None, None));
    }
}
