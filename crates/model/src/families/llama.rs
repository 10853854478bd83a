//! Llama 2, 3, 3.x and what shares their shape (SmolLM2, TinyLlama).

use serde::Deserialize;
use serde_json::Value;

use crate::load::LoadError;
use crate::spec::{DecoderSpec, RopeScaling};

#[derive(Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    /// Before transformers 5.
    rope_scaling: Option<Rope>,
    /// Since transformers 5; holds the theta too.
    rope_parameters: Option<Rope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_act")]
    hidden_act: String,
}

fn default_eps() -> f64 {
    1e-6
}

fn default_act() -> String {
    "silu".into()
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

pub(super) fn read(config: &Value) -> Result<DecoderSpec, LoadError> {
    let c = Config::deserialize(config)
        .map_err(|error| LoadError::Config(format!("config.json: {error}")))?;
    if c.hidden_act != "silu" {
        let message = format!("hidden_act '{}' for a llama model; supported: 'silu'", c.hidden_act);
        return Err(LoadError::Unsupported(message));
    }
    let kv_heads = c.num_key_value_heads.unwrap_or(c.num_attention_heads);
    let positive = [
        ("hidden_size", c.hidden_size),
        ("intermediate_size", c.intermediate_size),
        ("num_hidden_layers", c.num_hidden_layers),
        ("num_attention_heads", c.num_attention_heads),
        ("num_key_value_heads", kv_heads),
        ("vocab_size", c.vocab_size),
        ("max_position_embeddings", c.max_position_embeddings),
    ];
    if let Some((name, value)) = positive.iter().find(|(_, v)| *v == 0 || *v > 1 << 24) {
        return Err(LoadError::Config(format!("config.json: {name} = {value} makes no sense")));
    }
    let head_dim = c.head_dim.unwrap_or(c.hidden_size / c.num_attention_heads);
    if head_dim == 0 || head_dim % 2 != 0 || c.num_attention_heads % kv_heads != 0 {
        return Err(LoadError::Config(format!(
            "config.json: {} heads of {head_dim} over {kv_heads} key/value heads do not divide",
            c.num_attention_heads
        )));
    }
    let rope = c.rope_parameters.as_ref().or(c.rope_scaling.as_ref());
    Ok(DecoderSpec {
        model_type: "llama".into(),
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        num_hidden_layers: c.num_hidden_layers,
        num_attention_heads: c.num_attention_heads,
        num_key_value_heads: kv_heads,
        head_dim,
        vocab_size: c.vocab_size,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: rope.and_then(|r| r.rope_theta).or(c.rope_theta).unwrap_or(10_000.0),
        rope_scaling: rope.map_or(Ok(RopeScaling::None), rope_scaling)?,
        tie_word_embeddings: c.tie_word_embeddings,
        attention_bias: c.attention_bias,
        mlp_bias: c.mlp_bias,
    })
}

fn rope_scaling(rope: &Rope) -> Result<RopeScaling, LoadError> {
    let need = |name: &str, value: Option<f64>| {
        value.filter(|v| *v > 0.0).ok_or_else(|| {
            LoadError::Config(format!("config.json: rope scaling needs a positive '{name}'"))
        })
    };
    match rope.rope_type.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: need("factor", rope.factor)? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: need("factor", rope.factor)?,
            low_freq_factor: need("low_freq_factor", rope.low_freq_factor)?,
            high_freq_factor: need("high_freq_factor", rope.high_freq_factor)?,
            original_max_position_embeddings: need(
                "original_max_position_embeddings",
                rope.original_max_position_embeddings,
            )?,
        }),
        Some(other) => Err(LoadError::Unsupported(format!(
            "rope_type '{other}' in config.json; supported: default, linear, llama3"
        ))),
    }
}
