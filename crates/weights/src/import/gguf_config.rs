//! `config.json` and `generation_config.json` from the keys of a GGUF file.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{CONFIG, GENERATION_CONFIG, ImportError, write_json};
use crate::family::{Family, MAX_DIMENSION, MAX_LAYERS, Shape};
use crate::gguf::{GgufError, GgufFile};

/// What the keys of the file say about the model.
pub struct GgufConfig {
    pub family: &'static Family,
    pub shape: Shape,
    pub max_positions: u64,
    norm_epsilon: f64,
    rope_theta: f64,
    pub tokens: SpecialIds,
}

/// Ids of tokens with a role.
#[derive(Debug, Default)]
pub struct SpecialIds {
    pub bos: Option<u64>,
    pub eos: Option<u64>,
    pub eot: Option<u64>,
    pub unknown: Option<u64>,
    pub padding: Option<u64>,
}

/// Keys after the architecture's name that change the arithmetic in ways that the imported folder
/// could not say. Present with another value than the harmless one, the file is refused.
const NOT_HONOURED: &[(&str, f64)] = &[
    ("expert_count", 0.0),
    ("attention.sliding_window", 0.0),
    ("attention.scale", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
    ("rope.scaling.factor", 1.0),
    ("rope.scale_linear", 1.0),
];

pub fn read(file: &GgufFile) -> Result<GgufConfig, ImportError> {
    let path = file.path();
    let architecture = file.text("general.architecture")?.ok_or_else(|| GgufError::MissingKey {
        path: path.to_owned(),
        key: "general.architecture".into(),
    })?;
    let family = Family::by_gguf_architecture(architecture).ok_or_else(|| {
        ImportError::UnsupportedArchitecture {
            path: path.to_owned(),
            architecture: architecture.to_owned(),
        }
    })?;
    let keys = Keys { file, prefix: architecture };
    keys.refuse_what_is_not_honoured()?;
    let shape = keys.shape()?;
    Ok(GgufConfig {
        family,
        shape,
        max_positions: keys.dimension("context_length")?,
        norm_epsilon: keys.positive("attention.layer_norm_rms_epsilon", None)?,
        rope_theta: keys.positive("rope.freq_base", Some(10_000.0))?,
        tokens: special_ids(file)?,
    })
}

fn special_ids(file: &GgufFile) -> Result<SpecialIds, ImportError> {
    let id = |name: &str| file.unsigned(&format!("tokenizer.ggml.{name}_token_id"));
    Ok(SpecialIds {
        bos: id("bos")?,
        eos: id("eos")?,
        eot: id("eot")?,
        unknown: id("unknown")?,
        padding: id("padding")?,
    })
}

struct Keys<'a> {
    file: &'a GgufFile,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn invalid(&self, reason: String) -> ImportError {
        ImportError::invalid(self.file.path(), reason)
    }

    fn optional_dimension(&self, name: &str, most: u64) -> Result<Option<u64>, ImportError> {
        let key = self.key(name);
        match self.file.unsigned(&key)? {
            Some(value) if value == 0 || value > most => {
                Err(self.invalid(format!("the key {key:?} is {value}; expected 1 to {most}")))
            }
            value => Ok(value),
        }
    }

    fn missing(&self, name: &str) -> ImportError {
        GgufError::MissingKey { path: self.file.path().into(), key: self.key(name) }.into()
    }

    fn dimension(&self, name: &str) -> Result<u64, ImportError> {
        self.optional_dimension(name, MAX_DIMENSION)?.ok_or_else(|| self.missing(name))
    }

    fn positive(&self, name: &str, default: Option<f64>) -> Result<f64, ImportError> {
        let value = self.file.float(&self.key(name))?.or(default);
        let value = value.ok_or_else(|| self.missing(name))?;
        if value > 0.0 {
            return Ok(value);
        }
        Err(self.invalid(format!("the key {:?} is {value}; expected more than 0", self.key(name))))
    }

    fn refuse_what_is_not_honoured(&self) -> Result<(), ImportError> {
        for (name, harmless) in NOT_HONOURED {
            let key = self.key(name);
            if !self.file.has(&key) {
                continue;
            }
            let value = match self.file.float(&key) {
                Ok(value) => value,
                // A count (`as` is exact enough to compare with 0 and 1).
                Err(_) => self.file.unsigned(&key)?.map(|value| value as f64),
            };
            if value != Some(*harmless) {
                let what = format!("the key {key:?}");
                return Err(ImportError::unsupported(self.file.path(), what));
            }
        }
        match self.file.text(&self.key("rope.scaling.type"))? {
            None | Some("none") => Ok(()),
            Some(other) => Err(ImportError::unsupported(
                self.file.path(),
                format!("rotary scaling {other:?} ({})", self.key("rope.scaling.type")),
            )),
        }
    }

    fn shape(&self) -> Result<Shape, ImportError> {
        let layers = self
            .optional_dimension("block_count", MAX_LAYERS)?
            .ok_or_else(|| self.missing("block_count"))?;
        let hidden = self.dimension("embedding_length")?;
        let heads = self.dimension("attention.head_count")?;
        let optional = |name| self.optional_dimension(name, MAX_DIMENSION);
        let head_size = match optional("attention.key_length")? {
            Some(size) => size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(self.invalid(format!("{hidden} is not a multiple of {heads} heads")));
            }
        };
        let key_value_heads = optional("attention.head_count_kv")?.unwrap_or(heads);
        for name in ["rope.dimension_count", "attention.value_length"] {
            if optional(name)?.is_some_and(|size| size != head_size) {
                let what = format!("a {:?} other than the head size {head_size}", self.key(name));
                return Err(ImportError::unsupported(self.file.path(), what));
            }
        }
        let embedding = self.file.tensor("token_embd.weight");
        let vocabulary = embedding.and_then(|tensor| tensor.shape.first()).copied();
        let vocabulary = vocabulary
            .ok_or_else(|| self.invalid("the tensor \"token_embd.weight\" is missing".into()))?;
        // All numbers are below 2^24: these conversions and products are exact.
        let shape = Shape {
            vocabulary,
            hidden: hidden as usize,
            feed_forward: self.dimension("feed_forward_length")? as usize,
            layers: layers as usize,
            heads: heads as usize,
            key_value_heads: key_value_heads as usize,
            head_size: head_size as usize,
            tied: self.file.tensor("output.weight").is_none(),
            attention_bias: self.file.tensor("blk.0.attn_q.bias").is_some(),
            mlp_bias: self.file.tensor("blk.0.ffn_gate.bias").is_some(),
        };
        shape.check().map_err(|reason| self.invalid(reason))?;
        Ok(shape)
    }
}

impl GgufConfig {
    /// Writes both files; `dtype` is the type of the matrices.
    pub fn write(&self, folder: &Path, dtype: Dtype) -> Result<(), ImportError> {
        let (shape, tokens) = (&self.shape, &self.tokens);
        let dtype = match dtype {
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            _ => "float32",
        };
        let config = json!({
            "architectures": [self.family.class],
            "model_type": self.family.model_type,
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "head_dim": shape.head_size,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_epsilon,
            // Both spellings: transformers 5 and most others read the first, older ones the second.
            "rope_parameters": { "rope_type": "default", "rope_theta": self.rope_theta },
            "rope_theta": self.rope_theta,
            "attention_bias": shape.attention_bias,
            "mlp_bias": shape.mlp_bias,
            "attention_dropout": 0.0,
            "tie_word_embeddings": shape.tied,
            "bos_token_id": tokens.bos,
            "eos_token_id": tokens.eos,
            "pad_token_id": tokens.padding,
            "dtype": dtype,
        });
        write_json(folder, CONFIG, &config)?;
        let generation = json!({
            "bos_token_id": tokens.bos,
            "eos_token_id": tokens.stop(),
            "pad_token_id": tokens.padding,
        });
        write_json(folder, GENERATION_CONFIG, &generation)
    }
}

impl SpecialIds {
    /// One id, or a list when a turn and a text end differently.
    fn stop(&self) -> Value {
        match (self.eos, self.eot) {
            (Some(eos), Some(eot)) if eos != eot => json!([eos, eot]),
            (eos, eot) => json!(eos.or(eot)),
        }
    }
}
