//! Rotary position embedding on packed query, key and value rows, half-split layout.

use tch::{Device, Tensor};

use crate::rows::{Rows, for_rows};
use crate::simd::multiversion;
use crate::{on_cpu, reference};

/// Tables of cosines and sines by position, `[positions, head_dim / 2]` each.
#[derive(Debug)]
pub struct Rotary {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Rotary {
    /// Tables for positions `0..positions` from the inverse frequencies of one head (`head_dim / 2` of them).
    /// Angles are computed in f64 and rounded once.
    pub fn new(inverse_frequencies: &[f64], positions: usize, device: Device) -> Self {
        let angles = |f: fn(f64) -> f64| -> Tensor {
            let values: Vec<f32> = (0..positions)
                .flat_map(|p| inverse_frequencies.iter().map(move |w| f(p as f64 * w) as f32))
                .collect();
            Tensor::from_slice(&values)
                .view([positions as i64, inverse_frequencies.len() as i64])
                .to_device(device)
        };
        Self { cos: angles(f64::cos), sin: angles(f64::sin) }
    }

    pub fn positions(&self) -> usize {
        self.cos.size()[0] as usize
    }
}

/// Rotates the first `heads` heads of every row in place, by its position; with `inverse`, back (which is
/// also the backward pass).
///
/// Shapes: x `[T, ≥ heads · head_dim]`; positions has T entries below `rotary.positions()`.
pub fn rotate_(x: &Tensor, positions: &[i64], rotary: &Rotary, heads: usize, inverse: bool) {
    if !on_cpu(x) {
        return reference::rotate_(x, positions, rotary, heads, inverse);
    }
    let (x, cos, sin) = (Rows::of(x), Rows::of(&rotary.cos), Rows::of(&rotary.sin));
    assert_eq!(x.len, positions.len());
    assert!(x.width >= heads * cos.width * 2);
    let sign = if inverse { -1.0 } else { 1.0 };
    for_rows(x.len, |t| {
        let position = positions[t] as usize;
        // SAFETY: one thread per row index, so row t is ours alone.
        let row = unsafe { x.row_mut(t) };
        for head in row.chunks_exact_mut(cos.width * 2).take(heads) {
            rotate_head(head, cos.row(position), sin.row(position), sign);
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
