//! Reports: everything that a run may say. The engine writes them as lines, the worker passes them on, the
//! server turns them into events and rows.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One thing that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RunReport {
    /// The first step is about to begin (also after a resume).
    Started(RunStarted),
    /// An optimizer step is done.
    Step(StepMetrics),
    /// Something that the user should read; becomes an event.
    Message { level: Level, message: String },
    /// A sign of trouble in the run's numbers; becomes a warning.
    Finding(Finding),
}

/// What the numbers of a run say against it, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A stable word: `validation_loss_rising`, `memorising`, `train_accuracy_one`.
    pub code: String,
    pub step: u64,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStarted {
    /// Steps already done by an earlier attempt; 0 on a fresh start.
    pub completed_steps: u64,
    pub total_steps: u64,
    pub train_examples: u64,
    pub valid_examples: u64,
    /// Tokens of one epoch, after truncation.
    pub tokens_per_epoch: u64,
    pub trainable_parameters: u64,
}

/// The numbers of one optimizer step. Losses are means over target tokens (assistant content and the
/// end-of-turn token), in nats; accuracies are teacher-forced top-1 shares of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StepMetrics {
    /// 1-based.
    pub step: u64,
    pub total_steps: u64,
    /// Epochs completed after this step, as a fraction.
    pub epoch: f64,
    pub train_loss: f64,
    pub train_mean_token_accuracy: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
    /// Tokens of this step, targets and context together.
    pub tokens: u64,
    pub target_tokens: u64,
    /// Tokens seen since the start of the job, over all attempts.
    pub trained_tokens: u64,
    pub tokens_per_second: f64,
    /// Seconds until the last step at the present speed.
    pub seconds_left: f64,
    /// On a batch of the validation file; every tenth step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_mean_token_accuracy: Option<f64>,
    /// On the whole validation file; at the end of an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_mean_token_accuracy: Option<f64>,
    /// What the method `dpo` measures beside them; its token accuracy is that of the preferred answers.
    #[serde(flatten)]
    pub rewards: Box<RewardMetrics>,
}

/// Means over the pairs of a step, of a validation batch, and of the whole validation file. An answer's
/// reward is β times what the adapter added to its log-probability (for losses without a reference: β times
/// its log-probability per token).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RewardMetrics {
    /// Share of pairs whose preferred answer has the higher reward (`kto`: share of answers on their side of
    /// z₀).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_reward_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_chosen_reward: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_rejected_reward: Option<f64>,
    /// The difference of the two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_reward_margin: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_reward_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_reward_margin: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_reward_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_valid_reward_margin: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// A checkpoint folder that the engine has completed (written, synced, renamed into place).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointReport {
    pub step: u64,
    pub kind: CheckpointKind,
    pub dir: PathBuf,
    pub trained_tokens: u64,
    /// The last metrics before the checkpoint.
    pub metrics: StepMetrics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    /// Only for going on after an interruption; replaced by the next one.
    Resume,
    /// The end of an epoch: a model of its own, shown to the user.
    Epoch,
    /// The end of training: the tuned model.
    Final,
}

impl CheckpointKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resume => "resume",
            Self::Epoch => "epoch",
            Self::Final => "final",
        }
    }
}

/// Why a run ended without success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFailure {
    /// A stable word: `invalid_training_file`, `loss_diverged`, `out_of_memory`, `internal_error`, …
    pub code: String,
    /// The request field at fault, if one is.
    pub param: Option<String>,
    pub message: String,
    /// True when another attempt may succeed (a lost device, a full disk), false for the user's data.
    pub retryable: bool,
}
