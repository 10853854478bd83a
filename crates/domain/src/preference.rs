//! What a job of the method `dpo` may say about its loss, and what it resolves to.
//!
//! OpenAI knows `beta`; the rest extends its object. The losses themselves are the engine's.

use serde::{Deserialize, Serialize};

use crate::hyperparameters::Auto;

/// The loss over answers (of pairs, Δ: difference of what the adapter added to their log-probabilities).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// DPO's own: −ln σ(β·Δ).
    #[default]
    Sigmoid,
    /// (Δ per token − 1/(2β))².
    Ipo,
    /// max(0, 1 − β·Δ).
    Hinge,
    /// Likelihood of the preferred answer, and the odds ratio of both; without a reference.
    Orpo,
    /// −ln σ(β·(difference of the log-probabilities per token) − γ); without a reference.
    Simpo,
    /// Single answers with a label, good or bad, instead of pairs: 1 − σ(±β·(what the adapter added − z₀)).
    Kto,
    /// A reward model: a score of its own for each answer, −ln σ(difference of the scores − γ).
    Reward,
}

impl LossType {
    pub const ALL: [Self; 7] =
        [Self::Sigmoid, Self::Ipo, Self::Hinge, Self::Orpo, Self::Simpo, Self::Kto, Self::Reward];
    pub const NAMES: [&str; 7] = ["sigmoid", "ipo", "hinge", "orpo", "simpo", "kto", "reward"];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Ipo => "ipo",
            Self::Hinge => "hinge",
            Self::Orpo => "orpo",
            Self::Simpo => "simpo",
            Self::Kto => "kto",
            Self::Reward => "reward",
        }
    }

    /// Whether the base model's own log-probabilities are part of the loss.
    pub fn has_reference(self) -> bool {
        !matches!(self, Self::Orpo | Self::Simpo | Self::Reward)
    }

    /// Whether labels may be smoothed: only where the loss is −ln σ of something.
    pub fn takes_label_smoothing(self) -> bool {
        matches!(self, Self::Sigmoid | Self::Simpo)
    }

    /// Whether the preferred answer must win by a margin.
    pub fn takes_gamma(self) -> bool {
        matches!(self, Self::Simpo | Self::Reward)
    }

    /// β where none is asked for.
    pub fn auto_beta(self) -> f64 {
        match self {
            // Of a mean over tokens, which is smaller than a sum: the paper's smallest.
            Self::Simpo => 2.0,
            _ => 0.1,
        }
    }
}

/// γ of SimPO where none is asked for: half of β's default, as in the paper's settings.
pub const DEFAULT_GAMMA: f64 = 1.0;

/// How many times smaller the learning rate of a preference job is than that of a supervised one: the
/// adapter only shifts what the model would say already.
pub const LEARNING_RATE_DIVISOR: f64 = 20.0;

/// As requested.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceRequest {
    /// Above 0, at most 2 (SimPO: at most 20).
    pub beta: Auto<f64>,
    pub loss_type: LossType,
    /// Share of pairs that are taken to be labelled the wrong way round, 0 to below 0.5.
    pub label_smoothing: Option<f64>,
    /// SimPO's margin.
    pub gamma: Option<f64>,
    /// How much KTO counts a good answer, and a bad one.
    pub desirable_weight: Option<f64>,
    pub undesirable_weight: Option<f64>,
    /// How much a reward model's scores are drawn towards 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub center_coefficient: Option<f64>,
}

/// As resolved: part of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    pub loss_type: LossType,
    pub beta: f64,
    pub label_smoothing: f64,
    pub gamma: f64,
    pub desirable_weight: f64,
    pub undesirable_weight: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub center_coefficient: f64,
}

/// Left out of what is stored when it says nothing, so that plans of earlier versions compare as written.
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl PreferenceRequest {
    pub fn resolve(&self) -> Preference {
        let is_simpo = self.loss_type == LossType::Simpo;
        Preference {
            loss_type: self.loss_type,
            beta: self.beta.unwrap_or_else(|| self.loss_type.auto_beta()),
            label_smoothing: self.label_smoothing.unwrap_or(0.0),
            gamma: self.gamma.unwrap_or(if is_simpo { DEFAULT_GAMMA } else { 0.0 }),
            desirable_weight: self.desirable_weight.unwrap_or(1.0),
            undesirable_weight: self.undesirable_weight.unwrap_or(1.0),
            center_coefficient: self.center_coefficient.unwrap_or(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_known_by_their_names() {
        for (loss, name) in LossType::ALL.into_iter().zip(LossType::NAMES) {
            assert_eq!(loss.as_str(), name);
            assert_eq!(serde_json::to_value(loss).unwrap(), name);
        }
    }

    #[test]
    fn nothing_asked_for_is_dpo() {
        let all = PreferenceRequest::default().resolve();
        let dpo = Preference {
            loss_type: LossType::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            gamma: 0.0,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            center_coefficient: 0.0,
        };
        assert_eq!(all, dpo);
        let simpo = PreferenceRequest { loss_type: LossType::Simpo, ..Default::default() };
        assert_eq!((simpo.resolve().beta, simpo.resolve().gamma), (2.0, 1.0));
    }
}
