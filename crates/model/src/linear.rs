//! One frozen product with an optional adapter: several linear layers that share their input, stacked.

use tch::{Kind, Tensor};

use crate::adapter::{Dora, Gradients, Group, a_view, b_view, magnitude_view};
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
            let mut product = self.decomposed(x, group, s);
            let _ = product.g_mul_(&dora.gain);
            if accumulate {
                drop(y.g_add_(&product))
            } else {
                y.copy_(&product)
            }
            if let Some(bias) = &self.bias {
                let _ = y.g_add_(bias);
            }
            return;
        }
        if accumulate {
            let _ = y.addmm_(x, &self.weight.dense().tr());
        } else {
            let _ = x.mm_out(&y, &self.weight.dense().tr());
        }
        if let Some(bias) = &self.bias {
            let _ = y.g_add_(bias);
        }
        let Some((group, dropout)) = adapter else { return };
        let s = s.narrow(1, 0, group.layout.rank);
        match dropout {
            None => drop(x.mm_out(&s, &group.a.tr())),
            Some(dropout) => {
                for (i, part) in group.layout.parts.iter().enumerate() {
                    let a = group.a.narrow(0, part.rank_start, part.rank);
                    let s = s.narrow(1, part.rank_start, part.rank);
                    s.shallow_clone().copy_(&dropout.apply(i, x).mm(&a.tr()));
                }
            }
        }
        let _ = y.addmm_(&s, &group.b.tr());
    }

    /// `x·Wᵀ + s·(sB)ᵀ`, what weight decomposition multiplies by its gain; `s = x·Aᵀ` is written.
    fn decomposed(&self, x: &Tensor, group: &Group, s: &Tensor) -> Tensor {
        let s = s.narrow(1, 0, group.layout.rank);
        let _ = x.mm_out(&s, &group.a.tr());
        let mut product = x.mm(&self.weight.dense().tr());
        let _ = product.addmm_(&s, &group.b.tr());
        product
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
            Some(dy * &dora.gain)
        });
        let dy = decomposed.as_ref().unwrap_or(dy);
        if let Some(dx) = dx {
            let _ = dy.mm_out(dx, &self.weight.dense());
        }
        let Some((group, saved)) = adapter else { return };
        let flat = gradients.flat();
        let ds = ds.narrow(1, 0, group.layout.rank);
        let _ = dy.mm_out(&ds, &group.b);
        for part in &group.layout.parts {
            let dy = dy.narrow(1, part.out_start, part.out_width);
            let s = saved.s.narrow(1, part.rank_start, part.rank);
            let _ = b_view(flat, part).g_add_(&(dy.tr().mm(&s) * part.scale));
        }
        match saved.dropout {
            None => {
                let _ = a_view(flat, &group.layout).addmm_(&ds.tr(), saved.x);
                if let Some(dx) = dx {
                    let _ = dx.shallow_clone().addmm_(&ds, &group.a);
                }
            }
            Some(dropout) => {
                for (i, part) in group.layout.parts.iter().enumerate() {
                    let ds = ds.narrow(1, part.rank_start, part.rank);
                    let a = group.a.narrow(0, part.rank_start, part.rank);
                    let mut d_a = a_view(flat, &group.layout).narrow(0, part.rank_start, part.rank);
                    let _ = d_a.addmm_(&ds.tr(), &dropout.apply(i, saved.x));
                    if let Some(dx) = dx {
                        let _ = dx.shallow_clone().g_add_(&dropout.apply(i, &ds.mm(&a)));
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
        let product = self.decomposed(saved.x, group, saved.s);
        let sums = (dy * product).sum_dim_intlist(0, false, Kind::Float) / &dora.norm;
        for part in &group.layout.parts {
            if let Some(mut gradient) = magnitude_view(gradients.flat(), part) {
                let _ = gradient.g_add_(&sums.narrow(0, part.out_start, part.out_width));
            }
        }
    }
}
