//! One frozen product with an optional adapter: several linear layers that share their input, stacked.

use std::cell::OnceCell;

use kernels::{Compact, Term, Write, skinny};
use tch::Tensor;

use crate::adapter::{Dora, Gradients, Group, a_view, b_view, magnitude_view};
use crate::products::{f32_product, products};
use crate::weight::Weight;

/// A frozen weight `[out, in]` and maybe a bias `[out]`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub weight: Weight,
    pub bias: Option<Tensor>,
    /// The weight for passes of few rows, made by the first of them; none where only f32 is exact.
    compact: OnceCell<Option<Compact>>,
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
    pub fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias, compact: OnceCell::new() }
    }

    /// [`forward`](Self::forward) for few rows, without dropout: every weight is read once, in the fewest bytes
    /// that hold it. A row's result does not depend on the others. False when there is no such
    /// form of the weight, and nothing is done then.
    ///
    /// Shapes: as there.
    pub fn forward_few(
        &self,
        x: &Tensor,
        adapter: Option<&Group>,
        y: &Tensor,
        s: &Tensor,
        accumulate: bool,
    ) -> bool {
        let Some(weight) = self.compact.get_or_init(|| self.weight.compact()) else { return false };
        let gain = adapter.and_then(|group| group.dora.as_ref()).map(|dora| &dora.gain);
        // A gain applies to what is added alone.
        let product = (gain.is_some() && accumulate).then(|| y.empty_like());
        let target = product.as_ref().unwrap_or(y);
        skinny(x, weight, target, accumulate && product.is_none());
        if let Some(group) = adapter {
            let s = s.narrow(1, 0, group.layout.rank);
            let (a, b) = group.compact();
            skinny(x, a, &s, false);
            skinny(&s, b, target, true);
        }
        if let Some(gain) = gain {
            let _ = target.shallow_clone().g_mul_(gain);
        }
        let mut y = y.shallow_clone();
        if let Some(product) = &product {
            let _ = y.g_add_(product);
        }
        if let Some(bias) = &self.bias {
            let _ = y.g_add_(bias);
        }
        true
    }

    /// Forgets the form for few rows, because the weight has changed.
    pub fn forget_compact(&mut self) {
        self.compact = OnceCell::new();
    }

    /// Bytes of the weight's form for few rows, as far as it was made.
    pub fn compact_bytes(&self) -> usize {
        self.compact.get().and_then(Option::as_ref).map_or(0, Compact::bytes)
    }

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
        if let Some((group, dropout)) = adapter {
            inner(x, group, dropout, s);
        }
        if let Some((group, _)) = adapter
            && let Some(dora) = &group.dora
        {
            let mut update = self.decomposed(x, group, s);
            let _ = update.g_mul_(&dora.gain);
            if accumulate { drop(y.g_add_(&update)) } else { y.copy_(&update) }
        } else {
            let write = if accumulate { Write::Add } else { Write::Over };
            self.sum(x, adapter.map(|(group, _)| (group, s)), write, &y);
        }
        if let Some(bias) = &self.bias {
            let _ = y.g_add_(bias);
        }
    }

    /// `y (+)= x·Wᵀ + s·(sB)ᵀ`, in one walk over `y`.
    fn sum(&self, x: &Tensor, adapter: Option<(&Group, &Tensor)>, write: Write, y: &Tensor) {
        let weight = self.weight.dense().tr();
        let updates: Vec<(Tensor, Tensor, i64)> = adapter.map_or_else(Vec::new, |(group, s)| {
            let parts = group.layout.parts.iter();
            parts
                .map(|part| (part.of_border(s), group.b_block(part).tr(), part.out_start))
                .collect()
        });
        let updates = updates.iter().map(|(a, b, column)| Term { a, b, column: *column });
        let terms: Vec<Term<'_>> = std::iter::once(Term::new(x, &weight)).chain(updates).collect();
        products(&terms, 1.0, write, y);
    }

    /// `x·Wᵀ + s·(sB)ᵀ` as f32, what weight decomposition multiplies by its gain.
    fn decomposed(&self, x: &Tensor, group: &Group, s: &Tensor) -> Tensor {
        let size = [x.size()[0], group.layout.out_width];
        let out = Tensor::empty(size, (kernels::wide_kind(x.kind()), x.device()));
        self.sum(x, Some((group, s)), Write::Over, &out);
        out
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
        let ds = adapter.map(|(group, saved)| {
            let ds = ds.narrow(1, 0, group.layout.rank);
            matrix_gradients(dy, group, saved, gradients.flat(), &ds);
            ds
        });
        let Some(dx) = dx else { return };
        let weight = self.weight.dense();
        let base = Term::new(dy, &weight);
        let (Some((group, saved)), Some(ds)) = (adapter, ds) else {
            return products(&[base], 1.0, Write::Over, dx);
        };
        let Some(dropout) = saved.dropout else {
            return products(&[base, Term::new(&ds, &group.a)], 1.0, Write::Over, dx);
        };
        products(&[base], 1.0, Write::Over, dx);
        for (i, part) in group.layout.parts.iter().enumerate() {
            let update = f32_product(&part.of_border(&ds), &part.rows(&group.a));
            let _ = dx.shallow_clone().g_add_(&dropout.apply(i, &update));
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
        let sums = (dy * update).sum_dim_intlist(0, false, dora.norm.kind()) / &dora.norm;
        for part in &group.layout.parts {
            if let Some(mut gradient) = magnitude_view(gradients.flat(), part) {
                let _ = gradient.g_add_(&sums.narrow(0, part.out_start, part.out_width));
            }
        }
    }
}

/// The adapter's inner product `s = x·Aᵀ`, for each linear with its own dropped input if there is dropout.
fn inner(x: &Tensor, group: &Group, dropout: Option<Dropout>, s: &Tensor) {
    let Some(dropout) = dropout else {
        let s = s.narrow(1, 0, group.layout.rank);
        return products(&[Term::new(x, &group.a.tr())], 1.0, Write::Over, &s);
    };
    for (i, part) in group.layout.parts.iter().enumerate() {
        let a = part.rows(&group.a).tr();
        products(&[Term::new(&dropout.apply(i, x), &a)], 1.0, Write::Over, &part.of_border(s));
    }
}

/// Adds the gradients of A and B to `flat`, and writes the border's, `ds = dy·sB`.
fn matrix_gradients(dy: &Tensor, group: &Group, saved: &Saved<'_>, flat: &Tensor, ds: &Tensor) {
    for part in &group.layout.parts {
        let (dy, b) = (dy.narrow(1, part.out_start, part.out_width), group.b_block(part));
        products(&[Term::new(&dy, &b)], 1.0, Write::Over, &part.of_border(ds));
        // As `dBᵀ = sᵀ·dy`, which reads `dy` by rows.
        let (s, d_b) = (part.of_border(saved.s).tr(), b_view(flat, part).tr());
        products(&[Term::new(&s, &dy)], part.scale, Write::Add, &d_b);
    }
    let d_a = a_view(flat, &group.layout);
    let Some(dropout) = saved.dropout else {
        return products(&[Term::new(&ds.tr(), saved.x)], 1.0, Write::Add, &d_a);
    };
    for (i, part) in group.layout.parts.iter().enumerate() {
        let (ds, x) = (part.of_border(ds).tr(), dropout.apply(i, saved.x));
        products(&[Term::new(&ds, &x)], 1.0, Write::Add, &part.rows(&d_a));
    }
}
