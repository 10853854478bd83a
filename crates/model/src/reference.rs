//! The training pass in plain tch with autograd: slow, short, and independent of the fast one, which the
//! tests compare with it. Shares only the weights. Computes in f32, whatever the decoder computes in.

use kernels::{Activation, Rotary};
use tch::{IndexOp, Kind, Tensor};

use crate::adapter::{Adapter, a_view, b_view, magnitude_view};
use crate::batch::{Batch, LossSum};
use crate::decoder::Decoder;
use crate::layer::Layer;
use crate::layout::{DOWN, GATE_UP, O, QKV};

/// Loss of a batch (sum over targets) and the gradient of `scale · loss` for every adapter value, `[len]`.
/// Dropout is not applied.
pub fn loss_and_gradient(
    decoder: &Decoder,
    batch: &Batch,
    adapter: &Adapter,
    scale: f64,
) -> (LossSum, Tensor) {
    let flat = adapter.values().copy().set_requires_grad(true);
    let logits = logits(decoder, batch, Some((adapter, &flat)));
    let rows = Tensor::from_slice(&batch.target_rows).to_device(decoder.device);
    let ids = Tensor::from_slice(&batch.target_ids).to_device(decoder.device);
    let logits = logits.index_select(0, &rows);
    let loss = logits.cross_entropy_loss::<Tensor>(&ids, None, tch::Reduction::Sum, -100, 0.0);
    (&loss * scale).backward();
    let correct = logits.argmax(-1, false).eq_tensor(&ids).sum(Kind::Int64).int64_value(&[]);
    let targets = batch.target_ids.len() as u64;
    let sum = LossSum { loss: loss.double_value(&[]), correct: correct as u64, targets };
    (sum, flat.grad())
}

/// log p of every target, `[targets]`; with gradients when `adapter`'s flat values ask for them.
pub fn target_logs(
    decoder: &Decoder,
    batch: &Batch,
    adapter: Option<(&Adapter, &Tensor)>,
) -> Tensor {
    let rows = Tensor::from_slice(&batch.target_rows).to_device(decoder.device);
    let ids = Tensor::from_slice(&batch.target_ids).to_device(decoder.device);
    let logits = logits(decoder, batch, adapter).index_select(0, &rows);
    logits.log_softmax(-1, Kind::Float).gather(1, &ids.unsqueeze(1), false).view([-1])
}

/// Logits of every row, `[T, V]`, document by document; what documents share is computed for each of them.
pub fn logits(decoder: &Decoder, batch: &Batch, adapter: Option<(&Adapter, &Tensor)>) -> Tensor {
    let ids = Tensor::from_slice(&batch.input_ids).to_device(decoder.device);
    // Texts begin behind the adapter's virtual tokens.
    let count = adapter.map_or(0, |(adapter, _)| adapter.virtual_tokens() as i64);
    let positions = batch.positions.iter().map(|position| position + count).collect();
    let shifted = Batch { positions, ..batch.clone() };
    let rotary_rows = decoder.rotary_rows(&shifted);
    let documents: Vec<Tensor> = batch
        .segments()
        .iter()
        .map(|segment| {
            let ranges = || segment.before.iter().chain([&segment.rows]);
            let parts = ranges().map(|rows| ids.i(rows.start as i64..rows.end as i64));
            let ids = Tensor::cat(&parts.collect::<Vec<_>>(), 0);
            let rotary_rows: Vec<i64> =
                ranges().flat_map(|rows| &rotary_rows[rows.clone()]).copied().collect();
            let own = segment.rows.len() as i64;
            let logits = document(decoder, &ids, rotary_rows, adapter);
            logits.narrow(0, logits.size()[0] - own, own)
        })
        .collect();
    Tensor::cat(&documents, 0)
}

fn document(
    decoder: &Decoder,
    ids: &Tensor,
    mut rotary_rows: Vec<i64>,
    adapter: Option<(&Adapter, &Tensor)>,
) -> Tensor {
    let (spec, eps) = (&decoder.spec, decoder.spec.rms_norm_eps);
    let embedded = decoder.embedding.index_select(0, ids).to_kind(Kind::Float);
    let mut x = embedded * spec.embedding_scale;
    if let Some(prompt) = adapter.and_then(|(adapter, flat)| adapter.prompt(flat)) {
        let count = prompt.size()[0];
        let long = rotary_rows.last().is_some_and(|&row| row >= decoder.positions as i64);
        rotary_rows.splice(0..0, (0..count).map(|position| decoder.rotary_row(position, long)));
        x = Tensor::cat(&[prompt, x], 0);
    }
    for (number, layer) in decoder.layers.iter().enumerate() {
        let apply =
            |which: usize, x: &Tensor| linear_with_adapter(layer, x, number, which, adapter);
        let qkv = apply(QKV, &norm(&x, layer.attention_norm.as_ref(), eps));
        let prefix = adapter.and_then(|(adapter, flat)| adapter.prefix(flat, number));
        let mixed = attention(decoder, layer, &qkv, &rotary_rows, prefix);
        let branch = norm(&apply(O, &mixed), layer.attention_out_norm.as_ref(), eps);
        // A new tensor, not in place: autograd still needs the old one.
        x = &x + branch * spec.residual_scale;
        let gate_up = apply(GATE_UP, &norm(&x, layer.mlp_norm.as_ref(), eps));
        let parts = gate_up.chunk(2, 1);
        let active = match layer.activation {
            Activation::Silu => parts[0].silu(),
            Activation::GeluTanh => parts[0].gelu("tanh"),
        };
        let branch = norm(&apply(DOWN, &(active * &parts[1])), layer.mlp_out_norm.as_ref(), eps);
        x = &x + branch * spec.residual_scale;
    }
    softcap(
        norm(&x, Some(&decoder.norm), eps).matmul(&decoder.head.to_kind(Kind::Float).tr()),
        spec.logit_softcap,
    )
}

/// Attention of one document over itself: `[len, Q + 2·KV]` before norms and rotation to `[len, Q]`.
/// Before its keys and values stand those of the prefix, `[P, 2·KV]`, as they are.
fn attention(
    decoder: &Decoder,
    layer: &Layer,
    qkv: &Tensor,
    rotary_rows: &[i64],
    prefix: Option<Tensor>,
) -> Tensor {
    let (shape, eps) = (layer.shape, decoder.spec.rms_norm_eps);
    let (h, k, d) = (shape.heads as i64, shape.kv_heads as i64, shape.head_dim as i64);
    let len = rotary_rows.len() as i64;
    let heads = |start: i64, n: i64, norm_weight: Option<&Tensor>| {
        let part = qkv.narrow(1, start * d, n * d);
        // The norm of a head, or of all of them, as the weight is wide.
        let width = norm_weight.map_or(n * d, |weight| weight.size()[0]);
        norm(&part.reshape([len, -1, width]), norm_weight, eps).view([len, n, d]).transpose(0, 1)
    };
    let [q_norm, k_norm] = match &layer.qk_norm {
        Some([q, k]) => [Some(q), Some(k)],
        None => [None, None],
    };
    let repeat = |t: Tensor| t.repeat_interleave_self_int(h / k, 0, None::<i64>);
    let turn = |t: Tensor| match layer.rotary {
        Some(index) => rotate(&t, &decoder.rotary[index], rotary_rows),
        None => t,
    };
    let (q, mut key) = (turn(heads(0, h, q_norm)), turn(heads(h, k, k_norm)));
    let mut value = heads(h + k, k, None);
    if let Some(prefix) = prefix {
        let part = |n: i64| prefix.narrow(1, n * k * d, k * d).reshape([-1, k, d]).transpose(0, 1);
        (key, value) = (Tensor::cat(&[part(0), key], 1), Tensor::cat(&[part(1), value], 1));
    }
    let (key, value) = (repeat(key), repeat(value));
    let at = Tensor::arange(key.size()[1], (Kind::Int64, decoder.device));
    let own = at.narrow(0, key.size()[1] - len, len);
    let distance = own.unsqueeze(1) - at.unsqueeze(0);
    let window = shape.window.map_or(key.size()[1], |window| window as i64);
    let hidden = distance.lt(0).logical_or(&distance.ge(window));
    let scores = softcap(q.matmul(&key.mt()) * shape.scale, shape.softcap);
    let p = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Float);
    p.matmul(&value).transpose(0, 1).reshape([len, h * d])
}

fn softcap(x: Tensor, cap: Option<f64>) -> Tensor {
    match cap {
        Some(cap) => (x / cap).tanh() * cap,
        None => x,
    }
}

/// The norm over the last dimension, or nothing where there is none.
fn norm(x: &Tensor, weight: Option<&Tensor>, eps: f64) -> Tensor {
    let Some(weight) = weight else { return x.shallow_clone() };
    x * (x.square().mean_dim(-1, true, Kind::Float) + eps).rsqrt() * weight
}

/// Half-split rotation of the first part of each head of `[heads, T, head_dim]`.
fn rotate(x: &Tensor, rotary: &Rotary, rows: &[i64]) -> Tensor {
    let index = Tensor::from_slice(rows).to_device(x.device());
    let cos = rotary.cos.index_select(0, &index);
    let sin = rotary.sin.index_select(0, &index);
    let half = cos.size()[1];
    let (a, b) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
    let rest = x.narrow(-1, half * 2, x.size()[2] - half * 2);
    Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin, rest], -1)
}

fn linear_with_adapter<'a>(
    layer: &Layer,
    x: &Tensor,
    number: usize,
    which: usize,
    adapter: Option<(&'a Adapter, &Tensor)>,
) -> Tensor {
    let linear = layer.linear(which);
    // A copy, because the dense form of a quantised weight does not last until the backward pass.
    let weight = linear.weight.dense().copy().to_kind(Kind::Float);
    let base = x.matmul(&weight.tr());
    let biased = |y: Tensor| linear.bias.as_ref().map_or(y.shallow_clone(), |bias| y + bias);
    let group = |adapter: &'a Adapter| adapter.layout()?.layers[number][which].as_ref();
    let Some((group, flat)) = adapter.and_then(|(a, flat)| Some((group(a)?, flat))) else {
        return biased(base);
    };
    let mut pieces = Vec::new();
    let mut covered = 0;
    for part in &group.parts {
        pieces.push(base.narrow(1, covered, part.out_start - covered));
        let a = a_view(flat, group).narrow(0, part.rank_start, part.rank);
        let b = b_view(flat, part) * part.scale;
        let product =
            base.narrow(1, part.out_start, part.out_width) + x.matmul(&a.tr()).matmul(&b.tr());
        pieces.push(match magnitude_view(flat, part) {
            None => product,
            Some(magnitude) => {
                let weight = weight.narrow(0, part.out_start, part.out_width);
                let norm = (weight + b.matmul(&a)).square().sum_dim_intlist(-1, false, Kind::Float);
                product * (magnitude / norm.sqrt().detach())
            }
        });
        covered = part.out_start + part.out_width;
    }
    pieces.push(base.narrow(1, covered, group.out_width - covered));
    biased(Tensor::cat(&pieces, 1))
}
