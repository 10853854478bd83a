//! The part of a run's start that needs no model: check the plan, read and tokenise its files.
//!
//! It may take seconds for a large file, so the scheduler runs it in a thread of its own while
//! other runs and answers go on. It allocates no tensor.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use dataset::{ChatTokenizer, Dataset, Expected, Format, Problem};
use domain::hyperparameters::{TARGET_MODULES, Tuning};
use domain::job::MethodType;
use domain::plan::TrainingPlan;
use domain::preference::LossType;
use domain::report::RunFailure;
use sha2::{Digest, Sha256};

use super::checkpoint::Fingerprint;
use super::objective::Objective;
use crate::failure::{permanent, retryable};

/// A plan whose data is in memory.
#[derive(Debug)]
pub struct Prepared {
    pub plan: TrainingPlan,
    pub objective: Objective,
    pub training: Dataset,
    pub validation: Option<Dataset>,
    /// Tokens of the text that virtual tokens start from.
    pub init_ids: Vec<i64>,
    pub fingerprint: Fingerprint,
}

/// # Errors
/// A plan that no run can follow, files that cannot be read, rows that are wrong.
pub fn prepare(
    plan: TrainingPlan,
    tokenizer: &ChatTokenizer,
    context_length: u64,
) -> Result<Prepared, RunFailure> {
    let objective = objective(&plan)?;
    check_plan(&plan, context_length)?;
    let expected = match objective {
        Objective::CrossEntropy => Expected::Supervised,
        Objective::Pairs(_) | Objective::Reward(_) => Format::Preference.into(),
        Objective::Labelled(_) => Format::Labelled.into(),
    };
    let max_seq_len = plan.hyperparameters.max_seq_len as usize;
    let load = |path: &Path, expected: Expected, param: &'static str| {
        let hash = sha256(path).map_err(|error| {
            retryable("file_unreadable", format!("{param} {}: {error}", path.display()))
        })?;
        let data = dataset::load(path, expected, tokenizer, max_seq_len)
            .map_err(|problems| refused(param, &problems))?;
        if data.examples.is_empty() {
            return Err(permanent(
                &format!("invalid_{param}"),
                Some(param),
                "The file has no rows.",
            ));
        }
        Ok((hash, data))
    };
    let (training_hash, training) = load(&plan.training_file, expected, "training_file")?;
    let validation = match &plan.validation_file {
        // What is compared must be of one kind.
        Some(path) => Some(load(path, training.format.into(), "validation_file")?),
        None => None,
    };
    let (validation_hash, validation) = validation.unzip();
    let fingerprint = Fingerprint::new(&plan, &training_hash, validation_hash.as_deref());
    let init_ids = init_ids(&plan, tokenizer)?;
    Ok(Prepared { plan, objective, training, validation, init_ids, fingerprint })
}

/// The tokens of the text that virtual tokens start from; none when the plan names no text.
fn init_ids(plan: &TrainingPlan, tokenizer: &ChatTokenizer) -> Result<Vec<i64>, RunFailure> {
    let tokens = plan.hyperparameters.virtual_tokens.as_ref();
    let Some(text) = tokens.and_then(|tokens| tokens.init_text.as_ref()) else {
        return Ok(Vec::new());
    };
    let refused = |why: String| {
        wrong_field("virtual_tokens.init_text", format!("virtual_tokens.init_text {why}."))
    };
    let ids = tokenizer.ids_of(text).map_err(|error| refused(format!("is refused: {error}")))?;
    if ids.is_empty() {
        return Err(refused("has no tokens".to_owned()));
    }
    Ok(ids.into_iter().map(i64::from).collect())
}

fn objective(plan: &TrainingPlan) -> Result<Objective, RunFailure> {
    let refused = |message| Err(permanent("unsupported_method", Some("method"), message));
    match (plan.method, plan.hyperparameters.preference.as_deref().copied()) {
        (MethodType::Supervised, _) => Ok(Objective::CrossEntropy),
        (MethodType::Dpo, Some(options)) => {
            if !is_positive(options.beta) {
                return Err(wrong_field("beta", "beta must be a number above 0.".to_owned()));
            }
            Ok(match options.loss_type {
                LossType::Kto => Objective::Labelled(options),
                LossType::Reward => Objective::Reward(options),
                _ => Objective::Pairs(options),
            })
        }
        (MethodType::Dpo, None) => refused("The plan of a 'dpo' job names no loss.".to_owned()),
        (MethodType::Reinforcement, _) => {
            refused(format!("The method '{}' is not supported.", plan.method.as_str()))
        }
    }
}

fn check_plan(plan: &TrainingPlan, context_length: u64) -> Result<(), RunFailure> {
    let h = &plan.hyperparameters;
    let is_lora = h.tuning == Tuning::Lora;
    let virtual_tokens = h.virtual_positions();
    let known = |name: &String| TARGET_MODULES.contains(&name.as_str());
    let rules: [(&str, bool, &str); 12] = [
        (
            "virtual_tokens",
            h.tuning.has_virtual_tokens() == (virtual_tokens > 0),
            "are of the tunings 'prompt' and 'prefix', at least one of them",
        ),
        ("n_epochs", h.n_epochs > 0, "must be at least 1"),
        ("batch_size", h.batch_size > 0, "must be at least 1"),
        ("learning_rate", is_positive(h.learning_rate), "must be a number above 0"),
        ("weight_decay", is_share(h.weight_decay), "must be from 0 to below 1"),
        ("max_grad_norm", h.max_grad_norm.is_finite(), "must be a number"),
        ("max_seq_len", h.max_seq_len >= 2, "must be at least 2"),
        ("micro_batch_tokens", h.micro_batch_tokens > 0, "must be at least 1"),
        ("lora.rank", !is_lora || h.lora.rank > 0, "must be at least 1"),
        ("lora.alpha", !is_lora || is_positive(h.lora.alpha), "must be a number above 0"),
        ("lora.dropout", !is_lora || is_share(h.lora.dropout), "must be from 0 to below 1"),
        (
            "lora.target_modules",
            !is_lora
                || !h.lora.target_modules.is_empty() && h.lora.target_modules.iter().all(known),
            "must name one or more of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, \
             down_proj",
        ),
    ];
    if let Some((field, _, rule)) = rules.into_iter().find(|(_, holds, _)| !holds) {
        return Err(wrong_field(field, format!("{field} {rule}.")));
    }
    if u64::from(h.max_seq_len) + u64::from(virtual_tokens) > context_length {
        let more = match virtual_tokens {
            0 => String::new(),
            count => format!(" behind {count} virtual ones"),
        };
        let limit = format!(
            "max_seq_len is {}{more}; the base model reads {context_length} tokens.",
            h.max_seq_len
        );
        return Err(wrong_field("max_seq_len", limit));
    }
    Ok(())
}

fn wrong_field(field: &str, message: String) -> RunFailure {
    permanent("invalid_hyperparameters", Some(field), message)
}

fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn is_share(value: f64) -> bool {
    (0.0..1.0).contains(&value)
}

/// The first problem speaks for the file; the server's check has shown all of them before.
fn refused(param: &'static str, problems: &[Problem]) -> RunFailure {
    let first = problems.first().map_or("The file cannot be used.", |problem| &problem.message);
    let more = match problems.len() {
        0 | 1 => String::new(),
        count => format!(" ({} more problems)", count - 1),
    };
    permanent(&format!("invalid_{param}"), Some(param), format!("{first}{more}"))
}

/// Hexadecimal SHA-256 of a file.
fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
