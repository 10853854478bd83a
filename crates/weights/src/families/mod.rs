//! The families of models, as a table: in what they differ from Llama. A `config.json` and its family's row
//! give a [`DecoderSpec`].
//!
//! The importer and the engine read configurations with the same function, so what is refused is refused
//! before anything is registered.

mod config;
mod rope;

use serde_json::Value;
use thiserror::Error;

use crate::spec::{DecoderSpec, NormPlacement, QkNorm};

/// A configuration that describes no decoder of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    #[error("the architecture {0:?} is not supported; supported: {list}", list = supported())]
    Family(String),
    /// A field is missing, or makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A known family with an option that the decoder does not compute.
    #[error("{0} is not supported")]
    Unsupported(String),
}

/// What a family is: fields not named in a row are Llama's.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// `architectures[0]` of `config.json`.
    pub class: &'static str,
    /// `general.architecture` of a GGUF file that has the same weights.
    pub gguf_architecture: Option<&'static str>,
    norms: NormPlacement,
    norm_plus_one: bool,
    qk_norm: QkNorm,
    bias: Bias,
    fused: bool,
    window: Window,
    rotation: Rotation,
    scales: Scales,
    softcaps: bool,
    /// The field that names the activation, and its value when absent.
    activation: (&'static str, &'static str),
    /// `tie_word_embeddings` when absent.
    tied: bool,
    /// transformers' values of other fields that the family's files leave out.
    defaults: &'static [(&'static str, f64)],
}

/// Which linear layers have a bias.
#[derive(Debug)]
enum Bias {
    Never,
    /// q, k and v.
    Qkv,
    /// q, k, v and o if `attention_bias` says so.
    Attention,
    /// As above, and the MLP's if `mlp_bias` says so.
    AttentionAndMlp,
}

/// Which layers see the last `sliding_window` tokens only.
#[derive(Debug)]
enum Window {
    Never,
    All,
    /// If `use_sliding_window`: those that `layer_types` names, or those from `max_window_layers` on.
    Upper,
    /// If `use_sliding_window`: those that `layer_types` names, or those without rotation.
    NotRotated,
    /// Those that `layer_types` names, or all but every n-th, where `sliding_window_pattern` may set n.
    AllButEvery(usize),
}

/// How queries and keys are rotated.
#[derive(Debug)]
enum Rotation {
    /// Alike in every layer.
    Whole,
    /// A leading part of each head, as `partial_rotary_factor` says.
    Partial,
    /// Not in the layers where `no_rope_layers` is 0, or not in every `no_rope_layer_interval`-th.
    SomeLayers,
    /// With a table for the layers with a window and one for the others.
    ByLayerType,
}

/// Factors beside the usual 1/√head_dim on attention scores.
#[derive(Debug)]
enum Scales {
    Usual,
    /// Embeddings × √hidden_size; scores × 1/√query_pre_attn_scalar.
    Gemma,
    /// `embedding_multiplier`, `residual_multiplier`, `attention_multiplier`, 1/`logits_scaling`.
    Granite,
}

const LLAMA: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    gguf_architecture: None,
    norms: NormPlacement::Before,
    norm_plus_one: false,
    qk_norm: QkNorm::None,
    bias: Bias::AttentionAndMlp,
    fused: false,
    window: Window::Never,
    rotation: Rotation::Whole,
    scales: Scales::Usual,
    softcaps: false,
    activation: ("hidden_act", "silu"),
    tied: false,
    defaults: &[("rms_norm_eps", 1e-6), ("rope_theta", 10_000.0)],
};

pub const FAMILIES: &[Family] = &[
    // Llama 2, 3, 3.x; SmolLM2, TinyLlama.
    Family { gguf_architecture: Some("llama"), ..LLAMA },
    Family {
        model_type: "mistral",
        class: "MistralForCausalLM",
        bias: Bias::Never,
        window: Window::All,
        ..LLAMA
    },
    // Qwen2 and 2.5.
    Family {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        bias: Bias::Qkv,
        window: Window::Upper,
        defaults: QWEN,
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        bias: Bias::Attention,
        qk_norm: QkNorm::PerHead,
        window: Window::Upper,
        defaults: QWEN3,
        ..LLAMA
    },
    Family {
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        window: Window::NotRotated,
        rotation: Rotation::SomeLayers,
        tied: true,
        defaults: &[("rms_norm_eps", 1e-6), ("rope_theta", 2_000_000.0)],
        ..LLAMA
    },
    // Granite 3 without experts.
    Family { model_type: "granite", class: "GraniteForCausalLM", scales: Scales::Granite, ..LLAMA },
    Family {
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        norms: NormPlacement::After,
        qk_norm: QkNorm::FullWidth,
        bias: Bias::Attention,
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 10_000.0)],
        ..LLAMA
    },
    Family {
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        window: Window::AllButEvery(2),
        softcaps: true,
        defaults: GEMMA2,
        ..GEMMA
    },
    // The text part of Gemma 3.
    Family {
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        qk_norm: QkNorm::PerHead,
        window: Window::AllButEvery(6),
        rotation: Rotation::ByLayerType,
        softcaps: true,
        defaults: GEMMA3,
        ..GEMMA
    },
    // Phi-3, 3.5 and 4, Phi-4-mini.
    Family {
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        bias: Bias::Never,
        fused: true,
        window: Window::All,
        rotation: Rotation::Partial,
        defaults: &[("rms_norm_eps", 1e-5), ("rope_theta", 10_000.0)],
        ..LLAMA
    },
];

const GEMMA: Family = Family {
    norms: NormPlacement::Both,
    norm_plus_one: true,
    bias: Bias::Attention,
    scales: Scales::Gemma,
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    tied: true,
    ..LLAMA
};

const QWEN: &[(&str, f64)] = &[
    ("rms_norm_eps", 1e-6),
    ("rope_theta", 10_000.0),
    ("sliding_window", 4096.0),
    ("max_window_layers", 28.0),
];

const QWEN3: &[(&str, f64)] = &[
    ("rms_norm_eps", 1e-6),
    ("rope_theta", 10_000.0),
    ("sliding_window", 4096.0),
    ("max_window_layers", 28.0),
    ("head_dim", 128.0),
];

const GEMMA2: &[(&str, f64)] = &[
    ("rms_norm_eps", 1e-6),
    ("rope_theta", 10_000.0),
    ("sliding_window", 4096.0),
    ("head_dim", 256.0),
    ("query_pre_attn_scalar", 256.0),
    ("attn_logit_softcapping", 50.0),
    ("final_logit_softcapping", 30.0),
];

/// Published files of the larger models name little more than the sizes.
const GEMMA3: &[(&str, f64)] = &[
    ("rms_norm_eps", 1e-6),
    ("rope_theta", 1_000_000.0),
    ("rope_local_base_freq", 10_000.0),
    ("sliding_window", 4096.0),
    ("head_dim", 256.0),
    ("query_pre_attn_scalar", 256.0),
    ("num_attention_heads", 8.0),
    ("num_key_value_heads", 4.0),
    ("vocab_size", 262_208.0),
    ("max_position_embeddings", 131_072.0),
];

/// Limits that keep what a header makes us compute small; real models are far below.
pub const MAX_LAYERS: usize = 1_024;
pub const MAX_DIMENSION: usize = 1 << 24;

impl Family {
    pub fn by_gguf_architecture(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.gguf_architecture == Some(name))
    }

    pub fn by_model_type(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.model_type == name)
    }

    /// The family that a configuration names.
    ///
    /// # Errors
    /// For families that are not supported, and for classes of a known one that are no language model.
    pub fn of(config: &Value) -> Result<&'static Self, SpecError> {
        let name = config["model_type"].as_str().unwrap_or_default();
        let family = Self::by_model_type(name).ok_or_else(|| SpecError::Family(name.into()))?;
        match config["architectures"][0].as_str() {
            Some(class) if class != family.class => Err(SpecError::Family(class.into())),
            _ => Ok(family),
        }
    }
}

/// The description that a `config.json` stands for.
///
/// # Errors
/// For a family or an option that is not supported, naming it, and for fields that are missing or make no
/// sense.
pub fn read_spec(config: &Value) -> Result<DecoderSpec, SpecError> {
    config::read(Family::of(config)?, config)
}

pub(crate) fn supported() -> String {
    let names: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    names.join(", ")
}
