//! Root-mean-square norm, forward and backward.

use tch::Tensor;

use crate::cuda::road;
use crate::on_cpu;
use crate::rows::{Rows, for_rows};
use crate::simd::{lane_sum, multiversion};

/// `out[t] = x[t] · rstd[t] ⊙ weight`, `rstd[t] = 1/√(mean(x[t]²) + eps)`. A row may hold several segments of the
/// weight's width (the heads of a query), each with a norm of its own.
///
/// Shapes: x, out `[T, n·D]`; weight `[D]`; rstd `[T, n]`, written for the backward pass.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, out: &Tensor, rstd: &Tensor) {
    if !on_cpu(x) {
        return road::rms_norm(x, weight, eps, out, rstd);
    }
    let (x, weight, out) = (Rows::of(x), Rows::of(weight), Rows::of(out));
    assert!(x.len == out.len && x.width == out.width);
    let rstd = per_segment(rstd, &x, &weight);
    for_rows(x.len, |t| {
        // SAFETY: one thread per row index, so row t of `out` and of `rstd` are ours alone.
        let (out, rstd) = unsafe { (out.row_mut(t), rstd.row_mut(t)) };
        let parts = x.row(t).chunks_exact(weight.width).zip(out.chunks_exact_mut(weight.width));
        for ((x, out), rstd) in parts.zip(rstd) {
            *rstd = norm_row(x, weight.row(0), eps as f32, out);
        }
    });
}

/// One number for each segment of each row of `x`: `[T, n]`, or `[T]` when rows are whole segments.
fn per_segment(numbers: &Tensor, x: &Rows, weight: &Rows) -> Rows {
    assert!(x.width.is_multiple_of(weight.width), "rows hold whole segments");
    Rows::of(&numbers.view([x.len as i64, (x.width / weight.width) as i64]))
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
/// Shapes: dy, x, dx `[T, n·D]`; weight `[D]`; rstd `[T, n]`.
pub fn rms_norm_backward(dy: &Tensor, x: &Tensor, weight: &Tensor, rstd: &Tensor, dx: &Tensor) {
    if !on_cpu(x) {
        return road::rms_norm_backward(dy, x, weight, rstd, dx);
    }
    let (dy, x, weight) = (Rows::of(dy), Rows::of(x), Rows::of(weight));
    let (rstd, dx) = (per_segment(rstd, &x, &weight), Rows::of(dx));
    assert!(dy.len == x.len && dx.len == x.len);
    assert!(dy.width == x.width && dx.width == x.width);
    let width = weight.width;
    for_rows(x.len, |t| {
        // SAFETY: one thread per row index, so row t of `dx` is ours alone.
        let dx = unsafe { dx.row_mut(t) }.chunks_exact_mut(width);
        let inputs = dy.row(t).chunks_exact(width).zip(x.row(t).chunks_exact(width));
        for (((dy, x), dx), rstd) in inputs.zip(dx).zip(rstd.row(t)) {
            backward_row(dy, x, weight.row(0), *rstd, dx);
        }
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
