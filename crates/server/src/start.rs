//! Going on from a tuned model: its weights have a shape already, so what a request may still choose is checked
//! against it, and what it leaves open is taken from it.
//!
//! The result is a set of options that says all of the shape, so that nothing later has to know of the start; the
//! operator's defaults for what is trained do not apply.

use std::fmt::Display;

use domain::hyperparameters::{Quantization, Tuning, VirtualTokensRequest};
use domain::plan::{LoraConfig, ResolvedHyperparameters};
use domain::{LoraRequest, LossType, TrainingOptions};
use serde_json::json;

use crate::error::{ApiError, ApiResult};

/// Whether the method can go on from a model of this kind.
pub(crate) fn check_method(
    name: &str,
    trained: &ResolvedHyperparameters,
    wants_reward: bool,
) -> ApiResult<()> {
    let preference = trained.preference.as_deref();
    let is_reward = preference.is_some_and(|options| options.loss_type == LossType::Reward);
    let message = if is_reward && !wants_reward {
        format!(
            "{name} is a reward model, which scores and does not answer. It can be trained further with \
             'loss_type': 'reward' only."
        )
    } else if wants_reward && trained.tuning != Tuning::Lora {
        format!(
            "A reward model ('loss_type': 'reward') is trained with 'lora', but {name} was trained with \
             '{}'. Start from a base model, or from one that was trained with 'lora'.",
            trained.tuning.as_str()
        )
    } else {
        return Ok(());
    };
    Err(ApiError::invalid_value("model", message))
}

/// The options of a job that goes on from a model that was trained so; `path` names them in refusals.
pub(crate) fn continued(
    asked: &TrainingOptions,
    trained: &ResolvedHyperparameters,
    path: &str,
) -> ApiResult<TrainingOptions> {
    let shape = Shape { path };
    shape.keep("tuning", asked.tuning.map(Tuning::as_str), trained.tuning.as_str())?;
    if trained.tuning == Tuning::Full && asked.quantization == Some(Quantization::Nf4) {
        return Err(shape.refusal(
            "quantization",
            "'nf4'",
            "whole weights, of which none can be quantised",
        ));
    }
    let lora = match (trained.tuning, &asked.lora) {
        (Tuning::Lora, asked) => Some(shape.lora(asked.as_ref(), &trained.lora)?),
        (_, None) => None,
        (tuning, Some(_)) => {
            let kept = format!("'{}'", tuning.as_str());
            return Err(shape.refusal("lora", "LoRA", kept));
        }
    };
    let virtual_tokens = match (&trained.virtual_tokens, &asked.virtual_tokens) {
        (None, None) => None,
        (None, Some(_)) => {
            let kept = format!("'{}'", trained.tuning.as_str());
            return Err(shape.refusal("virtual_tokens", "virtual tokens", kept));
        }
        (Some(has), asked) => {
            let asked = asked.as_ref();
            shape.keep("virtual_tokens.count", asked.and_then(|asked| asked.count), has.count)?;
            if asked.is_some_and(|asked| asked.init_text.is_some()) {
                let kept = "the tokens that it has learned";
                return Err(shape.refusal(
                    "virtual_tokens.init_text",
                    "a text to start from",
                    kept,
                ));
            }
            Some(VirtualTokensRequest { count: Some(has.count), init_text: None })
        }
    };
    Ok(TrainingOptions {
        tuning: Some(trained.tuning),
        lora,
        virtual_tokens,
        // An adapter has learned on a base in this form; another is a choice, and none to make for the user.
        quantization: Some(asked.quantization.unwrap_or(trained.quantization)),
        ..asked.clone()
    })
}

struct Shape<'a> {
    path: &'a str,
}

impl Shape<'_> {
    /// Refuses another value than the one that the model has.
    fn keep<T: PartialEq + Display>(&self, field: &str, asked: Option<T>, has: T) -> ApiResult<()> {
        match asked {
            Some(asked) if asked != has => Err(self.refusal(field, asked, has)),
            _ => Ok(()),
        }
    }

    fn refusal(&self, field: &str, asked: impl Display, has: impl Display) -> ApiError {
        let path = format!("{}.{field}", self.path);
        let message = format!(
            "Invalid '{path}': the model to go on from keeps its own shape, {has}, but got {asked} instead. \
             Leave it out, or start from the base model."
        );
        ApiError::invalid_value(path, message)
    }

    fn lora(&self, asked: Option<&LoraRequest>, has: &LoraConfig) -> ApiResult<LoraRequest> {
        let none = LoraRequest::default();
        let asked = asked.unwrap_or(&none);
        self.keep("lora.rank", asked.rank, has.rank)?;
        self.keep("lora.alpha", asked.alpha, has.alpha)?;
        self.keep("lora.rslora", asked.rslora, has.rslora)?;
        self.keep("lora.dora", asked.dora, has.dora)?;
        if let Some(modules) = &asked.target_modules {
            let sorted = |modules: &[String]| {
                let mut modules = modules.to_vec();
                modules.sort();
                modules.join(", ")
            };
            self.keep("lora.target_modules", Some(sorted(modules)), sorted(&has.target_modules))?;
        }
        let rank_pattern = asked.rank_pattern.as_ref().map(|pattern| json!(pattern));
        self.keep("lora.rank_pattern", rank_pattern, json!(has.rank_pattern))?;
        let alpha_pattern = asked.alpha_pattern.as_ref().map(|pattern| json!(pattern));
        self.keep("lora.alpha_pattern", alpha_pattern, json!(has.alpha_pattern))?;
        if has.dora && asked.dropout.is_some_and(|dropout| dropout > 0.0) {
            let path = format!("{}.lora.dropout", self.path);
            let message =
                format!("Invalid '{path}': dropout is not supported together with 'dora'.");
            return Err(ApiError::invalid_value(path, message));
        }
        Ok(LoraRequest {
            rank: Some(has.rank),
            alpha: Some(has.alpha),
            // A matter of training, not of shape.
            dropout: Some(asked.dropout.unwrap_or(has.dropout)),
            target_modules: Some(has.target_modules.clone()),
            rslora: Some(has.rslora),
            dora: Some(has.dora),
            rank_pattern: Some(has.rank_pattern.clone()),
            alpha_pattern: Some(has.alpha_pattern.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use domain::Hyperparameters;
    use serde_json::Value;

    use super::*;
    use crate::resolve::{Measured, resolve};

    const MEASURED: Measured = Measured {
        n_examples: 100,
        has_validation: false,
        hidden_size: 64,
        context_length: Some(512),
    };

    fn options(value: Value) -> TrainingOptions {
        serde_json::from_value(value).unwrap()
    }

    fn resolved(job: &TrainingOptions, operator: &TrainingOptions) -> ResolvedHyperparameters {
        resolve(&Hyperparameters::default(), job, operator, 7, &MEASURED)
    }

    fn trained(value: Value) -> ResolvedHyperparameters {
        resolved(&options(value), &TrainingOptions::default())
    }

    #[test]
    fn what_is_left_open_is_the_shape_of_the_start_and_not_the_operator_s() {
        let operator = options(json!({"tuning": "full", "lora": {"rank": 64, "dropout": 0.1}}));
        for shape in [
            json!({"lora": {"rank": 5, "alpha": 2.5, "rslora": true, "target_modules": ["v_proj"],
                            "rank_pattern": {"0.self_attn.v_proj": 3}}, "quantization": "nf4"}),
            json!({"lora": {"dora": true, "dropout": 0.0}}),
            json!({"tuning": "full"}),
            json!({"tuning": "prefix", "virtual_tokens": {"count": 9, "init_text": "Hi"}}),
            json!({"tuning": "prompt"}),
        ] {
            let start = trained(shape);
            let job = continued(&TrainingOptions::default(), &start, "finetuned").unwrap();
            let again = resolved(&job, &operator);
            assert_eq!((again.tuning, again.quantization), (start.tuning, start.quantization));
            assert_eq!(again.virtual_positions(), start.virtual_positions());
            if start.tuning == Tuning::Lora {
                assert_eq!(again.lora, start.lora);
            }
        }
    }

    #[test]
    fn naming_the_same_shape_is_no_conflict_and_dropout_is_free() {
        let start = trained(json!({"lora": {"rank": 4, "target_modules": ["q_proj", "v_proj"]}}));
        let asked = options(json!({"tuning": "lora", "quantization": "nf4", "lora": {
            "rank": 4, "alpha": 8.0, "target_modules": ["v_proj", "q_proj"], "dropout": 0.05,
        }}));
        let job = continued(&asked, &start, "finetuned").unwrap();
        let lora = job.lora.unwrap();
        assert_eq!((lora.dropout, job.quantization), (Some(0.05), Some(Quantization::Nf4)));
        assert_eq!(lora.target_modules, Some(start.lora.target_modules));
    }

    #[test]
    fn another_shape_is_refused_by_path() {
        let lora = json!({"lora": {"rank": 4}});
        let prefix = json!({"tuning": "prefix", "virtual_tokens": {"count": 9}});
        let full = json!({"tuning": "full"});
        for (start, asked, param) in [
            (&lora, json!({"tuning": "full"}), "tuning"),
            (&lora, json!({"lora": {"rank": 8}}), "lora.rank"),
            (&lora, json!({"lora": {"alpha": 1.0}}), "lora.alpha"),
            (&lora, json!({"lora": {"dora": true}}), "lora.dora"),
            (&lora, json!({"lora": {"rslora": true}}), "lora.rslora"),
            (&lora, json!({"lora": {"target_modules": ["q_proj"]}}), "lora.target_modules"),
            (&lora, json!({"lora": {"rank_pattern": {"q_proj": 2}}}), "lora.rank_pattern"),
            (&lora, json!({"lora": {"alpha_pattern": {"q_proj": 2.0}}}), "lora.alpha_pattern"),
            (&full, json!({"tuning": "lora"}), "tuning"),
            (&full, json!({"lora": {"rank": 4}}), "lora"),
            (&full, json!({"quantization": "nf4"}), "quantization"),
            (&prefix, json!({"virtual_tokens": {"count": 8}}), "virtual_tokens.count"),
            (&prefix, json!({"virtual_tokens": {"init_text": "x"}}), "virtual_tokens.init_text"),
            (&prefix, json!({"tuning": "prompt"}), "tuning"),
        ] {
            let refused = continued(&options(asked.clone()), &trained(start.clone()), "finetuned");
            let error = refused.unwrap_err().envelope().error;
            assert_eq!(error.param, Some(format!("finetuned.{param}")), "{start} {asked}");
            assert!(error.message.contains("start from the base model"), "{}", error.message);
        }
    }

    #[test]
    fn reward_models_go_on_as_reward_models_alone() {
        let plain = trained(json!({}));
        let mut reward = plain.clone();
        let wish = domain::PreferenceRequest { loss_type: LossType::Reward, ..Default::default() };
        reward.preference = Some(Box::new(wish.resolve()));
        assert!(
            check_method("m", &reward, true).is_ok() && check_method("m", &plain, true).is_ok()
        );
        assert!(check_method("m", &plain, false).is_ok());
        assert!(check_method("m", &reward, false).is_err());
        assert!(check_method("m", &trained(json!({"tuning": "full"})), true).is_err());
    }
}
