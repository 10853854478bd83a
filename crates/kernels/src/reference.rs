//! Every operation in plain tch, for any device: the road on CUDA and of bf16 tensors, and the oracle of the CPU
//! forms.
//!
//! Same contracts as the functions of the same names at the crate's root. All arithmetic is f32, or f64 on f64
//! tensors: bf16 is widened where it is read, and rounded where it is written.

use tch::{Device, IndexOp, Kind, Tensor};

use crate::adamw_8bit::STEPS;
use crate::nf4::{BLOCK, NESTED_BLOCK};
use crate::segments::{Segment, Segments};
use crate::{
    Activation, AdamW, AttentionShape, Code, Factors, MOMENT_BLOCK, Moments, Nf4, Rotary,
    TargetLog, Term, TokenLoss, Write, wide_kind,
};

fn write(target: &Tensor, value: &Tensor) {
    // tch wants a mutable handle for what is one shared tensor.
    target.shallow_clone().copy_(value);
}

/// The values as they are computed with, f32 unless they are f64; the tensor itself when it is that.
fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_kind(wide_kind(tensor.kind()))
}

pub fn product(terms: &[Term<'_>], scale: f64, write: Write, out: &Tensor) {
    let (mut out, mut rest) = (out.shallow_clone(), terms);
    if write == Write::Over {
        match terms {
            [first, others @ ..] if scale == 1.0 && first.b.size()[1] == out.size()[1] => {
                let _ = first.a.mm_out(&out, first.b);
                rest = others;
            }
            _ => drop(out.zero_()),
        }
    }
    for Term { a, b, column } in rest {
        let mut columns = out.narrow(1, *column, b.size()[1]);
        if scale == 1.0 {
            let _ = columns.addmm_(a, b);
        } else {
            let _ = columns.g_add_(&(a.mm(b) * scale));
        }
    }
}

pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, out: &Tensor, rstd: &Tensor) {
    let x = wide(&segments(x, weight));
    let r = (x.square().mean_dim(-1, true, x.kind()) + eps).rsqrt();
    write(&segments(out, weight), &(x * &r * weight));
    write(&rstd.view([r.size()[0], r.size()[1]]), &r.squeeze_dim(-1));
}

/// Rows `[T, n·D]` as `[T, n, D]`, D the weight's width.
fn segments(x: &Tensor, weight: &Tensor) -> Tensor {
    // Spelt out, because without rows (a document without targets) nothing could be inferred.
    let (size, width) = (x.size(), weight.size()[0]);
    x.view([size[0], size[1] / width, width])
}

pub fn rms_norm_backward(dy: &Tensor, x: &Tensor, weight: &Tensor, rstd: &Tensor, dx: &Tensor) {
    let (dy, x) = (wide(&segments(dy, weight)), wide(&segments(x, weight)));
    let dx = segments(dx, weight);
    let (g, r) = (dy * weight, rstd.view([x.size()[0], x.size()[1], 1]));
    let along = (&g * &x).mean_dim(-1, true, x.kind()) * r.pow_tensor_scalar(3);
    write(&dx, &(wide(&dx) + &g * &r - x * along));
}

pub fn rotate_(x: &Tensor, positions: &[i64], rotary: &Rotary, heads: usize, inverse: bool) {
    let half = rotary.cos.size()[1];
    let index = Tensor::from_slice(positions).to_device(x.device());
    let cos = rotary.cos.index_select(0, &index).unsqueeze(1);
    let mut sin = rotary.sin.index_select(0, &index).unsqueeze(1);
    if inverse {
        sin = -sin;
    }
    let (heads, head_dim) = (heads as i64, rotary.head_dim as i64);
    let view = x.narrow(1, 0, heads * head_dim).view([-1, heads, head_dim]);
    let view = view.narrow(2, 0, half * 2);
    let (a, b) = (wide(&view.narrow(2, 0, half)), wide(&view.narrow(2, half, half)));
    let rotated = Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin], 2);
    write(&view, &rotated);
}

pub fn gated(activation: Activation, gate_up: &Tensor, out: &Tensor) {
    let parts = wide(gate_up).chunk(2, 1);
    let active = match activation {
        Activation::Silu => parts[0].silu(),
        Activation::GeluTanh => parts[0].gelu("tanh"),
    };
    write(out, &(active * &parts[1]));
}

pub fn gated_backward_(activation: Activation, gate_up: &Tensor, d_out: &Tensor) {
    let parts = gate_up.chunk(2, 1);
    let (gate, up, d) = (&wide(&parts[0]), &wide(&parts[1]), wide(d_out));
    let (active, slope) = match activation {
        Activation::Silu => {
            let s = gate.sigmoid();
            (gate * &s, &s * (gate * (1.0 - &s) + 1.0))
        }
        Activation::GeluTanh => {
            let (a, b) = ((2.0 / std::f64::consts::PI).sqrt(), 0.044715);
            let t = ((gate + gate.pow_tensor_scalar(3) * b) * a).tanh();
            let inner = (gate.square() * (3.0 * b) + 1.0) * a;
            let slope = (&t + 1.0 + gate * (1.0 - t.square()) * inner) * 0.5;
            (gate * (t + 1.0) * 0.5, slope)
        }
    };
    let (d_gate, d_up) = (&d * up * slope, d * &active);
    write(d_out, &(active * up));
    write(&parts[0], &d_gate);
    write(&parts[1], &d_up);
}

pub fn softcap_(x: &Tensor, cap: f64) {
    write(x, &((wide(x) / cap).tanh() * cap));
}

pub fn softcap_backward_(dy: &Tensor, y: &Tensor, cap: f64) {
    write(dy, &(wide(dy) * (1.0 - (wide(y) / cap).square())));
}

pub fn cross_entropy_(logits: &Tensor, targets: &[i64], factors: Factors<'_>) -> TokenLoss {
    let index = Tensor::from_slice(targets).to_device(logits.device()).unsqueeze(1);
    let log_p = logits.log_softmax(-1, wide_kind(logits.kind()));
    let at_target = log_p.gather(1, &index, false);
    let top = logits.max_dim(-1, true).0;
    let correct = logits.gather(1, &index, false).eq_tensor(&top).sum(Kind::Int64);
    let loss = -at_target.sum(Kind::Double).double_value(&[]);
    let correct = correct.int64_value(&[]) as u64;
    let ones = Tensor::full_like(&at_target, -1.0);
    let gradient = log_p.exp().scatter_add(1, &index, &ones);
    write(
        logits,
        &match factors {
            Factors::Equal(factor) => gradient * factor,
            Factors::Each(factors) => {
                let factors = Tensor::from_slice(factors).to_kind(gradient.kind());
                gradient * factors.to_device(logits.device()).unsqueeze(1)
            }
        },
    );
    TokenLoss { loss, correct }
}

pub fn target_logs(logits: &Tensor, targets: &[i64]) -> Vec<TargetLog> {
    let index = Tensor::from_slice(targets).to_device(logits.device()).unsqueeze(1);
    let log_p =
        logits.log_softmax(-1, wide_kind(logits.kind())).gather(1, &index, false).view([-1]);
    let top = logits.max_dim(-1, true).0;
    let correct = logits.gather(1, &index, false).eq_tensor(&top).view([-1]);
    let numbers = |t: &Tensor| -> Vec<f64> {
        let t = t.to_device(Device::Cpu).to_kind(Kind::Double);
        Vec::try_from(t).expect("a vector of doubles")
    };
    let pairs = numbers(&log_p).into_iter().zip(numbers(&correct));
    pairs.map(|(log_p, correct)| TargetLog { log_p, correct: correct != 0.0 }).collect()
}

pub fn adamw(values: &Tensor, grads: &Tensor, m: &Tensor, v: &Tensor, s: AdamW) {
    let grad = grads * s.grad_scale;
    write(m, &(m * s.beta1 + &grad * (1.0 - s.beta1)));
    write(v, &(v * s.beta2 + grad.square() * (1.0 - s.beta2)));
    let rate = s.learning_rate / (1.0 - s.beta1.powi(s.step as i32));
    let root = 1.0 / (1.0 - s.beta2.powi(s.step as i32)).sqrt();
    let shrunk = values * (1.0 - s.learning_rate * s.weight_decay);
    write(values, &(shrunk - m * rate / (v.sqrt() * root + s.eps)));
}

pub fn adamw_8bit(
    values: &Tensor,
    grads: &Tensor,
    moments: &Moments,
    [first, second]: [&Code; 2],
    settings: AdamW,
) {
    let len = values.size()[0];
    let spread = |absmax: &Tensor| {
        absmax.repeat_interleave_self_int(MOMENT_BLOCK as i64, 0, None::<i64>).narrow(0, 0, len)
    };
    let read = |codes: &Tensor, code: &Code, absmax: &Tensor| {
        code.levels.index_select(0, &codes.to_kind(Kind::Int64)) * spread(absmax)
    };
    let m = read(&moments.m, first, &moments.m_absmax);
    let v = read(&moments.v, second, &moments.v_absmax);
    adamw(values, grads, &m, &v, settings);
    let blocks = moments.m_absmax.size()[0];
    let keep = |moment: &Tensor, codes: &Tensor, code: &Code, absmax: &Tensor| {
        let rest = blocks * MOMENT_BLOCK as i64 - len;
        let padded = moment.abs().constant_pad_nd([0, rest]).view([blocks, -1]);
        write(absmax, &padded.amax([1], false));
        let scale = spread(absmax);
        let step = (moment * scale.reciprocal() + 1.0) / 2.0 * (STEPS - 1) as f64 + 0.5;
        // Where a whole block is zero there is no step.
        let step = step.nan_to_num(0.0, None, None).clamp(0.0, (STEPS - 1) as f64);
        write(codes, &code.nearest.index_select(0, &step.to_kind(Kind::Int64)));
    };
    keep(&m, &moments.m, first, &moments.m_absmax);
    keep(&v, &moments.v, second, &moments.v_absmax);
}

pub fn sum_of_squares(x: &Tensor) -> f64 {
    x.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[])
}

/// The mask must be the same on every device: it is computed on the CPU, then moved.
pub fn dropout(x: &Tensor, rate: f64, seed: u64, out: &Tensor) {
    let mask = Tensor::ones(x.size(), (Kind::Float, Device::Cpu));
    crate::dropout(&mask, rate, seed, &mask);
    write(out, &(x * mask.to_device(x.device())));
}

/// Queries of a segment, and the keys and values that they see, as `[heads, n, head_dim]`, keys and values
/// repeated per group.
fn split_heads(qkv: &Tensor, segment: &Segment, shape: AttentionShape) -> [Tensor; 3] {
    let (h, k, d) = (shape.heads as i64, shape.kv_heads as i64, shape.head_dim as i64);
    let ranges = segment.before.iter().chain([&segment.rows]);
    let seen: Vec<Tensor> = ranges.map(|rows| qkv.i(rows.start as i64..rows.end as i64)).collect();
    let heads = |rows: &Tensor, start: i64, count: i64| {
        rows.narrow(1, start * d, count * d).view([-1, count, d]).transpose(0, 1)
    };
    let repeat = |t: Tensor| t.repeat_interleave_self_int(h / k, 0, None::<i64>);
    let (own, seen) = (&seen[seen.len() - 1], Tensor::cat(&seen, 0));
    [heads(own, 0, h), repeat(heads(&seen, h, k)), repeat(heads(&seen, h + k, k))].map(|t| wide(&t))
}

/// Scaled and capped scores of the last queries against all keys, minus infinity where a key is hidden.
fn scores(q: &Tensor, k: &Tensor, shape: AttentionShape) -> Tensor {
    let (queries, keys) = (q.size()[1], k.size()[1]);
    let ones = Tensor::ones([queries, keys], (Kind::Bool, q.device()));
    let future = ones.triu(keys - queries + 1);
    let hidden = match shape.window {
        Some(window) => future.logical_or(&ones.tril(keys - queries - window as i64)),
        None => future,
    };
    let scores = q.matmul(&k.mt()) * shape.scale;
    let scores = match shape.softcap {
        Some(cap) => (scores / cap).tanh() * cap,
        None => scores,
    };
    scores.masked_fill(&hidden, f64::NEG_INFINITY)
}

pub fn attention(
    qkv: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    out: &Tensor,
    log_sums: &Tensor,
) {
    for segment in segments.iter() {
        let rows = segment.rows.start as i64..segment.rows.end as i64;
        let [q, k, v] = split_heads(qkv, segment, shape);
        let scores = scores(&q, &k, shape);
        let o = scores.softmax(-1, scores.kind()).matmul(&v).transpose(0, 1);
        write(&out.i(rows.clone()), &o.reshape([rows.end - rows.start, -1]));
        write(&log_sums.i(rows), &scores.logsumexp([-1], false).tr());
    }
}

pub fn attention_backward(
    d_out: &Tensor,
    qkv: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    d_qkv: &Tensor,
) {
    let (h, k, d) = (shape.heads as i64, shape.kv_heads as i64, shape.head_dim as i64);
    // Keys that several segments see get several parts; sums are wide.
    let sums = Tensor::zeros(d_qkv.size(), (wide_kind(d_qkv.kind()), d_qkv.device()));
    for segment in segments.iter() {
        let rows = segment.rows.start as i64..segment.rows.end as i64;
        let [query, key, value] = split_heads(qkv, segment, shape);
        let scores = scores(&query, &key, shape);
        let p = scores.softmax(-1, scores.kind());
        let d_o = wide(&d_out.i(rows.clone())).view([-1, h, d]).transpose(0, 1);
        let dp = d_o.matmul(&value.mt());
        let delta = (&dp * &p).sum_dim_intlist([-1i64].as_slice(), true, p.kind());
        let ds = &p * (dp - delta) * shape.scale;
        let ds = match shape.softcap {
            // Hidden scores are infinite; their probability is 0, and so must the product be.
            Some(cap) => ds * (1.0 - (scores / cap).clamp(-1.0, 1.0).square()),
            None => ds,
        };
        let flat = |t: Tensor| t.transpose(0, 1).reshape([-1, t.size()[0] * d]);
        let per_group = |t: Tensor| {
            let grouped = t.view([k, h / k, -1, d]);
            flat(grouped.sum_dim_intlist([1i64].as_slice(), false, grouped.kind()))
        };
        let _ = sums.i(rows).narrow(1, 0, h * d).g_add_(&flat(ds.matmul(&key)));
        let (d_key, d_value) = (per_group(ds.mt().matmul(&query)), per_group(p.mt().matmul(&d_o)));
        let d_seen = Tensor::cat(&[d_key, d_value], 1);
        let mut done = 0;
        for rows in segment.before.iter().chain([&segment.rows]) {
            let seen = sums.i(rows.start as i64..rows.end as i64).narrow(1, h * d, 2 * k * d);
            let _ = seen.shallow_clone().g_add_(&d_seen.narrow(0, done, rows.len() as i64));
            done += rows.len() as i64;
        }
    }
    write(d_qkv, &sums);
}

pub fn cached_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    cached: usize,
    shape: AttentionShape,
    out: &Tensor,
) {
    let new = q.size()[0];
    let total = cached as i64 + new;
    let packed = |t: &Tensor, heads: usize| {
        let rows = wide(&t.i(..total)).view([total, heads as i64, shape.head_dim as i64]);
        rows.transpose(0, 1).repeat_interleave_self_int(
            (shape.heads / heads) as i64,
            0,
            None::<i64>,
        )
    };
    let (k, v) = (packed(keys, shape.kv_heads), packed(values, shape.kv_heads));
    let q = wide(q).view([new, shape.heads as i64, shape.head_dim as i64]).transpose(0, 1);
    let o = scores(&q, &k, shape).softmax(-1, q.kind()).matmul(&v).transpose(0, 1);
    write(out, &o.reshape([new, -1]));
}

pub fn nf4_dequantise(weight: &Nf4, out: &Tensor) {
    let len = out.numel() as i64;
    let upper = weight.codes.divide_scalar_mode(16, "floor");
    let lower = weight.codes.remainder(16);
    let codes = Tensor::stack(&[upper, lower], 1).view(-1).narrow(0, 0, len);
    let levels = weight.levels.index_select(0, &codes.to_kind(Kind::Int64));
    let spread = |values: &Tensor, each: usize, count: i64| {
        values.repeat_interleave_self_int(each as i64, 0, None).narrow(0, 0, count)
    };
    let absmax = weight.absmax_levels.index_select(0, &weight.absmax.to_kind(Kind::Int64));
    let nested = spread(&weight.nested_absmax, NESTED_BLOCK, absmax.size()[0]);
    let absmax = absmax * nested + f64::from(weight.offset);
    write(&out.view(-1), &(levels * spread(&absmax, BLOCK, len)));
}
