//! One frozen product with an optional adapter: several linear layers that share their input, stacked.

use tch::{Kind, Tensor};

use crate::adapter::{Dora, Gradients, Group, a_view, b_view, magnitude_view};
use crate::products::{add_product, f32_product, product};
use crate::weight::Weight;

/// A frozen weight `[out, in]` and maybe a bias `[out]`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub weight: Weight,
    pub bias: Option<Tensor>,
}

/// Dropout on an adapter's input: the mask is a function of the seed, so nothing is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Dropout {
    pub rate: f64,
    pub seed: u64,
}

impl Dropout {
    /// Every linear has a mask of its own, as in peft.
    fn apply(&self, part: usize, x: &Tensor) -> Tensor {
        let out = x.empty_like();
        kernels::dropout(x, self.rate, self.seed.wrapping_add(part as u64), &out);
        out
    }
}

/// What the backward pass of a product needs beside the weights.
pub(crate) struct Saved<'a> {
    /// The product's input, `[T, in]`.
    pub x: &'a Tensor,
    /// X·Aᵀ of the forward, `[T, R]`.
    pub s: &'a Tensor,
    pub dropout: Option<Dropout>,
}

impl Linear {
    /// `y (+)= x·Wᵀ + bias + s·(sB)ᵀ` with `s = x·Aᵀ`.
    ///
    /// Shapes: x `[T, in]`; y `[T, out]`, added to when `accumulate`; s `[T, R]`, written.
    pub fn forward(
        &self,
        x: &Tensor,
        adapter: Option<(&Group, Option<Dropout>)>,
        y: &Tensor,
        s: &Tensor,
        accumulate: bool,
    ) {
        let mut y = y.shallow_clone();
        if let Some((group, _)) = adapter
            && let Some(dora) = &group.dora
        {
            let mut update = self.decomposed(x, group, s);
            let _ = update.g_mul_(&dora.gain);
            if accumulate {
                drop(y.g_add_(&update))
            } else {
                y.copy_(&update)
            }
            if let Some(bias) = &self.bias {
                let _ = y.g_add_(bias);
            }
            return;
        }
        if accumulate {
            add_product(x, &self.weight.dense().tr(), &y);
        } else {
            product(x, &self.weight.dense().tr(), &y);
        }
        if let Some(bias) = &self.bias {
            let _ = y.g_add_(bias);
        }
        let Some((group, dropout)) = adapter else { return };
        let s = s.narrow(1, 0, group.layout.rank);
        match dropout {
            None => product(x, &group.a.tr(), &s),
            Some(dropout) => {
                for (i, part) in group.layout.parts.iter().enumerate() {
                    let a = group.a.narrow(0, part.rank_start, part.rank);
                    let s = s.narrow(1, part.rank_start, part.rank);
                    s.shallow_clone().copy_(&f32_product(&dropout.apply(i, x), &a.tr()));
                }
            }
        }
        add_product(&s, &group.b.tr(), &y);
    }

    /// `x·Wᵀ + s·(sB)ᵀ` as f32, what weight decomposition multiplies by its gain; `s = x·Aᵀ` is written.
    fn decomposed(&self, x: &Tensor, group: &Group, s: &Tensor) -> Tensor {
        let s = s.narrow(1, 0, group.layout.rank);
        product(x, &group.a.tr(), &s);
        let update = f32_product(x, &self.weight.dense().tr());
        add_product(&s, &group.b.tr(), &update);
        update
    }

    /// Adds the adapter's gradients, and writes the input's gradient to `dx` if it is wanted.
    ///
    /// Shapes: dy `[T, out]`; dx `[T, in]`; ds `[T, R]`, scratch.
    pub fn backward(
        &self,
        dy: &Tensor,
        adapter: Option<(&Group, &Saved<'_>)>,
        gradients: &mut Gradients,
        ds: &Tensor,
        dx: Option<&Tensor>,
    ) {
        let decomposed = adapter.and_then(|(group, saved)| {
            let dora = group.dora.as_ref()?;
            self.magnitude_gradients(dy, group, dora, saved, gradients);
            Some((dy * &dora.gain).to_kind(dy.kind()))
        });
        let dy = decomposed.as_ref().unwrap_or(dy);
        if let Some(dx) = dx {
            product(dy, &self.weight.dense(), dx);
        }
        let Some((group, saved)) = adapter else { return };
        let flat = gradients.flat();
        let ds = ds.narrow(1, 0, group.layout.rank);
        product(dy, &group.b, &ds);
        for part in &group.layout.parts {
            let dy = dy.narrow(1, part.out_start, part.out_width);
            let s = saved.s.narrow(1, part.rank_start, part.rank);
            let _ = b_view(flat, part).g_add_(&(f32_product(&dy.tr(), &s) * part.scale));
        }
        match saved.dropout {
            None => {
                add_product(&ds.tr(), saved.x, &a_view(flat, &group.layout));
                if let Some(dx) = dx {
                    add_product(&ds, &group.a, dx);
                }
            }
            Some(dropout) => {
                for (i, part) in group.layout.parts.iter().enumerate() {
                    let ds = ds.narrow(1, part.rank_start, part.rank);
                    let a = group.a.narrow(0, part.rank_start, part.rank);
                    let d_a = a_view(flat, &group.layout).narrow(0, part.rank_start, part.rank);
                    add_product(&ds.tr(), &dropout.apply(i, saved.x), &d_a);
                    if let Some(dx) = dx {
                        let dropped = dropout.apply(i, &f32_product(&ds, &a));
                        let _ = dx.shallow_clone().g_add_(&dropped);
                    }
                }
            }
        }
    }
    /// `dm = Σ dy ⊙ (x·Wᵀ + s·(sB)ᵀ) / ‖W + sBA‖`. The product is computed again: keeping it would cost
    /// more memory than all else that a layer keeps.
    fn magnitude_gradients(
        &self,
        dy: &Tensor,
        group: &Group,
        dora: &Dora,
        saved: &Saved<'_>,
        gradients: &mut Gradients,
    ) {
        let update = self.decomposed(saved.x, group, saved.s);
        let sums = (dy * update).sum_dim_intlist(0, false, Kind::Float) / &dora.norm;
        for part in &group.layout.parts {
            if let Some(mut gradient) = magnitude_view(gradients.flat(), part) {
                let _ = gradient.g_add_(&sums.narrow(0, part.out_start, part.out_width));
            }
        }
    }
}
