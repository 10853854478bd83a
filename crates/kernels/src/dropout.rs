//! Dropout whose mask is a function of (seed, row, column): nothing to keep for the backward pass or for a
//! resumed run.

use tch::Tensor;

use crate::cuda::road;
use crate::on_cpu;
use crate::rows::{Rows, for_rows};

/// `out = x ⊙ mask / (1 − rate)`, where an element is zeroed with probability `rate`. The same seed gives the
/// same mask, so the backward pass is the same call on the gradient. Shapes: x, out `[T, D]`.
pub fn dropout(x: &Tensor, rate: f64, seed: u64, out: &Tensor) {
    if !on_cpu(x) {
        return road::dropout(x, rate, seed, out);
    }
    let (x, out) = (Rows::of(x), Rows::of(out));
    assert!(x.len == out.len && x.width == out.width);
    let Mask { keep, threshold } = Mask::new(rate);
    for_rows(x.len, |t| {
        for i in 0..out.width {
            let drop = mix(seed ^ ((t as u64) << 32 | i as u64)) >> 32 < threshold;
            // SAFETY: one thread per row index, element i is in both rows (widths checked equal); by
            // pointer, because `x` and `out` may be the same matrix.
            unsafe { *out.pointer(t, i) = if drop { 0.0 } else { *x.pointer(t, i) * keep } };
        }
    });
}

/// What a rate means to the mask.
pub(crate) struct Mask {
    /// The factor on what is kept.
    pub keep: f32,
    /// Elements whose 32 random bits are below it are dropped.
    pub threshold: u64,
}

impl Mask {
    pub fn new(rate: f64) -> Self {
        Self { keep: 1.0 / (1.0 - rate) as f32, threshold: (rate * (1u64 << 32) as f64) as u64 }
    }
}

/// SplitMix64's finaliser: every input bit reaches every output bit.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn the_mask_depends_on_the_seed_alone_and_keeps_the_mean() {
        let x = Tensor::ones([64, 512], (Kind::Float, Device::Cpu));
        let (a, b, c) = (x.zeros_like(), x.zeros_like(), x.zeros_like());
        dropout(&x, 0.25, 7, &a);
        dropout(&x, 0.25, 7, &b);
        dropout(&x, 0.25, 8, &c);
        assert_eq!(a, b);
        assert_ne!(a, c);
        let mean = a.mean(Kind::Float).double_value(&[]);
        assert!((mean - 1.0).abs() < 0.02, "mean {mean}");
    }
}
