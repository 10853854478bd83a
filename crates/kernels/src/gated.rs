//! The gated activation `f(gate) ⊙ up` on rows that hold gate and up side by side.

use tch::Tensor;

use crate::cuda::road;
use crate::on_cpu;
use crate::rows::{Rows, for_rows};
use crate::simd::{multiversion, sigmoid, tanh};

/// What the gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x)
    Silu,
    /// ½x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
    GeluTanh,
}

/// `out = f(gate) ⊙ up`. Shapes: gate_up `[T, 2F]` (gate first), out `[T, F]`.
pub fn gated(activation: Activation, gate_up: &Tensor, out: &Tensor) {
    if !on_cpu(gate_up) {
        return road::gated(activation, gate_up, out);
    }
    let (gate_up, out) = (Rows::of(gate_up), Rows::of(out));
    assert!(gate_up.len == out.len && gate_up.width == 2 * out.width);
    let row = match activation {
        Activation::Silu => silu_row,
        Activation::GeluTanh => gelu_row,
    };
    for_rows(out.len, |t| {
        let (gate, up) = gate_up.row(t).split_at(out.width);
        // SAFETY: one thread per row index, so row t of `out` is ours alone.
        row(gate, up, unsafe { out.row_mut(t) });
    });
}

multiversion! {
    fn silu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(*gate) * up;
        }
    }
}

/// √(2/π)
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

multiversion! {
    fn gelu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let t = tanh(GELU_SCALE * (gate + GELU_CUBE * gate * gate * gate));
            *out = 0.5 * gate * (1.0 + t) * up;
        }
    }
}

/// The backward pass of [`gated`]: replaces `gate_up` by its own gradient, and `d_out` by the forward's
/// result (which the adapter's gradient needs again). Shapes as there.
pub fn gated_backward_(activation: Activation, gate_up: &Tensor, d_out: &Tensor) {
    if !on_cpu(gate_up) {
        return road::gated_backward_(activation, gate_up, d_out);
    }
    let (gate_up, d_out) = (Rows::of(gate_up), Rows::of(d_out));
    assert!(gate_up.len == d_out.len && gate_up.width == 2 * d_out.width);
    let row = match activation {
        Activation::Silu => silu_backward_row,
        Activation::GeluTanh => gelu_backward_row,
    };
    for_rows(d_out.len, |t| {
        // SAFETY: one thread per row index, so row t of both matrices is ours alone.
        let (gate_up, d_out) = unsafe { (gate_up.row_mut(t), d_out.row_mut(t)) };
        let (gate, up) = gate_up.split_at_mut(d_out.len());
        row(gate, up, d_out);
    });
}

multiversion! {
    fn silu_backward_row(gate: &mut [f32], up: &mut [f32], d_out: &mut [f32]) {
        for ((gate, up), d_out) in gate.iter_mut().zip(up).zip(d_out) {
            let (g, u, d) = (*gate, *up, *d_out);
            let s = sigmoid(g);
            let silu = g * s;
            *gate = d * u * s * (1.0 + g * (1.0 - s));
            *up = d * silu;
            *d_out = silu * u;
        }
    }
}

multiversion! {
    fn gelu_backward_row(gate: &mut [f32], up: &mut [f32], d_out: &mut [f32]) {
        for ((gate, up), d_out) in gate.iter_mut().zip(up).zip(d_out) {
            let (g, u, d) = (*gate, *up, *d_out);
            let t = tanh(GELU_SCALE * (g + GELU_CUBE * g * g * g));
            let gelu = 0.5 * g * (1.0 + t);
            let inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * g * g);
            *gate = d * u * 0.5 * (1.0 + t + g * (1.0 - t * t) * inner);
            *up = d * gelu;
            *d_out = gelu * u;
        }
    }
}
