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

pub(crate) fn load(dir: &Path, device: Device) -> Result<Decoder, LoadError> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path)
        .map_err(|source| LoadError::Read { path: path.display().to_string(), source })?;
    let config = serde_json::from_str(&text)
        .map_err(|error| LoadError::Config(format!("{}: {error}", path.display())))?;
    let spec = read_config(&config)?;
    let mut source = Source { file: TensorFile::open_folder(dir)?, device, parameters: 0 };
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
        training: RefCell::new(None),
        evaluation: RefCell::new(None),
    })
}

/// Weights by name, counted as they are taken.
struct Source {
    file: TensorFile,
    device: Device,
    parameters: u64,
}

impl Source {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let found = self.file.get(name)?.shape.clone();
        if !found.iter().map(|&n| n as i64).eq(shape.iter().copied()) {
            let name = name.to_owned();
            return Err(LoadError::Shape { name, found, expected: shape.to_vec() });
        }
        let values = self.file.get_f32(name)?;
        self.parameters += values.len() as u64;
        Ok(Tensor::from_slice(&values).view(shape).to_device(self.device))
    }

    /// Several linears with one input, stacked into one.
    fn linear(
        &mut self,
        prefix: &str,
        parts: &[(&str, usize)],
        in_width: usize,
        bias: bool,
    ) -> Result<Linear, LoadError> {
        let mut stack = |field: &str, inner: &[i64]| -> Result<Tensor, LoadError> {
            let tensors = parts
                .iter()
                .map(|(name, width)| {
                    let shape = [&[*width as i64], inner].concat();
                    self.tensor(&format!("{prefix}.{name}.{field}"), &shape)
                })
                .collect::<Result<Vec<_>, _>>()?;
            Ok(match tensors.as_slice() {
                [one] => one.shallow_clone(),
                several => Tensor::cat(several, 0),
            })
        };
        let weight = stack("weight", &[in_width as i64])?;
        let bias = if bias { Some(stack("bias", &[])?) } else { None };
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
