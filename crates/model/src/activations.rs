//! Buffers of a training pass, allocated once and cut to the batch at hand.

use tch::{Device, Kind, Tensor};

use crate::adapter::Adapter;
use crate::layout::{DOWN, GATE_UP, GROUPS, O, QKV};
use crate::spec::DecoderSpec;

/// What one layer keeps for its backward pass.
#[derive(Debug)]
pub(crate) struct LayerActivations {
    /// `[T]` each: 1/rms of the two norms' inputs.
    pub rstd_attention: Tensor,
    pub rstd_mlp: Tensor,
    /// After rotation, `[T, Q + 2·KV]`.
    pub qkv: Tensor,
    /// `[T, Q]`
    pub attention: Tensor,
    /// `[T, heads]`
    pub log_sums: Tensor,
    /// The residual stream after attention, `[T, D]`.
    pub middle: Tensor,
    /// `[T, 2F]`
    pub gate_up: Tensor,
    /// X·Aᵀ of each product, `[T, R]`.
    pub s: [Tensor; GROUPS],
}

/// All buffers of a pass over at most `capacity` tokens.
#[derive(Debug)]
pub(crate) struct Activations {
    capacity: i64,
    ranks: [i64; GROUPS],
    /// The residual stream before each layer and after the last, `[T, D]`: one buffer per layer when the
    /// backward pass will come, two in turn when not.
    pub hidden: Vec<Tensor>,
    /// One per layer, or a single one.
    pub layers: Vec<LayerActivations>,
    pub scratch: Scratch,
}

/// Buffers that live for one product.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Normalised input, `[T, D]`.
    pub x: Tensor,
    /// `[T, F]`
    pub act: Tensor,
    /// Gradient of the residual stream, `[T, D]`.
    pub dh: Tensor,
    /// Gradient of a norm's output, `[T, D]`.
    pub dx: Tensor,
    /// `[T, Q]`
    pub d_attention: Tensor,
    /// `[T, Q + 2·KV]`
    pub d_qkv: Tensor,
    /// `[T, R]` of each product.
    pub ds: [Tensor; GROUPS],
}

/// Tokens are rounded up to this, so that batches of nearly equal size share buffers.
const GRAIN: i64 = 128;

impl Activations {
    /// True when a batch of `tokens` with this adapter fits.
    pub fn fits(&self, tokens: usize, adapter: Option<&Adapter>) -> bool {
        self.capacity >= tokens as i64 && self.ranks == ranks(adapter)
    }

    pub fn new(
        spec: &DecoderSpec,
        tokens: usize,
        adapter: Option<&Adapter>,
        keep: bool,
        device: Device,
    ) -> Self {
        let capacity = (tokens as i64 + GRAIN - 1) / GRAIN * GRAIN;
        let ranks = ranks(adapter);
        let [d, q, kv, f] =
            [spec.hidden_size, spec.query_width(), spec.kv_width(), spec.intermediate_size]
                .map(|width| width as i64);
        let matrix = |width: i64| Tensor::empty([capacity, width], (Kind::Float, device));
        let vector = || Tensor::empty([capacity], (Kind::Float, device));
        let layer = || LayerActivations {
            rstd_attention: vector(),
            rstd_mlp: vector(),
            qkv: matrix(q + 2 * kv),
            attention: matrix(q),
            log_sums: matrix(spec.num_attention_heads as i64),
            middle: matrix(d),
            gate_up: matrix(2 * f),
            s: ranks.map(matrix),
        };
        let layers = if keep { spec.num_hidden_layers } else { 1 };
        let backward = |width: i64| matrix(if keep { width } else { 0 });
        Self {
            capacity,
            ranks,
            hidden: (0..layers + 1).map(|_| matrix(d)).collect(),
            layers: (0..layers).map(|_| layer()).collect(),
            scratch: Scratch {
                x: matrix(d),
                act: matrix(f),
                dh: backward(d),
                dx: backward(d),
                d_attention: backward(q),
                d_qkv: backward(q + 2 * kv),
                ds: ranks.map(backward),
            },
        }
    }

    /// Views of the first `tokens` rows of everything.
    pub fn cut(&self, tokens: usize) -> Self {
        let cut = |t: &Tensor| t.narrow(0, 0, tokens as i64);
        Self {
            capacity: tokens as i64,
            ranks: self.ranks,
            hidden: self.hidden.iter().map(cut).collect(),
            layers: self.layers.iter().map(|layer| layer.cut(cut)).collect(),
            scratch: Scratch {
                x: cut(&self.scratch.x),
                act: cut(&self.scratch.act),
                dh: cut(&self.scratch.dh),
                dx: cut(&self.scratch.dx),
                d_attention: cut(&self.scratch.d_attention),
                d_qkv: cut(&self.scratch.d_qkv),
                ds: self.scratch.ds.each_ref().map(cut),
            },
        }
    }

    /// The buffers of layer `index`, whether all are kept or one serves all.
    pub fn layer(&self, index: usize) -> &LayerActivations {
        &self.layers[index % self.layers.len()]
    }

    /// The residual stream before layer `index` (after the last: `index` = number of layers).
    pub fn hidden(&self, index: usize) -> &Tensor {
        &self.hidden[index % self.hidden.len()]
    }
}

impl LayerActivations {
    fn cut(&self, cut: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            rstd_attention: cut(&self.rstd_attention),
            rstd_mlp: cut(&self.rstd_mlp),
            qkv: cut(&self.qkv),
            attention: cut(&self.attention),
            log_sums: cut(&self.log_sums),
            middle: cut(&self.middle),
            gate_up: cut(&self.gate_up),
            s: self.s.each_ref().map(cut),
        }
    }
}

/// Widths of the four borders; the same in every layer.
fn ranks(adapter: Option<&Adapter>) -> [i64; GROUPS] {
    [QKV, O, GATE_UP, DOWN].map(|product| {
        adapter.and_then(|a| a.group(0, product)).map_or(0, |group| group.layout.rank)
    })
}
