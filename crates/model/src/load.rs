//! Model folders into decoders.

use std::cell::{OnceCell, RefCell};
use std::path::Path;

use kernels::{Activation, AttentionShape, Rotary};
use tch::{Device, Kind, Tensor};
use thiserror::Error;
use weights::{Dtype, SpecError, TensorFile, read_spec};

use crate::decoder::Decoder;
use crate::form::{Form, Quantization};
use crate::layer::Layer;
use crate::linear::Linear;
use crate::rope::frequency_sets;
use crate::spec::{self, DecoderSpec, Product};
use crate::weight::{Scratch, Weight, quantise, random_nf4};

/// A model folder that cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{0}")]
    Config(String),
    #[error("{path}: {source}")]
    Spec { path: String, source: SpecError },
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<i64> },
    #[error(transparent)]
    File(#[from] weights::FileError),
}

/// Rotary tables for longer contexts than this are cut: 128 MB for head_dim 128 would be the next step.
const MAX_POSITIONS: usize = 131_072;

pub(crate) fn load(dir: &Path, device: Device, form: Form) -> Result<Decoder, LoadError> {
    let spec = read_config(&dir.join("config.json"))?;
    let file = TensorFile::open_folder(dir)?;
    build(dir, spec, Origin::File(file), device, form)
}

/// A model of a configuration with random weights, made on the device.
pub(crate) fn random(config: &str, device: Device, form: Form) -> Result<Decoder, LoadError> {
    let spec = parse_config("the configuration", config)?;
    build(Path::new(""), spec, Origin::Random, device, form)
}

fn build(
    dir: &Path,
    spec: DecoderSpec,
    origin: Origin,
    device: Device,
    form: Form,
) -> Result<Decoder, LoadError> {
    let scratch = Scratch::new(form.precision.kind(), device);
    let mut source = Source { origin, device, parameters: 0, form, scratch };
    let (v, d) = (spec.vocab_size as i64, spec.hidden_size as i64);
    let embedding = source.tensor(spec::EMBEDDING, &[v, d])?;
    let layers = (0..spec.num_hidden_layers)
        .map(|index| source.layer(&spec, index))
        .collect::<Result<_, _>>()?;
    // Logits are linear in what the final norm multiplies by.
    let norm = source.norm(&spec, spec::FINAL_NORM, spec.hidden_size)? * spec.logit_scale;
    let head = if spec.tie_word_embeddings {
        embedding.shallow_clone()
    } else {
        source.tensor(spec::HEAD, &[v, d])?
    };
    let positions = spec.max_position_embeddings.min(MAX_POSITIONS);
    let rotary = spec.rotary.iter().map(|rotary| {
        Rotary::new(&frequency_sets(rotary), positions, spec.head_dim, rotary.factor, device)
    });
    Ok(Decoder {
        rotary: rotary.collect(),
        positions,
        spec,
        folder: dir.to_owned(),
        device,
        embedding,
        layers,
        norm,
        head,
        parameters: source.parameters,
        form,
        compact_head: OnceCell::new(),
        training: RefCell::new(None),
        evaluation: RefCell::new(None),
    })
}

fn read_config(path: &Path) -> Result<DecoderSpec, LoadError> {
    let name = || path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| LoadError::Read { path: name(), source })?;
    parse_config(&name(), &text)
}

fn parse_config(name: &str, text: &str) -> Result<DecoderSpec, LoadError> {
    let config = serde_json::from_str(text)
        .map_err(|error| LoadError::Config(format!("{name}: {error}")))?;
    read_spec(&config).map_err(|source| LoadError::Spec { path: name.to_owned(), source })
}

/// Where weights come from.
enum Origin {
    File(TensorFile),
    /// libtorch's generator of the device.
    Random,
}

/// The spread of random weights, as models are initialised.
const SPREAD: f64 = 0.02;

/// Weights by name, counted as they are taken.
struct Source {
    origin: Origin,
    device: Device,
    parameters: u64,
    form: Form,
    /// Of the quantised weights.
    scratch: Scratch,
}

impl Source {
    /// In the type that the model computes with. bf16 goes from the mapped file into bf16 without a detour.
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let kind = self.form.precision.kind();
        let Origin::File(file) = &self.origin else { return Ok(self.drawn(shape, kind)) };
        check(file, name, shape)?;
        let stored = file.get(name)?;
        if kind == Kind::BFloat16 && stored.dtype == Dtype::BF16 {
            let tensor = Tensor::from_data_size(stored.data, shape, kind);
            self.parameters += tensor.numel() as u64;
            return Ok(tensor.to_device(self.device));
        }
        let values = file.get_f32(name)?;
        self.parameters += values.len() as u64;
        Ok(Tensor::from_slice(&values).view(shape).to_kind(kind).to_device(self.device))
    }

    /// Values of a file, row by row.
    fn values(&mut self, name: &str, shape: &[i64]) -> Result<Option<Vec<f32>>, LoadError> {
        let Origin::File(file) = &self.origin else { return Ok(None) };
        check(file, name, shape)?;
        let values = file.get_f32(name)?;
        self.parameters += values.len() as u64;
        Ok(Some(values))
    }

    fn drawn(&mut self, shape: &[i64], kind: Kind) -> Tensor {
        let mut tensor = Tensor::empty(shape, (kind, self.device));
        self.parameters += tensor.numel() as u64;
        tch::no_grad(|| tensor.normal_(0.0, SPREAD))
    }

    /// What a norm multiplies by, in the type that statistics have.
    fn norm(&mut self, spec: &DecoderSpec, name: &str, width: usize) -> Result<Tensor, LoadError> {
        let wide = kernels::wide_kind(self.form.precision.kind());
        let weight = match self.values(name, &[width as i64])? {
            Some(values) => Tensor::from_slice(&values).to_kind(wide).to_device(self.device),
            // A norm begins as the identity.
            None => {
                self.parameters += width as u64;
                let one = if spec.norm_plus_one { 0.0 } else { 1.0 };
                Tensor::full([width as i64], one, (wide, self.device))
            }
        };
        Ok(if spec.norm_plus_one { weight + 1.0 } else { weight })
    }

    /// The linears of a product, stacked into one.
    fn linear(&mut self, layer: &str, product: &Product) -> Result<Linear, LoadError> {
        let members = || product.members.iter().map(|member| (member.name, member.width as i64));
        let named = |name: &str, field: &str| format!("{layer}.{}.{name}.{field}", product.block);
        let stack = |tensors: &[Tensor]| match tensors {
            [one] => one.shallow_clone(),
            several => Tensor::cat(several, 0),
        };
        let inner = product.in_width as i64;
        let weight = match self.form.quantization {
            Quantization::None => {
                let weights = members()
                    .map(|(name, width)| self.tensor(&named(name, "weight"), &[width, inner]));
                Weight::Dense(stack(&weights.collect::<Result<Vec<_>, _>>()?))
            }
            Quantization::Nf4 => {
                let weights = members().map(|(name, width)| {
                    Ok(match self.values(&named(name, "weight"), &[width, inner])? {
                        Some(values) => (width, quantise(&values, self.device)),
                        None => {
                            self.parameters += (width * inner) as u64;
                            (width, random_nf4(width * inner, SPREAD, self.device))
                        }
                    })
                });
                let weights = weights.collect::<Result<Vec<_>, LoadError>>()?;
                Weight::nf4(weights, inner, &self.scratch)
            }
        };
        // The linears of a product have biases all or none.
        let bias = if product.members[0].bias {
            let biases = members().map(|(name, width)| self.tensor(&named(name, "bias"), &[width]));
            Some(stack(&biases.collect::<Result<Vec<_>, _>>()?))
        } else {
            None
        };
        Ok(Linear::new(weight, bias))
    }

    fn layer(&mut self, spec: &DecoderSpec, index: usize) -> Result<Layer, LoadError> {
        let layer = spec::layer_prefix(index);
        let [qkv, o, gate_up, down] = spec.products();
        let names = spec.norm_placement.names();
        let mut norm = |name: Option<&str>| {
            let path = name.map(|name| format!("{layer}.{name}.weight"));
            path.map(|path| self.norm(spec, &path, spec.hidden_size)).transpose()
        };
        let (attention_norm, attention_out_norm) =
            (norm(names.attention_input)?, norm(names.attention_output)?);
        let (mlp_norm, mlp_out_norm) = (norm(names.mlp_input)?, norm(names.mlp_output)?);
        let qk_norm = match spec.qk_norm_widths() {
            None => None,
            Some([q, k]) => Some([
                self.norm(spec, &format!("{layer}.self_attn.q_norm.weight"), q)?,
                self.norm(spec, &format!("{layer}.self_attn.k_norm.weight"), k)?,
            ]),
        };
        Ok(Layer {
            attention_norm,
            mlp_norm,
            attention_out_norm,
            mlp_out_norm,
            qk_norm,
            qkv: self.linear(&layer, &qkv)?,
            o: self.linear(&layer, &o)?,
            gate_up: self.linear(&layer, &gate_up)?,
            down: self.linear(&layer, &down)?,
            shape: AttentionShape {
                heads: spec.num_attention_heads,
                kv_heads: spec.num_key_value_heads,
                head_dim: spec.head_dim,
                scale: spec.attention_scale,
                window: spec.layers[index].window,
                softcap: spec.attention_softcap,
            },
            rotary: spec.layers[index].rotary,
            activation: match spec.activation {
                spec::Activation::Silu => Activation::Silu,
                spec::Activation::GeluTanh => Activation::GeluTanh,
            },
            residual_scale: spec.residual_scale,
        })
    }
}

fn check(file: &TensorFile, name: &str, shape: &[i64]) -> Result<(), LoadError> {
    let found = file.get(name)?.shape.clone();
    if !found.iter().map(|&n| n as i64).eq(shape.iter().copied()) {
        let name = name.to_owned();
        return Err(LoadError::Shape { name, found, expected: shape.to_vec() });
    }
    Ok(())
}
