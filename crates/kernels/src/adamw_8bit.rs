//! AdamW whose moments are kept as 8-bit codes, as bitsandbytes' AdamW8bit computes it on the CPU.
//!
//! A moment is a code's level times the largest magnitude (`absmax`) of its block of 256 values. The update
//! takes a block's moments to numbers, does what AdamW does, and makes them codes again: two bytes per value
//! instead of eight. Which tensors are too small for it is the caller's decision.

use rayon::prelude::*;
use tch::Tensor;

use crate::adamw::Factors;
use crate::rows::{Rows, bytes, bytes_mut, floats};
use crate::simd::multiversion;
use crate::{AdamW, on_cpu, reference};

/// Values under one absmax.
pub const MOMENT_BLOCK: usize = 256;
/// Steps from −1 to 1 for which the nearest code is known.
pub(crate) const STEPS: usize = 1 << 16;

/// An 8-bit code.
#[derive(Debug)]
pub struct Code {
    /// f32 `[256]`, ascending from −1 or 0 to 1.
    pub levels: Tensor,
    /// u8 `[65536]`: the code that is nearest to each step from −1 to 1.
    pub nearest: Tensor,
}

/// Both moments of a flat tensor.
#[derive(Debug)]
pub struct Moments {
    /// u8 `[len]`
    pub m: Tensor,
    pub v: Tensor,
    /// f32, one per block of 256, rounded up.
    pub m_absmax: Tensor,
    pub v_absmax: Tensor,
}

/// One AdamW update in place. Values and gradients are flat f32 of one length; `codes` are those of the first
/// moment, which has signs, and of the second, which has none.
pub fn adamw_8bit(
    values: &Tensor,
    grads: &Tensor,
    moments: &Moments,
    codes: [&Code; 2],
    settings: AdamW,
) {
    if !on_cpu(values) {
        return reference::adamw_8bit(values, grads, moments, codes, settings);
    }
    let (values, grads) = (Rows::of(values), Rows::of(grads));
    let absmax = [Rows::of(&moments.m_absmax), Rows::of(&moments.v_absmax)];
    let (len, blocks) = (values.width, values.width.div_ceil(MOMENT_BLOCK));
    assert!(values.len == 1 && grads.width == len && moments.m.numel() == len);
    assert!(moments.v.numel() == len && absmax.iter().all(|absmax| absmax.width == blocks));
    let codes = codes.map(CodeSlices::of);
    let factors = Factors::new(settings);
    // SAFETY: distinct tensors, each borrowed once.
    let (values, m, v, m_absmax, v_absmax) = unsafe {
        let (m, v) = (bytes_mut(&moments.m), bytes_mut(&moments.v));
        (values.row_mut(0), m, v, absmax[0].row_mut(0), absmax[1].row_mut(0))
    };
    /// Blocks per task: enough that handing it to a thread costs nothing beside it.
    const TASK: usize = 64;
    let chunk = TASK * MOMENT_BLOCK;
    (values.par_chunks_mut(chunk), grads.row(0).par_chunks(chunk))
        .into_par_iter()
        .zip((m.par_chunks_mut(chunk), v.par_chunks_mut(chunk)).into_par_iter())
        .zip((m_absmax.par_chunks_mut(TASK), v_absmax.par_chunks_mut(TASK)).into_par_iter())
        .for_each(|(((values, grads), (m, v)), (m_absmax, v_absmax))| {
            let parts = values.chunks_mut(MOMENT_BLOCK).zip(grads.chunks(MOMENT_BLOCK));
            let moments = m.chunks_mut(MOMENT_BLOCK).zip(v.chunks_mut(MOMENT_BLOCK));
            let absmax = m_absmax.iter_mut().zip(v_absmax);
            for (((values, grads), (m, v)), (m_absmax, v_absmax)) in parts.zip(moments).zip(absmax)
            {
                let mut first = Block { codes: m, absmax: m_absmax, code: codes[0] };
                let mut second = Block { codes: v, absmax: v_absmax, code: codes[1] };
                update(values, grads, &mut first, &mut second, factors);
            }
        });
}

#[derive(Clone, Copy)]
pub(crate) struct CodeSlices<'a> {
    levels: &'a [f32; 256],
    nearest: &'a [u8; STEPS],
}

impl<'a> CodeSlices<'a> {
    fn of(code: &'a Code) -> Self {
        let levels = floats(&code.levels).try_into().expect("256 levels");
        let nearest = bytes(&code.nearest).try_into().expect("a code for each step");
        Self { levels, nearest }
    }
}

/// One moment of up to 256 values.
pub(crate) struct Block<'a> {
    codes: &'a mut [u8],
    absmax: &'a mut f32,
    code: CodeSlices<'a>,
}

impl Block<'_> {
    #[inline(always)]
    fn read(&self, out: &mut [f32]) {
        for (out, &code) in out.iter_mut().zip(self.codes.iter()) {
            *out = self.code.levels[code as usize] * *self.absmax;
        }
    }

    #[inline(always)]
    fn write(&mut self, values: &[f32]) {
        let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        *self.absmax = largest;
        if largest == 0.0 {
            return self.codes.fill(0);
        }
        let inverse = 1.0 / largest;
        for (code, x) in self.codes.iter_mut().zip(values) {
            let step = (x * inverse + 1.0) / 2.0 * (STEPS - 1) as f32 + 0.5;
            // A cast stays inside the type's range, and a step of NaN is 0.
            *code = self.code.nearest[step as u16 as usize];
        }
    }
}

multiversion! {
    fn update(
        values: &mut [f32],
        grads: &[f32],
        first: &mut Block<'_>,
        second: &mut Block<'_>,
        f: Factors,
    ) {
        let (mut m, mut v) = ([0.0f32; MOMENT_BLOCK], [0.0f32; MOMENT_BLOCK]);
        let (m, v) = (&mut m[..values.len()], &mut v[..values.len()]);
        first.read(m);
        second.read(v);
        f.update(values, grads, m, v);
        first.write(m);
        second.write(v);
    }
}
