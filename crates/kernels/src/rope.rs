//! Rotary position embedding on packed query, key and value rows, half-split layout.

use tch::{Device, Tensor};

use crate::cuda::road;
use crate::on_cpu;
use crate::rows::{Rows, for_rows};
use crate::simd::multiversion;

/// Tables of cosines and sines, `[rows, rotated / 2]` each, where `rotated` ≤ `head_dim` is the number of leading
/// elements of a head that are rotated.
#[derive(Debug)]
pub struct Rotary {
    pub cos: Tensor,
    pub sin: Tensor,
    pub head_dim: usize,
}

impl Rotary {
    /// One row for each of the positions `0..positions` and each set of inverse frequencies, set by set; cosines
    /// and sines are multiplied by `factor`. Angles are computed in f64 and rounded once.
    pub fn new(
        frequency_sets: &[Vec<f64>],
        positions: usize,
        head_dim: usize,
        factor: f64,
        device: Device,
    ) -> Self {
        let half = frequency_sets[0].len();
        assert!(half * 2 <= head_dim && frequency_sets.iter().all(|set| set.len() == half));
        let table = |f: fn(f64) -> f64| -> Tensor {
            let values: Vec<f32> = frequency_sets
                .iter()
                .flat_map(|set| (0..positions).map(move |position| (set, position as f64)))
                .flat_map(|(set, p)| set.iter().map(move |w| (f(p * w) * factor) as f32))
                .collect();
            Tensor::from_slice(&values).view([-1, half as i64]).to_device(device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin), head_dim }
    }

    pub fn rows(&self) -> usize {
        self.cos.size()[0] as usize
    }
}

/// Rotates the first `heads` heads of every row in place, by the row of the tables that `positions` names; with
/// `inverse`, by the opposite angle, which is the backward pass.
///
/// Shapes: x `[T, ≥ heads · head_dim]`; positions has T entries below `rotary.rows()`.
pub fn rotate_(x: &Tensor, positions: &[i64], rotary: &Rotary, heads: usize, inverse: bool) {
    if !on_cpu(x) {
        return road::rotate_(x, positions, rotary, heads, inverse);
    }
    let (x, cos, sin) = (Rows::of(x), Rows::of(&rotary.cos), Rows::of(&rotary.sin));
    assert_eq!(x.len, positions.len());
    assert!(x.width >= heads * rotary.head_dim);
    let (sign, head_dim) = (if inverse { -1.0 } else { 1.0 }, rotary.head_dim);
    for_rows(x.len, |t| {
        let position = positions[t] as usize;
        // SAFETY: one thread per row index, so row t is ours alone.
        let row = unsafe { x.row_mut(t) };
        for head in row.chunks_exact_mut(head_dim).take(heads) {
            rotate_head(&mut head[..cos.width * 2], cos.row(position), sin.row(position), sign);
        }
    });
}

multiversion! {
    fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let (low, high) = head.split_at_mut(cos.len());
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (a, b, sin) = (*low, *high, sign * sin);
            *low = a * cos - b * sin;
            *high = b * cos + a * sin;
        }
    }
}
