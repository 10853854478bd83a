//! Launches of attention: how documents become tiles, and which tile size a head's width takes.

use tch::{Kind, Tensor};

use super::Launch;
use super::parameters::{Matrix, Parameters, element, is_plain};
use crate::AttentionShape;

/// Rows of a tile in the backward pass; the forward pass takes [`tile_rows`].
pub const TILE: usize = 32;
const THREADS: u32 = 256;
const HEAD_DIM_MAX: usize = 256;
const FLOAT_BYTES: usize = 4;

/// The width of heads that a kernel is compiled for: the next one of three.
fn compiled_width(head_dim: usize) -> Option<usize> {
    [64, 128, HEAD_DIM_MAX].into_iter().find(|width| head_dim <= *width)
}

/// Rows of a tile in the forward pass: wide heads leave room for fewer.
pub fn tile_rows(shape: AttentionShape) -> usize {
    if shape.head_dim <= 128 { 64 } else { TILE }
}

/// Cuts documents into tiles of at most `rows` rows, i32 `[tiles, 3]`: the document's begin and end, the tile's
/// first row.
pub fn tiles(cu_seqlens: &[i32], rows: usize) -> Vec<i32> {
    let documents = cu_seqlens.windows(2);
    documents
        .flat_map(|pair| (pair[0]..pair[1]).step_by(rows).map(|row| [pair[0], pair[1], row]))
        .flatten()
        .collect()
}

impl Parameters {
    /// `Shape` of attention.h.
    fn shape(self, shape: AttentionShape) -> Self {
        self.int(shape.heads)
            .int(shape.kv_heads)
            .int(shape.head_dim)
            .float(shape.scale as f32)
            .float(shape.softcap.unwrap_or(0.0) as f32)
            .int(shape.window.unwrap_or(usize::MAX).min(i32::MAX as usize))
    }
}

/// Bytes of shared memory: `staged` tiles of rows and `scores` tiles of scores.
fn shared(rows: usize, width: usize, staged: usize, scores: usize) -> u32 {
    ((staged * rows * (width + 1) + scores * rows * (rows + 1)) * FLOAT_BYTES) as u32
}

/// As [`crate::attention()`]; tiles of [`tile_rows`] rows.
pub fn attention(
    qkv: &Tensor,
    tiles: &Tensor,
    shape: AttentionShape,
    out: &Tensor,
    log_sums: &Tensor,
) -> Option<Launch> {
    let (element, width) = (element(&[qkv, out])?, compiled_width(shape.head_dim)?);
    let (qkv, out) = (Matrix::of(qkv)?, Matrix::of(out)?);
    assert!(qkv.width == shape.width() && out.len == qkv.len);
    assert!(out.width == shape.heads * shape.head_dim);
    assert_eq!(log_sums.numel(), qkv.len * shape.heads);
    if !is_plain(log_sums, Kind::Float) || !is_plain(tiles, Kind::Int) {
        return None;
    }
    let parameters =
        Parameters::new().rows(&qkv).rows(&out).tensor(log_sums).tensor(tiles).shape(shape);
    let grid = (tiles.size()[0] as usize, shape.heads);
    let launch = Launch::new(format!("attention_{width}_{element}"), grid, THREADS, parameters);
    Some(Launch { shared: shared(tile_rows(shape), width, 2, 1), ..launch })
}

/// As [`crate::attention_backward`], in three launches, one after the other; tiles of [`TILE`] rows; deltas f32
/// `[T, heads]` is scratch.
#[expect(clippy::too_many_arguments, reason = "the public function's own, with two more")]
pub fn attention_backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &Tensor,
    tiles: &Tensor,
    shape: AttentionShape,
    d_qkv: &Tensor,
    deltas: &Tensor,
) -> Option<[Launch; 3]> {
    let element = element(&[d_out, qkv, out, d_qkv])?;
    let width = compiled_width(shape.head_dim)?;
    let (d_out, qkv) = (Matrix::of(d_out)?, Matrix::of(qkv)?);
    let (out, d_qkv) = (Matrix::of(out)?, Matrix::of(d_qkv)?);
    assert!(qkv.width == shape.width() && d_qkv.width == qkv.width && d_qkv.len == qkv.len);
    assert!(out.width == shape.heads * shape.head_dim && d_out.width == out.width);
    assert!(out.len == qkv.len && d_out.len == qkv.len);
    for numbers in [log_sums, deltas] {
        assert_eq!(numbers.numel(), qkv.len * shape.heads);
        if !is_plain(numbers, Kind::Float) || !is_plain(tiles, Kind::Int) {
            return None;
        }
    }
    let launch = |name: String, grid: (usize, usize), shared: u32| {
        let parameters = Parameters::new()
            .rows(&d_out)
            .rows(&qkv)
            .rows(&out)
            .rows(&d_qkv)
            .tensor(log_sums)
            .tensor(deltas)
            .tensor(tiles)
            .shape(shape);
        Launch { shared, ..Launch::new(name, grid, THREADS, parameters) }
    };
    let warps = THREADS as usize / 32;
    let (count, shared) = (tiles.size()[0] as usize, shared(TILE, width, 4, 2));
    let keys = format!("attention_d_keys_{width}_{element}");
    let queries = format!("attention_d_queries_{width}_{element}");
    let deltas_grid = (qkv.len, shape.heads.div_ceil(warps));
    Some([
        launch(format!("attention_deltas_{element}"), deltas_grid, 0),
        launch(keys, (count, shape.kv_heads), shared),
        launch(queries, (count, shape.heads), shared),
    ])
}

/// As [`crate::cached_attention`].
pub fn cached_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    cached: usize,
    shape: AttentionShape,
    out: &Tensor,
) -> Option<Launch> {
    let element = element(&[q, keys, values, out])?;
    let (q, keys) = (Matrix::of(q)?, Matrix::of(keys)?);
    let (values, out) = (Matrix::of(values)?, Matrix::of(out)?);
    assert!(q.width == shape.heads * shape.head_dim && out.width == q.width && out.len == q.len);
    assert!(keys.len >= cached + q.len && values.len >= cached + q.len);
    if shape.head_dim > HEAD_DIM_MAX {
        return None;
    }
    let parameters =
        Parameters::new().rows(&q).rows(&keys).rows(&values).rows(&out).int(cached).shape(shape);
    let kernel = format!("cached_attention_{element}");
    Some(Launch::new(kernel, (q.len, shape.heads), THREADS, parameters))
}
