//! Root-mean-square norm, forward and backward.

use tch::Tensor;

use crate::rows::{Rows, for_rows};
use crate::simd::{lane_sum, multiversion};
use crate::{on_cpu, reference};

/// `out[t] = x[t] · rstd[t] ⊙ weight`, `rstd[t] = 1/√(mean(x[t]²) + eps)`.
///
/// Shapes: x, out `[T, D]`; weight `[D]`; rstd `[T]`, written for the backward pass.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, out: &Tensor, rstd: &Tensor) {
    if !on_cpu(x) {
        return reference::rms_norm(x, weight, eps, out, rstd);
    }
    let (x, weight, out, rstd) = (Rows::of(x), Rows::of(weight), Rows::of(out), Rows::of(rstd));
    assert!(x.len == out.len && x.width == out.width && x.width == weight.width);
    assert_eq!(rstd.width, x.len);
    for_rows(x.len, |t| {
        // SAFETY: one thread per row index, so row t of `out` and element t of `rstd` are ours alone.
        let (out, rstd) = unsafe { (out.row_mut(t), &mut *rstd.pointer(0, t)) };
        *rstd = norm_row(x.row(t), weight.row(0), eps as f32, out);
    });
}

multiversion! {
    fn norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> f32 {
        let square = lane_sum(x.len(), |i| x[i] * x[i]);
        let rstd = 1.0 / (square / x.len() as f32 + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * rstd * w;
        }
        rstd
    }
}

/// Adds the gradient of [`rms_norm`] with respect to its input to `dx`:
/// `dx[t] += rstd·(dy⊙w) − x · rstd³/D · Σ(dy⊙w⊙x)`.
///
/// Shapes: dy, x, dx `[T, D]`; weight `[D]`; rstd `[T]`.
pub fn rms_norm_backward(dy: &Tensor, x: &Tensor, weight: &Tensor, rstd: &Tensor, dx: &Tensor) {
    if !on_cpu(x) {
        return reference::rms_norm_backward(dy, x, weight, rstd, dx);
    }
    let (dy, x, weight) = (Rows::of(dy), Rows::of(x), Rows::of(weight));
    let (rstd, dx) = (Rows::of(rstd), Rows::of(dx));
    assert!(dy.len == x.len && dx.len == x.len && rstd.width == x.len);
    assert!(dy.width == x.width && dx.width == x.width && weight.width == x.width);
    for_rows(x.len, |t| {
        // SAFETY: one thread per row index, so row t of `dx` is ours alone.
        let dx = unsafe { dx.row_mut(t) };
        backward_row(dy.row(t), x.row(t), weight.row(0), rstd.row(0)[t], dx);
    });
}

multiversion! {
    fn backward_row(dy: &[f32], x: &[f32], weight: &[f32], rstd: f32, dx: &mut [f32]) {
        let n = x.len();
        let (dy, weight, dx) = (&dy[..n], &weight[..n], &mut dx[..n]);
        let product = lane_sum(n, |i| dy[i] * weight[i] * x[i]);
        let along = rstd * rstd * rstd * product / n as f32;
        for i in 0..n {
            dx[i] += rstd * dy[i] * weight[i] - along * x[i];
        }
    }
}
