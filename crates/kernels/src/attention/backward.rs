//! The backward pass of attention.
//!
//! A task writes the gradients of its own segment's rows in place; those of keys before it, which other
//! segments may see too, it keeps apart until all are done.

use rayon::prelude::*;
use tch::Tensor;

use super::{AttentionShape, BLOCK, Block, Strided, block_scores, hide, product, tasks};
use crate::cuda::road;
use crate::on_cpu;
use crate::rows::Rows;
use crate::segments::{Segment, Segments};
use crate::simd::{add_scaled, dot, exp_sum};

/// The backward pass: `d_qkv` receives the gradients of q, k and v (all of them; nothing is added up).
///
/// Keys that several segments see get the sum of their gradients, added up in the segments' order, so that the
/// number of threads changes no bit.
///
/// Shapes: qkv, d_qkv `[≥ T, width]`; out, d_out `[T, heads · head_dim]`; log_sums `[T, heads]` of the forward.
pub fn attention_backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    d_qkv: &Tensor,
) {
    if !on_cpu(qkv) {
        return road::attention_backward(d_out, qkv, out, log_sums, segments, shape, d_qkv);
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
    let rows = segments.rows();
    assert!(d_qkv.len == saved.qkv.len && saved.out.len == rows && saved.d_out.len == rows);
    assert!(saved.log_sums.len == rows && saved.log_sums.width == shape.heads);
    segments.check(saved.qkv.len);
    for row in rows..d_qkv.len {
        // SAFETY: no task has begun.
        unsafe { d_qkv.row_mut(row) }.fill(0.0);
    }
    let before: Vec<Vec<f32>> = tasks(segments, shape.kv_heads)
        .into_par_iter()
        .map(|(segment, kv_head)| backward_task(&saved, &d_qkv, segment, kv_head))
        .collect();
    (0..shape.kv_heads).into_par_iter().for_each(|kv_head| {
        let of_head = before.iter().skip(kv_head).step_by(shape.kv_heads);
        for (segment, gradients) in segments.iter().zip(of_head) {
            add_before(segment, gradients, kv_head, shape, &d_qkv);
        }
    });
}

/// Adds a segment's gradients of the keys and values before it to theirs.
fn add_before(
    segment: &Segment,
    gradients: &[f32],
    kv_head: usize,
    shape: AttentionShape,
    d_qkv: &Rows,
) {
    let d = shape.head_dim;
    let rows = segment.before.iter().cloned().flatten();
    for (row, gradients) in rows.zip(gradients.chunks_exact(2 * d)) {
        for (column, gradient) in [shape.key_column(kv_head), shape.value_column(kv_head)]
            .into_iter()
            .zip(gradients.chunks_exact(d))
        {
            // SAFETY: one thread has the columns of this head, and all tasks have ended.
            let sum = unsafe { std::slice::from_raw_parts_mut(d_qkv.pointer(row, column), d) };
            add_scaled(sum, 1.0, gradient);
        }
    }
}

struct Saved {
    qkv: Rows,
    out: Rows,
    log_sums: Rows,
    d_out: Rows,
    shape: AttentionShape,
}

/// Answers the gradients of the keys and values before the segment's own, `[keys, 2 · head_dim]`.
fn backward_task(saved: &Saved, d_qkv: &Rows, segment: &Segment, kv_head: usize) -> Vec<f32> {
    let (shape, d) = (saved.shape, saved.shape.head_dim);
    let len = BLOCK * segment.keys();
    let (mut p, mut dp) = (vec![0.0f32; len], vec![0.0f32; len]);
    let mut before = vec![0.0f32; segment.keys_before() * 2 * d];
    let (key_column, value_column) = (shape.key_column(kv_head), shape.value_column(kv_head));
    for row in segment.rows.clone() {
        for column in [key_column, value_column] {
            // SAFETY: this task alone touches the columns of its key and value head in its segment's rows.
            let part = unsafe { std::slice::from_raw_parts_mut(d_qkv.pointer(row, column), d) };
            part.fill(0.0);
        }
    }
    for head in kv_head * shape.group()..(kv_head + 1) * shape.group() {
        for block in Block::of(segment, shape.window) {
            let (queries, keys) = (block.queries, block.keys);
            let (p, dp) = (&mut p[..queries * keys], &mut dp[..queries * keys]);
            let query = Strided::at(&saved.qkv, block.row, head * d);
            let d_out = Strided::at(&saved.d_out, block.row, head * d);
            for piece in block.pieces() {
                let value = Strided::at(&saved.qkv, piece.row, value_column).transposed();
                let target = Strided::columns(dp, keys, piece.column);
                product([queries, d, piece.len], d_out, value, 0.0, target);
            }
            block_scores(&saved.qkv, shape, kv_head, head, &block, p);
            score_gradients(saved, &block, head, p, dp);
            let d_query = Strided::at(d_qkv, block.row, head * d);
            for (n, piece) in block.pieces().enumerate() {
                let p = Strided::columns(p, keys, piece.column);
                let ds = Strided::columns(dp, keys, piece.column);
                let [d_key, d_value] = if piece.is_own {
                    [key_column, value_column].map(|at| Strided::at(d_qkv, piece.row, at))
                } else {
                    let rows = &mut before[piece.key * 2 * d..];
                    [0, d].map(|at| Strided::columns(rows, 2 * d, at))
                };
                product([piece.len, queries, d], p.transposed(), d_out, 1.0, d_value);
                product([piece.len, queries, d], ds.transposed(), query, 1.0, d_key);
                let key = Strided::at(&saved.qkv, piece.row, key_column);
                let beta = if n == 0 { 0.0 } else { 1.0 };
                product([queries, piece.len, d], ds, key, beta, d_query);
            }
        }
    }
    before
}

/// Turns raw scores into probabilities, and their gradients `dp` into those of the raw scores:
/// `ds = scale · p ⊙ (dp − Σ d_out ⊙ out)`, times the slope of the cap if there is one.
fn score_gradients(saved: &Saved, block: &Block<'_>, head: usize, p: &mut [f32], dp: &mut [f32]) {
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
