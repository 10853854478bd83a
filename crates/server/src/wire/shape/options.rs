//! What a job can be told beyond OpenAI's hyperparameters, and what a job shows of it.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::FreeObject;

/// This server's own options. An absent one takes the operator's configuration, then the built-in default.
#[derive(Serialize, ToSchema)]
pub(crate) struct TrainingOptions {
    /// `lora`, `full`, `prompt` or `prefix`.
    pub tuning: Option<String>,
    pub lora: Option<LoraOptions>,
    /// Of the tunings `prompt` and `prefix`.
    pub virtual_tokens: Option<VirtualTokens>,
    /// `none` or `nf4`.
    pub quantization: Option<String>,
    /// `auto`, `fp32` or `bf16`.
    pub precision: Option<String>,
    /// Absolute; wins over the multiplier.
    pub learning_rate: Option<f64>,
    /// `linear`, `cosine` or `constant`.
    pub schedule: Option<String>,
    /// Share of all steps; `warmup_steps` wins over it.
    #[schema(minimum = 0, maximum = 1)]
    pub warmup_ratio: Option<f64>,
    pub warmup_steps: Option<u64>,
    pub weight_decay: Option<f64>,
    /// `adamw` or `adamw_8bit`.
    pub optimizer: Option<String>,
    /// Global gradient norm above which gradients are scaled down; 0 switches clipping off.
    pub max_grad_norm: Option<f64>,
    /// Tokens; longer examples are cut at the end.
    pub max_seq_len: Option<u32>,
    /// Tokens of one micro-batch: the memory knob.
    pub micro_batch_tokens: Option<u32>,
    /// Steps between checkpoints for resuming.
    pub checkpoint_steps: Option<u64>,
    /// `none`, `mlp` or `full`.
    pub gradient_checkpointing: Option<String>,
    pub early_stopping: Option<EarlyStopping>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct LoraOptions {
    pub rank: Option<u32>,
    pub alpha: Option<f64>,
    pub dropout: Option<f64>,
    /// Some of `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`.
    pub target_modules: Option<Vec<String>>,
    /// Scale by alpha / √rank.
    pub rslora: Option<bool>,
    /// Weight decomposition.
    pub dora: Option<bool>,
    /// Ranks of single modules, by the end of their path.
    pub rank_pattern: Option<BTreeMap<String, u32>>,
    /// Alphas of single modules, likewise.
    pub alpha_pattern: Option<BTreeMap<String, f64>>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct VirtualTokens {
    pub count: Option<u32>,
    /// They start as this text's tokens.
    pub init_text: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct EarlyStopping {
    /// Evaluations in a row without a better loss before training ends, 1 to 100.
    pub patience: Option<u32>,
    /// How much lower a loss must be to count as better.
    pub min_delta: Option<f64>,
    /// Steps between evaluations; 0: at the ends of epochs only.
    pub evaluation_steps: Option<u64>,
}

/// The options as resolved, once the files are validated; and what a job that does not run waits for.
#[derive(Serialize, ToSchema)]
pub(crate) struct ShownOptions {
    pub learning_rate: Option<f64>,
    /// `linear`, `cosine` or `constant`.
    pub schedule: Option<String>,
    pub warmup_steps: Option<u64>,
    pub weight_decay: Option<f64>,
    /// `adamw` or `adamw_8bit`.
    pub optimizer: Option<String>,
    pub max_grad_norm: Option<f64>,
    pub max_seq_len: Option<u32>,
    pub micro_batch_tokens: Option<u32>,
    pub checkpoint_steps: Option<u64>,
    /// `none`, `mlp` or `full`.
    pub gradient_checkpointing: Option<String>,
    pub early_stopping: Option<EarlyStopping>,
    /// `none` or `nf4`.
    pub quantization: Option<String>,
    /// `auto`, `fp32` or `bf16`. `auto` lasts until a worker takes the job.
    pub precision: Option<String>,
    /// `lora`, `full`, `prompt` or `prefix`.
    pub tuning: Option<String>,
    pub lora: Option<LoraOptions>,
    pub virtual_tokens: Option<VirtualTokens>,
    /// What the files hold: examples, tokens, truncated rows.
    pub dataset: Option<FreeObject>,
    /// Jobs of the project that run before this one; only of a queued job.
    pub queue_position: Option<u64>,
    pub wait_reason: Option<WaitReason>,
}

/// Why a job that has not ended does not run.
#[derive(Serialize, ToSchema)]
pub(crate) struct WaitReason {
    /// Why, in one word for programs.
    pub code: String,
    pub message: String,
    /// When the job may be taken again.
    pub until: Option<i64>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};
    use utoipa::PartialSchema;

    use super::*;

    fn described<T: PartialSchema>() -> BTreeSet<String> {
        keys(&json!(T::schema())["properties"])
    }

    fn keys(value: &Value) -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn what_is_read_is_described_and_nothing_else() {
        let read = json!(domain::TrainingOptions {
            lora: Some(Default::default()),
            virtual_tokens: Some(Default::default()),
            early_stopping: Some(Default::default()),
            ..Default::default()
        });
        assert_eq!(described::<TrainingOptions>(), keys(&read));
        assert_eq!(described::<LoraOptions>(), keys(&read["lora"]));
        assert_eq!(described::<VirtualTokens>(), keys(&read["virtual_tokens"]));
        assert_eq!(described::<EarlyStopping>(), keys(&read["early_stopping"]));
    }
}
