//! Products of few rows with compact weights: what answering does for each token.

use rayon::prelude::*;
use tch::Tensor;

use crate::compact::{Compact, Form};
use crate::lanes::{PANEL, with_lanes};
use crate::panels::{Block, Tile};
use crate::rows::Rows;

/// Rows of one tile at most; more are taken in turns while the panel is in the cache.
const TILE_ROWS: usize = 8;
/// Multiplications that are worth waking another thread for.
const TASK: usize = 1 << 18;

/// `y = x·Wᵀ`, or `y += x·Wᵀ` when `accumulate`. A row of the result does not depend on the others.
///
/// Shapes: x `[T, in]`; y `[T, out]`.
pub fn skinny(x: &Tensor, weight: &Compact, y: &Tensor, accumulate: bool) {
    let (x, y) = (Rows::of(x), Rows::of(y));
    assert!(x.len == y.len && x.width == weight.inner && y.width == weight.out);
    let target = Target { y, accumulate };
    match &weight.form {
        Form::Plain(blocks) => product(&x, blocks, &(), target),
        Form::Bf16(blocks) => product(&x, blocks, &(), target),
        Form::F16(blocks) => product(&x, blocks, &(), target),
        Form::Lattice4(blocks) => product(&x, blocks, &(), target),
        Form::Lattice8(blocks) => product(&x, blocks, &(), target),
        Form::Nf4(blocks, levels) => product(&x, blocks, levels, target),
    }
}

#[derive(Clone, Copy)]
struct Target {
    y: Rows,
    accumulate: bool,
}

impl Target {
    /// Writes the sums of a panel for the rows from `first` on.
    ///
    /// # Safety
    /// Nobody else may touch the panel's columns of these rows.
    unsafe fn write(&self, first: usize, panel: usize, sums: &[[f32; PANEL]]) {
        let column = panel * PANEL;
        let width = PANEL.min(self.y.width - column);
        for (row, sums) in (first..self.y.len).zip(sums) {
            let start = self.y.pointer(row, column);
            // SAFETY: `width` elements of the row; exclusive as the caller vouches.
            let y = unsafe { std::slice::from_raw_parts_mut(start, width) };
            if self.accumulate {
                y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
            } else {
                y.copy_from_slice(&sums[..width]);
            }
        }
    }
}

fn product<B: Block>(x: &Rows, blocks: &[B], shared: &B::Shared, target: Target) {
    let panels = target.y.width.div_ceil(PANEL);
    let per_panel = blocks.len() / panels.max(1);
    let inputs: Vec<Inputs> = (0..x.len)
        .step_by(TILE_ROWS)
        .map(|row| Inputs::new(x, row, per_panel * B::INNER))
        .collect();
    let weights = Weights { blocks, per_panel, shared };
    let work = |panels: std::ops::Range<usize>| {
        for panels in split(panels) {
            for inputs in &inputs {
                weights.multiply(inputs, panels.clone(), target);
            }
        }
    };
    let size = blocks.len() * B::INNER * PANEL * x.len;
    let threads = rayon::current_num_threads().min(size.div_ceil(TASK)).max(1);
    if threads == 1 {
        return work(0..panels);
    }
    // A few tasks for each thread, so that one that is held up holds up little.
    let each = panels.div_ceil(4 * threads).next_multiple_of(ABREAST);
    (0..panels.div_ceil(each)).into_par_iter().for_each(|task| {
        work(task * each..panels.min((task + 1) * each));
    });
}

/// Panels that are walked side by side when there is a single row, so that sums need not wait for each other.
const ABREAST: usize = 4;

fn split(panels: std::ops::Range<usize>) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = panels.end;
    panels.step_by(ABREAST).map(move |start| start..end.min(start + ABREAST))
}

/// Up to [`TILE_ROWS`] rows of the input, transposed: input by input, rows padded with zeros.
struct Inputs {
    first: usize,
    rows: usize,
    values: Vec<f32>,
}

impl Inputs {
    fn new(x: &Rows, first: usize, len: usize) -> Self {
        let rows = match (x.len - first).min(TILE_ROWS) {
            3 => 4,
            5 => 6,
            7 => 8,
            rows => rows,
        };
        let mut values = vec![0.0; len * rows];
        for row in 0..rows.min(x.len - first) {
            let to = values[row..].iter_mut().step_by(rows);
            to.zip(x.row(first + row)).for_each(|(to, &value)| *to = value);
        }
        Self { first, rows, values }
    }

    fn of<const R: usize>(&self) -> &[[f32; R]] {
        self.values.as_chunks().0
    }
}

struct Weights<'a, B: Block> {
    blocks: &'a [B],
    per_panel: usize,
    shared: &'a B::Shared,
}

impl<B: Block> Weights<'_, B> {
    /// The columns of up to [`ABREAST`] panels for some rows.
    fn multiply(&self, inputs: &Inputs, panels: std::ops::Range<usize>, target: Target) {
        match inputs.rows {
            1 if panels.len() == ABREAST => self.tile::<1, ABREAST>(inputs, panels.start, target),
            2 if panels.len() == ABREAST => {
                self.tile::<2, 2>(inputs, panels.start, target);
                self.tile::<2, 2>(inputs, panels.start + 2, target);
            }
            rows => {
                for panel in panels {
                    match rows {
                        1 => self.tile::<1, 1>(inputs, panel, target),
                        2 => self.tile::<2, 1>(inputs, panel, target),
                        4 => self.tile::<4, 1>(inputs, panel, target),
                        6 => self.tile::<6, 1>(inputs, panel, target),
                        _ => self.tile::<8, 1>(inputs, panel, target),
                    }
                }
            }
        }
    }

    fn tile<const R: usize, const M: usize>(&self, inputs: &Inputs, first: usize, target: Target) {
        let panel = |n: usize| &self.blocks[n * self.per_panel..(n + 1) * self.per_panel];
        let panels: [&[B]; M] = std::array::from_fn(|n| panel(first + n));
        let sums = with_lanes(Tile { panels, shared: self.shared, x: inputs.of::<R>() });
        for (n, sums) in sums.iter().enumerate() {
            // SAFETY: each panel is in one task, and the tiles of a task come one after the other.
            unsafe { target.write(inputs.first, first + n, sums) };
        }
    }
}
