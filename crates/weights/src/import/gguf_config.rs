//! `config.json` and `generation_config.json` from the keys of a GGUF file.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{CONFIG, GENERATION_CONFIG, ImportError, write_json};
use crate::families::{Family, MAX_DIMENSION, MAX_LAYERS, read_spec};
use crate::gguf::{GgufError, GgufFile};
use crate::spec::DecoderSpec;

/// What the keys of the file say about the model.
pub struct GgufConfig {
    pub family: &'static Family,
    pub spec: DecoderSpec,
    pub max_positions: u64,
    /// The fields of `config.json`, without those of tokens.
    json: Value,
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
    let json = keys.config(family)?;
    let spec = read_spec(&json).map_err(|error| ImportError::spec(path, error))?;
    let max_positions = spec.max_position_embeddings as u64;
    Ok(GgufConfig { family, spec, max_positions, json, tokens: special_ids(file)? })
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
        self.optional_dimension(name, MAX_DIMENSION as u64)?.ok_or_else(|| self.missing(name))
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

    /// What the keys say, as the fields of a `config.json`.
    fn config(&self, family: &Family) -> Result<Value, ImportError> {
        let layers = self
            .optional_dimension("block_count", MAX_LAYERS as u64)?
            .ok_or_else(|| self.missing("block_count"))?;
        let hidden = self.dimension("embedding_length")?;
        let heads = self.dimension("attention.head_count")?;
        let optional = |name| self.optional_dimension(name, MAX_DIMENSION as u64);
        let head_size = match optional("attention.key_length")? {
            Some(size) => size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(self.invalid(format!("{hidden} is not a multiple of {heads} heads")));
            }
        };
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
        let rope_theta = self.positive("rope.freq_base", Some(10_000.0))?;
        Ok(json!({
            "architectures": [family.class],
            "model_type": family.model_type,
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": self.dimension("feed_forward_length")?,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": optional("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_size,
            "hidden_act": "silu",
            "max_position_embeddings": self.dimension("context_length")?,
            "rms_norm_eps": self.positive("attention.layer_norm_rms_epsilon", None)?,
            // Both spellings: transformers 5 and most others read the first, older ones the second.
            "rope_parameters": { "rope_type": "default", "rope_theta": rope_theta },
            "rope_theta": rope_theta,
            "attention_bias": self.file.tensor("blk.0.attn_q.bias").is_some(),
            "mlp_bias": self.file.tensor("blk.0.ffn_gate.bias").is_some(),
            "attention_dropout": 0.0,
            "tie_word_embeddings": self.file.tensor("output.weight").is_none(),
        }))
    }
}

impl GgufConfig {
    /// Writes both files; `dtype` is the type of the matrices.
    pub fn write(&self, folder: &Path, dtype: Dtype) -> Result<(), ImportError> {
        let tokens = &self.tokens;
        let mut config = self.json.clone();
        config["bos_token_id"] = json!(tokens.bos);
        config["eos_token_id"] = json!(tokens.eos);
        config["pad_token_id"] = json!(tokens.padding);
        config["dtype"] = json!(match dtype {
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            _ => "float32",
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
