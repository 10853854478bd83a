//! Causal attention inside each document of a packed batch, with grouped key/value heads.
//!
//! A packed row holds the query heads, then the key heads, then the value heads of one token. A task is one
//! document and one key/value head; it walks the queries in blocks so that scores stay in cache and the
//! masked half is never computed; with a window, neither are the keys before it. Probabilities are recomputed in
//! the backward pass from the saved log-sums.

use std::ops::Range;

use matrixmultiply::sgemm;
use rayon::prelude::*;
use tch::Tensor;

use crate::rows::Rows;
use crate::simd::{add_scaled, cap, dot, exp_sum, max, scale};
use crate::{on_cpu, reference};

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

/// `out = softmax(scale · q·kᵀ, causal) · v` for every head, inside each document.
///
/// Shapes: qkv `[T, width]` after rotation; `cu_seqlens` the documents' starts and, last, T; out
/// `[T, heads · head_dim]`; log_sums `[T, heads]`, written for the backward pass.
pub fn attention(
    qkv: &Tensor,
    cu_seqlens: &[i32],
    shape: AttentionShape,
    out: &Tensor,
    log_sums: &Tensor,
) {
    if !on_cpu(qkv) {
        return reference::attention(qkv, cu_seqlens, shape, out, log_sums);
    }
    let (qkv, out, log_sums) = (Rows::of(qkv), Rows::of(out), Rows::of(log_sums));
    assert_eq!(qkv.width, shape.width());
    assert!(out.len == qkv.len && out.width == shape.heads * shape.head_dim);
    assert!(log_sums.len == qkv.len && log_sums.width == shape.heads);
    for_tasks(cu_seqlens, qkv.len, shape.kv_heads, |document, kv_head| {
        forward_task(&qkv, &out, &log_sums, shape, document, kv_head);
    });
}

/// A document's rows: `start..end`.
#[derive(Clone, Copy)]
struct Document {
    start: usize,
    end: usize,
}

fn for_tasks(
    cu_seqlens: &[i32],
    rows: usize,
    kv_heads: usize,
    work: impl Fn(Document, usize) + Send + Sync,
) {
    assert_eq!(cu_seqlens.last().map(|&end| end as usize), Some(rows), "documents cover all rows");
    assert!(cu_seqlens[0] == 0 && cu_seqlens.is_sorted());
    let tasks: Vec<(Document, usize)> = cu_seqlens
        .windows(2)
        .map(|pair| Document { start: pair[0] as usize, end: pair[1] as usize })
        .flat_map(|document| (0..kv_heads).map(move |kv_head| (document, kv_head)))
        .collect();
    tasks.into_par_iter().for_each(|(document, kv_head)| work(document, kv_head));
}

/// A block of queries of one head against the keys from the first that one of them sees to the last query.
struct Block {
    /// First query row.
    row: usize,
    queries: usize,
    /// First key row.
    key_row: usize,
    keys: usize,
    window: usize,
}

impl Block {
    fn of(document: Document, window: Option<usize>) -> impl Iterator<Item = Self> {
        let window = window.unwrap_or(usize::MAX);
        (document.start..document.end).step_by(BLOCK).map(move |row| {
            let queries = BLOCK.min(document.end - row);
            let key_row = document.start + (row + 1 - document.start).saturating_sub(window);
            Self { row, queries, key_row, keys: row + queries - key_row, window }
        })
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
    document: Document,
    kv_head: usize,
) {
    let d = shape.head_dim;
    let mut scores = vec![0.0f32; BLOCK * (document.end - document.start)];
    for head in kv_head * shape.group()..(kv_head + 1) * shape.group() {
        for block in Block::of(document, shape.window) {
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
                // SAFETY: this task alone writes the columns of its heads in its document's rows.
                unsafe { *log_sums.pointer(block.row + i, head) = top + sum.ln() };
            }
            let value = Strided::at(qkv, block.key_row, shape.value_column(kv_head));
            let target = Strided::at(out, block.row, head * d);
            let probabilities = Strided::dense(scores, block.keys);
            product([block.queries, block.keys, d], probabilities, value, 0.0, target);
        }
    }
}

/// Raw scores `q·kᵀ` of one block, `[queries, keys]`, masked ones included.
fn block_scores(
    qkv: &Rows,
    shape: AttentionShape,
    kv_head: usize,
    head: usize,
    block: &Block,
    scores: &mut [f32],
) {
    let query = Strided::at(qkv, block.row, head * shape.head_dim);
    let key = Strided::at(qkv, block.key_row, shape.key_column(kv_head)).transposed();
    let target = Strided::dense(scores, block.keys);
    product([block.queries, shape.head_dim, block.keys], query, key, 0.0, target);
}

/// The backward pass: `d_qkv` receives the gradients of q, k and v (all of them; nothing is added up).
///
/// Shapes: qkv, d_qkv `[T, width]`; out, d_out `[T, heads · head_dim]`; log_sums `[T, heads]` of the forward.
pub fn attention_backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &Tensor,
    cu_seqlens: &[i32],
    shape: AttentionShape,
    d_qkv: &Tensor,
) {
    if !on_cpu(qkv) {
        return reference::attention_backward(d_out, qkv, cu_seqlens, shape, d_qkv);
    }
    let saved = Saved {
        qkv: Rows::of(qkv),
        out: Rows::of(out),
        log_sums: Rows::of(log_sums),
        d_out: Rows::of(d_out),
        shape,
    };
    let d_qkv = Rows::of(d_qkv);
    assert!(saved.qkv.width == shape.width() && d_qkv.width == shape.width());
    assert!(
        saved.out.width == shape.heads * shape.head_dim && saved.d_out.width == saved.out.width
    );
    assert!(d_qkv.len == saved.qkv.len && saved.d_out.len == saved.qkv.len);
    assert!(saved.log_sums.len == saved.qkv.len && saved.log_sums.width == shape.heads);
    for_tasks(cu_seqlens, saved.qkv.len, shape.kv_heads, |document, kv_head| {
        backward_task(&saved, &d_qkv, document, kv_head);
    });
}

struct Saved {
    qkv: Rows,
    out: Rows,
    log_sums: Rows,
    d_out: Rows,
    shape: AttentionShape,
}

fn backward_task(saved: &Saved, d_qkv: &Rows, document: Document, kv_head: usize) {
    let (shape, d) = (saved.shape, saved.shape.head_dim);
    let len = BLOCK * (document.end - document.start);
    let (mut p, mut dp) = (vec![0.0f32; len], vec![0.0f32; len]);
    let (key_column, value_column) = (shape.key_column(kv_head), shape.value_column(kv_head));
    for row in document.start..document.end {
        // SAFETY: this task alone touches the columns of its key and value head in its document's rows.
        let row = unsafe { d_qkv.row_mut(row) };
        row[key_column..key_column + d].fill(0.0);
        row[value_column..value_column + d].fill(0.0);
    }
    for head in kv_head * shape.group()..(kv_head + 1) * shape.group() {
        for block in Block::of(document, shape.window) {
            let (queries, keys) = (block.queries, block.keys);
            let key = Strided::at(&saved.qkv, block.key_row, key_column);
            let value = Strided::at(&saved.qkv, block.key_row, value_column);
            let d_key = Strided::at(d_qkv, block.key_row, key_column);
            let d_value = Strided::at(d_qkv, block.key_row, value_column);
            let (p, dp) = (&mut p[..queries * keys], &mut dp[..queries * keys]);
            let query = Strided::at(&saved.qkv, block.row, head * d);
            let d_out = Strided::at(&saved.d_out, block.row, head * d);
            product([queries, d, keys], d_out, value.transposed(), 0.0, Strided::dense(dp, keys));
            block_scores(&saved.qkv, shape, kv_head, head, &block, p);
            score_gradients(saved, &block, head, p, dp);
            let (p, ds) = (Strided::dense(p, keys), Strided::dense(dp, keys));
            product([keys, queries, d], p.transposed(), d_out, 1.0, d_value);
            product([keys, queries, d], ds.transposed(), query, 1.0, d_key);
            let d_query = Strided::at(d_qkv, block.row, head * d);
            product([queries, keys, d], ds, key, 0.0, d_query);
        }
    }
}

/// Turns raw scores into probabilities, and their gradients `dp` into those of the raw scores:
/// `ds = scale · p ⊙ (dp − Σ d_out ⊙ out)`, times the slope of the cap if there is one.
fn score_gradients(saved: &Saved, block: &Block, head: usize, p: &mut [f32], dp: &mut [f32]) {
    let (d, factor) = (saved.shape.head_dim, saved.shape.scale as f32);
    let rows = p.chunks_exact_mut(block.keys).zip(dp.chunks_exact_mut(block.keys));
    for (i, (p, dp)) in rows.enumerate() {
        let (row, columns) = (block.row + i, head * d..(head + 1) * d);
        let delta = dot(&saved.d_out.row(row)[columns.clone()], &saved.out.row(row)[columns]);
        let visible = block.visible(i);
        hide(p, &visible);
        hide(dp, &visible);
        let (p, dp) = (&mut p[visible.clone()], &mut dp[visible]);
        let left = saved.shape.capped(p);
        if let Some(limit) = saved.shape.softcap {
            slope(dp, p, delta, 1.0 / limit as f32);
            exp_sum(p, left, saved.log_sums.row(row)[head]);
            scaled_product(dp, factor, p);
        } else {
            exp_sum(p, left, saved.log_sums.row(row)[head]);
            for (dp, p) in dp.iter_mut().zip(p.iter()) {
                *dp = factor * *p * (*dp - delta);
            }
        }
    }
}

/// `dp = (dp − delta) · (1 − (capped/limit)²)`
fn slope(dp: &mut [f32], capped: &[f32], delta: f32, inverse_limit: f32) {
    for (dp, capped) in dp.iter_mut().zip(capped) {
        let t = capped * inverse_limit;
        *dp = (*dp - delta) * (1.0 - t * t);
    }
}

/// `dp = factor · p ⊙ dp`
fn scaled_product(dp: &mut [f32], factor: f32, p: &[f32]) {
    for (dp, p) in dp.iter_mut().zip(p) {
        *dp *= factor * p;
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
        return reference::cached_attention(q, keys, values, cached, shape, out);
    }
    let (q, keys, values, out) = (Rows::of(q), Rows::of(keys), Rows::of(values), Rows::of(out));
    assert!(q.width == shape.heads * shape.head_dim && out.width == q.width && out.len == q.len);
    assert!(keys.len >= cached + q.len && values.len >= cached + q.len);
    let d = shape.head_dim;
    (0..q.len * shape.heads).into_par_iter().with_min_len(2).for_each(|task| {
        let (row, head) = (task / shape.heads, task % shape.heads);
        let columns = head / shape.group() * d..(head / shape.group() + 1) * d;
        let query = &q.row(row)[head * d..(head + 1) * d];
        let end = cached + row + 1;
        let seen = end.saturating_sub(shape.window.unwrap_or(end))..end;
        let mut p: Vec<f32> =
            seen.clone().map(|key| dot(query, &keys.row(key)[columns.clone()])).collect();
        let factor = shape.capped(&mut p);
        let top = max(&p) * factor;
        let sum = exp_sum(&mut p, factor, top);
        // SAFETY: this task alone writes its head's columns of its row.
        let out = unsafe { std::slice::from_raw_parts_mut(out.pointer(row, head * d), d) };
        out.fill(0.0);
        for (key, p) in seen.zip(&p) {
            add_scaled(out, p / sum, &values.row(key)[columns.clone()]);
        }
    });
}

/// A block of a matrix: address of its first element and its strides.
#[derive(Clone, Copy)]
struct Strided {
    data: *mut f32,
    row_stride: isize,
    column_stride: isize,
}

impl Strided {
    fn at(matrix: &Rows, row: usize, column: usize) -> Self {
        let data = matrix.pointer(row, column);
        Self { data, row_stride: matrix.stride as isize, column_stride: 1 }
    }

    fn dense(data: &mut [f32], width: usize) -> Self {
        Self { data: data.as_mut_ptr(), row_stride: width as isize, column_stride: 1 }
    }

    fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// `c = beta · c + a · b` for a `[m, k]`, b `[k, n]`, c `[m, n]`.
fn product([m, k, n]: [usize; 3], a: Strided, b: Strided, beta: f32, c: Strided) {
    // SAFETY: the callers above pass blocks inside their tensors or scratch (row ranges of one document,
    // columns of one head), and `c` overlaps neither `a` nor `b`.
    unsafe {
        sgemm(
            m,
            k,
            n,
            1.0,
            a.data,
            a.row_stride,
            a.column_stride,
            b.data,
            b.row_stride,
            b.column_stride,
            beta,
            c.data,
            c.row_stride,
            c.column_stride,
        );
    }
}
