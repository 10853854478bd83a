//! Attention over packed documents and over a cache.

use tch::{Kind, Tensor};

use super::{FLASH_BOUNDS, Framed, On, Pair, wide};
use crate::cuda::road;
use crate::{AttentionShape, Segment, Segments, reference};

/// One token, tile ends, a document that needs several tiles.
const DOCUMENTS: [i32; 5] = [0, 1, 33, 36, 206];

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f64).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, window: None, softcap: None }
}

fn windowed(shape: AttentionShape, window: usize, softcap: Option<f64>) -> AttentionShape {
    AttentionShape { window: Some(window), softcap, ..shape }
}

/// Heads narrower than, and as wide as, the kernels' widths; groups; windows that end inside a tile; caps.
fn narrow() -> [AttentionShape; 3] {
    [shape(3, 3, 8), shape(4, 2, 64), windowed(shape(2, 1, 64), 5, Some(3.0))]
}

fn wider() -> [AttentionShape; 3] {
    [shape(4, 1, 128), shape(2, 1, 80), windowed(shape(2, 1, 128), 40, Some(2.0))]
}

fn widest() -> [AttentionShape; 3] {
    [shape(2, 1, 256), shape(1, 1, 200), windowed(shape(2, 2, 256), 40, Some(5.0))]
}

pub(super) fn narrow_heads(on: &On) -> Vec<Pair> {
    narrow().into_iter().flat_map(|shape| packed(on, shape, OWN)).collect()
}

pub(super) fn wide_heads(on: &On) -> Vec<Pair> {
    wider().into_iter().flat_map(|shape| packed(on, shape, OWN)).collect()
}

pub(super) fn widest_heads(on: &On) -> Vec<Pair> {
    widest().into_iter().flat_map(|shape| packed(on, shape, OWN)).collect()
}

/// What a training pass calls, on shapes that libtorch's kernel takes where there is one.
pub(super) fn flash(on: &On) -> Vec<Pair> {
    on.allow(FLASH_BOUNDS);
    let shapes = [narrow(), wider(), widest()].concat().into_iter();
    let shapes = shapes.map(|shape| AttentionShape { softcap: None, ..shape });
    shapes.flat_map(|shape| packed(on, shape, BEST).into_iter().chain(sharing(on, shape))).collect()
}

type Forward = fn(&Tensor, &Segments, AttentionShape, &Tensor, &Tensor);
type Backward = fn(&Tensor, &Tensor, &Tensor, &Tensor, &Segments, AttentionShape, &Tensor);
const BEST: (Forward, Backward) = (crate::attention, crate::attention_backward);
const OWN: (Forward, Backward) = (own_attention, own_attention_backward);

fn own_attention(
    qkv: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    out: &Tensor,
    log_sums: &Tensor,
) {
    if qkv.device().is_cuda() {
        return road::own_attention(qkv, segments, shape, out, log_sums);
    }
    crate::attention(qkv, segments, shape, out, log_sums);
}

fn own_attention_backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    d_qkv: &Tensor,
) {
    if qkv.device().is_cuda() {
        return road::own_attention_backward(d_out, qkv, out, log_sums, segments, shape, d_qkv);
    }
    crate::attention_backward(d_out, qkv, out, log_sums, segments, shape, d_qkv);
}

fn packed(on: &On, shape: AttentionShape, (forward, backward): (Forward, Backward)) -> Vec<Pair> {
    let t = i64::from(DOCUMENTS[DOCUMENTS.len() - 1]);
    let (width, out_width) = (shape.width() as i64, (shape.heads * shape.head_dim) as i64);
    let (qkv, d_out) = (on.random(&[t, width]), on.random(&[t, out_width]));
    let segments = Segments::documents(&DOCUMENTS);
    let log_sums = on.room(&[t, shape.heads as i64]);
    let (qkv_in, d_out_in) = (Framed::of(&qkv, 8), Framed::of(&d_out, 1));
    let (out, d_qkv) = (Framed::room(on, [t, out_width], 5), Framed::room(on, [t, width], 8));
    forward(&qkv_in.view, &segments, shape, &out.view, &log_sums);
    backward(&d_out_in.view, &qkv_in.view, &out.view, &log_sums, &segments, shape, &d_qkv.view);
    let (qkv, d_out) = (wide(&qkv), wide(&d_out));
    let (expected, d_expected, sums) =
        (d_out.empty_like(), qkv.empty_like(), log_sums.empty_like());
    reference::attention(&qkv, &segments, shape, &expected, &sums);
    reference::attention_backward(&d_out, &qkv, &segments, shape, &d_expected);
    let margins = [out.margin(), d_qkv.margin()];
    let results = [(out.view, expected), (log_sums, sums), (d_qkv.view, d_expected)];
    margins.into_iter().chain(results).collect()
}

/// Documents that go on from an earlier one, and keys behind all queries that each of them sees.
fn sharing(on: &On, shape: AttentionShape) -> Vec<Pair> {
    const ALL_ROWS: i64 = 139;
    let segment = |rows, before| Segment { rows, before };
    let (beginning, learned) = (1..70, 132..139);
    let segments = Segments::new(vec![
        segment(0..1, vec![learned.clone()]),
        segment(beginning.clone(), vec![learned.clone()]),
        segment(70..90, vec![learned.clone(), beginning.clone()]),
        segment(90..132, vec![learned, beginning]),
    ]);
    let t = segments.rows() as i64;
    let (width, out_width) = (shape.width() as i64, (shape.heads * shape.head_dim) as i64);
    let (qkv, d_out) = (on.random(&[ALL_ROWS, width]), on.random(&[t, out_width]));
    let log_sums = on.room(&[t, shape.heads as i64]);
    let (out, d_qkv) = (on.room(&[t, out_width]), on.room(&[ALL_ROWS, width]));
    let (out, d_qkv) = (out.to_kind(on.kind), d_qkv.to_kind(on.kind));
    crate::attention(&qkv, &segments, shape, &out, &log_sums);
    crate::attention_backward(&d_out, &qkv, &out, &log_sums, &segments, shape, &d_qkv);
    let (qkv, d_out) = (wide(&qkv), wide(&d_out));
    let (expected, d_expected) = (d_out.empty_like(), qkv.empty_like());
    let sums = log_sums.empty_like();
    reference::attention(&qkv, &segments, shape, &expected, &sums);
    reference::attention_backward(&d_out, &qkv, &segments, shape, &d_expected);
    vec![(out, expected), (log_sums, sums), (d_qkv, d_expected)]
}

pub(super) fn cached(on: &On) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for shape in [narrow(), wider(), widest()].concat() {
        for (cached, new) in [(0, 1), (37, 3), (5, 1)] {
            let (kv, q) = (shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim);
            let rows = (cached + new) as i64;
            let [keys, values] = [0; 2].map(|_| on.random(&[rows, kv as i64]));
            let q = on.random(&[new as i64, q as i64]);
            let (keys_in, values_in) = (Framed::of(&keys, 3), Framed::of(&values, 0));
            let (q_in, out) = (Framed::of(&q, 2), Framed::room(on, [new as i64, q.size()[1]], 1));
            let (k, v) = (&keys_in.view, &values_in.view);
            crate::cached_attention(&q_in.view, k, v, cached, shape, &out.view);
            let expected = Tensor::empty(q.size(), (Kind::Float, on.device));
            let [q, keys, values] = [&q, &keys, &values].map(wide);
            reference::cached_attention(&q, &keys, &values, cached, shape, &expected);
            pairs.extend([out.margin(), (out.view, expected)]);
        }
    }
    pairs
}
