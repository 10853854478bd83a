//! Weights in panels of sixteen rows, and the product of a panel with few rows.
//!
//! A panel holds the weights of sixteen outputs side by side, so that one vector instruction serves sixteen
//! sums. It is walked once; each weight, decoded in a register, is used for all rows of the input. A
//! sum goes through the inputs from the first to the last, whatever the processor and whatever the
//! number of rows: a row's result does not depend on the rows beside it.

use crate::lanes::{Lanes, Loop, PANEL};
use crate::lattice;

/// A block of a panel: `INNER` weights for each of its sixteen outputs.
pub(crate) trait Block: Default + Clone + Send + Sync {
    const INNER: usize;
    /// What all blocks of a matrix need to be decoded.
    type Shared: Copy + Sync;

    /// Weight number `k` of the outputs from `lane` on.
    fn weights<L: Lanes>(
        &self,
        shared: &Self::Shared,
        lanes: L,
        k: usize,
        lane: usize,
    ) -> L::Vector;
}

/// Plain numbers.
#[derive(Default, Clone)]
#[repr(align(64))]
pub(crate) struct Plain(pub [[f32; PANEL]; 8]);

impl Block for Plain {
    const INNER: usize = 8;
    type Shared = ();

    #[inline(always)]
    fn weights<L: Lanes>(&self, (): &(), lanes: L, k: usize, lane: usize) -> L::Vector {
        lanes.load(&self.0[k], lane)
    }
}

/// The upper halves of `f32`.
#[derive(Default, Clone)]
#[repr(align(64))]
pub(crate) struct Bf16(pub [[u16; PANEL]; 8]);

impl Block for Bf16 {
    const INNER: usize = 8;
    type Shared = ();

    #[inline(always)]
    fn weights<L: Lanes>(&self, (): &(), lanes: L, k: usize, lane: usize) -> L::Vector {
        lanes.bf16(&self.0[k], lane)
    }
}

/// Half precision.
#[derive(Default, Clone)]
#[repr(align(64))]
pub(crate) struct F16(pub [[u16; PANEL]; 8]);

impl Block for F16 {
    const INNER: usize = 8;
    type Shared = ();

    #[inline(always)]
    fn weights<L: Lanes>(&self, (): &(), lanes: L, k: usize, lane: usize) -> L::Vector {
        lanes.f16(&self.0[k], lane)
    }
}

/// `scale · code + low` with 4-bit codes, eight to a word, the first lowest.
#[derive(Default, Clone)]
#[repr(align(64))]
pub(crate) struct Lattice4 {
    pub codes: [[u32; PANEL]; lattice::BLOCK / 8],
    pub scale: [f32; PANEL],
    pub low: [f32; PANEL],
}

impl Block for Lattice4 {
    const INNER: usize = lattice::BLOCK;
    type Shared = ();

    #[inline(always)]
    fn weights<L: Lanes>(&self, (): &(), lanes: L, k: usize, lane: usize) -> L::Vector {
        let code = lanes.nibble(&self.codes[k / 8], lane, k % 8);
        lanes.mul_add(code, lanes.load(&self.scale, lane), lanes.load(&self.low, lane))
    }
}

/// `scale · code` with signed 8-bit codes.
#[derive(Default, Clone)]
#[repr(align(64))]
pub(crate) struct Lattice8 {
    pub codes: [[i8; PANEL]; lattice::BLOCK],
    pub scale: [f32; PANEL],
}

impl Block for Lattice8 {
    const INNER: usize = lattice::BLOCK;
    type Shared = ();

    #[inline(always)]
    fn weights<L: Lanes>(&self, (): &(), lanes: L, k: usize, lane: usize) -> L::Vector {
        lanes.mul(lanes.byte(&self.codes[k], lane), lanes.load(&self.scale, lane))
    }
}

/// `scale · levels[code]`, as NF4 has it.
#[derive(Default, Clone)]
#[repr(align(64))]
pub(crate) struct Levels4 {
    pub codes: [[u32; PANEL]; crate::nf4::BLOCK / 8],
    pub scale: [f32; PANEL],
}

impl Block for Levels4 {
    const INNER: usize = crate::nf4::BLOCK;
    type Shared = [f32; 16];

    #[inline(always)]
    fn weights<L: Lanes>(&self, levels: &[f32; 16], lanes: L, k: usize, lane: usize) -> L::Vector {
        let level = lanes.level(&self.codes[k / 8], lane, k % 8, levels);
        lanes.mul(level, lanes.load(&self.scale, lane))
    }
}

/// The product of `M` neighbouring panels with `R` rows.
pub(crate) struct Tile<'a, B: Block, const R: usize, const M: usize> {
    pub panels: [&'a [B]; M],
    pub shared: &'a B::Shared,
    /// One entry for each weight of an output: that input of all rows.
    pub x: &'a [[f32; R]],
}

/// Rows up to which a tile has registers for whole panels where a vector is half of one.
const WHOLE: usize = 4;

impl<B: Block, const R: usize, const M: usize> Loop for Tile<'_, B, R, M> {
    type Output = [[[f32; PANEL]; R]; M];

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> Self::Output {
        let mut sums = [[[0.0; PANEL]; R]; M];
        if R <= WHOLE || L::WIDTH == PANEL {
            self.sweep(lanes, 0, PANEL / L::WIDTH, &mut sums);
        } else {
            self.sweep(lanes, 0, 1, &mut sums);
            self.sweep(lanes, L::WIDTH, 1, &mut sums);
        }
        sums
    }
}

impl<B: Block, const R: usize, const M: usize> Tile<'_, B, R, M> {
    /// Sums `vectors` vectors of each panel, from lane `first` on.
    #[inline(always)]
    fn sweep<L: Lanes>(
        &self,
        lanes: L,
        first: usize,
        vectors: usize,
        out: &mut [[[f32; PANEL]; R]; M],
    ) {
        let mut sums = [[[lanes.splat(0.0); 2]; R]; M];
        for (n, x) in self.x.chunks_exact(B::INNER).enumerate() {
            for (k, x) in x.iter().enumerate() {
                let x: [L::Vector; R] = std::array::from_fn(|row| lanes.splat(x[row]));
                for (panel, sums) in self.panels.iter().zip(&mut sums) {
                    for v in 0..vectors {
                        let lane = first + v * L::WIDTH;
                        let w = panel[n].weights(self.shared, lanes, k, lane);
                        for (sums, x) in sums.iter_mut().zip(x) {
                            sums[v] = lanes.mul_add(w, x, sums[v]);
                        }
                    }
                }
            }
        }
        for (sums, out) in sums.iter().zip(out) {
            for (sums, out) in sums.iter().zip(out) {
                for (v, sum) in sums.iter().enumerate().take(vectors) {
                    lanes.store(*sum, out, first + v * L::WIDTH);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::with_all_lanes;

    /// Every kind of vectors decodes and sums alike; those that round once give the same bits.
    fn all_lanes_agree<B: Block, const R: usize>(block: &B, shared: &B::Shared) {
        let blocks = vec![block.clone(); 3];
        let input = |k: usize| std::array::from_fn(|row| ((k * 7 + row * 3) % 11) as f32 - 5.0);
        let x: Vec<[f32; R]> = (0..3 * B::INNER).map(input).collect();
        let panels = [&blocks[..], &blocks[..]];
        let results = with_all_lanes(|| Tile { panels, shared, x: &x });
        for wide in &results[1..] {
            assert_eq!(wide, &results[1]);
            for (a, b) in wide.iter().flatten().flatten().zip(results[0].iter().flatten().flatten())
            {
                assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{a} and {b}");
            }
        }
    }

    fn at_all_rows<B: Block>(block: &B, shared: &B::Shared) {
        all_lanes_agree::<B, 1>(block, shared);
        all_lanes_agree::<B, 2>(block, shared);
        all_lanes_agree::<B, 4>(block, shared);
        all_lanes_agree::<B, 6>(block, shared);
        all_lanes_agree::<B, 8>(block, shared);
    }

    #[test]
    fn every_processor_computes_the_same() {
        let number = |i: usize, j: usize| ((i * 13 + j * 5) % 17) as f32 / 16.0 - 0.4;
        let table = |f: &dyn Fn(usize, usize) -> u16| {
            std::array::from_fn(|k| std::array::from_fn(|lane| f(k, lane)))
        };
        let words = |k: usize| {
            std::array::from_fn(|lane| 0x9e37_79b9u32.wrapping_mul((k * PANEL + lane + 1) as u32))
        };
        let scale = std::array::from_fn(|lane| number(lane, 3));
        at_all_rows(&Plain(std::array::from_fn(|k| std::array::from_fn(|l| number(k, l)))), &());
        at_all_rows(&Bf16(table(&|k, lane| (number(k, lane).to_bits() >> 16) as u16)), &());
        at_all_rows(&F16(table(&|k, lane| (k * 911 + lane * 3_001) as u16 & 0xb7ff)), &());
        let low = std::array::from_fn(|lane| number(7, lane));
        at_all_rows(&Lattice4 { codes: std::array::from_fn(words), scale, low }, &());
        let byte = |k: usize, lane: usize| (k * 37 + lane * 11) as i8;
        let codes = std::array::from_fn(|k| std::array::from_fn(|lane| byte(k, lane)));
        at_all_rows(&Lattice8 { codes, scale }, &());
        let levels = std::array::from_fn(|level| number(level, 1));
        at_all_rows(&Levels4 { codes: std::array::from_fn(words), scale }, &levels);
    }
}
