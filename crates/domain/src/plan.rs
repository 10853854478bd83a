//! The plan: everything that an engine needs for one run, with every `auto` resolved.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::hyperparameters::{
    EarlyStopping, GradientCheckpointing, OptimizerKind, Precision, Quantization, Schedule, Tuning,
};
use crate::id::JobId;
use crate::job::MethodType;
use crate::preference::Preference;

/// What the server decides once the files are validated; stored with the job and shown to the user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResolvedHyperparameters {
    pub n_epochs: u32,
    /// Examples per optimizer step.
    pub batch_size: u32,
    pub learning_rate_multiplier: f64,
    /// Peak learning rate, absolute.
    pub learning_rate: f64,
    pub schedule: Schedule,
    pub warmup_steps: u64,
    pub weight_decay: f64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub optimizer: OptimizerKind,
    /// 0 means no clipping.
    pub max_grad_norm: f64,
    /// Tokens.
    pub max_seq_len: u32,
    /// Tokens of one micro-batch; a longer single example makes a micro-batch of its own.
    pub micro_batch_tokens: u32,
    /// 0 means at the ends of epochs only.
    pub checkpoint_steps: u64,
    #[serde(default)]
    pub gradient_checkpointing: GradientCheckpointing,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// How the base model's linear layers are kept, while training and while answering.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quantization: Quantization,
    /// The numbers that the base model computes with, likewise; a value from the job's first claim on.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// What is trained.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tuning: Tuning,
    /// Of the tuning `lora`; what it says means nothing for the others.
    pub lora: LoraConfig,
    /// Of the tunings `prompt` and `prefix`, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_tokens: Option<VirtualTokens>,
    /// The loss of the method `dpo`, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<Box<Preference>>,
    pub seed: u64,
}

impl ResolvedHyperparameters {
    /// Positions of the context that virtual tokens take.
    pub fn virtual_positions(&self) -> u32 {
        self.virtual_tokens.as_ref().map_or(0, |tokens| tokens.count)
    }

    /// Rows that each document takes in a pass beside its tokens.
    pub fn rows_per_document(&self) -> u32 {
        if self.tuning == Tuning::Prompt { self.virtual_positions() } else { 0 }
    }
}

/// The virtual tokens to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VirtualTokens {
    pub count: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_text: Option<String>,
}

/// The adapter to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    pub rank: u32,
    pub alpha: f64,
    pub dropout: f64,
    /// Module name suffixes, a subset of [`crate::hyperparameters::TARGET_MODULES`].
    pub target_modules: Vec<String>,
    /// The update is scaled by alpha / √rank instead of alpha / rank.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rslora: bool,
    /// Weight decomposition: a trained magnitude per output beside the matrices.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dora: bool,
    /// Ranks of single modules by the end of their path; of several that fit, the longest counts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rank_pattern: BTreeMap<String, u32>,
    /// Alphas of single modules, likewise.
    #[serde(default, skip_serializing_if = "is_default")]
    pub alpha_pattern: BTreeMap<String, f64>,
}

/// For fields that are left out of what is stored when they say nothing: a plan of an earlier version then
/// reads, and compares, as it was written.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: crate::hyperparameters::TARGET_MODULES.map(str::to_owned).to_vec(),
            rslora: false,
            dora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
        }
    }
}

/// A tuned model to go on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartWeights {
    /// An adapter's folder in PEFT's format, or that of a whole model.
    pub dir: PathBuf,
    /// Over its files: the run's result depends on them.
    pub digest: String,
}

/// One run, as the worker hands it to the engine. All paths are local and staged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingPlan {
    pub job_id: JobId,
    /// The lease's order number; checkpoints carry it.
    pub fence: i64,
    pub method: MethodType,
    /// The base model's name, for the adapter's configuration.
    pub base_model: String,
    pub training_file: PathBuf,
    pub validation_file: Option<PathBuf>,
    pub hyperparameters: ResolvedHyperparameters,
    /// The tuned model whose weights training goes on from; none starts from the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_from: Option<StartWeights>,
    /// A checkpoint folder of this very run to continue from, or none for its beginning.
    pub resume_from: Option<PathBuf>,
    /// Where checkpoint folders are written, one below the other.
    pub output_dir: PathBuf,
}
