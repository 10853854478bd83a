//! Causal attention inside each segment of a packed batch, with grouped key/value heads.
//!
//! A packed row holds the query heads, then the key heads, then the value heads of one token. A task is one
//! segment and one key/value head; it walks the queries in blocks so that scores stay in cache and the
//! masked half is never computed; with a window, neither are the keys before it. Keys that stand before the
//! segment's own are read where they are. Probabilities are recomputed in the backward pass from the saved
//! log-sums.

mod backward;
mod cached;

use std::ops::Range;

use rayon::prelude::*;
use tch::Tensor;

pub use self::backward::attention_backward;
pub use self::cached::{CacheEnd, attend_caches};
use crate::cuda::road;
use crate::on_cpu;
use crate::product::{Matrix, product_here};
use crate::rows::Rows;
use crate::segments::{Piece, Segment, Segments};
use crate::simd::{cap, exp_sum, max, scale};

/// How a packed row is divided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor on the scores, usually 1/√head_dim.
    pub scale: f64,
    /// Keys that a query sees, its own included; all before it when none.
    pub window: Option<usize>,
    /// Scores s become c·tanh(s/c).
    pub softcap: Option<f64>,
}

impl AttentionShape {
    /// Columns of a packed row.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn key_column(&self, kv_head: usize) -> usize {
        (self.heads + kv_head) * self.head_dim
    }

    fn value_column(&self, kv_head: usize) -> usize {
        (self.heads + self.kv_heads + kv_head) * self.head_dim
    }

    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Caps raw scores if they are to be capped, and answers the factor that is left to apply.
    fn capped(&self, scores: &mut [f32]) -> f32 {
        let Some(limit) = self.softcap else { return self.scale as f32 };
        cap(scores, (self.scale / limit) as f32, limit as f32);
        1.0
    }
}

/// Queries per block: scores of a block against 1,024 keys fill 256 KiB, about a core's second-level cache.
const BLOCK: usize = 64;

/// `out = softmax(scale · q·kᵀ, causal) · v` for every head, inside each segment. Keys are counted over all
/// that a segment's queries see: the causal line ends at the last query and the last key.
///
/// Shapes: qkv `[≥ T, width]` after rotation, its rows from T on keys and values only; `segments` cover T
/// rows; out `[T, heads · head_dim]`; log_sums `[T, heads]`, written for the backward pass.
pub fn attention(
    qkv: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    out: &Tensor,
    log_sums: &Tensor,
) {
    if !on_cpu(qkv) {
        return road::attention(qkv, segments, shape, out, log_sums);
    }
    let (qkv, out, log_sums) = (Rows::of(qkv), Rows::of(out), Rows::of(log_sums));
    assert_eq!(qkv.width, shape.width());
    let rows = segments.rows();
    assert!(out.len == rows && out.width == shape.heads * shape.head_dim);
    assert!(log_sums.len == rows && log_sums.width == shape.heads);
    segments.check(qkv.len);
    tasks(segments, shape.kv_heads).into_par_iter().for_each(|(segment, kv_head)| {
        forward_task(&qkv, &out, &log_sums, shape, segment, kv_head);
    });
}

/// Each segment with each key/value head.
fn tasks(segments: &Segments, kv_heads: usize) -> Vec<(&Segment, usize)> {
    segments.iter().flat_map(|segment| (0..kv_heads).map(move |head| (segment, head))).collect()
}

/// A block of queries of one head against the keys from the first that one of them sees to the last query's.
struct Block<'a> {
    segment: &'a Segment,
    /// First query row.
    row: usize,
    queries: usize,
    /// First key, counted over the segment's.
    first_key: usize,
    keys: usize,
    window: usize,
}

impl<'a> Block<'a> {
    fn of(segment: &'a Segment, window: Option<usize>) -> impl Iterator<Item = Self> {
        let (rows, window) = (segment.rows.clone(), window.unwrap_or(usize::MAX));
        let keys_before = segment.keys_before();
        rows.clone().step_by(BLOCK).map(move |row| {
            let queries = BLOCK.min(rows.end - row);
            let seen = keys_before + row + 1 - rows.start;
            let first_key = seen.saturating_sub(window);
            Self { segment, row, queries, first_key, keys: seen - 1 + queries - first_key, window }
        })
    }

    /// Where the keys stand.
    fn pieces(&self) -> impl Iterator<Item = Piece> + use<'a> {
        self.segment.pieces(self.first_key..self.first_key + self.keys)
    }

    /// The keys of the block that one of its queries sees.
    fn visible(&self, query: usize) -> Range<usize> {
        let end = self.keys - self.queries + query + 1;
        end.saturating_sub(self.window)..end
    }
}

/// Zeroes what a row has outside of `visible`.
fn hide(row: &mut [f32], visible: &Range<usize>) {
    row[..visible.start].fill(0.0);
    row[visible.end..].fill(0.0);
}

fn forward_task(
    qkv: &Rows,
    out: &Rows,
    log_sums: &Rows,
    shape: AttentionShape,
    segment: &Segment,
    kv_head: usize,
) {
    let d = shape.head_dim;
    let mut scores = vec![0.0f32; BLOCK * segment.keys()];
    for head in kv_head * shape.group()..(kv_head + 1) * shape.group() {
        for block in Block::of(segment, shape.window) {
            let scores = &mut scores[..block.queries * block.keys];
            block_scores(qkv, shape, kv_head, head, &block, scores);
            for (i, row) in scores.chunks_exact_mut(block.keys).enumerate() {
                let visible = block.visible(i);
                hide(row, &visible);
                let seen = &mut row[visible];
                let factor = shape.capped(seen);
                let top = max(seen) * factor;
                let sum = exp_sum(seen, factor, top);
                scale(seen, 1.0 / sum);
                // SAFETY: this task alone writes the columns of its heads in its segment's rows.
                unsafe { *log_sums.pointer(block.row + i, head) = top + sum.ln() };
            }
            let target = Strided::at(out, block.row, head * d);
            for (n, piece) in block.pieces().enumerate() {
                let probabilities = Strided::columns(scores, block.keys, piece.column);
                let value = Strided::at(qkv, piece.row, shape.value_column(kv_head));
                let beta = if n == 0 { 0.0 } else { 1.0 };
                product([block.queries, piece.len, d], probabilities, value, beta, target);
            }
        }
    }
}

/// Raw scores `q·kᵀ` of one block, `[queries, keys]`, masked ones included.
fn block_scores(
    qkv: &Rows,
    shape: AttentionShape,
    kv_head: usize,
    head: usize,
    block: &Block<'_>,
    scores: &mut [f32],
) {
    let query = Strided::at(qkv, block.row, head * shape.head_dim);
    for piece in block.pieces() {
        let key = Strided::at(qkv, piece.row, shape.key_column(kv_head)).transposed();
        let target = Strided::columns(scores, block.keys, piece.column);
        product([block.queries, shape.head_dim, piece.len], query, key, 0.0, target);
    }
}

/// Attention of new tokens over a cache: row i of `q` sees the first `cached + i + 1` rows of keys and values,
/// or the last of them that the window leaves.
///
/// Shapes: q `[N, heads · head_dim]`; keys, values `[≥ cached + N, kv_heads · head_dim]`; out as q.
pub fn cached_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    cached: usize,
    shape: AttentionShape,
    out: &Tensor,
) {
    if !on_cpu(q) {
        return road::cached_attention(q, keys, values, cached, shape, out);
    }
    let q = Rows::of(q);
    assert_eq!(q.width, shape.heads * shape.head_dim);
    let end = CacheEnd { keys, values, cached, rows: q.len };
    cached::attend(&q, &cached::Cache::all(&[end], shape), shape, &Rows::of(out));
}

/// A block of a matrix: address of its first element and its strides.
#[derive(Clone, Copy)]
struct Strided {
    data: *mut f32,
    row_stride: usize,
    column_stride: usize,
}

impl Strided {
    fn at(matrix: &Rows, row: usize, column: usize) -> Self {
        let data = matrix.pointer(row, column);
        Self { data, row_stride: matrix.stride, column_stride: 1 }
    }

    /// The columns from `first` on of rows that lie one behind the other.
    fn columns(data: &mut [f32], width: usize, first: usize) -> Self {
        let data = data[first..].as_mut_ptr();
        Self { data, row_stride: width, column_stride: 1 }
    }

    fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// `c = beta · c + a · b` for a `[m, k]`, b `[k, n]`, c `[m, n]`, with a beta of 0 or 1.
fn product([m, k, n]: [usize; 3], a: Strided, b: Strided, beta: f32, c: Strided) {
    let matrix = |part: Strided, [rows, columns]: [usize; 2]| Matrix {
        data: part.data,
        rows,
        columns,
        row: part.row_stride,
        column: part.column_stride,
    };
    // SAFETY: the callers pass blocks inside their tensors or scratch (rows of one segment or of keys before
    // it, columns of one head), and `c` overlaps neither `a` nor `b`.
    unsafe { product_here(matrix(a, [m, k]), matrix(b, [k, n]), beta == 1.0, matrix(c, [m, n])) };
}
