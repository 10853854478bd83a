//! Signs that a run learns its rows by heart instead of what they have in common.
//!
//! Each sign is said once per run; what was said travels with the checkpoints, so that a resumed run does not
//! repeat it. Nothing here changes the run: stopping early is `best`'s part, and only where it was asked for.

use std::collections::BTreeSet;

use domain::MethodType;
use domain::report::{Finding, StepMetrics};
use serde::{Deserialize, Serialize};

/// A rise of the validation loss that is said at once. The same rows are evaluated each time, so that what
/// differs is the model; a rise of a tenth is more than a learning rate's wobble.
const CLEAR_RISE: f64 = 1.10;
/// A rise that is said when two evaluations in a row have it.
const SLIGHT_RISE: f64 = 1.03;
/// In nats: near a loss of 0 a tenth of it is nothing.
const SMALLEST_RISE: f64 = 0.02;
/// A training loss of this share of the validation loss, and this far below it in nats, is known by heart.
const KNOWN_SHARE: f64 = 0.1;
const KNOWN_GAP: f64 = 0.5;
const KNOWN_ACCURACY: f64 = 0.98;
/// Steps without a mistake before they are said; a whole epoch, if that is more.
const PERFECT_STEPS: u64 = 8;

/// What the signs are told from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Signs {
    /// Since the last full evaluation.
    steps: u64,
    loss: f64,
    accuracy: f64,
    lowest: Option<Evaluated>,
    /// Evaluations in a row with at least a slight rise.
    rises: u32,
    /// Steps in a row in which every target token was predicted.
    perfect: u64,
    said: BTreeSet<String>,
}

/// A full evaluation, with the mean training loss of the steps before it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Evaluated {
    step: u64,
    training: f64,
    validation: f64,
}

impl Signs {
    /// Enters a step; what it is the first to show comes back.
    pub fn enter(
        &mut self,
        metrics: &StepMetrics,
        method: MethodType,
        steps_per_epoch: u64,
    ) -> Vec<Finding> {
        self.steps += 1;
        self.loss += metrics.train_loss;
        self.accuracy += metrics.train_mean_token_accuracy;
        let is_perfect = metrics.train_mean_token_accuracy >= 1.0;
        self.perfect = if is_perfect { self.perfect + 1 } else { 0 };
        let mut found = Vec::new();
        // Tokens of preferred answers are not what preferences are trained on.
        let counts_tokens = method == MethodType::Supervised;
        if counts_tokens && self.perfect >= steps_per_epoch.max(PERFECT_STEPS) {
            found.push(("train_accuracy_one", perfect(self.perfect)));
        }
        if let Some(validation) = metrics.full_valid_loss {
            let steps = self.steps as f64;
            let (training, accuracy) = (self.loss / steps, self.accuracy / steps);
            let now = Evaluated { step: metrics.step, training, validation };
            found.extend(self.rising(now).map(|text| ("validation_loss_rising", text)));
            if counts_tokens && accuracy >= KNOWN_ACCURACY && now.is_known_by_heart() {
                found.push(("memorising", by_heart(now)));
            }
            (self.steps, self.loss, self.accuracy) = (0, 0.0, 0.0);
        }
        found.retain(|(code, _)| self.said.insert((*code).to_owned()));
        let finding = |(code, message): (&str, String)| Finding {
            code: code.to_owned(),
            step: metrics.step,
            message,
        };
        found.into_iter().map(finding).collect()
    }

    /// The text, when the validation loss has risen while the training loss fell.
    fn rising(&mut self, now: Evaluated) -> Option<String> {
        let lowest = match self.lowest {
            Some(lowest) if now.validation >= lowest.validation => lowest,
            _ => {
                (self.lowest, self.rises) = (Some(now), 0);
                return None;
            }
        };
        let rose_by = |factor: f64| {
            let needed = (lowest.validation * (factor - 1.0)).max(SMALLEST_RISE);
            now.validation - lowest.validation >= needed && now.training < lowest.training
        };
        self.rises = if rose_by(SLIGHT_RISE) { self.rises + 1 } else { 0 };
        (rose_by(CLEAR_RISE) || self.rises >= 2).then(|| rise(lowest, now))
    }
}

impl Evaluated {
    fn is_known_by_heart(&self) -> bool {
        self.training < KNOWN_SHARE * self.validation && self.validation - self.training > KNOWN_GAP
    }
}

fn rise(lowest: Evaluated, now: Evaluated) -> String {
    format!(
        "Overfitting: the validation loss rose from {:.4} at step {} to {:.4} at step {}, while the training \
         loss fell from {:.4} to {:.4}. The model of step {} is the better one: take its checkpoint, or ask \
         for early_stopping, which makes it the result. Fewer epochs, a lower learning rate or more rows \
         help too.",
        lowest.validation,
        lowest.step,
        now.validation,
        now.step,
        lowest.training,
        now.training,
        lowest.step
    )
}

fn by_heart(now: Evaluated) -> String {
    format!(
        "Overfitting: at step {} the training loss is {:.4} and the validation loss {:.4}. The training rows \
         are known by heart, and little of it helps with others. Use fewer epochs, a lower learning rate or \
         a smaller LoRA rank, or more and more varied rows.",
        now.step, now.training, now.validation
    )
}

fn perfect(steps: u64) -> String {
    format!(
        "Every token of the training rows was predicted in the last {steps} steps: nothing is left to learn \
         from them. Further epochs only teach them by heart; use fewer, or more and other rows."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes that a curve of (training loss, accuracy, validation loss), one step each, brings about.
    fn codes(method: MethodType, steps_per_epoch: u64, curve: &[(f64, f64, f64)]) -> Vec<String> {
        let mut signs = Signs::default();
        let mut found = Vec::new();
        for (i, &(train_loss, accuracy, valid)) in curve.iter().enumerate() {
            let metrics = StepMetrics {
                step: i as u64 + 1,
                train_loss,
                train_mean_token_accuracy: accuracy,
                full_valid_loss: valid.is_finite().then_some(valid),
                ..StepMetrics::default()
            };
            found.extend(signs.enter(&metrics, method, steps_per_epoch));
        }
        found.into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_healthy_run_shows_no_sign() {
        let curve = [(2.0, 0.5, 1.9), (1.5, 0.6, 1.6), (1.2, 0.7, 1.5), (1.0, 0.7, 1.45)];
        assert!(codes(MethodType::Supervised, 1, &curve).is_empty());
    }

    #[test]
    fn a_wobbling_validation_loss_shows_no_sign() {
        // Up by less than a tenth, and down again; or up with the training loss.
        let curve = [(1.0, 0.7, 1.00), (0.9, 0.7, 1.05), (0.9, 0.7, 1.01), (0.8, 0.7, 1.05)];
        assert!(codes(MethodType::Supervised, 1, &curve).is_empty());
        let worse = [(1.0, 0.7, 1.0), (1.3, 0.6, 1.4), (1.2, 0.6, 1.3)];
        assert!(codes(MethodType::Supervised, 1, &worse).is_empty());
        // Near 0 a great share of the loss is no rise.
        let tiny = [(0.02, 0.9, 0.010), (0.01, 0.9, 0.015), (0.01, 0.9, 0.02)];
        assert!(codes(MethodType::Supervised, 1, &tiny).is_empty());
    }

    #[test]
    fn a_rise_is_said_once_at_a_tenth_or_when_it_lasts() {
        let clear = [(1.0, 0.7, 1.0), (0.5, 0.8, 1.2), (0.3, 0.9, 1.5)];
        assert_eq!(codes(MethodType::Supervised, 1, &clear), ["validation_loss_rising"]);
        assert_eq!(codes(MethodType::Dpo, 1, &clear), ["validation_loss_rising"]);
        let lasting = [(1.0, 0.7, 1.0), (0.9, 0.8, 1.04), (0.8, 0.8, 1.05)];
        assert_eq!(codes(MethodType::Supervised, 1, &lasting), ["validation_loss_rising"]);
        assert!(codes(MethodType::Supervised, 1, &lasting[..2]).is_empty());
    }

    #[test]
    fn rows_known_by_heart_are_told_from_rows_learned_well() {
        assert_eq!(codes(MethodType::Supervised, 9, &[(0.01, 0.99, 1.0)]), ["memorising"]);
        assert!(codes(MethodType::Dpo, 9, &[(0.01, 0.99, 1.0)]).is_empty());
        assert!(codes(MethodType::Supervised, 9, &[(0.01, 0.99, 0.05)]).is_empty());
    }

    #[test]
    fn an_epoch_without_a_mistake_is_said_once() {
        let step = (0.001, 1.0, f64::NAN);
        assert!(codes(MethodType::Supervised, 4, &[step; 7]).is_empty());
        assert_eq!(codes(MethodType::Supervised, 4, &[step; 30]), ["train_accuracy_one"]);
        assert!(codes(MethodType::Supervised, 20, &[step; 19]).is_empty());
        let mut broken = vec![step; 7];
        broken.extend([(0.1, 0.99, f64::NAN), step, step]);
        assert!(codes(MethodType::Supervised, 4, &broken).is_empty());
    }
}
