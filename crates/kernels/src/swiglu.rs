//! The gated activation `silu(gate) ⊙ up` on rows that hold gate and up side by side.

use tch::Tensor;

use crate::rows::{Rows, for_rows};
use crate::simd::{multiversion, sigmoid};
use crate::{on_cpu, reference};

/// `out = silu(gate) ⊙ up`. Shapes: gate_up `[T, 2F]` (gate first), out `[T, F]`.
pub fn swiglu(gate_up: &Tensor, out: &Tensor) {
    if !on_cpu(gate_up) {
        return reference::swiglu(gate_up, out);
    }
    let (gate_up, out) = (Rows::of(gate_up), Rows::of(out));
    assert!(gate_up.len == out.len && gate_up.width == 2 * out.width);
    for_rows(out.len, |t| {
        let (gate, up) = gate_up.row(t).split_at(out.width);
        // SAFETY: one thread per row index, so row t of `out` is ours alone.
        forward_row(gate, up, unsafe { out.row_mut(t) });
    });
}

multiversion! {
    fn forward_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(*gate) * up;
        }
    }
}

/// The backward pass of [`swiglu`]: replaces `gate_up` by its own gradient, and `d_out` by the forward's
/// result (which the adapter's gradient needs again). Shapes as there.
pub fn swiglu_backward_(gate_up: &Tensor, d_out: &Tensor) {
    if !on_cpu(gate_up) {
        return reference::swiglu_backward_(gate_up, d_out);
    }
    let (gate_up, d_out) = (Rows::of(gate_up), Rows::of(d_out));
    assert!(gate_up.len == d_out.len && gate_up.width == 2 * d_out.width);
    for_rows(d_out.len, |t| {
        // SAFETY: one thread per row index, so row t of both matrices is ours alone.
        let (gate_up, d_out) = unsafe { (gate_up.row_mut(t), d_out.row_mut(t)) };
        let (gate, up) = gate_up.split_at_mut(d_out.len());
        backward_row(gate, up, d_out);
    });
}

multiversion! {
    fn backward_row(gate: &mut [f32], up: &mut [f32], d_out: &mut [f32]) {
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
