//! The adapter that a new run starts from, as the plan wants it.

use domain::hyperparameters::Tuning;
use domain::plan::{LoraConfig, TrainingPlan};
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
