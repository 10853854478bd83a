//! Buffers of a training pass, allocated once and cut to the batch at hand.

use tch::{Device, Kind, Tensor};

use crate::adapter::Adapter;
use crate::decoder::Decoder;
use crate::layout::GROUPS;
use crate::spec::NormPlacement;

/// What the backward pass computes again instead of having kept it: less memory for more time. The
/// numbers are the same to the last bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    #[default]
    Nothing,
    /// The MLP's two wide projections: about half of what a layer keeps, for an eighth more work.
    Mlp,
    /// All of a layer but its input and the adapters' inner products, for nearly half more work.
    Layer,
}

/// What a pass keeps of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// No backward pass will come.
    Nothing,
    ForBackward(Recompute),
}

/// What one layer keeps for its backward pass. Buffers of what is computed again are the same ones in
/// all layers.
#[derive(Debug)]
pub(crate) struct LayerActivations {
    /// `[T]` each, f32: 1/rms of the two norms' inputs.
    pub rstd_attention: Tensor,
    pub rstd_mlp: Tensor,
    /// After rotation, `[T, Q + 2·KV]`.
    pub qkv: Tensor,
    /// The same, and behind it the rows of an adapter's own keys and values, `[T + P, Q + 2·KV]`.
    pub seen: Tensor,
    /// `[T, Q]`
    pub attention: Tensor,
    /// `[T, heads]`, f32.
    pub log_sums: Tensor,
    /// The residual stream after attention, `[T, D]`.
    pub middle: Tensor,
    /// `[T, 2F]`
    pub gate_up: Tensor,
    /// X·Aᵀ of each product, `[T, R]`.
    pub s: [Tensor; GROUPS],
    /// Where branches' outputs have norms: the outputs before them `[T, D]`, and 1/rms `[T]`, f32.
    pub attention_branch: Tensor,
    pub mlp_branch: Tensor,
    pub rstd_attention_out: Tensor,
    pub rstd_mlp_out: Tensor,
    /// Where queries and keys have norms: both before them `[T, Q + KV]`, and 1/rms of each norm `[T, norms]`, f32.
    pub qk: Tensor,
    pub rstd_qk: [Tensor; 2],
}

/// All buffers of a pass over at most `capacity` tokens, in the decoder's numbers unless told otherwise.
#[derive(Debug)]
pub(crate) struct Activations {
    capacity: i64,
    /// Rows of keys and values behind those of the tokens.
    extra: i64,
    ranks: [i64; GROUPS],
    keep: Keep,
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
    /// Its gradient, `[T, F]`.
    pub d_act: Tensor,
    /// Gradient of the residual stream, `[T, D]`.
    pub dh: Tensor,
    /// Gradient of a norm's output, `[T, D]`.
    pub dx: Tensor,
    /// `[T, Q]`
    pub d_attention: Tensor,
    /// `[T, Q + 2·KV]`
    pub d_qkv: Tensor,
    /// The same, and behind it the gradient of an adapter's own keys and values, `[T + P, Q + 2·KV]`.
    pub d_seen: Tensor,
    /// Gradient of normalised queries and keys, `[T, Q + KV]`.
    pub d_qk: Tensor,
    /// `[T, R]` of each product.
    pub ds: [Tensor; GROUPS],
}

/// Tokens are rounded up to this, so that batches of nearly equal size share buffers.
const GRAIN: i64 = 128;

impl Activations {
    /// True when a batch of `tokens` with this adapter fits. Without an adapter any borders will do, so
    /// that passes with and without one may take turns.
    pub fn fits(&self, tokens: usize, adapter: Option<&Adapter>, keep: Keep) -> bool {
        let wide_enough = adapter.is_none() || self.ranks == ranks(adapter);
        let long_enough = self.capacity >= tokens as i64 && self.extra >= extra_rows(adapter);
        long_enough && wide_enough && self.keep == keep
    }

    pub fn new(decoder: &Decoder, tokens: usize, adapter: Option<&Adapter>, keep: Keep) -> Self {
        let (spec, device) = (&decoder.spec, decoder.device);
        let capacity = (tokens as i64 + GRAIN - 1) / GRAIN * GRAIN;
        let (ranks, extra) = (ranks(adapter), extra_rows(adapter));
        let [d, q, kv, f] =
            [spec.hidden_size, spec.query_width(), spec.kv_width(), spec.intermediate_size]
                .map(|width| width as i64);
        let kind = decoder.kind();
        let statistic = (kernels::wide_kind(kind), device);
        let matrix = |width: i64| rows(capacity, width, (kind, device));
        let longer = |width: i64| rows(capacity + extra, width, (kind, device));
        let statistics = |width: i64| Tensor::empty([capacity, width], statistic);
        let vector = || Tensor::empty([capacity], statistic);
        // Nothing is kept for norms that the family does not have.
        let out = if spec.norm_placement == NormPlacement::Before { 0 } else { d };
        let (qk, norms) = match spec.qk_norm_widths() {
            None => (0, [0, 0]),
            Some([a, b]) => (q + kv, [q / a as i64, kv / b as i64]),
        };
        let first = LayerActivations {
            rstd_attention: vector(),
            rstd_mlp: vector(),
            qkv: Tensor::new(),
            seen: longer(q + 2 * kv),
            attention: matrix(q),
            log_sums: statistics(spec.num_attention_heads as i64),
            middle: matrix(d),
            gate_up: matrix(2 * f),
            s: ranks.map(matrix),
            attention_branch: matrix(out),
            mlp_branch: matrix(out),
            rstd_attention_out: vector(),
            rstd_mlp_out: vector(),
            qk: matrix(qk),
            rstd_qk: norms.map(statistics),
        };
        let (layers, recompute) = match keep {
            Keep::Nothing => (1, Recompute::Nothing),
            Keep::ForBackward(recompute) => (spec.num_hidden_layers, recompute),
        };
        // Empty tensors of the same shape are new buffers; shallow clones are the first layer's.
        let rest = (1..layers).map(|_| first.follow(recompute)).collect::<Vec<_>>();
        let width = |width: i64| if keep == Keep::Nothing { 0 } else { width };
        let backward = |columns: i64| matrix(width(columns));
        let buffers = Self {
            capacity,
            extra,
            ranks,
            keep,
            hidden: (0..layers + 1).map(|_| matrix(d)).collect(),
            layers: std::iter::once(first).chain(rest).collect(),
            scratch: Scratch {
                x: matrix(d),
                act: matrix(f),
                d_act: backward(f),
                dh: backward(d),
                dx: backward(d),
                d_attention: backward(q),
                d_qkv: Tensor::new(),
                d_seen: longer(width(q + 2 * kv)),
                d_qk: backward(qk),
                ds: ranks.map(backward),
            },
        };
        buffers.cut(capacity as usize, extra as usize)
    }

    /// Views of the first `tokens` rows of everything, with so many rows of keys and values behind them.
    pub fn cut(&self, tokens: usize, extra: usize) -> Self {
        let (tokens, extra) = (tokens as i64, extra as i64);
        let cut = |t: &Tensor| t.narrow(0, 0, tokens);
        let longer = |t: &Tensor| t.narrow(0, 0, tokens + extra);
        Self {
            capacity: tokens,
            extra,
            ranks: self.ranks,
            keep: self.keep,
            hidden: self.hidden.iter().map(cut).collect(),
            layers: self.layers.iter().map(|layer| layer.cut(cut, longer)).collect(),
            scratch: Scratch {
                x: cut(&self.scratch.x),
                act: cut(&self.scratch.act),
                d_act: cut(&self.scratch.d_act),
                dh: cut(&self.scratch.dh),
                dx: cut(&self.scratch.dx),
                d_attention: cut(&self.scratch.d_attention),
                d_qkv: cut(&self.scratch.d_seen),
                d_seen: longer(&self.scratch.d_seen),
                d_qk: cut(&self.scratch.d_qk),
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
    /// The buffers of a further layer: its own for what is kept, these for what is computed again.
    fn follow(&self, recompute: Recompute) -> Self {
        let own_unless = |shared: bool, buffer: &Tensor| {
            if shared { buffer.shallow_clone() } else { alike(buffer) }
        };
        let attention = |buffer| own_unless(recompute == Recompute::Layer, buffer);
        let mlp = |buffer| own_unless(recompute != Recompute::Nothing, buffer);
        Self {
            rstd_attention: attention(&self.rstd_attention),
            rstd_mlp: mlp(&self.rstd_mlp),
            qkv: Tensor::new(),
            seen: attention(&self.seen),
            attention: attention(&self.attention),
            log_sums: attention(&self.log_sums),
            middle: attention(&self.middle),
            gate_up: mlp(&self.gate_up),
            s: self.s.each_ref().map(alike),
            attention_branch: attention(&self.attention_branch),
            mlp_branch: alike(&self.mlp_branch),
            rstd_attention_out: attention(&self.rstd_attention_out),
            rstd_mlp_out: alike(&self.rstd_mlp_out),
            qk: attention(&self.qk),
            rstd_qk: self.rstd_qk.each_ref().map(attention),
        }
    }

    fn cut(&self, cut: impl Fn(&Tensor) -> Tensor, longer: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            rstd_attention: cut(&self.rstd_attention),
            rstd_mlp: cut(&self.rstd_mlp),
            qkv: cut(&self.seen),
            seen: longer(&self.seen),
            attention: cut(&self.attention),
            log_sums: cut(&self.log_sums),
            middle: cut(&self.middle),
            gate_up: cut(&self.gate_up),
            s: self.s.each_ref().map(&cut),
            attention_branch: cut(&self.attention_branch),
            mlp_branch: cut(&self.mlp_branch),
            rstd_attention_out: cut(&self.rstd_attention_out),
            rstd_mlp_out: cut(&self.rstd_mlp_out),
            qk: cut(&self.qk),
            rstd_qk: self.rstd_qk.each_ref().map(cut),
        }
    }
}

/// Rows that do not all begin at the same place of the first-level cache: those that a product reads side by
/// side would drive each other out.
fn rows(count: i64, width: i64, options: (Kind, Device)) -> Tensor {
    let pad = if width > 0 && width % 512 == 0 { 16 } else { 0 };
    Tensor::empty([count, width + pad], options).narrow(1, 0, width)
}

/// A new buffer of the same shape and strides.
fn alike(buffer: &Tensor) -> Tensor {
    Tensor::empty_strided(buffer.size(), buffer.stride(), (buffer.kind(), buffer.device()))
}

/// Rows of an adapter's own keys and values.
fn extra_rows(adapter: Option<&Adapter>) -> i64 {
    adapter
        .map_or(0, |adapter| if adapter.has_prompt() { 0 } else { adapter.virtual_tokens() as i64 })
}

/// Widths of the four borders: the widest of all layers; a product takes its part of them.
fn ranks(adapter: Option<&Adapter>) -> [i64; GROUPS] {
    adapter.map_or([0; GROUPS], Adapter::ranks)
}
