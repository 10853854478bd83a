//! How a job might better be trained: by the memory that each way takes, by the number of rows, and by
//! whether there are rows to validate with. Advice only; nothing is changed by it.

use domain::hyperparameters::{
    EarlyStopping, Quantization, Tuning, auto_epochs, auto_learning_rate,
};
use domain::memory::{ModelShape, Workload, estimate, fit};
use domain::plan::{ResolvedHyperparameters, VirtualTokens};
use domain::preference::LossType;
use serde_json::json;

use crate::wire::advice::{Advice, AdvisedMethod, AdvisedSetting, Alternative};

/// From so many rows on, what is to be learned may be more than adapters hold.
const ROWS_FOR_FULL: u64 = 10_000;
/// So many passes over rows make most models learn them by heart.
const MANY_EPOCHS: u32 = 10;
/// Up to so many rows the rule itself takes that many.
const FEW_ROWS: u64 = 34;
/// A rate that is so much larger than the rule's is known to break models.
const HIGH_RATE: f64 = 10.0;
const VIRTUAL_TOKENS: u32 = 20;

/// What advice goes by.
pub(crate) struct Facts<'a> {
    pub shape: &'a ModelShape,
    pub settings: &'a ResolvedHyperparameters,
    /// Tokens of the longest row.
    pub longest: u64,
    pub n_examples: u64,
    pub has_validation: bool,
    /// Of a worker's device; none: not known.
    pub memory: Option<u64>,
}

/// Ways to train, the one that learns most first.
const WAYS: [(Tuning, Quantization); 5] = [
    (Tuning::Full, Quantization::None),
    (Tuning::Lora, Quantization::None),
    (Tuning::Lora, Quantization::Nf4),
    (Tuning::Prefix, Quantization::Nf4),
    (Tuning::Prompt, Quantization::Nf4),
];

impl Facts<'_> {
    pub(crate) fn advise(&self) -> Advice {
        let alternatives: Vec<Alternative> =
            self.ways().map(|(tuning, base)| self.alternative(tuning, base)).collect();
        Advice {
            method: self.method(&alternatives),
            memory_bytes: self.memory,
            alternatives,
            settings: self.advised_settings(),
        }
    }

    fn ways(&self) -> impl Iterator<Item = (Tuning, Quantization)> + use<> {
        let loss_type = self.settings.preference.as_deref().map(|p| p.loss_type);
        // A score head stands beside LoRA only.
        let is_reward = loss_type == Some(LossType::Reward);
        WAYS.into_iter().filter(move |(tuning, _)| !is_reward || *tuning == Tuning::Lora)
    }

    /// The job's own settings, trained in this way.
    fn alternative(&self, tuning: Tuning, quantization: Quantization) -> Alternative {
        let mut settings =
            ResolvedHyperparameters { tuning, quantization, ..self.settings.clone() };
        if tuning.has_virtual_tokens() {
            let tokens = VirtualTokens { count: VIRTUAL_TOKENS, init_text: None };
            settings.virtual_tokens.get_or_insert(tokens);
        } else {
            settings.virtual_tokens = None;
        }
        let longest = self.longest.min(u64::from(settings.max_seq_len));
        let longest = longest + u64::from(settings.rows_per_document());
        let workload = Workload::of(&settings, longest, self.has_validation);
        let found = estimate(self.shape, &workload);
        let fits = self.memory.map(|memory| {
            let loaded = found.required() - found.required_beside_weights();
            let room = memory.saturating_sub(loaded);
            match fit(self.shape, &workload, longest, room) {
                Some(form) if form == workload => "whole",
                Some(_) => "smaller",
                None => "no",
            }
        });
        Alternative {
            tuning: tuning.as_str(),
            quantization: quantization.as_str(),
            peak_bytes: found.peak(),
            required_bytes: found.required(),
            fits,
        }
    }

    fn method(&self, alternatives: &[Alternative]) -> AdvisedMethod {
        let rows = self.n_examples;
        let fitting = |way: &&Alternative| way.fits != Some("no");
        // Every weight is worth its memory only where there is much to learn, and where it is known to fit.
        let is_worth = |way: &&Alternative| {
            way.tuning != "full" || (rows >= ROWS_FOR_FULL && way.fits == Some("whole"))
        };
        let Some(best) = alternatives.iter().filter(fitting).find(is_worth) else {
            let least = alternatives.iter().map(|way| way.required_bytes).min().unwrap_or_default();
            let message = format!(
                "No way to train this model on these rows fits into the memory: the smallest takes \
                 {}. Take a smaller base model, or cut rows with 'finetuned.max_seq_len'.",
                gibibytes(least)
            );
            return AdvisedMethod { tuning: None, quantization: None, is_chosen: false, message };
        };
        let of = |tuning: &str, quantization: &str| {
            let mut ways = alternatives.iter();
            let found = ways.find(|way| (way.tuning, way.quantization) == (tuning, quantization));
            gibibytes(found.map_or(0, |way| way.required_bytes))
        };
        let need = gibibytes(best.required_bytes);
        let message = match (best.tuning, best.quantization) {
            ("full", _) => format!(
                "Full fine-tuning: {rows} rows may teach more than adapters hold, and its {need} are \
                 there. LoRA ({}) is the cheaper first try.",
                of("lora", "none")
            ),
            ("lora", "none") if self.memory.is_none() => format!(
                "LoRA, which takes {need}: with {rows} rows it learns what full fine-tuning would. Where \
                 that is too much, QLoRA takes {}. The memory of the workers' devices is not known: \
                 'server.device_memory' tells it.",
                of("lora", "nf4")
            ),
            ("lora", "none") => format!(
                "LoRA: with {rows} rows it learns what full fine-tuning would, and its {need} are there."
            ),
            ("lora", _) => format!(
                "QLoRA: LoRA on the whole base model takes {}, which is not there; on one of 4 bits {need} \
                 are enough, at somewhat lower quality and speed.",
                of("lora", "none")
            ),
            _ => format!(
                "Virtual tokens on a base model of 4 bits ({need}): the memory has no room for LoRA's {}. \
                 They learn less; a smaller base model with LoRA is likely to be better.",
                of("lora", "nf4")
            ),
        };
        let chosen = (self.settings.tuning.as_str(), self.settings.quantization.as_str());
        AdvisedMethod {
            tuning: Some(best.tuning),
            quantization: Some(best.quantization),
            is_chosen: chosen == (best.tuning, best.quantization),
            message,
        }
    }

    fn advised_settings(&self) -> Vec<AdvisedSetting> {
        let (settings, rows) = (self.settings, self.n_examples);
        let mut advised = Vec::new();
        if !self.has_validation {
            advised.push(AdvisedSetting {
                field: "validation_file",
                value: None,
                message: format!(
                    "Keep a tenth of the {rows} rows back as a validation file: without it nothing shows \
                     when the model begins to learn the rows by heart."
                ),
            });
        } else if settings.early_stopping.is_none() && settings.n_epochs > 1 {
            let rule = EarlyStopping { patience: 2, min_delta: 0.0, evaluation_steps: 0 };
            advised.push(AdvisedSetting {
                field: "finetuned.early_stopping",
                value: Some(json!(rule)),
                message: "There are rows to validate with: end when their loss has not fallen twice in a \
                          row, and keep the best checkpoint instead of the last."
                    .to_owned(),
            });
        }
        let usual = auto_epochs(rows);
        if settings.n_epochs >= MANY_EPOCHS && rows > FEW_ROWS && settings.n_epochs > usual {
            advised.push(AdvisedSetting {
                field: "n_epochs",
                value: Some(json!(usual)),
                message: format!(
                    "{} passes over {rows} rows make most models learn them by heart.",
                    settings.n_epochs
                ),
            });
        }
        let usual = auto_learning_rate(self.shape.hidden_size);
        if settings.tuning == Tuning::Lora && settings.learning_rate >= HIGH_RATE * usual {
            advised.push(AdvisedSetting {
                field: "finetuned.learning_rate",
                value: Some(json!(usual)),
                message: format!(
                    "{} is {:.0} times what is usual for LoRA at this width: training may diverge.",
                    settings.learning_rate,
                    settings.learning_rate / usual
                ),
            });
        }
        advised
    }
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use domain::memory::ExtraNorms;
    use domain::{Auto, Hyperparameters, TrainingOptions};

    use super::*;
    use crate::resolve::{Measured, resolve};

    const LLAMA_8B: ModelShape = ModelShape {
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        head_dim: 128,
        vocab_size: 128_256,
        tie_word_embeddings: false,
        norms: ExtraNorms::NONE,
    };

    fn settings(n_epochs: u32) -> ResolvedHyperparameters {
        let wish =
            Hyperparameters { n_epochs: Auto::Value(n_epochs), ..Hyperparameters::default() };
        let measured = Measured {
            n_examples: 1000,
            has_validation: false,
            hidden_size: 4096,
            context_length: None,
        };
        resolve(&wish, &TrainingOptions::default(), &TrainingOptions::default(), 0, &measured)
    }

    fn advice(n_examples: u64, gibibytes: Option<u64>) -> Advice {
        let settings = settings(3);
        let memory = gibibytes.map(|size| size << 30);
        let (longest, has_validation) = (500, false);
        let shape = &LLAMA_8B;
        Facts { shape, settings: &settings, longest, n_examples, has_validation, memory }.advise()
    }

    #[test]
    fn the_method_follows_memory_and_rows() {
        let of = |n_examples, gibibytes| {
            let method = advice(n_examples, gibibytes).method;
            (method.tuning, method.quantization, method.is_chosen)
        };
        assert_eq!(of(1000, None), (Some("lora"), Some("none"), true));
        assert_eq!(of(1000, Some(640)), (Some("lora"), Some("none"), true));
        assert_eq!(of(50_000, Some(640)), (Some("full"), Some("none"), false));
        assert_eq!(of(50_000, Some(80)), (Some("lora"), Some("none"), true));
        assert_eq!(of(1000, Some(16)), (Some("lora"), Some("nf4"), false));
        assert_eq!(of(1000, Some(2)), (None, None, false));
    }

    #[test]
    fn each_alternative_has_its_memory_and_the_advice_its_reason() {
        let advice = advice(1000, Some(16));
        let needs: Vec<u64> = advice.alternatives.iter().map(|way| way.required_bytes).collect();
        assert!(needs.is_sorted_by(|a, b| a > b), "{needs:?}");
        let fits: Vec<_> = advice.alternatives.iter().map(|way| way.fits.unwrap()).collect();
        assert_eq!(fits[..2], ["no", "no"]);
        assert!(advice.method.message.contains("4 bits"), "{}", advice.method.message);
    }

    #[test]
    fn settings_are_advised_only_where_they_differ() {
        let of = |n_epochs, has_validation| {
            let settings = settings(n_epochs);
            let shape = &LLAMA_8B;
            let (longest, n_examples, memory) = (500, 1000, None);
            let facts =
                Facts { shape, settings: &settings, longest, n_examples, has_validation, memory };
            let fields: Vec<_> = facts.advise().settings.iter().map(|one| one.field).collect();
            fields
        };
        assert_eq!(of(3, false), ["validation_file"]);
        assert_eq!(of(3, true), ["finetuned.early_stopping"]);
        assert_eq!(of(20, true), ["finetuned.early_stopping", "n_epochs"]);
        assert!(of(1, true).is_empty());
    }
}
