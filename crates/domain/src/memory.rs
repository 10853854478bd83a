//! How much memory a training run takes, before it starts: a pure function of the model's shape and the
//! run's settings.
//!
//! The terms follow the engine's own buffers one by one (`model::activations`, `engine::train`), so they are
//! sums, not fits; only [`RUNTIME`] and the margin are measured. Pages of the model file that are mapped
//! while it is read are not counted: the kernel takes them back when it needs them.

mod shape;

use serde::{Deserialize, Serialize};

use crate::hyperparameters::{self, GradientCheckpointing, OptimizerKind, Quantization, Tuning};
use crate::plan::ResolvedHyperparameters;
use crate::preference::LossType;

pub use self::shape::{ExtraNorms, ModelShape};

/// What the process takes before it has a model: libtorch's code and tables, threads, buffers of its
/// matrix products. Measured on the CPU.
pub const RUNTIME: u64 = 150 << 20;
/// Share that [`Estimate::required`] adds for the allocator's rounding and fragmentation. Of 150 measured
/// runs the worst took 6.4 % more than their estimate.
pub const MARGIN: f64 = 0.07;
/// Rows of the head's blocks on a CPU, bytes of their logits on a GPU, and the most rows there, as in
/// `model::head`.
const HEAD_ROWS: u64 = 256;
const GPU_BLOCK_BYTES: u64 = 512 << 20;
const GPU_ROWS: u64 = 8192;
/// Bytes of logits up to which those of a row's answers are kept together, as in `model::head`.
const KEPT_LOGITS: u64 = 128 << 20;
/// Tokens of a micro-batch below which products run noticeably slower.
const EFFICIENT_TOKENS: u64 = 512;
/// Batches are rounded up to this many tokens, as in `model::activations`.
const GRAIN: u64 = 128;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Trained {
    /// Adapters of this rank on all seven linears of every layer.
    Lora { rank: u64 },
    /// The same over linears in NF4 with double quantisation.
    Qlora { rank: u64 },
    /// Embeddings of so many virtual tokens before each document.
    Prompt { tokens: u64, quantised: bool },
    /// Keys and values of so many virtual tokens in each layer.
    Prefix { tokens: u64, quantised: bool },
    /// Every weight, of a copy.
    Full,
}

/// The numbers that the model computes with. Adapters, gradients and moments are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// On a CPU.
    F32,
    /// On a GPU.
    Bf16,
}

/// The settings of a run that its memory depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    pub trained: Trained,
    pub optimizer: OptimizerKind,
    pub precision: Precision,
    /// Tokens of the largest micro-batch: `micro_batch_tokens`, or the longest example if that is longer.
    pub tokens: u64,
    /// Of `tokens`, those that are targets; at most all, and none of a reward model.
    pub target_tokens: u64,
    pub gradient_checkpointing: GradientCheckpointing,
    /// Passes without gradients, of a validation file or of a reference, have buffers of their own.
    pub has_validation: bool,
    /// Logits of all answers of a row are kept until their loss is known, if they are not too many.
    pub keeps_logits: bool,
}

impl Workload {
    /// What the engine does in a run: no micro-batch is smaller than the `longest` row, the virtual tokens of
    /// its documents included.
    pub fn of(h: &ResolvedHyperparameters, longest: u64, has_validation: bool) -> Self {
        let ranks = h.lora.rank_pattern.values().chain([&h.lora.rank]);
        let rank = u64::from(*ranks.max().unwrap_or(&h.lora.rank));
        let (quantised, virtual_tokens) =
            (h.quantization == Quantization::Nf4, u64::from(h.virtual_positions()));
        let tokens = u64::from(h.micro_batch_tokens).max(longest);
        let loss_type = h.preference.as_deref().map(|preference| preference.loss_type);
        let has_reference = loss_type.is_some_and(LossType::has_reference);
        // A reward model predicts no tokens; its own head is too small to be counted.
        let target_tokens = if loss_type == Some(LossType::Reward) { 0 } else { tokens };
        Self {
            trained: match (h.tuning, quantised) {
                (Tuning::Full, _) => Trained::Full,
                (Tuning::Lora, false) => Trained::Lora { rank },
                (Tuning::Lora, true) => Trained::Qlora { rank },
                (Tuning::Prompt, quantised) => {
                    Trained::Prompt { tokens: virtual_tokens, quantised }
                }
                (Tuning::Prefix, quantised) => {
                    Trained::Prefix { tokens: virtual_tokens, quantised }
                }
            },
            optimizer: h.optimizer,
            precision: h.precision.into(),
            tokens,
            target_tokens,
            gradient_checkpointing: h.gradient_checkpointing,
            has_validation: has_validation || has_reference,
            keeps_logits: loss_type.is_some(),
        }
    }
}

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// The base model.
    pub weights: u64,
    /// What is trained, its gradients, the optimizer's moments, and their copies in a checkpoint.
    pub trainable: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// Buffers of one layer at a time, and of the head.
    pub workspace: u64,
    /// The process itself.
    pub runtime: u64,
}

impl Estimate {
    /// The expected peak.
    pub fn peak(&self) -> u64 {
        self.weights + self.trainable + self.activations + self.workspace + self.runtime
    }

    /// What must be free for the run to be admitted: the peak and the margin.
    pub fn required(&self) -> u64 {
        with_margin(self.peak())
    }

    /// The same of a run whose base model is loaded already.
    pub fn required_beside_weights(&self) -> u64 {
        with_margin(self.trainable + self.activations + self.workspace)
    }
}

fn with_margin(bytes: u64) -> u64 {
    (bytes as f64 * (1.0 + MARGIN)) as u64
}

/// The first of the workload's cheaper forms that takes at most `room` bytes beside the loaded base
/// model: the workload itself, then smaller micro-batches, then more that is computed again. None when
/// even the smallest is too large. No micro-batch can be smaller than the `longest` row.
///
/// Small micro-batches cost little time down to [`EFFICIENT_TOKENS`]; computing again costs an eighth,
/// then nearly half.
pub fn fit(shape: &ModelShape, workload: &Workload, longest: u64, room: u64) -> Option<Workload> {
    let tokens = workload.tokens.max(longest);
    let halves = |least: u64| {
        let least = least.max(longest).min(tokens);
        let halves = std::iter::successors(Some(tokens), |&now| Some(now / 2));
        halves.take_while(move |&now| now > least).chain([least])
    };
    let policies = GradientCheckpointing::ALL.into_iter();
    let policies: Vec<_> =
        policies.skip_while(|&policy| policy != workload.gradient_checkpointing).collect();
    let efficient = policies
        .iter()
        .flat_map(|&policy| halves(EFFICIENT_TOKENS).map(move |tokens| (policy, tokens)));
    let last = policies.last().copied().into_iter();
    let smallest = last.flat_map(|policy| halves(1).map(move |tokens| (policy, tokens)));
    efficient.chain(smallest).find_map(|(gradient_checkpointing, tokens)| {
        let target_tokens = workload.target_tokens.min(tokens);
        let form = Workload { gradient_checkpointing, tokens, target_tokens, ..*workload };
        (estimate(shape, &form).required_beside_weights() <= room).then_some(form)
    })
}

/// The memory of a run.
pub fn estimate(shape: &ModelShape, workload: &Workload) -> Estimate {
    let tokens = workload.tokens.div_ceil(GRAIN) * GRAIN;
    Estimate {
        weights: weights(shape, workload),
        trainable: trainable(shape, workload),
        activations: tokens * kept_per_token(shape, workload) + kept_of_prefix(shape, workload),
        workspace: workspace(shape, workload, tokens),
        runtime: RUNTIME,
    }
}

impl From<hyperparameters::Precision> for Precision {
    /// Where nothing is known yet, the larger one.
    fn from(precision: hyperparameters::Precision) -> Self {
        match precision {
            hyperparameters::Precision::Bf16 => Self::Bf16,
            hyperparameters::Precision::Fp32 | hyperparameters::Precision::Auto => Self::F32,
        }
    }
}

impl Precision {
    fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl Trained {
    fn rank(self) -> u64 {
        match self {
            Self::Lora { rank } | Self::Qlora { rank } => rank,
            Self::Prompt { .. } | Self::Prefix { .. } | Self::Full => 0,
        }
    }

    fn is_quantised(self) -> bool {
        match self {
            Self::Qlora { .. } => true,
            Self::Prompt { quantised, .. } | Self::Prefix { quantised, .. } => quantised,
            Self::Lora { .. } | Self::Full => false,
        }
    }
}

fn weights(shape: &ModelShape, workload: &Workload) -> u64 {
    let bytes = workload.precision.bytes();
    match workload.trained.is_quantised() {
        false => shape.parameters() * bytes,
        true => {
            let linears = shape.num_hidden_layers * shape.layer_linears();
            // Half a byte per number, one for each block of 64, and four for each 256 blocks.
            let quantised = linears / 2 + linears / 64 + linears * 4 / (64 * 256);
            // The widest product is turned back into plain numbers, one at a time.
            let scratch = 2 * shape.hidden_size * shape.intermediate_size;
            quantised + (shape.parameters() - linears + scratch) * bytes
        }
    }
}

/// Values, gradients and two moments, and the adapter's copy while a checkpoint is written.
fn trainable(shape: &ModelShape, workload: &Workload) -> u64 {
    let moments = match workload.optimizer {
        OptimizerKind::Adamw => 8,
        // One byte each; their scales are a 64th of that.
        OptimizerKind::Adamw8bit => 2,
    };
    match workload.trained {
        Trained::Lora { rank } | Trained::Qlora { rank } => {
            // In bf16 the products take a copy of A too.
            let copies = match workload.precision {
                Precision::F32 => shape.derived_parameters(rank) * 4,
                Precision::Bf16 => {
                    (shape.derived_parameters(rank) + shape.adapter_inputs(rank)) * 2
                }
            };
            shape.adapter_parameters(rank) * (4 + 4 + moments + 4) + copies
        }
        Trained::Prompt { tokens, .. } => tokens * shape.hidden_size * (4 + 4 + moments + 4),
        Trained::Prefix { tokens, .. } => {
            let keys_and_values = 2 * shape.num_hidden_layers * shape.keys();
            tokens * keys_and_values * (4 + 4 + moments + 4)
        }
        Trained::Full => {
            // The base model stays beside them; in bf16 they are rounded for each pass.
            let rounded = if workload.precision == Precision::Bf16 { 2 } else { 0 };
            shape.parameters() * (4 + 4 + moments + rounded)
        }
    }
}

/// A prefix stands behind the tokens of every layer that keeps its own, and once more for the gradient.
fn kept_of_prefix(shape: &ModelShape, workload: &Workload) -> u64 {
    let Trained::Prefix { tokens, .. } = workload.trained else { return 0 };
    let row = (shape.queries() + 2 * shape.keys()) * workload.precision.bytes();
    let layers = match workload.gradient_checkpointing {
        GradientCheckpointing::Full => 1,
        _ => shape.num_hidden_layers,
    };
    (layers + 1) * tokens * row
}

/// Bytes per token that wait for the backward pass.
fn kept_per_token(shape: &ModelShape, workload: &Workload) -> u64 {
    let bytes = workload.precision.bytes();
    let (d, layers) = (shape.hidden_size, shape.num_hidden_layers);
    let (attention, mlp, inner) = layer_per_token(shape, workload);
    let (own, shared) = match workload.gradient_checkpointing {
        GradientCheckpointing::None => (attention + mlp + inner, 0),
        GradientCheckpointing::Mlp => (attention + inner, mlp),
        GradientCheckpointing::Full => (inner, attention + mlp),
    };
    (layers + 1) * d * bytes + layers * own + shared
}

/// Bytes per token that a layer's attention, its MLP and the adapters' inner products leave.
fn layer_per_token(shape: &ModelShape, workload: &Workload) -> (u64, u64, u64) {
    let bytes = workload.precision.bytes();
    let (d, q, kv) = (shape.hidden_size, shape.queries(), shape.keys());
    let output = if shape.norms.of_outputs { d * bytes + 4 } else { 0 };
    let heads = if shape.norms.of_queries_and_keys { (q + kv) * bytes } else { 0 };
    let attention =
        (q + 2 * kv + q + d) * bytes + (shape.num_attention_heads + 1) * 4 + output + heads;
    let mlp = 2 * shape.intermediate_size * bytes + 4 + output;
    (attention, mlp, 7 * workload.trained.rank() * bytes)
}

fn workspace(shape: &ModelShape, workload: &Workload, tokens: u64) -> u64 {
    let bytes = workload.precision.bytes();
    let (d, f) = (shape.hidden_size, shape.intermediate_size);
    let (q, kv) = (shape.queries(), shape.keys());
    let ranks = 7 * workload.trained.rank();
    // Normalised input and two gradients of that width, the activation and its gradient, attention's
    // gradients, the adapters' inner gradients.
    let heads = if shape.norms.of_queries_and_keys { q + kv } else { 0 };
    let layer = tokens * (3 * d + 2 * f + q + (q + 2 * kv) + heads + ranks) * bytes;
    let targets = workload.target_tokens.min(tokens);
    // Logits are f32; in bf16 their gradient is rounded to a copy.
    let rows = match workload.precision {
        _ if targets == 0 => 0,
        Precision::F32 => HEAD_ROWS,
        Precision::Bf16 => {
            let rows = GPU_BLOCK_BYTES / 4 / shape.vocab_size.max(1);
            (rows / HEAD_ROWS * HEAD_ROWS).clamp(HEAD_ROWS, GPU_ROWS).min(targets)
        }
    };
    let logits = rows * shape.vocab_size * if bytes == 4 { 4 } else { 4 + bytes };
    let kept =
        if workload.keeps_logits { 2 * KEPT_LOGITS.min(4 * targets * shape.vocab_size) } else { 0 };
    let head = 4 * targets * d * bytes + logits.max(kept);
    let validation = if workload.has_validation {
        let (attention, mlp, inner) = layer_per_token(shape, workload);
        tokens * (attention + mlp + inner + (2 * d + d + f) * bytes)
    } else {
        0
    };
    layer + head + validation
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn workload(trained: Trained) -> Workload {
        Workload {
            trained,
            optimizer: OptimizerKind::Adamw,
            precision: Precision::Bf16,
            tokens: 2048,
            target_tokens: 2048,
            gradient_checkpointing: GradientCheckpointing::None,
            has_validation: false,
            keeps_logits: false,
        }
    }

    #[test]
    fn parameters_are_those_of_published_models() {
        assert_eq!(LLAMA_8B.parameters(), 8_030_261_248);
        assert_eq!(LLAMA_8B.adapter_parameters(16), 41_943_040);
        let smollm = ModelShape {
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 0,
            vocab_size: 49_152,
            tie_word_embeddings: true,
            norms: ExtraNorms::NONE,
        };
        assert_eq!(smollm.parameters(), 134_515_008);
        assert_eq!(smollm.adapter_parameters(16), 4_884_480);
    }

    #[test]
    fn each_saving_saves_and_each_burden_burdens() {
        let peak = |workload: Workload| estimate(&LLAMA_8B, &workload).peak();
        let lora = workload(Trained::Lora { rank: 16 });
        let with = |checkpointing| Workload { gradient_checkpointing: checkpointing, ..lora };
        let full_precision = Workload { precision: Precision::F32, ..lora };
        let rising = [
            peak(workload(Trained::Qlora { rank: 16 })),
            peak(with(GradientCheckpointing::Full)),
            peak(with(GradientCheckpointing::Mlp)),
            peak(lora),
            peak(Workload { has_validation: true, ..lora }),
            peak(full_precision),
            peak(workload(Trained::Full)),
        ];
        assert!(rising.is_sorted_by(|a, b| a < b), "{rising:?}");
    }

    #[test]
    fn norms_of_a_family_take_their_room() {
        let lora = workload(Trained::Lora { rank: 16 });
        let peak = |norms: ExtraNorms| estimate(&ModelShape { norms, ..LLAMA_8B }, &lora).peak();
        let kept = |norms: &str| peak(norms.to_owned().into()) - peak(ExtraNorms::NONE);
        // Two branches of the hidden size in 32 layers; queries and keys in them and in a buffer more.
        assert_eq!(kept("gemma2"), 2048 * 32 * 2 * (4096 * 2 + 4));
        assert_eq!(kept("qwen3"), 2048 * 33 * (4096 + 1024) * 2);
        assert_eq!(kept("mistral"), 0);
    }

    #[test]
    fn what_does_not_fit_is_made_smaller_in_the_order_of_its_price() {
        let lora = Workload { tokens: 4096, ..workload(Trained::Lora { rank: 16 }) };
        let needs = |form: &Workload| estimate(&LLAMA_8B, form).required_beside_weights();
        let with = |tokens, gradient_checkpointing| Workload {
            tokens,
            target_tokens: tokens.min(2048),
            gradient_checkpointing,
            ..lora
        };
        use GradientCheckpointing::{Full, Mlp, None};
        for form in [with(4096, None), with(1024, None), with(512, Mlp), with(512, Full)] {
            assert_eq!(fit(&LLAMA_8B, &lora, 100, needs(&form)), Some(form));
        }
        // A row of 3,000 tokens cannot be cut into two micro-batches.
        let long = fit(&LLAMA_8B, &lora, 3000, needs(&with(3000, Mlp))).unwrap();
        assert_eq!((long.tokens, long.gradient_checkpointing), (3000, Mlp));
        let smallest = needs(&with(100, Full));
        assert_eq!(fit(&LLAMA_8B, &lora, 100, smallest).unwrap().tokens, 100);
        assert_eq!(fit(&LLAMA_8B, &lora, 100, smallest - 1), Option::None);
    }

    #[test]
    fn virtual_tokens_take_less_than_matrices() {
        let peak = |trained| estimate(&LLAMA_8B, &workload(trained)).peak();
        let (tokens, quantised) = (20, false);
        let prompt = peak(Trained::Prompt { tokens, quantised });
        let prefix = peak(Trained::Prefix { tokens, quantised });
        assert!(peak(Trained::Prompt { tokens, quantised: true }) < prompt && prompt < prefix);
        assert!(prefix < peak(Trained::Lora { rank: 16 }));
    }

    #[test]
    fn a_reward_model_has_no_logits() {
        let peak = |target_tokens| {
            let lora = workload(Trained::Lora { rank: 16 });
            estimate(&LLAMA_8B, &Workload { target_tokens, precision: Precision::F32, ..lora })
                .peak()
        };
        let head = 4 * 4096 * 4 * 1024;
        assert_eq!(peak(1024) - peak(0), head + HEAD_ROWS * LLAMA_8B.vocab_size * 4);
    }

    #[test]
    fn a_config_file_is_a_shape() {
        let config = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 101}"#;
        let shape: ModelShape = serde_json::from_str(config).unwrap();
        assert_eq!((shape.queries(), shape.keys(), shape.head_size()), (64, 64, 16));
    }
}
