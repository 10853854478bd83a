//! Sums of matrix products in one walk over the result.
//!
//! A frozen product and its low-rank update, `x·Wᵀ + s·Bᵀ`, are one longer sum for each element of the
//! result, which is then written once. Panels of the right-hand factor are copied to where the cache holds
//! them while all rows of the left-hand one pass; the left-hand factor is read where it stands.
//!
//! The sum of each element has one order, so results do not depend on threads. Few rows, where a copy of the
//! right-hand factor would not pay, processors without AVX2 and other devices go to libtorch.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::reference;
use crate::tile::{Stretch, Target, Tiles};

/// One of the products that are summed: `a·b`, whose columns stand in the result from `column` on.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a> {
    /// `[M, K]`
    pub a: &'a Tensor,
    /// `[K, ≤ N]`
    pub b: &'a Tensor,
    pub column: i64,
}

impl<'a> Term<'a> {
    /// A product as wide as the result.
    pub fn new(a: &'a Tensor, b: &'a Tensor) -> Self {
        Self { a, b, column: 0 }
    }
}

/// What becomes of what the result held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Over,
    Add,
}

/// Fewer rows than this do not pay for turning the right-hand factor round.
const FEW_ROWS: usize = 32;
/// More rows than this are walked in strips, so that a third-level cache holds a strip.
const STRIP: usize = 1024;

/// `out (+)= scale · Σ a·b`. Shapes: out `[M, N]`; the terms as they say. Any strides in `a` and `out`; `b` has
/// contiguous rows or contiguous columns.
pub fn product(terms: &[Term<'_>], scale: f64, write: Write, out: &Tensor) {
    let plain = |t: &Tensor| t.kind() == Kind::Float && t.device() == Device::Cpu;
    let pays = |term: &Term<'_>| out.size()[0] as usize >= FEW_ROWS || term.b.stride()[1] == 1;
    let fast = plain(out) && terms.iter().all(|t| plain(t.a) && plain(t.b) && pays(t));
    let Some(tiles) = Tiles::of_this_processor().filter(|_| fast) else {
        return reference::product(terms, scale, write, out);
    };
    let c = Matrix::of(out);
    let factors: Vec<Factors> = terms
        .iter()
        .map(|term| {
            let (a, b) = (Matrix::of(term.a), Matrix::of(term.b));
            let column = usize::try_from(term.column).expect("a column of the result");
            assert!(a.rows == c.rows && a.columns == b.rows && column + b.columns <= c.columns);
            Factors { a, b, column }
        })
        .collect();
    let job = Job { tiles, factors: &factors, scale: scale as f32, add: write == Write::Add, c };
    job.blocks().into_par_iter().with_max_len(1).for_each(|(rows, columns)| {
        job.block(rows, columns);
    });
}

/// `c = a·b` or `c += a·b` on the calling thread.
///
/// # Safety
/// The matrices are memory of live tensors or slices; nobody else uses `c`, or writes `a` or `b`, meanwhile.
pub(crate) unsafe fn product_here(a: Matrix, b: Matrix, add: bool, c: Matrix) {
    assert!(a.rows == c.rows && a.columns == b.rows && b.columns == c.columns);
    let Some(tiles) = Tiles::of_this_processor() else {
        return plain_product(a, b, add, c);
    };
    let factors = [Factors { a, b, column: 0 }];
    let job = Job { tiles, factors: &factors, scale: 1.0, add, c };
    for columns in pieces(c.columns, 2 * tiles.lanes) {
        job.block(0..c.rows, columns);
    }
}

/// For processors without AVX2.
fn plain_product(a: Matrix, b: Matrix, add: bool, c: Matrix) {
    for row in 0..c.rows {
        for column in 0..c.columns {
            // SAFETY: all inside the matrices, of which `c` is the caller's to write.
            unsafe {
                let sum: f32 = (0..a.columns).map(|k| *a.at(row, k) * *b.at(k, column)).sum();
                let target = c.at(row, column);
                *target = if add { *target + sum } else { sum };
            }
        }
    }
}

/// `0..end` in pieces of `step`.
fn pieces(end: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(step).map(move |start| start..(start + step).min(end))
}

/// A matrix of `f32` in CPU memory, of any strides. Writers see to it that nobody else uses what they write.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub data: *mut f32,
    pub rows: usize,
    pub columns: usize,
    /// Elements from one row to the next, and from one column to the next.
    pub row: usize,
    pub column: usize,
}

// SAFETY: plain memory of a live tensor; disjointness of writes is the callers' duty, stated at each use.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

impl Matrix {
    fn of(tensor: &Tensor) -> Self {
        let (size, strides) = (tensor.size(), tensor.stride());
        let ([rows, columns], [row, column]) = (size.as_slice(), strides.as_slice()) else {
            panic!("expected a matrix, got shape {size:?}");
        };
        let [rows, columns, row, column] = [*rows, *columns, *row, *column].map(|n| n as usize);
        // The stride of a dimension of one element may be anything.
        let column = if columns == 1 { 1 } else { column };
        Self { data: tensor.data_ptr().cast(), rows, columns, row, column }
    }

    fn at(&self, row: usize, column: usize) -> *mut f32 {
        debug_assert!(row < self.rows && column < self.columns);
        self.data.wrapping_add(row * self.row + column * self.column)
    }
}

struct Factors {
    a: Matrix,
    b: Matrix,
    column: usize,
}

struct Job<'a> {
    tiles: &'static Tiles,
    factors: &'a [Factors],
    scale: f32,
    add: bool,
    c: Matrix,
}

/// Most of the summed dimension at a time: a panel of it, 128 KiB, is to stay in the second-level cache.
const DEPTH: usize = 1024;
/// With no more tiles of rows than this, panels are read where they stand.
const FEW_TILES: usize = 5;

/// A line of the cache, so that loads of packed panels never cross one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "used as part of a slice of floats")] [f32; 16]);

thread_local! {
    static PANEL: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

impl Job<'_> {
    /// Rows and columns of the blocks that are computed side by side: a panel each, and as many rows as give
    /// all threads enough to do.
    fn blocks(&self) -> Vec<(Range<usize>, Range<usize>)> {
        let (width, wanted) = (2 * self.tiles.lanes, 4 * rayon::current_num_threads());
        let strips = wanted.div_ceil(self.c.columns.div_ceil(width)).min(self.c.rows / FEW_ROWS);
        let strip = self.c.rows.div_ceil(strips.max(1)).min(STRIP);
        pieces(self.c.rows, strip.next_multiple_of(self.tiles.rows()))
            .flat_map(|rows| pieces(self.c.columns, width).map(move |c| (rows.clone(), c)))
            .collect()
    }

    /// One block of the result, not wider than a panel, of which the caller is the only writer.
    fn block(&self, rows: Range<usize>, columns: Range<usize>) {
        let depth: usize = self.factors.iter().map(|factors| factors.b.rows).sum();
        let part = depth.div_ceil(depth.div_ceil(DEPTH).max(1));
        PANEL.with_borrow_mut(|buffer| {
            let lines = (2 * self.tiles.lanes * part).div_ceil(16);
            if buffer.len() < lines {
                buffer.resize(lines, Line([0.0; 16]));
            }
            for (n, depth) in pieces(depth, part).enumerate() {
                let panel = self.panel(columns.clone(), depth, rows.len(), floats(buffer));
                if n > 0 && panel.stretches.is_empty() {
                    continue;
                }
                for start in rows.clone().step_by(self.tiles.rows()) {
                    let rows = start..(start + self.tiles.rows()).min(rows.end);
                    self.tile(rows, &panel, self.add || n > 0);
                }
            }
        });
    }

    fn tile(&self, rows: Range<usize>, panel: &Panel, add: bool) {
        let lanes = self.tiles.lanes;
        let (tiles, width) = match panel.columns.len() <= lanes {
            true => (self.tiles.narrow, lanes),
            false => (self.tiles.wide, 2 * lanes),
        };
        let tile = tiles[rows.len() - 1];
        let c = self.c.at(rows.start, panel.columns.start);
        if self.c.column == 1 && panel.columns.len() == width {
            let target = Target { c, c_row: self.c.row, scale: self.scale, add };
            // SAFETY: rows and columns are inside the matrices, panels are packed to the tile's width, and
            // this task is alone with its block of `c`.
            unsafe { tile(&panel.stretches, rows.start, target) };
            return;
        }
        // Not the tile's shape: by way of one that is.
        let mut whole = [0.0f32; 14 * 32];
        let target = Target { c: whole.as_mut_ptr(), c_row: width, scale: self.scale, add: false };
        // SAFETY: as above; the widest tile has as many elements as `whole`.
        unsafe { tile(&panel.stretches, rows.start, target) };
        for (row, values) in rows.zip(whole.chunks_exact(width)) {
            for (column, value) in panel.columns.clone().zip(values) {
                let c = self.c.at(row, column);
                // SAFETY: inside this task's block of `c`.
                unsafe { *c = if add { *c + value } else { *value } };
            }
        }
    }

    /// The right-hand factors of some columns, for a part of the summed dimension that runs through all terms.
    fn panel(
        &self,
        columns: Range<usize>,
        depth: Range<usize>,
        rows: usize,
        mut free: &mut [f32],
    ) -> Panel {
        let lanes = self.tiles.lanes;
        let width = if columns.len() <= lanes { lanes } else { 2 * lanes };
        let (mut stretches, mut start) = (Vec::with_capacity(self.factors.len()), 0);
        for Factors { a, b, column } in self.factors {
            let first = depth.start.clamp(start, start + b.rows) - start;
            let last = depth.end.clamp(start, start + b.rows) - start;
            start += b.rows;
            let covered = columns.start.max(*column)..columns.end.min(column + b.columns);
            if first == last || covered.is_empty() {
                continue;
            }
            let (b, source) = (*b, covered.start - column..covered.end - column);
            let direct =
                b.column == 1 && covered.len() == width && rows <= FEW_TILES * self.tiles.rows();
            let (data, step) = if direct {
                (b.at(first, source.start).cast_const(), b.row)
            } else {
                let (panel, rest) = free.split_at_mut((last - first) * width);
                free = rest;
                pack(b, first..last, source, panel, width, covered.start - columns.start);
                (panel.as_ptr(), width)
            };
            stretches.push(Stretch {
                a: a.at(0, first),
                a_row: a.row,
                a_column: a.column,
                b: data,
                b_row: step,
                len: last - first,
            });
        }
        Panel { columns, stretches }
    }
}

struct Panel {
    columns: Range<usize>,
    stretches: Vec<Stretch>,
}

fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is 16 floats without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// Copies a part of `b` to rows of `width`, from column `at` of them on, with zeros around.
fn pack(
    b: Matrix,
    rows: Range<usize>,
    columns: Range<usize>,
    panel: &mut [f32],
    width: usize,
    at: usize,
) {
    if columns.len() < width {
        panel.fill(0.0);
    }
    if b.column == 1 {
        for (row, packed) in rows.zip(panel.chunks_exact_mut(width)) {
            // SAFETY: a part of a row of a live matrix that nobody writes.
            let source =
                unsafe { std::slice::from_raw_parts(b.at(row, columns.start), columns.len()) };
            packed[at..at + columns.len()].copy_from_slice(source);
        }
        return;
    }
    assert_eq!(b.row, 1, "rows or columns are contiguous");
    #[cfg(target_arch = "x86_64")]
    if columns.len().is_multiple_of(8) && rows.len() >= 8 {
        let whole = rows.start..rows.end - rows.len() % 8;
        for (n, column) in columns.clone().step_by(8).enumerate() {
            for (m, row) in whole.clone().step_by(8).enumerate() {
                let target = &mut panel[m * 8 * width + at + n * 8..];
                assert!(target.len() >= 7 * width + 8);
                // SAFETY: products come here only with AVX2; the 8 × 8 elements are in the matrix, and in
                // the panel as asserted.
                unsafe { transpose_8x8(b.at(row, column), b.column, target.as_mut_ptr(), width) };
            }
        }
        let done = whole.len();
        return transpose(b, whole.end..rows.end, columns, &mut panel[done * width..], width, at);
    }
    transpose(b, rows, columns, panel, width, at);
}

fn transpose(
    b: Matrix,
    rows: Range<usize>,
    columns: Range<usize>,
    panel: &mut [f32],
    width: usize,
    at: usize,
) {
    for (packed, row) in panel.chunks_exact_mut(width).zip(rows) {
        for (value, column) in packed[at..].iter_mut().zip(columns.clone()) {
            // SAFETY: an element of a live matrix that nobody writes.
            *value = unsafe { *b.at(row, column) };
        }
    }
}

/// Eight columns of eight elements each, `stride` apart, become eight rows, `width` apart.
///
/// # Safety
/// The elements exist, and the processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_8x8(source: *const f32, stride: usize, target: *mut f32, width: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    let r: [__m256; 8] =
        std::array::from_fn(|i| unsafe { _mm256_loadu_ps(source.add(i * stride)) });
    let pairs = |i: usize| (_mm256_unpacklo_ps(r[i], r[i + 1]), _mm256_unpackhi_ps(r[i], r[i + 1]));
    let ((a0, a1), (b0, b1), (c0, c1), (d0, d1)) = (pairs(0), pairs(2), pairs(4), pairs(6));
    let low = [
        _mm256_shuffle_ps::<0x44>(a0, b0),
        _mm256_shuffle_ps::<0xee>(a0, b0),
        _mm256_shuffle_ps::<0x44>(a1, b1),
        _mm256_shuffle_ps::<0xee>(a1, b1),
    ];
    let high = [
        _mm256_shuffle_ps::<0x44>(c0, d0),
        _mm256_shuffle_ps::<0xee>(c0, d0),
        _mm256_shuffle_ps::<0x44>(c1, d1),
        _mm256_shuffle_ps::<0xee>(c1, d1),
    ];
    for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_ps(target.add(i * width), _mm256_permute2f128_ps::<0x20>(low, high));
            _mm256_storeu_ps(
                target.add((i + 4) * width),
                _mm256_permute2f128_ps::<0x31>(low, high),
            );
        }
    }
}
