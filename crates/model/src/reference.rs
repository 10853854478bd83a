//! The training pass in plain tch with autograd: slow, short, and independent of the fast one, which the
//! tests compare with it. Shares only the weights.

use tch::{IndexOp, Kind, Tensor};

use crate::adapter::{Adapter, a_view, b_view, magnitude_view};
use crate::batch::{Batch, LossSum};
use crate::decoder::Decoder;
use crate::layout::{DOWN, GATE_UP, O, QKV};
use crate::linear::Linear;

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

/// Logits of every row, `[T, V]`, document by document.
pub fn logits(decoder: &Decoder, batch: &Batch, adapter: Option<(&Adapter, &Tensor)>) -> Tensor {
    let ids = Tensor::from_slice(&batch.input_ids).to_device(decoder.device);
    let documents: Vec<Tensor> = batch
        .cu_seqlens
        .windows(2)
        .map(|pair| {
            let rows = i64::from(pair[0])..i64::from(pair[1]);
            let positions = &batch.positions[pair[0] as usize..pair[1] as usize];
            document(decoder, &ids.i(rows), positions, adapter)
        })
        .collect();
    Tensor::cat(&documents, 0)
}

fn document(
    decoder: &Decoder,
    ids: &Tensor,
    positions: &[i64],
    adapter: Option<(&Adapter, &Tensor)>,
) -> Tensor {
    let (spec, eps) = (&decoder.spec, decoder.spec.rms_norm_eps);
    let (h, k, d) =
        (spec.num_attention_heads as i64, spec.num_key_value_heads as i64, spec.head_dim as i64);
    let len = positions.len() as i64;
    let index = Tensor::from_slice(positions).to_device(decoder.device);
    let cos = decoder.rotary.cos.index_select(0, &index);
    let sin = decoder.rotary.sin.index_select(0, &index);
    let mut x = decoder.embedding.index_select(0, ids);
    for (number, layer) in decoder.layers.iter().enumerate() {
        let apply = |linear: &Linear, which: usize, x: &Tensor| {
            linear_with_adapter(linear, x, number, which, adapter)
        };
        let qkv = apply(&layer.qkv, QKV, &norm(&x, &layer.attention_norm, eps));
        let heads =
            |start: i64, n: i64| qkv.narrow(1, start * d, n * d).view([len, n, d]).transpose(0, 1);
        let repeat = |t: Tensor| t.repeat_interleave_self_int(h / k, 0, None::<i64>);
        let q = rotate(&heads(0, h), &cos, &sin);
        let key = repeat(rotate(&heads(h, k), &cos, &sin));
        let value = repeat(heads(h + k, k));
        let future = Tensor::ones([len, len], (Kind::Bool, decoder.device)).triu(1);
        let scores =
            (q.matmul(&key.mt()) / (d as f64).sqrt()).masked_fill(&future, f64::NEG_INFINITY);
        let mixed = scores.softmax(-1, Kind::Float).matmul(&value);
        // A new tensor, not in place: autograd still needs the old one.
        x = &x + apply(&layer.o, O, &mixed.transpose(0, 1).reshape([len, h * d]));
        let gate_up = apply(&layer.gate_up, GATE_UP, &norm(&x, &layer.mlp_norm, eps));
        let parts = gate_up.chunk(2, 1);
        x = &x + apply(&layer.down, DOWN, &(parts[0].silu() * &parts[1]));
    }
    norm(&x, &decoder.norm, eps).matmul(&decoder.head.tr())
}

fn norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    x * (x.square().mean_dim(-1, true, Kind::Float) + eps).rsqrt() * weight
}

/// Half-split rotation of `[heads, T, head_dim]`.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let parts = x.chunk(2, -1);
    let (a, b) = (&parts[0], &parts[1]);
    Tensor::cat(&[a * cos - b * sin, b * cos + a * sin], -1)
}

fn linear_with_adapter(
    linear: &Linear,
    x: &Tensor,
    layer: usize,
    which: usize,
    adapter: Option<(&Adapter, &Tensor)>,
) -> Tensor {
    // A copy, because the dense form of a quantised weight does not last until the backward pass.
    let weight = linear.weight.dense().copy();
    let base = x.matmul(&weight.tr());
    let biased = |y: Tensor| linear.bias.as_ref().map_or(y.shallow_clone(), |bias| y + bias);
    let Some((adapter, flat)) = adapter else { return biased(base) };
    let Some(group) = &adapter.layout().layers[layer][which] else { return biased(base) };
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
