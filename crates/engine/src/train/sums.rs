//! The numbers of a step or an evaluation in the making: sums over its micro-batches, and the means that
//! come of them.

use domain::report::RewardMetrics;
use model::TargetLog;

use super::preference::{LabelLoss, PairLoss};

/// Numbers of micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    pub loss: f64,
    /// What the mean of the loss is over: target tokens, pairs or answers.
    pub units: u64,
    /// Tokens of trained answers (of pairs: of the preferred ones) that were the most probable.
    pub correct: u64,
    pub targets: u64,
    pub rewards: Rewards,
    /// What the adapter added to answers that belong to other inputs.
    baseline: Mean,
}

/// What answers gained.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rewards {
    /// 1 for a pair whose preferred answer has the higher reward (KTO: an answer on its side of z₀), or 0.
    pub won: Mean,
    pub chosen: Mean,
    pub rejected: Mean,
}

/// A mean in the making.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mean {
    pub sum: f64,
    pub count: u64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// None without values, or with one that was no number.
    pub fn value(&self) -> Option<f64> {
        Some(self.sum / self.count as f64).filter(|mean| mean.is_finite())
    }
}

impl Sums {
    /// Begins the measurement of the baseline.
    pub(super) fn reset_baseline(&mut self) {
        self.baseline = Mean::default();
    }

    /// Enters what the adapter added to an answer that belongs to another input.
    pub(super) fn add_to_baseline(&mut self, gain: f64) {
        self.baseline.add(gain);
    }

    pub(super) fn add_tokens(&mut self, sum: model::LossSum) {
        self.loss += sum.loss;
        self.units += sum.targets;
        self.correct += sum.correct;
        self.targets += sum.targets;
    }

    /// KTO's z₀: never below 0, and 0 where there was nothing to measure.
    pub(super) fn baseline(&self) -> f64 {
        self.baseline.value().unwrap_or(0.0).max(0.0)
    }

    pub(super) fn add_pair(&mut self, pair: &PairLoss, preferred: &[TargetLog]) {
        let [chosen, rejected] = pair.rewards;
        self.loss += pair.loss;
        self.units += 1;
        self.add_accuracy(preferred);
        self.rewards.won.add(f64::from(chosen > rejected));
        self.rewards.chosen.add(chosen);
        self.rewards.rejected.add(rejected);
    }

    /// A reward model says no tokens: its accuracy is that of its judgements.
    pub(super) fn add_scored(&mut self, pair: &PairLoss) {
        self.add_pair(pair, &[]);
        let [chosen, rejected] = pair.rewards;
        self.correct += u64::from(chosen > rejected);
        self.targets += 1;
    }

    pub(super) fn add_labelled(&mut self, answer: &LabelLoss, desirable: bool, logs: &[TargetLog]) {
        self.loss += answer.loss;
        self.units += 1;
        self.rewards.won.add(f64::from(answer.is_right));
        if desirable {
            self.add_accuracy(logs);
            self.rewards.chosen.add(answer.reward);
        } else {
            self.rewards.rejected.add(answer.reward);
        }
    }

    fn add_accuracy(&mut self, logs: &[TargetLog]) {
        self.correct += logs.iter().filter(|log| log.correct).count() as u64;
        self.targets += logs.len() as u64;
    }

    /// Mean loss; 0 where there was nothing to learn from (every target was cut off).
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.units.max(1) as f64
    }

    /// Share of target tokens that were the most probable.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.targets.max(1) as f64
    }
}

impl Rewards {
    /// As a training step shows them; nothing where no answers were compared.
    pub fn of_training(&self) -> RewardMetrics {
        RewardMetrics {
            train_reward_accuracy: self.accuracy(),
            train_chosen_reward: self.chosen.value(),
            train_rejected_reward: self.rejected.value(),
            train_reward_margin: self.margin(),
            ..RewardMetrics::default()
        }
    }

    /// Share of comparisons that were won; none where a reward is no number.
    pub fn accuracy(&self) -> Option<f64> {
        let is_finite = (self.chosen.sum + self.rejected.sum).is_finite();
        self.won.value().filter(|_| is_finite)
    }

    /// The preferred answers' mean lead.
    pub fn margin(&self) -> Option<f64> {
        Some(self.chosen.value()? - self.rejected.value()?)
    }
}
