//! Full fine-tuning: every weight of the model is trained, in a decoder of the run's own. The base model stays
//! as it is.
//!
//! The flat buffer holds the checkpoint's tensors in f32, matrices first. The decoder's matrices and biases are
//! views of it, or copies where it computes with other numbers; what its norms multiply by is derived from it,
//! because that is not always what a checkpoint holds (1 + weight, folded factors). Gradients are those of the
//! checkpoint's tensors, through the same views.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use tch::Tensor;
use weights::spec::{self, layer_prefix};
use weights::{TensorData, TensorFile, write_model};

use super::{AdapterError, Extent};
use crate::decoder::Decoder;
use crate::layer::Layer;
use crate::layout::{DOWN, GATE_UP, GROUPS, O, QKV, StoredTensor};
use crate::linear::Linear;
use crate::products::add_product;
use crate::spec::DecoderSpec;
use crate::weight::Weight;

/// A model whose every weight is trained.
#[derive(Debug)]
pub(super) struct Full {
    pub decoder: Decoder,
    layout: FullLayout,
    /// Views of the values.
    parameters: Parameters,
}

/// Where each tensor of the checkpoint stands in the flat buffer.
#[derive(Debug, Clone)]
pub(super) struct FullLayout {
    tensors: Vec<StoredTensor>,
    spec: DecoderSpec,
}

/// Views of a flat buffer, of values or of gradients, by their places in the decoder.
#[derive(Debug)]
pub(crate) struct Parameters {
    /// `[V, D]`
    pub embedding: Tensor,
    /// `[D]`
    pub norm: Tensor,
    /// `[V, D]`; the embedding itself when tied.
    pub head: Tensor,
    pub layers: Vec<LayerParameters>,
}

/// Those of a layer.
#[derive(Debug)]
pub(crate) struct LayerParameters {
    /// Stacked weight `[out, in]` and bias `[out]` of each product.
    pub products: [(Tensor, Option<Tensor>); GROUPS],
    pub attention_norm: Option<Tensor>,
    pub mlp_norm: Option<Tensor>,
    pub attention_out_norm: Option<Tensor>,
    pub mlp_out_norm: Option<Tensor>,
    pub qk_norm: Option<[Tensor; 2]>,
}

impl Full {
    /// Takes the weights of a model folder: the base's own, or tuned ones.
    pub fn load(base: &Decoder, dir: &Path) -> Result<(Self, Tensor), AdapterError> {
        if base.quantization() != crate::Quantization::None {
            let message = "full fine-tuning needs a base model that is not quantised";
            return Err(AdapterError::Invalid(message.to_owned()));
        }
        let layout = FullLayout::new(base.spec());
        let values = layout.read(&TensorFile::open_folder(dir)?, base)?;
        let parameters = layout.views(&values);
        let decoder = base.with_weights(&parameters);
        Ok((Self { decoder, layout, parameters }, values))
    }

    pub fn gradients(&self, flat: &Tensor) -> Parameters {
        self.layout.views(flat)
    }

    /// Writes a complete model folder.
    pub fn save(&self, dir: &Path, values: &Tensor) -> Result<(), AdapterError> {
        let tensors = self.layout.tensors.iter().map(|tensor| {
            let shape = tensor.shape.iter().map(|&n| n as usize).collect();
            (tensor.name.clone(), shape, Values(view(values, tensor)))
        });
        Ok(write_model(dir, &self.decoder.folder, tensors)?)
    }

    /// Weight decay is for matrices.
    pub fn extents(&self) -> Vec<Extent> {
        let extent = |tensor: &StoredTensor| {
            let range = tensor.range();
            Extent { offset: range.start, len: range.len(), decays: tensor.shape.len() > 1 }
        };
        self.layout.tensors.iter().map(extent).collect()
    }

    /// Renews what is not a view: what the norms multiply by, and weights of another type.
    pub fn refresh(&mut self) {
        self.decoder.forget_compact();
        let (decoder, own) = (&self.decoder, &self.parameters);
        if own.embedding.kind() != decoder.kind() {
            self.narrow();
        }
        let offset = if decoder.spec.norm_plus_one { 1.0 } else { 0.0 };
        let renew = |norm: &Tensor, weight: &Tensor| {
            norm.shallow_clone().copy_(&(weight + offset));
        };
        for (layer, own) in decoder.layers.iter().zip(&own.layers) {
            for (norm, weight) in norms_of(layer).into_iter().zip(own.norms()) {
                if let (Some(norm), Some(weight)) = (norm, weight) {
                    renew(norm, weight);
                }
            }
        }
        let norm = (&own.norm + offset) * decoder.spec.logit_scale;
        decoder.norm.shallow_clone().copy_(&norm);
    }
}

impl Full {
    /// Rounds the weights to the type that the decoder computes with.
    fn narrow(&self) {
        let (decoder, own) = (&self.decoder, &self.parameters);
        let copy = |to: &Tensor, from: &Tensor| to.shallow_clone().copy_(from);
        copy(&decoder.embedding, &own.embedding);
        copy(&decoder.head, &own.head);
        for (layer, own) in decoder.layers.iter().zip(&own.layers) {
            for (product, (weight, bias)) in own.products.iter().enumerate() {
                let linear = layer.linear(product);
                copy(&linear.weight.dense(), weight);
                if let (Some(to), Some(from)) = (&linear.bias, bias) {
                    copy(to, from);
                }
            }
        }
    }
}

impl FullLayout {
    fn new(spec: &DecoderSpec) -> Self {
        let (matrices, vectors): (Vec<_>, Vec<_>) =
            spec.tensors().into_iter().partition(|tensor| tensor.shape.len() > 1);
        let mut offset = 0;
        let tensors = matrices.into_iter().chain(vectors).map(|tensor| {
            let shape: Vec<i64> = tensor.shape.iter().map(|&n| n as i64).collect();
            let stored = StoredTensor { name: tensor.name, offset, shape };
            offset += stored.shape.iter().product::<i64>();
            stored
        });
        Self { tensors: tensors.collect(), spec: spec.clone() }
    }

    fn len(&self) -> i64 {
        self.tensors.last().map_or(0, |last| last.range().end as i64)
    }

    /// Tensor by tensor, so that there is never a second copy of them all.
    fn read(&self, file: &TensorFile, base: &Decoder) -> Result<Tensor, AdapterError> {
        let options = (kernels::wide_kind(base.kind()), base.device());
        let values = Tensor::empty([self.len()], options);
        for tensor in &self.tensors {
            let found = file.get(&tensor.name)?.shape.clone();
            if !found.iter().map(|&n| n as i64).eq(tensor.shape.iter().copied()) {
                let (name, expected) = (&tensor.name, &tensor.shape);
                let message = format!("{name} has shape {found:?}, expected {expected:?}");
                return Err(AdapterError::Mismatch(message));
            }
            let data = Tensor::from_slice(&file.get_f32(&tensor.name)?);
            view(&values, tensor).copy_(&data.view(tensor.shape.as_slice()));
        }
        Ok(values)
    }

    fn views(&self, flat: &Tensor) -> Parameters {
        let by_name: HashMap<&str, &StoredTensor> =
            self.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let find = |name: &str| by_name[name];
        // The members of a product follow each other, because matrices and vectors stand apart.
        let stack = |first: &StoredTensor, rows: i64| {
            let row: i64 = first.shape[1..].iter().product();
            let mut shape = first.shape.clone();
            shape[0] = rows;
            flat.narrow(0, first.offset, rows * row).view(shape.as_slice())
        };
        let spec = &self.spec;
        let names = spec.norm_placement.names();
        let layers = (0..spec.num_hidden_layers).map(|index| {
            let layer = layer_prefix(index);
            let norm = |name: &str| view(flat, find(&format!("{layer}.{name}.weight")));
            let product = |product: spec::Product| {
                let first = &product.members[0];
                let rows = product.members.iter().map(|member| member.width as i64).sum();
                let module = format!("{layer}.{}.{}", product.block, first.name);
                let weight = stack(find(&format!("{module}.weight")), rows);
                let bias = first.bias.then(|| stack(find(&format!("{module}.bias")), rows));
                (weight, bias)
            };
            LayerParameters {
                products: spec.products().map(product),
                attention_norm: names.attention_input.map(norm),
                mlp_norm: names.mlp_input.map(norm),
                attention_out_norm: names.attention_output.map(norm),
                mlp_out_norm: names.mlp_output.map(norm),
                qk_norm: spec
                    .qk_norm_widths()
                    .map(|_| [norm("self_attn.q_norm"), norm("self_attn.k_norm")]),
            }
        });
        let embedding = view(flat, find(spec::EMBEDDING));
        let head = if spec.tie_word_embeddings {
            embedding.shallow_clone()
        } else {
            view(flat, find(spec::HEAD))
        };
        let norm = view(flat, find(spec::FINAL_NORM));
        Parameters { layers: layers.collect(), embedding, norm, head }
    }
}

impl Parameters {
    /// Adds the gradient of the head's weight: `d_logits` `[N, V]` times its input `[N, D]`.
    pub fn add_head(&self, d_logits: &Tensor, x: &Tensor) {
        add_product(&d_logits.tr(), x, &self.head);
    }

    /// Adds the gradient of the embedding from that of the first layer's input, `[T, D]`.
    pub fn add_embedding(&self, ids: &Tensor, d_hidden: &Tensor, scale: f64) {
        let d_hidden = d_hidden.to_kind(self.embedding.kind());
        let d_hidden = if scale == 1.0 { d_hidden } else { d_hidden * scale };
        let _ = self.embedding.shallow_clone().index_add_(0, ids, &d_hidden);
    }
}

impl LayerParameters {
    /// Adds the gradients of a product's weight and bias: `dy` `[T, out]`, its input `[T, in]`.
    pub fn add_product(&self, product: usize, dy: &Tensor, x: &Tensor) {
        let (weight, bias) = &self.products[product];
        add_product(&dy.tr(), x, weight);
        if let Some(bias) = bias {
            let _ = bias.shallow_clone().g_add_(&dy.sum_dim_intlist(0, false, bias.kind()));
        }
    }

    /// The norm of the output of the branch that ends with this product.
    pub fn output_norm(&self, product: usize) -> Option<&Tensor> {
        if product == O { self.attention_out_norm.as_ref() } else { self.mlp_out_norm.as_ref() }
    }

    fn norms(&self) -> [Option<&Tensor>; 6] {
        let [q, k] = both(&self.qk_norm);
        [
            self.attention_norm.as_ref(),
            self.mlp_norm.as_ref(),
            self.attention_out_norm.as_ref(),
            self.mlp_out_norm.as_ref(),
            q,
            k,
        ]
    }
}

/// Adds the gradient of a norm's weight `[D]`: `scale · Σ dy ⊙ x / rms` over the rows of `dy` and `x`, which have
/// one or several segments as wide as the weight, and 1/rms of each.
pub(crate) fn add_norm(weight: &Tensor, dy: &Tensor, x: &Tensor, rstd: &Tensor, scale: f64) {
    let rows = x.size()[0];
    let wide = weight.kind();
    let segments = |t: &Tensor| t.view([rows, -1, weight.size()[0]]).to_kind(wide);
    let products = segments(dy) * segments(x) * rstd.view([rows, -1, 1]);
    let sum = products.sum_dim_intlist([0i64, 1].as_slice(), false, wide);
    let _ = weight.shallow_clone().g_add_(&(sum * scale));
}

impl Decoder {
    /// The same model with other weights; its norms are still to be filled.
    fn with_weights(&self, own: &Parameters) -> Self {
        let kind = self.kind();
        // Of the same type it is the same tensor.
        let computed = |weight: &Tensor| weight.to_kind(kind);
        let empty = |norm: &Option<Tensor>| norm.as_ref().map(Tensor::empty_like);
        let layer = |(layer, own): (&Layer, &LayerParameters)| {
            let linear = |product: usize| {
                let (weight, bias) = &own.products[product];
                Linear::new(Weight::Dense(computed(weight)), bias.as_ref().map(computed))
            };
            Layer {
                attention_norm: empty(&own.attention_norm),
                mlp_norm: empty(&own.mlp_norm),
                attention_out_norm: empty(&own.attention_out_norm),
                mlp_out_norm: empty(&own.mlp_out_norm),
                qk_norm: own.qk_norm.as_ref().map(|norms| norms.each_ref().map(Tensor::empty_like)),
                qkv: linear(QKV),
                o: linear(O),
                gate_up: linear(GATE_UP),
                down: linear(DOWN),
                ..*layer
            }
        };
        let layers = self.layers.iter().zip(&own.layers).map(layer).collect();
        let embedding = computed(&own.embedding);
        let is_tied = self.spec.tie_word_embeddings;
        let head = if is_tied { embedding.shallow_clone() } else { computed(&own.head) };
        self.with_layers(layers, embedding, head)
    }
}

fn norms_of(layer: &Layer) -> [Option<&Tensor>; 6] {
    let [q, k] = both(&layer.qk_norm);
    [
        layer.attention_norm.as_ref(),
        layer.mlp_norm.as_ref(),
        layer.attention_out_norm.as_ref(),
        layer.mlp_out_norm.as_ref(),
        q,
        k,
    ]
}

fn both(pair: &Option<[Tensor; 2]>) -> [Option<&Tensor>; 2] {
    match pair {
        Some([q, k]) => [Some(q), Some(k)],
        None => [None, None],
    }
}

fn view(flat: &Tensor, tensor: &StoredTensor) -> Tensor {
    flat.narrow(0, tensor.offset, tensor.range().len() as i64).view(tensor.shape.as_slice())
}

/// A tensor on its way to a file.
struct Values(Tensor);

impl TensorData for Values {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        kernels::read_values(&self.0, |values| values.write_to(out))
    }
}
