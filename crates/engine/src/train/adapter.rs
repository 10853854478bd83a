//! The adapter that a new run starts from, as the plan wants it: a fresh one, or that of a tuned model.

use std::rc::Rc;

use domain::hyperparameters::Tuning;
use domain::plan::{LoraConfig, StartWeights, TrainingPlan};
use domain::preference::LossType;
use domain::report::RunFailure;
use model::{Adapter, AdapterOptions, Decoder, LoraOptions, VirtualTokens};
use weights::peft::Pattern;

use crate::failure::permanent;
use crate::seed::{Purpose, derive};

/// # Errors
/// Options that the model cannot carry.
pub(super) fn fresh(
    plan: &TrainingPlan,
    init: Vec<i64>,
    decoder: &Decoder,
) -> Result<Adapter, RunFailure> {
    let tokens = VirtualTokens { count: i64::from(plan.hyperparameters.virtual_positions()), init };
    let options = match plan.hyperparameters.tuning {
        Tuning::Full => AdapterOptions::Full,
        Tuning::Prompt => AdapterOptions::Prompt(tokens),
        Tuning::Prefix => AdapterOptions::Prefix(tokens),
        Tuning::Lora => AdapterOptions::Lora(lora_options(&plan.hyperparameters.lora)),
    };
    let seed = derive(plan.hyperparameters.seed, Purpose::AdapterInit, 0, 0);
    let field = match plan.hyperparameters.tuning {
        Tuning::Lora => "lora",
        Tuning::Full => "tuning",
        Tuning::Prompt | Tuning::Prefix => "virtual_tokens",
    };
    let preference = plan.hyperparameters.preference.as_deref();
    let is_reward = preference.is_some_and(|options| options.loss_type == LossType::Reward);
    let score_seed = derive(plan.hyperparameters.seed, Purpose::AdapterInit, 1, 0);
    Adapter::init(decoder, &options, seed)
        .and_then(|adapter| match is_reward {
            true => adapter.with_score(decoder, score_seed),
            false => Ok(adapter),
        })
        .map_err(|error| permanent("invalid_hyperparameters", Some(field), error.to_string()))
}

/// The adapter of the tuned model that the plan goes on from, with its own shape.
///
/// # Errors
/// One that the model cannot carry, or of another kind than the plan says.
pub(super) fn started(
    plan: &TrainingPlan,
    start: &StartWeights,
    decoder: &Decoder,
) -> Result<Adapter, RunFailure> {
    let h = &plan.hyperparameters;
    let refused = |message: String| permanent("invalid_start_model", Some("model"), message);
    let mut adapter = load(start, decoder)?;
    let virtual_tokens = u64::from(h.virtual_positions());
    let is_planned = adapter.is_full() == (h.tuning == Tuning::Full)
        && adapter.lora().is_some() == (h.tuning == Tuning::Lora)
        && adapter.virtual_tokens() as u64 == virtual_tokens;
    if !is_planned {
        return Err(refused(format!(
            "The model to start from is no model of the tuning '{}' as planned.",
            h.tuning.as_str()
        )));
    }
    let preference = h.preference.as_deref();
    match (
        preference.is_some_and(|options| options.loss_type == LossType::Reward),
        adapter.is_reward(),
    ) {
        (true, false) => {
            let seed = derive(h.seed, Purpose::AdapterInit, 1, 0);
            adapter =
                adapter.with_score(decoder, seed).map_err(|error| refused(error.to_string()))?;
        }
        (false, true) => {
            let message =
                "The model to start from is a reward model, which scores and does not answer.";
            return Err(refused(message.to_owned()));
        }
        _ => {}
    }
    if h.tuning == Tuning::Lora {
        adapter.set_dropout(h.lora.dropout).map_err(|error| refused(error.to_string()))?;
    }
    Ok(adapter)
}

/// The tuned model that losses with a reference compare with, as it was at the start; none where that is the
/// base model, or where the loss has no reference.
pub(super) fn reference(
    plan: &TrainingPlan,
    decoder: &Decoder,
) -> Result<Option<Rc<Adapter>>, RunFailure> {
    let preference = plan.hyperparameters.preference.as_deref();
    match &plan.start_from {
        Some(start) if preference.is_some_and(|options| options.loss_type.has_reference()) => {
            Ok(Some(Rc::new(load(start, decoder)?)))
        }
        _ => Ok(None),
    }
}

fn load(start: &StartWeights, decoder: &Decoder) -> Result<Adapter, RunFailure> {
    Adapter::load(decoder, &start.dir)
        .map_err(|error| permanent("invalid_start_model", Some("model"), error.to_string()))
}

fn lora_options(lora: &LoraConfig) -> LoraOptions {
    LoraOptions {
        rank: i64::from(lora.rank),
        alpha: lora.alpha,
        dropout: lora.dropout,
        target_modules: lora.target_modules.clone(),
        rslora: lora.rslora,
        dora: lora.dora,
        rank_pattern: Pattern::most_specific_first(lora.rank_pattern.clone()),
        alpha_pattern: Pattern::most_specific_first(lora.alpha_pattern.clone()),
    }
}
