//! Attention of new tokens over caches of keys and values: what answering does in each pass.
//!
//! Answers of one model go through a pass together, each with a cache of its own. A cache that gets a few
//! tokens is walked for each of them; one that gets a long piece of a prompt is walked in blocks of
//! queries, as in training. Either way a row's result does not depend on the other caches.

use std::ops::Range;

use rayon::prelude::*;
use tch::Tensor;

use super::{AttentionShape, BLOCK, Strided, cached_attention, hide, product};
use crate::on_cpu;
use crate::rows::Rows;
use crate::simd::{add_scaled, dot, exp_sum, max, scale};

/// A cache, and the rows of a pass that belong to it.
#[derive(Debug)]
pub struct CacheEnd<'a> {
    /// `[capacity, kv_heads · head_dim]` each.
    pub keys: &'a Tensor,
    pub values: &'a Tensor,
    /// Rows in the cache.
    pub cached: usize,
    /// Rows of the pass, after those of the ends before it.
    pub rows: usize,
}

/// Appends each cache's new keys and values, and lets its new queries see all of it.
///
/// Shapes: qkv `[T, width]` after rotation; out `[T, heads · head_dim]`.
pub fn attend_caches(qkv: &Tensor, ends: &[CacheEnd<'_>], shape: AttentionShape, out: &Tensor) {
    if !on_cpu(qkv) {
        return attend_one_by_one(qkv, ends, shape, out);
    }
    let (qkv, out) = (Rows::of(qkv), Rows::of(out));
    assert_eq!(qkv.width, shape.width());
    let caches: Vec<Cache> = Cache::all(ends, shape);
    for cache in &caches {
        for row in 0..cache.rows {
            let (_, new) = qkv.row(cache.first + row).split_at(shape.heads * shape.head_dim);
            let (key, value) = new.split_at(shape.kv_heads * shape.head_dim);
            // SAFETY: nobody else looks at the caches now; the pass's rows stand elsewhere.
            unsafe {
                cache.keys.row_mut(cache.cached + row).copy_from_slice(key);
                cache.values.row_mut(cache.cached + row).copy_from_slice(value);
            }
        }
    }
    attend(&qkv, &caches, shape, &out);
}

fn attend_one_by_one(qkv: &Tensor, ends: &[CacheEnd<'_>], shape: AttentionShape, out: &Tensor) {
    let [q, kv] = [shape.heads, shape.kv_heads].map(|heads| (heads * shape.head_dim) as i64);
    let mut first = 0;
    for end in ends {
        let (start, rows) = (end.cached as i64, end.rows as i64);
        let new = qkv.narrow(0, first, rows);
        end.keys.narrow(0, start, rows).copy_(&new.narrow(1, q, kv));
        end.values.narrow(0, start, rows).copy_(&new.narrow(1, q + kv, kv));
        let (q, out) = (new.narrow(1, 0, q), out.narrow(0, first, rows));
        cached_attention(&q, end.keys, end.values, end.cached, shape, &out);
        first += rows;
    }
}

/// The memory of a [`CacheEnd`].
pub(crate) struct Cache {
    keys: Rows,
    values: Rows,
    cached: usize,
    /// Its first row of the pass.
    first: usize,
    rows: usize,
}

impl Cache {
    pub fn all(ends: &[CacheEnd<'_>], shape: AttentionShape) -> Vec<Self> {
        let mut first = 0;
        let cache = |end: &CacheEnd<'_>| {
            let (keys, values) = (Rows::of(end.keys), Rows::of(end.values));
            let (len, width) = (end.cached + end.rows, shape.kv_heads * shape.head_dim);
            assert!(keys.len >= len && values.len >= len);
            assert!(keys.width == width && values.width == width);
            first += end.rows;
            let first = first - end.rows;
            Self { keys, values, cached: end.cached, first, rows: end.rows }
        };
        ends.iter().map(cache).collect()
    }

    /// Keys that its row number `row` of the pass sees.
    fn seen(&self, row: usize, shape: AttentionShape) -> Range<usize> {
        let end = self.cached + row + 1;
        end.saturating_sub(shape.window.unwrap_or(end))..end
    }
}

/// Rows from which a cache is walked in blocks of queries.
const LONG: usize = 16;
/// Products of queries and keys that are worth waking another thread for.
const TASK: usize = 1 << 12;

/// Attention of the pass's queries, whose keys and values are in the caches already. The queries are the first
/// columns of `q`.
pub(crate) fn attend(q: &Rows, caches: &[Cache], shape: AttentionShape, out: &Rows) {
    assert_eq!(caches.iter().map(|cache| cache.rows).sum::<usize>(), q.len);
    assert!(out.len == q.len && out.width == shape.heads * shape.head_dim);
    let mut tasks = Vec::new();
    let mut pairs = 0;
    for cache in caches {
        let step = if cache.rows < LONG { 1 } else { BLOCK };
        for head in 0..shape.heads {
            tasks.extend((0..cache.rows).step_by(step).map(|row| (cache, row, head)));
        }
        pairs +=
            (0..cache.rows).map(|row| cache.seen(row, shape).len()).sum::<usize>() * shape.heads;
    }
    let work = |&(cache, row, head): &(&Cache, usize, usize)| {
        if cache.rows < LONG {
            attend_row(q, cache, row, shape, head, out);
        } else {
            attend_block(q, cache, row, shape, head, out);
        }
    };
    if pairs < TASK {
        tasks.iter().for_each(work);
    } else {
        tasks.par_iter().for_each(work);
    }
}

/// One head of one query.
fn attend_row(q: &Rows, cache: &Cache, row: usize, shape: AttentionShape, head: usize, out: &Rows) {
    let (d, kv_head) = (shape.head_dim, head / shape.group());
    let columns = kv_head * d..(kv_head + 1) * d;
    let query = &q.row(cache.first + row)[head * d..(head + 1) * d];
    let seen = cache.seen(row, shape);
    let mut p: Vec<f32> =
        seen.clone().map(|key| dot(query, &cache.keys.row(key)[columns.clone()])).collect();
    let factor = shape.capped(&mut p);
    let top = max(&p) * factor;
    let sum = exp_sum(&mut p, factor, top);
    let start = out.pointer(cache.first + row, head * d);
    // SAFETY: this task alone writes its head's columns of its row.
    let out = unsafe { std::slice::from_raw_parts_mut(start, d) };
    out.fill(0.0);
    for (key, p) in seen.zip(&p) {
        add_scaled(out, p / sum, &cache.values.row(key)[columns.clone()]);
    }
}

/// One head of up to [`BLOCK`] queries from `row` on.
fn attend_block(
    q: &Rows,
    cache: &Cache,
    row: usize,
    shape: AttentionShape,
    head: usize,
    out: &Rows,
) {
    let (d, kv_column) = (shape.head_dim, head / shape.group() * shape.head_dim);
    let queries = BLOCK.min(cache.rows - row);
    let key_row = cache.seen(row, shape).start;
    let keys = cache.cached + row + queries - key_row;
    let mut scores = vec![0.0f32; queries * keys];
    let query = Strided::at(q, cache.first + row, head * d);
    let key = Strided::at(&cache.keys, key_row, kv_column).transposed();
    product([queries, d, keys], query, key, 0.0, Strided::columns(&mut scores, keys, 0));
    for (i, scores) in scores.chunks_exact_mut(keys).enumerate() {
        let seen = cache.seen(row + i, shape);
        let visible = seen.start - key_row..seen.end - key_row;
        hide(scores, &visible);
        let seen = &mut scores[visible];
        let factor = shape.capped(seen);
        let top = max(seen) * factor;
        let sum = exp_sum(seen, factor, top);
        scale(seen, 1.0 / sum);
    }
    let value = Strided::at(&cache.values, key_row, kv_column);
    let target = Strided::at(out, cache.first + row, head * d);
    product([queries, keys, d], Strided::columns(&mut scores, keys, 0), value, 0.0, target);
}
