//! The soft cap of logits: c·tanh(x/c), forward and backward, in place.

use tch::Tensor;

use crate::cuda::road;
use crate::on_cpu;
use crate::rows::{Rows, for_rows};
use crate::simd::{cap as cap_row, multiversion};

/// Replaces each x by `cap · tanh(x / cap)`. Shape: x `[N, V]`.
pub fn softcap_(x: &Tensor, cap: f64) {
    if !on_cpu(x) {
        return road::softcap_(x, cap);
    }
    let x = Rows::of(x);
    for_rows(x.len, |t| {
        // SAFETY: one thread per row index, so row t is ours alone.
        cap_row(unsafe { x.row_mut(t) }, (1.0 / cap) as f32, cap as f32);
    });
}

/// The backward pass of [`softcap_`]: multiplies `dy` by the slope at the forward's result `y`. Shapes:
/// dy, y `[N, V]`.
pub fn softcap_backward_(dy: &Tensor, y: &Tensor, cap: f64) {
    if !on_cpu(y) {
        return road::softcap_backward_(dy, y, cap);
    }
    let (dy, y) = (Rows::of(dy), Rows::of(y));
    assert!(dy.len == y.len && dy.width == y.width);
    for_rows(y.len, |t| {
        // SAFETY: one thread per row index, so row t of `dy` is ours alone.
        backward_row(unsafe { dy.row_mut(t) }, y.row(t), (1.0 / cap) as f32);
    });
}

multiversion! {
    fn backward_row(dy: &mut [f32], y: &[f32], inverse: f32) {
        for (dy, y) in dy.iter_mut().zip(y) {
            let t = y * inverse;
            *dy *= 1.0 - t * t;
        }
    }
}
