//! Weights in the fewest bytes in which they are exactly what they are, for products with few rows.
//!
//! Such a product reads each weight once and does little with it: its time is that of reading them. Weights
//! that came from 4-bit or 8-bit blocks, or from half precision, are `f32` in name only. The form is
//! chosen by trying: it counts if every weight of the matrix comes back as the same number.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use tch::Tensor;

use crate::lanes::PANEL;
use crate::nf4::{self, Nf4};
use crate::panels::{Bf16, Block, F16, Lattice4, Lattice8, Levels4, Plain};
use crate::rows::Rows;
use crate::{half, lattice};

/// A matrix `[out, in]` in panels of sixteen rows; missing rows and weights are 0.
#[derive(Debug)]
pub struct Compact {
    pub(crate) out: usize,
    pub(crate) inner: usize,
    pub(crate) form: Form,
}

pub(crate) enum Form {
    Plain(Vec<Plain>),
    Bf16(Vec<Bf16>),
    F16(Vec<F16>),
    Lattice4(Vec<Lattice4>),
    Lattice8(Vec<Lattice8>),
    Nf4(Vec<Levels4>, [f32; 16]),
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Form {
    fn name(&self) -> &'static str {
        match self {
            Self::Plain(_) => "f32",
            Self::Bf16(_) => "bf16",
            Self::F16(_) => "f16",
            Self::Lattice4(_) => "4 bits",
            Self::Lattice8(_) => "8 bits",
            Self::Nf4(..) => "NF4",
        }
    }
}

impl Compact {
    /// The smallest form that has exactly these weights, f32 `[out, in]` on the CPU; none when only `f32` has.
    pub fn exact(weight: &Tensor) -> Option<Self> {
        let rows = Rows::of(weight);
        let form = four_bits(&rows)
            .map(Form::Lattice4)
            .or_else(|| eight_bits(&rows).map(Form::Lattice8))
            .or_else(|| bf16(&rows).map(Form::Bf16))
            .or_else(|| f16(&rows).map(Form::F16))?;
        Some(Self { out: rows.len, inner: rows.width, form })
    }

    /// These weights as they are.
    pub fn plain(weight: &Tensor) -> Self {
        let rows = Rows::of(weight);
        let blocks = pack(&rows, |block: &mut Plain, lane, values| {
            block.0.iter_mut().zip(values).for_each(|(to, &value)| to[lane] = value);
            true
        });
        let form = Form::Plain(blocks.expect("numbers are what they are"));
        Self { out: rows.len, inner: rows.width, form }
    }

    /// Stacked NF4 weights, `(rows, weight)` each, with the values of [`nf4_dequantise`](crate::nf4_dequantise);
    /// none where a block lies in two rows.
    pub fn nf4(parts: &[(i64, Nf4)], inner: usize) -> Option<Self> {
        let levels = Rows::of(&parts.first()?.1.levels).row(0).try_into().expect("16 levels");
        inner.is_multiple_of(nf4::BLOCK).then(|| {
            let out = parts.iter().map(|(rows, _)| *rows as usize).sum();
            Self { out, inner, form: Form::Nf4(levels4(parts, out, inner), levels) }
        })
    }

    pub fn out_width(&self) -> usize {
        self.out
    }

    pub fn in_width(&self) -> usize {
        self.inner
    }

    /// The name of the form, for messages.
    pub fn form(&self) -> &'static str {
        self.form.name()
    }

    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Plain(blocks) => size_of_val(&blocks[..]),
            Form::Bf16(blocks) => size_of_val(&blocks[..]),
            Form::F16(blocks) => size_of_val(&blocks[..]),
            Form::Lattice4(blocks) => size_of_val(&blocks[..]),
            Form::Lattice8(blocks) => size_of_val(&blocks[..]),
            Form::Nf4(blocks, _) => size_of_val(&blocks[..]),
        }
    }
}

fn four_bits(rows: &Rows) -> Option<Vec<Lattice4>> {
    if !rows.width.is_multiple_of(lattice::BLOCK) {
        return None;
    }
    pack(rows, |block: &mut Lattice4, lane, values| {
        let values = values.try_into().expect("whole blocks");
        let Some((scale, low, codes)) = lattice::four_bits(values) else { return false };
        (block.scale[lane], block.low[lane]) = (scale, low);
        for (k, code) in codes.into_iter().enumerate() {
            block.codes[k / 8][lane] |= u32::from(code) << (4 * (k % 8));
        }
        true
    })
}

fn eight_bits(rows: &Rows) -> Option<Vec<Lattice8>> {
    if !rows.width.is_multiple_of(lattice::BLOCK) {
        return None;
    }
    pack(rows, |block: &mut Lattice8, lane, values| {
        let values = values.try_into().expect("whole blocks");
        let Some((scale, codes)) = lattice::eight_bits(values) else { return false };
        block.scale[lane] = scale;
        block.codes.iter_mut().zip(codes).for_each(|(to, code)| to[lane] = code);
        true
    })
}

fn bf16(rows: &Rows) -> Option<Vec<Bf16>> {
    pack(rows, |block: &mut Bf16, lane, values| {
        let mut fits = true;
        for (to, value) in block.0.iter_mut().zip(values) {
            to[lane] = (value.to_bits() >> 16) as u16;
            fits &= value.to_bits() & 0xffff == 0;
        }
        fits
    })
}

fn f16(rows: &Rows) -> Option<Vec<F16>> {
    pack(rows, |block: &mut F16, lane, values| {
        block.0.iter_mut().zip(values).all(|(to, &value)| {
            let half = half::exact(value);
            to[lane] = half.unwrap_or(0);
            half.is_some()
        })
    })
}

/// Brings rows into panels; `put` writes one row's part of a block, or says that it does not fit.
fn pack<B: Block>(
    rows: &Rows,
    put: impl Fn(&mut B, usize, &[f32]) -> bool + Sync,
) -> Option<Vec<B>> {
    let fits = AtomicBool::new(true);
    let blocks = panels(rows.len, rows.width, |row, lane, blocks: &mut [B]| {
        let parts = blocks.iter_mut().zip(rows.row(row).chunks(B::INNER));
        for (block, values) in parts {
            if !fits.load(Ordering::Relaxed) || !put(block, lane, values) {
                return fits.store(false, Ordering::Relaxed);
            }
        }
    });
    fits.into_inner().then_some(blocks)
}

/// Panels for a matrix; `fill` gets each row with its lane and the blocks that it shares with others.
fn panels<B: Block>(
    out: usize,
    inner: usize,
    fill: impl Fn(usize, usize, &mut [B]) + Sync,
) -> Vec<B> {
    let per_panel = inner.div_ceil(B::INNER).max(1);
    let mut blocks = vec![B::default(); out.div_ceil(PANEL) * per_panel];
    blocks.par_chunks_mut(per_panel).enumerate().for_each(|(panel, blocks)| {
        for lane in 0..PANEL.min(out - panel * PANEL) {
            fill(panel * PANEL + lane, lane, blocks);
        }
    });
    blocks
}

fn levels4(parts: &[(i64, Nf4)], out: usize, inner: usize) -> Vec<Levels4> {
    /// The memory of one part.
    struct Part<'a> {
        first: usize,
        codes: &'a [u8],
        scales: Vec<f32>,
    }
    let mut first = 0;
    let parts: Vec<Part<'_>> = parts
        .iter()
        .map(|(rows, weight)| {
            first += *rows as usize;
            let codes = crate::rows::bytes(&weight.codes);
            Part { first: first - *rows as usize, codes, scales: nf4::scales(weight) }
        })
        .collect();
    panels(out, inner, |row, lane, blocks: &mut [Levels4]| {
        let part = parts.iter().rfind(|part| part.first <= row).expect("the first starts at 0");
        let start = (row - part.first) * inner;
        for (n, block) in blocks.iter_mut().enumerate() {
            let start = start + n * nf4::BLOCK;
            block.scale[lane] = part.scales[start / nf4::BLOCK];
            for k in 0..nf4::BLOCK {
                let byte = part.codes[(start + k) / 2];
                let code = if k.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                block.codes[k / 8][lane] |= u32::from(code) << (4 * (k % 8));
            }
        }
    })
}
