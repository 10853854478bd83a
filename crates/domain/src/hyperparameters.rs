//! Hyperparameters as requested (a value or `auto`) and as resolved (values only).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::preference::PreferenceRequest;

/// A requested value, or the word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auto<T> {
    #[default]
    Auto,
    Value(T),
}

impl<T> Auto<T> {
    pub fn unwrap_or_else(self, resolve: impl FnOnce() -> T) -> T {
        match self {
            Self::Auto => resolve(),
            Self::Value(value) => value,
        }
    }

    pub fn value(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Value(value) => Some(value),
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Value(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Value(T),
            Word(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Value(value) => Ok(Self::Value(value)),
            Either::Word(word) if word == "auto" => Ok(Self::Auto),
            Either::Word(word) => {
                Err(serde::de::Error::custom(format!("expected a number or 'auto', got '{word}'")))
            }
        }
    }
}

/// OpenAI's three hyperparameters, and those of the method `dpo`. `auto` until the files are validated,
/// values afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hyperparameters {
    /// 1–50.
    pub n_epochs: Auto<u32>,
    /// Examples per optimizer step, 1–256.
    pub batch_size: Auto<u32>,
    /// Scales the learning rate that the service would choose; above 0.
    pub learning_rate_multiplier: Auto<f64>,
    /// Of the method `dpo`, and only there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceRequest>,
}

/// What our extension object `finetuned` of a job's creation may set, beyond OpenAI's three. Every
/// field is optional; an absent one takes the operator's configuration, then the built-in default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingOptions {
    /// What is trained; without it, LoRA adapters.
    pub tuning: Option<Tuning>,
    pub lora: Option<LoraRequest>,
    /// Of the tunings `prompt` and `prefix`.
    pub virtual_tokens: Option<VirtualTokensRequest>,
    /// How the base model's linear layers are kept: `nf4` takes a seventh of the memory (QLoRA).
    pub quantization: Option<Quantization>,
    /// The numbers that the base model computes with.
    pub precision: Option<Precision>,
    /// Absolute; wins over the multiplier.
    pub learning_rate: Option<f64>,
    pub schedule: Option<Schedule>,
    /// Share of all steps, 0–1; `warmup_steps` wins over it.
    pub warmup_ratio: Option<f64>,
    pub warmup_steps: Option<u64>,
    pub weight_decay: Option<f64>,
    /// `adamw_8bit` keeps the optimizer's memory in a quarter of the room.
    pub optimizer: Option<OptimizerKind>,
    /// Global gradient norm above which gradients are scaled down; 0 switches clipping off.
    pub max_grad_norm: Option<f64>,
    /// Tokens; longer examples are cut at the end, and reported by row.
    pub max_seq_len: Option<u32>,
    /// Tokens of one micro-batch: the memory knob. Results do not depend on it.
    pub micro_batch_tokens: Option<u32>,
    /// Steps between checkpoints for resuming, besides those at the ends of epochs.
    pub checkpoint_steps: Option<u64>,
    /// Memory for time: what of the forward pass is computed again in the backward pass. Results do not
    /// depend on it.
    pub gradient_checkpointing: Option<GradientCheckpointing>,
    /// Ends training when the validation loss stops falling; needs a validation file.
    pub early_stopping: Option<EarlyStoppingRequest>,
}

/// What is computed again instead of kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientCheckpointing {
    #[default]
    None,
    /// The MLP's two wide projections: about half of the memory of a layer for an eighth more time.
    Mlp,
    /// Whole layers: the least memory, for nearly half more time.
    Full,
}

impl GradientCheckpointing {
    pub const ALL: [Self; 3] = [Self::None, Self::Mlp, Self::Full];

    /// The word on the wire and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mlp => "mlp",
            Self::Full => "full",
        }
    }
}

/// When to stop early, as requested. Evaluations are those of the whole validation file, at the ends of
/// epochs and every `evaluation_steps`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EarlyStoppingRequest {
    /// Evaluations in a row without a better loss before training ends; 1–100, default 2.
    pub patience: Option<u32>,
    /// How much lower a loss must be to count as better, in nats; default 0.
    pub min_delta: Option<f64>,
    /// Steps between evaluations; default: at the ends of epochs only.
    pub evaluation_steps: Option<u64>,
}

/// When to stop early, resolved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    pub patience: u32,
    pub min_delta: f64,
    /// 0 means at the ends of epochs only.
    pub evaluation_steps: u64,
}

/// The requested adapter.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraRequest {
    pub rank: Option<u32>,
    pub alpha: Option<f64>,
    pub dropout: Option<f64>,
    /// Suffixes of module names: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`.
    pub target_modules: Option<Vec<String>>,
    /// Scale by alpha / √rank, so that high ranks learn as fast as low ones.
    pub rslora: Option<bool>,
    /// Weight decomposition: magnitude and direction of each weight row are trained apart.
    pub dora: Option<bool>,
    /// Ranks of single modules, by the end of their path: `q_proj`, `layers.3.mlp.down_proj`. The longest
    /// that fits counts.
    pub rank_pattern: Option<BTreeMap<String, u32>>,
    /// Alphas of single modules, likewise.
    pub alpha_pattern: Option<BTreeMap<String, f64>>,
}

/// What a run trains. The base model stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tuning {
    /// Low-rank matrices beside the linear layers.
    #[default]
    Lora,
    /// Every weight of a copy of the base model.
    Full,
    /// Embeddings of virtual tokens before each text.
    Prompt,
    /// Keys and values of virtual tokens, in every layer, before each text.
    Prefix,
}

/// The virtual tokens of the tunings `prompt` and `prefix`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VirtualTokensRequest {
    pub count: Option<u32>,
    /// They start as this text's tokens, cut or repeated to the count; without it, as tokens that are drawn.
    pub init_text: Option<String>,
}

impl Tuning {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Full => "full",
            Self::Prompt => "prompt",
            Self::Prefix => "prefix",
        }
    }

    /// Whether virtual tokens are trained.
    pub fn has_virtual_tokens(self) -> bool {
        matches!(self, Self::Prompt | Self::Prefix)
    }
}

/// How the frozen linear layers of a base model are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    #[default]
    None,
    /// 4-bit NormalFloat with double quantisation.
    Nf4,
}

impl Quantization {
    /// As in requests and on the engine's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Nf4 => "nf4",
        }
    }
}

/// Who updates the trained values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OptimizerKind {
    #[default]
    #[serde(rename = "adamw")]
    Adamw,
    /// AdamW with its moments in 8 bits, blockwise, as in bitsandbytes.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit,
}

/// The numbers that a base model computes with. Adapters, gradients and the optimizer are f32 in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// The one of the device that first takes the job: bf16 on a GPU, f32 on a CPU.
    Auto,
    /// Also what plans of earlier versions mean, which do not say.
    #[default]
    Fp32,
    Bf16,
}

impl Precision {
    /// As in requests and on the engine's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }

    /// That of a device: `cpu`, `cuda:0`, …
    pub fn of_device(device: &str) -> Self {
        if device.starts_with("cuda") { Self::Bf16 } else { Self::Fp32 }
    }

    /// Itself, or the device's when it is `auto`.
    pub fn or_native(self, native: Self) -> Self {
        if self == Self::Auto { native } else { self }
    }
}

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    #[default]
    Linear,
    Cosine,
    Constant,
}

/// The linear layers that an adapter may stand on, in the order of the decoder.
pub const TARGET_MODULES: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Epochs for `n_examples` when none are asked for: three, but enough for 100 examples seen at small sizes
/// and no more than 25,000 seen at large ones.
pub fn auto_epochs(n_examples: u64) -> u32 {
    let n = n_examples.max(1);
    if 3 * n < 100 {
        (100 / n).min(25) as u32
    } else if 3 * n > 25_000 {
        (25_000 / n).max(1) as u32
    } else {
        3
    }
}

/// Examples per step for `n_examples` when none are asked for: 0.2 % of them, at least 1, at most 256;
/// from 64 examples on at least 4 and from 256 on at least 8, so that a step is not a single row's noise.
pub fn auto_batch_size(n_examples: u64) -> u32 {
    let floor = match n_examples {
        0..64 => 1,
        64..256 => 4,
        _ => 8,
    };
    ((n_examples as f64 * 0.002).round() as u32).clamp(floor, 256)
}

/// What the learning rate of adapters is divided by where every weight is trained.
pub const FULL_RATE_DIVISOR: f64 = 10.0;

/// The learning rate of a multiplier of 1 for LoRA on a model of this width: 5e-4 at a width of 2,000,
/// falling with width^0.781 (the published rule for the Llama family), and never above 5e-4.
pub fn auto_learning_rate(hidden_size: u64) -> f64 {
    (5e-4 * (2000.0 / hidden_size.max(1) as f64).powf(0.781)).min(5e-4)
}

/// The learning rate of a multiplier of 1 for virtual tokens: a hundred times what matrices take, because
/// single rows move the model little.
pub const VIRTUAL_TOKENS_LEARNING_RATE: f64 = 2e-2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_follow_the_published_rule() {
        for (n, epochs) in
            [(10, 10), (3, 25), (34, 3), (101, 3), (8_333, 3), (10_000, 2), (90_000, 1)]
        {
            assert_eq!(auto_epochs(n), epochs, "{n} examples");
        }
    }

    #[test]
    fn precisions_are_the_device_s_unless_chosen() {
        let cpu = Precision::of_device("cpu");
        assert_eq!((cpu, Precision::of_device("cuda:1")), (Precision::Fp32, Precision::Bf16));
        assert_eq!(Precision::Auto.or_native(cpu), Precision::Fp32);
        assert_eq!(Precision::Bf16.or_native(cpu), Precision::Bf16);
        for precision in [Precision::Auto, Precision::Fp32, Precision::Bf16] {
            assert_eq!(serde_json::to_value(precision).unwrap(), precision.as_str());
        }
    }

    #[test]
    fn auto_is_a_word_on_the_wire() {
        let h: Hyperparameters =
            serde_json::from_str(r#"{"n_epochs":"auto","batch_size":4}"#).unwrap();
        assert_eq!((h.n_epochs, h.batch_size), (Auto::Auto, Auto::Value(4)));
        assert_eq!(
            serde_json::to_string(&h).unwrap(),
            r#"{"n_epochs":"auto","batch_size":4,"learning_rate_multiplier":"auto"}"#
        );
        assert!(serde_json::from_str::<Hyperparameters>(r#"{"n_epochs":"many"}"#).is_err());
    }
}
