//! Model folders into decoders.

use std::cell::RefCell;
use std::path::Path;

use kernels::Rotary;
use tch::{Device, Tensor};
use thiserror::Error;
use weights::TensorFile;

use crate::decoder::Decoder;
use crate::families::read_config;
use crate::layer::Layer;
use crate::linear::Linear;
use crate::rope::inverse_frequencies;
use crate::spec::DecoderSpec;
use crate::weight::{Quantization, Scratch, Weight};

/// A model folder that cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{0}")]
    Config(String),
    #[error("not supported: {0}")]
    Unsupported(String),
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<i64> },
    #[error(transparent)]
    File(#[from] weights::FileError),
}

/// Rotary tables for longer contexts than this are cut: 128 MB for head_dim 128 would be the next step.
const MAX_POSITIONS: usize = 131_072;

pub(crate) fn load(
    dir: &Path,
    device: Device,
    quantization: Quantization,
) -> Result<Decoder, LoadError> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path)
        .map_err(|source| LoadError::Read { path: path.display().to_string(), source })?;
    let config = serde_json::from_str(&text)
        .map_err(|error| LoadError::Config(format!("{}: {error}", path.display())))?;
    let spec = read_config(&config)?;
    let file = TensorFile::open_folder(dir)?;
    let scratch = Scratch::new(device);
    let mut source = Source { file, device, parameters: 0, quantization, scratch };
    let (v, d) = (spec.vocab_size as i64, spec.hidden_size as i64);
    let embedding = source.tensor("model.embed_tokens.weight", &[v, d])?;
    let layers = (0..spec.num_hidden_layers)
        .map(|index| source.layer(&spec, index))
        .collect::<Result<_, _>>()?;
    let norm = source.tensor("model.norm.weight", &[d])?;
    let head = if spec.tie_word_embeddings {
        embedding.shallow_clone()
    } else {
        source.tensor("lm_head.weight", &[v, d])?
    };
    let positions = spec.max_position_embeddings.min(MAX_POSITIONS);
    let rotary = Rotary::new(&inverse_frequencies(&spec), positions, device);
    Ok(Decoder {
        spec,
        device,
        embedding,
        layers,
        norm,
        head,
        rotary,
        parameters: source.parameters,
        quantization,
        training: RefCell::new(None),
        evaluation: RefCell::new(None),
    })
}

/// Weights by name, counted as they are taken.
struct Source {
    file: TensorFile,
    device: Device,
    parameters: u64,
    quantization: Quantization,
    /// Of the quantised weights.
    scratch: Scratch,
}

impl Source {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let values = self.values(name, shape)?;
        Ok(Tensor::from_slice(&values).view(shape).to_device(self.device))
    }

    fn values(&mut self, name: &str, shape: &[i64]) -> Result<Vec<f32>, LoadError> {
        let found = self.file.get(name)?.shape.clone();
        if !found.iter().map(|&n| n as i64).eq(shape.iter().copied()) {
            let name = name.to_owned();
            return Err(LoadError::Shape { name, found, expected: shape.to_vec() });
        }
        let values = self.file.get_f32(name)?;
        self.parameters += values.len() as u64;
        Ok(values)
    }

    /// Several linears with one input, stacked into one.
    fn linear(
        &mut self,
        prefix: &str,
        parts: &[(&str, usize)],
        in_width: usize,
        bias: bool,
    ) -> Result<Linear, LoadError> {
        let named = |name: &str, field: &str| format!("{prefix}.{name}.{field}");
        let stack = |tensors: &[Tensor]| match tensors {
            [one] => one.shallow_clone(),
            several => Tensor::cat(several, 0),
        };
        let inner = in_width as i64;
        let weight = match self.quantization {
            Quantization::None => {
                let weights = parts.iter().map(|&(name, width)| {
                    self.tensor(&named(name, "weight"), &[width as i64, inner])
                });
                Weight::Dense(stack(&weights.collect::<Result<Vec<_>, _>>()?))
            }
            Quantization::Nf4 => {
                let weights = parts.iter().map(|&(name, width)| {
                    let shape = [width as i64, inner];
                    Ok((shape[0], self.values(&named(name, "weight"), &shape)?))
                });
                let weights = weights.collect::<Result<Vec<_>, LoadError>>()?;
                Weight::nf4(&weights, inner, &self.scratch)
            }
        };
        let bias = if bias {
            let biases = parts
                .iter()
                .map(|&(name, width)| self.tensor(&named(name, "bias"), &[width as i64]));
            Some(stack(&biases.collect::<Result<Vec<_>, _>>()?))
        } else {
            None
        };
        Ok(Linear { weight, bias })
    }

    fn layer(&mut self, spec: &DecoderSpec, index: usize) -> Result<Layer, LoadError> {
        let prefix = format!("model.layers.{index}");
        let (d, q, kv, f) =
            (spec.hidden_size, spec.query_width(), spec.kv_width(), spec.intermediate_size);
        let (attention, mlp) = (format!("{prefix}.self_attn"), format!("{prefix}.mlp"));
        let (a_bias, m_bias) = (spec.attention_bias, spec.mlp_bias);
        let qkv = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
        Ok(Layer {
            attention_norm: self
                .tensor(&format!("{prefix}.input_layernorm.weight"), &[d as i64])?,
            qkv: self.linear(&attention, &qkv, d, a_bias)?,
            o: self.linear(&attention, &[("o_proj", d)], q, a_bias)?,
            mlp_norm: self
                .tensor(&format!("{prefix}.post_attention_layernorm.weight"), &[d as i64])?,
            gate_up: self.linear(&mlp, &[("gate_proj", f), ("up_proj", f)], d, m_bias)?,
            down: self.linear(&mlp, &[("down_proj", d)], f, m_bias)?,
        })
    }
}
