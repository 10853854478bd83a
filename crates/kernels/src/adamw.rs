//! The optimizer's update over flat buffers.

use tch::Tensor;

use crate::cuda::road;
use crate::on_cpu;
use crate::rows::Rows;
use crate::simd::multiversion;
use rayon::prelude::*;

/// The settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Decoupled: values shrink by `learning_rate · weight_decay` first.
    pub weight_decay: f64,
    /// 1-based number of this update, for the bias correction.
    pub step: u64,
    /// The gradient is multiplied by this first (clipping).
    pub grad_scale: f64,
}

/// Elements per task: 256 KiB of each of the four buffers.
const BLOCK: usize = 1 << 16;

/// One AdamW update in place, as torch.optim.AdamW defines it. All four tensors are flat f32 of one length.
pub fn adamw(values: &Tensor, grads: &Tensor, m: &Tensor, v: &Tensor, settings: AdamW) {
    if !on_cpu(values) {
        return road::adamw(values, grads, m, v, settings);
    }
    let (values, grads, m, v) = (Rows::of(values), Rows::of(grads), Rows::of(m), Rows::of(v));
    let len = values.width;
    assert!(values.len == 1 && grads.width == len && m.width == len && v.width == len);
    // SAFETY: four distinct tensors, each borrowed once.
    let (values, m, v) = unsafe { (values.row_mut(0), m.row_mut(0), v.row_mut(0)) };
    let factors = Factors::new(settings);
    (values.par_chunks_mut(BLOCK), grads.row(0).par_chunks(BLOCK))
        .into_par_iter()
        .zip((m.par_chunks_mut(BLOCK), v.par_chunks_mut(BLOCK)).into_par_iter())
        .for_each(|((values, grads), (m, v))| update(values, grads, m, v, factors));
}

#[derive(Clone, Copy)]
pub(crate) struct Factors {
    pub grad_scale: f32,
    pub beta1: f32,
    pub beta2: f32,
    /// 1 − β, rounded once: in f32 arithmetic 1 − 0.999 is off by 5e-5.
    pub rest1: f32,
    pub rest2: f32,
    pub shrink: f32,
    /// learning rate / (1 − β1^step)
    pub rate: f32,
    /// 1 / √(1 − β2^step)
    pub root: f32,
    pub eps: f32,
}

impl Factors {
    pub(crate) fn new(s: AdamW) -> Self {
        let step = s.step as i32;
        Self {
            grad_scale: s.grad_scale as f32,
            beta1: s.beta1 as f32,
            beta2: s.beta2 as f32,
            rest1: (1.0 - s.beta1) as f32,
            rest2: (1.0 - s.beta2) as f32,
            shrink: (1.0 - s.learning_rate * s.weight_decay) as f32,
            rate: (s.learning_rate / (1.0 - s.beta1.powi(step))) as f32,
            root: (1.0 / (1.0 - s.beta2.powi(step)).sqrt()) as f32,
            eps: s.eps as f32,
        }
    }

    #[inline(always)]
    pub(crate) fn update(self, values: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((value, grad), m), v) in values.iter_mut().zip(grads).zip(m).zip(v) {
            let grad = grad * self.grad_scale;
            *m = self.beta1 * *m + self.rest1 * grad;
            *v = self.beta2 * *v + self.rest2 * grad * grad;
            *value = *value * self.shrink - self.rate * *m / (v.sqrt() * self.root + self.eps);
        }
    }
}

multiversion! {
    fn update(values: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], f: Factors) {
        f.update(values, grads, m, v);
    }
}

/// Σ x² of a flat f32 tensor, accumulated in f64 in a fixed order. Not finite when any element is not.
pub fn sum_of_squares(x: &Tensor) -> f64 {
    if !on_cpu(x) {
        return road::sum_of_squares(x);
    }
    let x = Rows::of(x);
    let blocks: Vec<f64> = x.row(0).par_chunks(BLOCK).map(block_squares).collect();
    blocks.iter().sum()
}

fn block_squares(x: &[f32]) -> f64 {
    // Runs of 1,024 in f32 lanes, then f64: exact enough, and fast.
    x.chunks(1024).map(|run| f64::from(crate::simd::dot(run, run))).sum()
}
