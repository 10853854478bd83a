//! Attention over packed documents and over a cache.

use kernels::cuda::plan;
use kernels::{AttentionShape, Segments, reference};
use tch::{Device, Kind, Tensor};

use crate::emulator::{KINDS, Watched, assert_close, in_every_order, random, wide};

/// Heads narrower than, as wide as, and between the compiled widths; groups; windows that end inside a tile.
fn shapes() -> Vec<AttentionShape> {
    let shape = |heads, kv_heads, head_dim| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f64).sqrt(),
        window: None,
        softcap: None,
    };
    vec![
        shape(3, 3, 7),
        AttentionShape { window: Some(5), ..shape(2, 1, 64) },
        AttentionShape { window: Some(40), softcap: Some(2.0), ..shape(2, 1, 80) },
        AttentionShape { softcap: Some(5.0), ..shape(1, 1, 200) },
    ]
}

/// One token, tile ends, a document that needs two tiles, an empty one.
const DOCUMENTS: [i32; 6] = [0, 1, 33, 33, 36, 106];

#[test]
fn attention_stays_in_its_documents_forward_and_backward() {
    let t = i64::from(*DOCUMENTS.last().unwrap());
    for kind in KINDS {
        for shape in shapes() {
            let (heads, width) = (shape.heads as i64, (shape.heads * shape.head_dim) as i64);
            let (qkv, d_out) =
                (random(&[t, shape.width() as i64], kind), random(&[t, width], kind));
            let tiles = |rows| Tensor::from_slice(&plan::tiles(&DOCUMENTS, rows)).view([-1, 3]);
            let results = in_every_order(|run| {
                let log_sums = Tensor::full([t, heads], f64::NAN, (Kind::Float, Device::Cpu));
                let deltas = log_sums.copy();
                let (qkv, d_out) = (Watched::of(&qkv, 3), Watched::of(&d_out, 1));
                let out = Watched::empty([t, width], kind, 5);
                let d_qkv = Watched::empty([t, shape.width() as i64], kind, 2);
                let forward_tiles = tiles(plan::tile_rows(shape));
                run(plan::attention(&qkv.view, &forward_tiles, shape, &out.view, &log_sums));
                let backward_tiles = tiles(plan::TILE);
                let launches = plan::attention_backward(
                    &d_out.view,
                    &qkv.view,
                    &out.view,
                    &log_sums,
                    &backward_tiles,
                    shape,
                    &d_qkv.view,
                    &deltas,
                );
                launches.unwrap().into_iter().for_each(|launch| run(Some(launch)));
                vec![out.finish(), log_sums, d_qkv.finish()]
            });
            let (qkv, d_out) = (wide(&qkv), wide(&d_out));
            let (out, d_qkv) = (d_out.empty_like(), qkv.empty_like());
            let log_sums = Tensor::empty([t, heads], (Kind::Float, Device::Cpu));
            // The reference does not know empty documents.
            let mut documents = DOCUMENTS.to_vec();
            documents.dedup();
            let documents = Segments::documents(&documents);
            reference::attention(&qkv, &documents, shape, &out, &log_sums);
            reference::attention_backward(&d_out, &qkv, &documents, shape, &d_qkv);
            assert_close("out", kind, &results[0], &out);
            assert_close("log_sums", Kind::Float, &results[1], &log_sums);
            assert_close("d_qkv", kind, &results[2], &d_qkv);
        }
    }
}

#[test]
fn new_tokens_see_the_cache_and_each_other() {
    for kind in KINDS {
        for shape in shapes() {
            for (cached, new) in [(0, 1), (37, 3), (5, 1)] {
                let (kv, q) = (shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim);
                let rows = (cached + new) as i64;
                let [keys, values] = [0; 2].map(|_| random(&[rows, kv as i64], kind));
                let q = random(&[new as i64, q as i64], kind);
                let results = in_every_order(|run| {
                    let (keys, values) = (Watched::of(&keys, 3), Watched::of(&values, 0));
                    let out = Watched::empty([new as i64, q.size()[1]], kind, 1);
                    let q = Watched::of(&q, 2);
                    let (k, v) = (&keys.view, &values.view);
                    run(plan::cached_attention(&q.view, k, v, cached, shape, &out.view));
                    vec![out.finish()]
                });
                let (q, keys, values) = (wide(&q), wide(&keys), wide(&values));
                let out = q.empty_like();
                reference::cached_attention(&q, &keys, &values, cached, shape, &out);
                assert_close("cached", kind, &results[0], &out);
            }
        }
    }
}
