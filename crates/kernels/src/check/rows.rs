//! Operations on rows and flat buffers.

use tch::{Device, Kind, Tensor};

use super::{Framed, On, Pair, wide};
use crate::{Activation, AdamW, Factors, Nf4, Rotary, Term, TokenLoss, Write, reference};

/// Rows, width, and columns before the matrix: aligned and not, narrow and wider than a block.
const SHAPES: [(i64, i64, i64); 6] =
    [(1, 7, 3), (3, 64, 8), (5, 257, 1), (2, 2064, 8), (2, 2064, 4), (300, 96, 0)];

pub(super) fn product(on: &On) -> Vec<Pair> {
    let shapes = [(1, 7, 5), (33, 130, 70), (200, 257, 129)];
    let of = |(rows, inner, columns): (i64, i64, i64)| {
        let (a, b) = (on.floats(&[rows, inner]), on.floats(&[columns, inner]));
        let (out, expected) = (on.room(&[rows, columns]), on.room(&[rows, columns]));
        let b = b.tr();
        let terms = [Term::new(&a, &b)];
        crate::product(&terms, 1.0, Write::Over, &out);
        reference::product(&terms, 1.0, Write::Over, &expected);
        (out, expected)
    };
    shapes.into_iter().map(of).collect()
}

pub(super) fn norm(on: &On) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (t, d, before) in SHAPES {
        for segments in [1, 3] {
            let matrix = || on.random(&[t, segments * d]);
            let (x, dy, dx, w) = (matrix(), matrix(), matrix(), on.floats(&[d]));
            let [x_in, dy_in, dx_in] = [&x, &dy, &dx].map(|x| Framed::of(x, before));
            let out = Framed::room(on, [t, segments * d], before);
            let rstd = on.room(&[t, segments]);
            crate::rms_norm(&x_in.view, &w, 1e-5, &out.view, &rstd);
            crate::rms_norm_backward(&dy_in.view, &x_in.view, &w, &rstd, &dx_in.view);
            let (x, dy, dx) = (wide(&x), wide(&dy), wide(&dx).copy());
            let (expected, expected_rstd) = (x.empty_like(), rstd.empty_like());
            reference::rms_norm(&x, &w, 1e-5, &expected, &expected_rstd);
            reference::rms_norm_backward(&dy, &x, &w, &expected_rstd, &dx);
            pairs.extend([out.margin(), dx_in.margin(), (rstd, expected_rstd)]);
            pairs.extend([(out.view, expected), (dx_in.view, dx)]);
        }
    }
    pairs
}

pub(super) fn rotation(on: &On) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (frequencies, head_dim, heads) in [(3, 8, 2), (32, 64, 5), (5, 10, 1)] {
        let set = (0..frequencies).map(|i| 0.7f64.powi(i)).collect::<Vec<_>>();
        let rotary = Rotary::new(&[set], 50, head_dim, 1.5, on.device);
        let positions: Vec<i64> = (0..4).map(|t| (t * 17) % 50).collect();
        for inverse in [false, true] {
            let x = on.random(&[4, (heads * head_dim) as i64 + 5]);
            let turned = Framed::of(&x, 3);
            crate::rotate_(&turned.view, &positions, &rotary, heads, inverse);
            let expected = wide(&x).copy();
            reference::rotate_(&expected, &positions, &rotary, heads, inverse);
            pairs.extend([turned.margin(), (turned.view, expected)]);
        }
    }
    pairs
}

pub(super) fn gated(on: &On) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (t, f, before) in SHAPES {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let (gate_up, d_out) = (on.random(&[t, 2 * f]) * 3.0, on.random(&[t, f]));
            let (gate_up_in, d_in) = (Framed::of(&gate_up, before), Framed::of(&d_out, before));
            let out = Framed::room(on, [t, f], before);
            crate::gated(activation, &gate_up_in.view, &out.view);
            crate::gated_backward_(activation, &gate_up_in.view, &d_in.view);
            let (gate_up, d_out) = (wide(&gate_up).copy(), wide(&d_out).copy());
            let expected = d_out.empty_like();
            reference::gated(activation, &gate_up, &expected);
            reference::gated_backward_(activation, &gate_up, &d_out);
            pairs.extend([&out, &gate_up_in, &d_in].map(Framed::margin));
            pairs.extend([(out.view, expected), (gate_up_in.view, gate_up), (d_in.view, d_out)]);
        }
    }
    pairs
}

pub(super) fn softcap(on: &On) -> Vec<Pair> {
    let of = |(t, d, before): (i64, i64, i64)| {
        let (x, dy) = (on.random(&[t, d]) * 20.0, on.random(&[t, d]));
        let (x_in, dy_in) = (Framed::of(&x, before), Framed::of(&dy, before));
        crate::softcap_(&x_in.view, 30.0);
        let (x, dy) = (wide(&x).copy(), wide(&dy).copy());
        reference::softcap_(&x, 30.0);
        crate::softcap_backward_(&dy_in.view, &x_in.view, 30.0);
        reference::softcap_backward_(&dy, &wide(&x_in.view), 30.0);
        [x_in.margin(), dy_in.margin(), (x_in.view, x), (dy_in.view, dy)]
    };
    SHAPES.into_iter().flat_map(of).collect()
}

/// The mask is that of the CPU, on every device.
pub(super) fn dropout(on: &On) -> Vec<Pair> {
    const SEED: u64 = 0xfeed_0000_1234;
    let of = |(t, d, before): (i64, i64, i64)| {
        let x = on.random(&[t, d]);
        let (x_in, out) = (Framed::of(&x, before), Framed::room(on, [t, d], before));
        crate::dropout(&x_in.view, 0.3, SEED, &out.view);
        let x = wide(&x).to_device(Device::Cpu);
        let expected = x.empty_like();
        crate::dropout(&x, 0.3, SEED, &expected);
        [out.margin(), (out.view, expected.to_device(on.device))]
    };
    SHAPES.into_iter().flat_map(of).collect()
}

pub(super) fn four_bits(on: &On) -> Vec<Pair> {
    let of = |len: i64| {
        let blocks = (len + 63) / 64;
        let weight = Nf4 {
            codes: on.bytes((len + 1) / 2),
            absmax: on.bytes(blocks),
            nested_absmax: on.floats(&[(blocks + 255) / 256]),
            offset: 0.37,
            levels: on.floats(&[16]),
            absmax_levels: on.floats(&[256]),
        };
        let (out, expected) = (on.room(&[1, len]).to_kind(on.kind), on.room(&[1, len]));
        crate::nf4_dequantise(&weight, &out);
        reference::nf4_dequantise(&weight, &expected);
        (out, expected)
    };
    [1, 63, 64, 1000, 64 * 256 + 70].into_iter().map(of).collect()
}

pub(super) fn adamw(on: &On) -> Vec<Pair> {
    let settings = AdamW {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 3,
        grad_scale: 0.5,
    };
    let of = |len: i64| {
        let [values, grads, m] = [0; 3].map(|_| on.floats(&[len]));
        let v = on.floats(&[len]).square();
        let [our_values, our_m, our_v] = [&values, &m, &v].map(Tensor::copy);
        crate::adamw(&our_values, &grads, &our_m, &our_v, settings);
        reference::adamw(&values, &grads, &m, &v, settings);
        [(our_values, values), (our_m, m), (our_v, v)]
    };
    [1, 300, 300_000].into_iter().flat_map(of).collect()
}

pub(super) fn squares(on: &On) -> Vec<Pair> {
    let of = |len: i64| {
        let x = on.floats(&[len]);
        (number(crate::sum_of_squares(&x)), number(reference::sum_of_squares(&x)))
    };
    [1, 300, 300_000].into_iter().map(of).collect()
}

fn number(value: f64) -> Tensor {
    Tensor::from(value)
}

pub(super) fn cross_entropy(on: &On) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (n, v, before) in SHAPES {
        let logits = on.random(&[n, v]);
        let top = logits.argmax(-1, false).int64_value(&[0]);
        // The first row's target is its most probable token.
        let target = |i: i64| if i == 0 { top } else { (i * 31) % v };
        let targets: Vec<i64> = (0..n).map(target).collect();
        let each: Vec<f64> = (0..n).map(|i| 0.5 - i as f64).collect();
        for factors in [Factors::Each(&each), Factors::Equal(0.25)] {
            let ours = Framed::of(&logits, before);
            let sum = crate::cross_entropy_(&ours.view, &targets, factors);
            let expected = wide(&logits).copy();
            let expected_sum = reference::cross_entropy_(&expected, &targets, factors);
            pairs.extend([losses(sum, expected_sum), ours.margin(), (ours.view, expected)]);
        }
        let sum = crate::cross_entropy_loss(&logits.copy(), &targets);
        let equal = Factors::Equal(0.0);
        let expected = reference::cross_entropy_(&wide(&logits).copy(), &targets, equal);
        pairs.push(losses(sum, expected));
        let logs = |logs: Vec<crate::TargetLog>| {
            let numbers: Vec<f64> =
                logs.iter().flat_map(|log| [log.log_p, f64::from(u8::from(log.correct))]).collect();
            Tensor::from_slice(&numbers)
        };
        let ours = crate::target_logs(&logits.copy(), &targets);
        pairs.push((logs(ours), logs(reference::target_logs(&wide(&logits), &targets))));
    }
    pairs
}

fn losses(found: TokenLoss, expected: TokenLoss) -> Pair {
    let numbers = |sum: TokenLoss| Tensor::from_slice(&[sum.loss, sum.correct as f64]);
    (numbers(found).to_kind(Kind::Double), numbers(expected))
}
