//! Every CPU operation against its plain-tch reference, and the backward ones against autograd, on random
//! inputs of awkward sizes.

use kernels::{
    Activation, AdamW, AttentionShape, CacheEnd, Compact, Factors, Rotary, Segment, Segments,
    reference,
};
use tch::{Device, IndexOp, Kind, Tensor};

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// ‖a − b‖ / ‖b‖; NaN anywhere gives NaN, which fails every bound.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    ((a - b).norm() / b.norm()).double_value(&[])
}

fn assert_close(what: &str, a: &Tensor, b: &Tensor, bound: f64) {
    let distance = distance(a, b);
    assert!(distance <= bound, "{what}: relative distance {distance:e}, allowed {bound:e}");
}

/// A tensor full of NaN, so that an element nobody wrote is seen.
fn poison(shape: &[i64]) -> Tensor {
    Tensor::full(shape, f64::NAN, (Kind::Float, Device::Cpu))
}

#[test]
fn rms_norm_and_its_gradient() {
    for (t, d) in [(1, 7), (33, 576), (5, 1024)] {
        let x = random(&[t, d]).set_requires_grad(true);
        let (w, dy) = (random(&[d]), random(&[t, d]));
        let (out, rstd, expected, rstd_expected) =
            (poison(&[t, d]), poison(&[t]), poison(&[t, d]), poison(&[t]));
        let plain = x.detach();
        kernels::rms_norm(&plain, &w, 1e-5, &out, &rstd);
        reference::rms_norm(&plain, &w, 1e-5, &expected, &rstd_expected);
        assert_close("rms_norm", &out, &expected, 1e-6);
        assert_close("rstd", &rstd, &rstd_expected, 1e-6);

        let y = &x * (x.square().mean_dim(-1, true, Kind::Float) + 1e-5).rsqrt() * &w;
        (y * &dy).sum(Kind::Float).backward();
        let residual = random(&[t, d]);
        for (name, backward) in [
            ("fast", kernels::rms_norm_backward as fn(&_, &_, &_, &_, &_)),
            ("reference", reference::rms_norm_backward),
        ] {
            let dx = residual.copy();
            backward(&dy, &plain, &w, &rstd, &dx);
            assert_close(name, &dx, &(x.grad() + &residual), 1e-6);
        }
    }
}

#[test]
fn rotation_turns_back_to_where_it_began() {
    let frequencies: Vec<f64> = (0..32).map(|i| 10_000f64.powf(-f64::from(i) / 32.0)).collect();
    let rotary = Rotary::new(&[frequencies], 64, 64, 1.0, Device::Cpu);
    let x = random(&[20, 5 * 64 + 3]).narrow(1, 0, 5 * 64);
    let positions: Vec<i64> = (0..20).map(|t| (t * 7) % 64).collect();
    let (fast, slow) = (x.copy(), x.copy());
    kernels::rotate_(&fast, &positions, &rotary, 4, false);
    reference::rotate_(&slow, &positions, &rotary, 4, false);
    assert_close("rotate", &fast, &slow, 1e-6);
    assert_eq!(fast.narrow(1, 256, 64), x.narrow(1, 256, 64), "the fifth head is not rotated");
    kernels::rotate_(&fast, &positions, &rotary, 4, true);
    assert_close("and back", &fast, &x, 1e-6);
}

#[test]
fn rotation_may_leave_a_part_of_each_head_and_scale_the_rest() {
    let sets = [vec![1.0, 0.1, 0.01], vec![0.5, 0.05, 0.005]];
    let rotary = Rotary::new(&sets, 32, 8, 1.5, Device::Cpu);
    assert_eq!(rotary.rows(), 64);
    let x = random(&[9, 3 * 8]);
    // Positions of the second set stand behind those of the first.
    let positions: Vec<i64> = (0..9).map(|t| 32 + t * 3).collect();
    let (fast, slow) = (x.copy(), x.copy());
    kernels::rotate_(&fast, &positions, &rotary, 2, false);
    reference::rotate_(&slow, &positions, &rotary, 2, false);
    assert_close("rotate", &fast, &slow, 1e-6);
    assert_eq!(fast.narrow(1, 6, 2), x.narrow(1, 6, 2), "the end of a head is not rotated");
    let angle = 8.0 * 3.0 * 0.5f64;
    let (a, b) = (x.double_value(&[8, 0]), x.double_value(&[8, 3]));
    let expected = 1.5 * (a * angle.cos() - b * angle.sin());
    assert!((fast.double_value(&[8, 0]) - expected).abs() < 1e-5);
    // The backward pass is the transpose: ⟨R·x, y⟩ = ⟨x, Rᵀ·y⟩.
    let y = random(&[9, 3 * 8]);
    let back = y.copy();
    kernels::rotate_(&back, &positions, &rotary, 2, true);
    let product = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
    assert!((product(&fast, &y) - product(&x, &back)).abs() < 1e-4);
}

#[test]
fn gated_activations_and_their_gradients() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let gate_up = (random(&[19, 2 * 45]) * 4.0).set_requires_grad(true);
        let dy = random(&[19, 45]);
        let parts = gate_up.chunk(2, 1);
        let active = match activation {
            Activation::Silu => parts[0].silu(),
            Activation::GeluTanh => parts[0].gelu("tanh"),
        };
        let expected = active * &parts[1];
        (&expected * &dy).sum(Kind::Float).backward();
        for (name, forward, backward) in [
            ("fast", kernels::gated as fn(_, &_, &_), kernels::gated_backward_ as fn(_, &_, &_)),
            ("reference", reference::gated, reference::gated_backward_),
        ] {
            let what = format!("{name} {activation:?}");
            let (out, d_gate_up, d_out) = (poison(&[19, 45]), gate_up.detach().copy(), dy.copy());
            forward(activation, &d_gate_up, &out);
            assert_close(&what, &out, &expected.detach(), 1e-6);
            backward(activation, &d_gate_up, &d_out);
            assert_close(&what, &d_gate_up, &gate_up.grad(), 1e-6);
            assert_close(&what, &d_out, &expected.detach(), 1e-6);
        }
    }
}

#[test]
fn segments_of_a_row_are_normalised_one_by_one() {
    let (t, n, d) = (21, 3, 16);
    // As in a packed row: the segments are a part of something wider.
    let x = random(&[t, n * d + 5]).narrow(1, 2, n * d);
    let (w, dy) = (random(&[d]), random(&[t, n * d]));
    let one_by_one = x.copy().view([t * n, d]);
    let (expected, rstd_expected) = (poison(&[t * n, d]), poison(&[t * n]));
    reference::rms_norm(&one_by_one, &w, 1e-5, &expected, &rstd_expected);
    let dx_expected = random(&[t, n * d]);
    let dx_start = dx_expected.copy();
    let dx_rows = dx_expected.view([t * n, d]);
    reference::rms_norm_backward(&dy.view([t * n, d]), &one_by_one, &w, &rstd_expected, &dx_rows);
    for (name, forward, backward) in [
        (
            "fast",
            kernels::rms_norm as fn(&_, &_, _, &_, &_),
            kernels::rms_norm_backward as fn(&_, &_, &_, &_, &_),
        ),
        ("reference", reference::rms_norm, reference::rms_norm_backward),
    ] {
        let (out, rstd, dx) = (poison(&[t, n * d]), poison(&[t, n]), dx_start.copy());
        forward(&x, &w, 1e-5, &out, &rstd);
        assert_close(name, &out, &expected.view([t, n * d]), 1e-6);
        assert_close(name, &rstd, &rstd_expected.view([t, n]), 1e-6);
        backward(&dy, &x, &w, &rstd, &dx);
        assert_close(name, &dx, &dx_expected, 1e-6);
    }
}

#[test]
fn softcap_and_its_gradient() {
    let x = (random(&[9, 301]) * 20.0).set_requires_grad(true);
    let dy = random(&[9, 301]);
    let y = (&x / 30.0).tanh() * 30.0;
    (&y * &dy).sum(Kind::Float).backward();
    for (name, forward, backward) in [
        ("fast", kernels::softcap_ as fn(&_, _), kernels::softcap_backward_ as fn(&_, &_, _)),
        ("reference", reference::softcap_, reference::softcap_backward_),
    ] {
        let (capped, dx) = (x.detach().copy(), dy.copy());
        forward(&capped, 30.0);
        assert_close(name, &capped, &y.detach(), 1e-6);
        backward(&dx, &capped, 30.0);
        assert_close(name, &dx, &x.grad(), 2e-6);
    }
}

#[test]
fn cross_entropy_and_its_gradient() {
    for (n, v) in [(1, 257), (9, 4099)] {
        let logits = (random(&[n, v]) * 5.0).set_requires_grad(true);
        let targets: Vec<i64> = (0..n).map(|i| (i * 31 + 5) % v).collect();
        let ids = Tensor::from_slice(&targets);
        let mean = logits.cross_entropy_for_logits(&ids);
        (&mean * (n as f64 * 0.25)).backward();
        let (fast, slow, third) =
            (logits.detach().copy(), logits.detach().copy(), logits.detach().copy());
        let loss = kernels::cross_entropy_(&fast, &targets, Factors::Equal(0.25));
        let expected = reference::cross_entropy_(&slow, &targets, Factors::Equal(0.25));
        let only = kernels::cross_entropy_loss(&third, &targets);
        let sum = mean.double_value(&[]) * n as f64;
        for got in [loss, expected, only] {
            assert!((got.loss - sum).abs() < 2e-6 * sum, "{got:?} against {sum}");
            assert_eq!(got.correct, expected.correct);
        }
        assert_close("gradient", &fast, &logits.grad(), 1e-6);
        assert_close("reference gradient", &slow, &logits.grad(), 1e-6);
    }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim, scale: 0.3, window: None, softcap: None }
}

#[test]
fn log_probabilities_and_the_gradient_of_their_weighted_sum() {
    let (n, v) = (9, 4099);
    let logits = (random(&[n, v]) * 5.0).set_requires_grad(true);
    let targets: Vec<i64> = (0..n).map(|i| (i * 31 + 5) % v).collect();
    let factors: Vec<f64> = (0..n).map(|i| 0.7 * (i as f64 - 3.0)).collect();
    let index = Tensor::from_slice(&targets).unsqueeze(1);
    let expected = logits.log_softmax(-1, Kind::Float).gather(1, &index, false).view([-1]);
    let weights = Tensor::from_slice(&factors).to_kind(Kind::Float);
    (-(&expected * weights).sum(Kind::Float)).backward();
    let copy = || logits.detach().copy();
    let (fast, slow) =
        (kernels::target_logs(&copy(), &targets), reference::target_logs(&copy(), &targets));
    for (i, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
        let golden = expected.double_value(&[i as i64]);
        assert!((fast.log_p - golden).abs() < 2e-6 * golden.abs(), "{fast:?} against {golden}");
        assert!((slow.log_p - golden).abs() < 2e-6 * golden.abs(), "{slow:?} against {golden}");
        assert_eq!(fast.correct, slow.correct);
    }
    let (fast, slow) = (copy(), copy());
    kernels::cross_entropy_(&fast, &targets, Factors::Each(&factors));
    reference::cross_entropy_(&slow, &targets, Factors::Each(&factors));
    assert_close("gradient", &fast, &logits.grad(), 1e-6);
    assert_close("reference gradient", &slow, &logits.grad(), 1e-6);
}

#[test]
fn attention_and_its_gradient_stay_inside_segments() {
    let shapes = [
        shape(4, 2, 16),
        shape(9, 3, 64),
        shape(2, 2, 8),
        // Windows of one key, inside a block, of a block and a bit, and wider than any document.
        AttentionShape { window: Some(1), ..shape(2, 1, 8) },
        AttentionShape { window: Some(5), ..shape(4, 2, 16) },
        AttentionShape { window: Some(70), ..shape(4, 2, 16) },
        AttentionShape { window: Some(1000), ..shape(2, 2, 8) },
        AttentionShape { softcap: Some(2.0), ..shape(4, 2, 16) },
        AttentionShape { window: Some(33), softcap: Some(5.0), ..shape(4, 2, 16) },
    ];
    for shape in shapes {
        // One token, one short, one that ends inside a block, one of exactly a block and one beyond two.
        let documents = Segments::documents(&[0, 1, 8, 78, 142, 300]);
        check_attention(shape, &documents, 300);
        // Wide heads take their time here, and have shown what they can.
        if shape.head_dim > 16 {
            continue;
        }
        // A prompt of several blocks with two answers and one of a single token, a document between them,
        // and another prompt; keys behind all queries stand before three of them.
        let segment = |rows, before: &[(usize, usize)]| Segment {
            rows,
            before: before.iter().map(|&(start, end)| start..end).collect(),
        };
        let shared = Segments::new(vec![
            segment(0..150, &[(310, 317)]),
            segment(150..190, &[(310, 317), (0, 150)]),
            segment(190..191, &[(0, 150)]),
            segment(191..262, &[]),
            segment(262..270, &[]),
            segment(270..272, &[(262, 270)]),
            segment(272..310, &[(0, 150), (262, 270)]),
        ]);
        check_attention(shape, &shared, 320);
    }
}

fn check_attention(shape: AttentionShape, segments: &Segments, rows: i64) {
    let (t, q) = (segments.rows() as i64, (shape.heads * shape.head_dim) as i64);
    let qkv = random(&[rows, shape.width() as i64]);
    let d_out = random(&[t, q]);
    let (out, lse) = (poison(&[t, q]), poison(&[t, shape.heads as i64]));
    let (out_expected, lse_expected) = (out.copy(), lse.copy());
    kernels::attention(&qkv, segments, shape, &out, &lse);
    reference::attention(&qkv, segments, shape, &out_expected, &lse_expected);
    assert_close("attention", &out, &out_expected, 1e-6);
    assert_close("log-sums", &lse, &lse_expected, 1e-6);

    let (d_fast, d_slow) = (qkv.full_like(f64::NAN), qkv.full_like(f64::NAN));
    kernels::attention_backward(&d_out, &qkv, &out, &lse, segments, shape, &d_fast);
    reference::attention_backward(&d_out, &qkv, segments, shape, &d_slow);
    assert_close(&format!("gradient of {shape:?}"), &d_fast, &d_slow, 2e-6);

    let leaf = qkv.copy().set_requires_grad(true);
    let whole = autograd_attention(&leaf, segments, shape);
    (whole * &d_out).sum(Kind::Float).backward();
    assert_close(&format!("autograd of {shape:?}"), &d_fast, &leaf.grad(), 2e-6);
}

/// Attention by libtorch's own operations, segment by segment: the queries of a segment are the last of a
/// document that is put together from all that they see.
fn autograd_attention(qkv: &Tensor, segments: &Segments, shape: AttentionShape) -> Tensor {
    let (h, k, d) = (shape.heads as i64, shape.kv_heads as i64, shape.head_dim as i64);
    let outputs: Vec<Tensor> = segments
        .iter()
        .map(|segment| {
            let ranges = segment.before.iter().chain([&segment.rows]);
            let parts = ranges.map(|rows| qkv.i(rows.start as i64..rows.end as i64));
            let rows = Tensor::cat(&parts.collect::<Vec<_>>(), 0);
            let len = rows.size()[0];
            let part = |start: i64, n: i64| {
                let part = rows.narrow(1, start * d, n * d).view([len, n, d]).transpose(0, 1);
                part.repeat_interleave_self_int(h / n, 0, None::<i64>)
            };
            let scores = part(0, h).matmul(&part(h, k).mt()) * shape.scale;
            let scores = match shape.softcap {
                Some(cap) => (scores / cap).tanh() * cap,
                None => scores,
            };
            let at = Tensor::arange(len, (Kind::Int64, Device::Cpu));
            let distance = at.unsqueeze(1) - at.unsqueeze(0);
            let window = shape.window.map_or(len, |window| window as i64);
            let hidden = distance.lt(0).logical_or(&distance.ge(window));
            let p = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Float);
            let all = p.matmul(&part(h + k, k)).transpose(0, 1).reshape([len, h * d]);
            let own = segment.rows.len() as i64;
            all.narrow(0, len - own, own)
        })
        .collect();
    Tensor::cat(&outputs, 0)
}

#[test]
fn cached_attention_continues_what_attention_began() {
    let plain = shape(6, 2, 16);
    continue_from_a_cache(plain);
    continue_from_a_cache(AttentionShape { window: Some(7), softcap: Some(3.0), ..plain });
}

fn continue_from_a_cache(shape: AttentionShape) {
    let (t, q, kv) = (40, 96, 32);
    let qkv = random(&[t, shape.width() as i64]);
    let (whole, lse) = (poison(&[t, q]), poison(&[t, 6]));
    kernels::attention(&qkv, &Segments::documents(&[0, t as i32]), shape, &whole, &lse);
    let (keys, values) =
        (qkv.narrow(1, q, kv).contiguous(), qkv.narrow(1, q + kv, kv).contiguous());
    for (cached, new) in [(0, 40), (25, 15), (39, 1)] {
        let queries = qkv.i(cached..cached + new).narrow(1, 0, q);
        for (name, function) in [
            ("fast", kernels::cached_attention as fn(&_, &_, &_, _, _, &_)),
            ("reference", reference::cached_attention),
        ] {
            let out = poison(&[new, q]);
            function(&queries, &keys, &values, cached as usize, shape, &out);
            assert_close(name, &out, &whole.i(cached..cached + new), 1e-6);
        }
    }
}

#[test]
fn several_caches_grow_in_one_pass() {
    let plain = shape(6, 2, 16);
    several_caches(plain);
    several_caches(AttentionShape { window: Some(9), softcap: Some(3.0), ..plain });
}

fn several_caches(shape: AttentionShape) {
    let (q, kv) = (96, 32);
    // Cached and new rows of each.
    let sizes = [(0, 70), (30, 1), (5, 3), (100, 20), (0, 1)];
    let texts = sizes.map(|(cached, new)| random(&[cached + new, shape.width() as i64]));
    let expected = texts.each_ref().map(|text| {
        let (out, lse) = (poison(&[text.size()[0], q]), poison(&[text.size()[0], 6]));
        kernels::attention(
            text,
            &Segments::documents(&[0, text.size()[0] as i32]),
            shape,
            &out,
            &lse,
        );
        out
    });
    let mut caches = Vec::new();
    for (text, (cached, new)) in texts.iter().zip(sizes) {
        // Room is left behind the text, and nothing of the new rows is there yet.
        let [keys, values] = [q, q + kv].map(|column| {
            let cache = poison(&[cached + new + 3, kv]);
            cache.narrow(0, 0, cached).copy_(&text.narrow(0, 0, cached).narrow(1, column, kv));
            cache
        });
        caches.push((keys, values));
    }
    let new_rows = |all: &[Tensor]| {
        let rows = all.iter().zip(sizes).map(|(all, (cached, new))| all.narrow(0, cached, new));
        Tensor::cat(&rows.collect::<Vec<_>>(), 0)
    };
    let ends = caches.iter().zip(sizes).map(|((keys, values), (cached, new))| CacheEnd {
        keys,
        values,
        cached: cached as usize,
        rows: new as usize,
    });
    let out = poison(&[95, q]);
    kernels::attend_caches(&new_rows(&texts), &ends.collect::<Vec<_>>(), shape, &out);
    assert_close("several caches", &out, &new_rows(&expected), 1e-6);
}

/// Weights whose smallest exact form is this one.
fn weights_of_form(form: &str, out: i64, inner: i64) -> Tensor {
    let whole =
        |low, high| Tensor::randint_low(low, high, [out, inner], (Kind::Float, Device::Cpu));
    // A scale for each block of 32, a power of two apart so that all is exact.
    let scales = || {
        let blocks = Tensor::randint_low(-9, -3, [out, inner / 32], (Kind::Float, Device::Cpu));
        blocks.exp2().repeat_interleave_self_int(32, 1, None::<i64>)
    };
    match form {
        "4 bits" => (whole(0, 16) - 6.5) * scales() * 1.25,
        "8 bits" => whole(-127, 128) * scales() * 1.25,
        "bf16" => random(&[out, inner]).to_kind(Kind::BFloat16).to_kind(Kind::Float),
        "f16" => random(&[out, inner]).to_kind(Kind::Half).to_kind(Kind::Float),
        _ => random(&[out, inner]),
    }
}

#[test]
fn products_of_few_rows_at_all_sizes_in_all_forms() {
    for form in ["4 bits", "8 bits", "bf16", "f16", "f32"] {
        let in_blocks = form.ends_with("bits");
        for (out, inner) in [(1, 32), (16, 64), (77, 96), (200, 576)] {
            let inner = if in_blocks { inner } else { inner + 3 };
            let weight = weights_of_form(form, out, inner);
            let compact = Compact::exact(&weight);
            assert_eq!(compact.as_ref().map_or("f32", Compact::form), form, "{out} × {inner}");
            let compact = compact.unwrap_or_else(|| Compact::plain(&weight));
            assert_eq!((compact.out_width(), compact.in_width()), (out as usize, inner as usize));
            few_rows(&compact, &weight);
        }
    }
}

/// Products of any number of rows, against libtorch's; a row by itself gives the same bits.
fn few_rows(compact: &Compact, weight: &Tensor) {
    let (out, inner) = (weight.size()[0], weight.size()[1]);
    let x = random(&[19, inner + 5]).narrow(1, 2, inner);
    for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 19] {
        let (x, before) = (x.narrow(0, 0, rows), random(&[rows, out]));
        let (y, sum) = (poison(&[rows, out]), before.copy());
        kernels::skinny(&x, compact, &y, false);
        kernels::skinny(&x, compact, &sum, true);
        let product =
            |a: &Tensor, b: &Tensor| a.to_kind(Kind::Double).mm(&b.tr().to_kind(Kind::Double));
        let (expected, size) = (product(&x, weight), product(&x.abs(), &weight.abs()));
        let what = format!("{} {out} × {inner}, {rows} rows", compact.form());
        // Of a sum's terms, since they may cancel.
        let error = |y: &Tensor, expected: Tensor| ((y - expected) / (&size + 1.0)).abs().max();
        assert!(error(&y, expected.copy()).double_value(&[]) < 1e-6, "{what}");
        assert!(error(&sum, expected + &before).double_value(&[]) < 1e-6, "{what}, added");
        let last = poison(&[1, out]);
        kernels::skinny(&x.narrow(0, rows - 1, 1), compact, &last, false);
        assert_eq!(last, y.narrow(0, rows - 1, 1), "{what}: alone");
    }
}

#[test]
fn adamw_equals_the_reference_over_many_steps() {
    let n = 200_003;
    let (a, b) = (random(&[n]), Tensor::zeros([n], (Kind::Float, Device::Cpu)));
    b.shallow_clone().copy_(&a);
    let zeros = || Tensor::zeros([n], (Kind::Float, Device::Cpu));
    let (m1, v1, m2, v2) = (zeros(), zeros(), zeros(), zeros());
    for step in 1..=10 {
        let grad = random(&[n]);
        let settings = AdamW {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.5,
        };
        kernels::adamw(&a, &grad, &m1, &v1, settings);
        reference::adamw(&b, &grad, &m2, &v2, settings);
    }
    assert_close("values", &a, &b, 1e-6);
    assert_close("second moment", &v1, &v2, 1e-6);
    let squares = a.square().sum(Kind::Double).double_value(&[]);
    assert!((kernels::sum_of_squares(&a) / squares - 1.0).abs() < 1e-5);
}

#[test]
fn adamw_in_8_bits_equals_the_reference() {
    let n = 256 * 70 + 9;
    let levels = Tensor::from_slice(&std::array::from_fn::<f32, 256, _>(|i| {
        (i as f32 / 127.5 - 1.0).powi(3)
    }));
    let nearest: Vec<u8> = (0..1 << 16)
        .map(|step| (((step as f64 / 32767.5 - 1.0).cbrt() + 1.0) * 127.5).round() as u8)
        .collect();
    let code = kernels::Code { levels, nearest: Tensor::from_slice(&nearest) };
    let zeros = |len: i64, kind| Tensor::zeros([len], (kind, Device::Cpu));
    let moments = || kernels::Moments {
        m: zeros(n, Kind::Uint8),
        v: zeros(n, Kind::Uint8),
        m_absmax: zeros(71, Kind::Float),
        v_absmax: zeros(71, Kind::Float),
    };
    let (a, fast, slow) = (random(&[n]), moments(), moments());
    let b = a.copy();
    for step in 1..=3 {
        let grad = random(&[n]);
        if step == 1 {
            let _ = grad.i(512..768).zero_();
        }
        let settings = AdamW {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.5,
        };
        kernels::adamw_8bit(&a, &grad, &fast, [&code, &code], settings);
        reference::adamw_8bit(&b, &grad, &slow, [&code, &code], settings);
    }
    assert_close("values", &a, &b, 1e-5);
    assert_close("absmax", &fast.v_absmax, &slow.v_absmax, 1e-6);
    for (fast, slow) in [(&fast.m, &slow.m), (&fast.v, &slow.v)] {
        let others = fast.ne_tensor(slow).sum(Kind::Int64).int64_value(&[]);
        assert!(others * 1000 < n, "{others} codes differ");
    }
}

#[test]
fn a_single_bad_number_shows_in_the_norm() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let x = random(&[100_000]);
        let _ = x.i(77_777).fill_(bad);
        assert!(!kernels::sum_of_squares(&x).is_finite());
    }
}

#[test]
fn quantised_weights_come_back_with_the_same_bits() {
    for len in [64, 1, 63, 130, 64 * 300 + 7, 64 * 1024] {
        let bytes = |n: i64| Tensor::randint(256, [n], (Kind::Uint8, Device::Cpu));
        let blocks = (len + 63) / 64;
        let weight = kernels::Nf4 {
            codes: bytes((len + 1) / 2),
            absmax: bytes(blocks),
            nested_absmax: random(&[(blocks + 255) / 256]),
            offset: 0.7,
            levels: random(&[16]),
            absmax_levels: random(&[256]),
        };
        let (fast, slow) = (poison(&[len]), poison(&[len]));
        kernels::nf4_dequantise(&weight, &fast);
        reference::nf4_dequantise(&weight, &slow);
        assert_eq!(fast, slow, "{len} weights");
    }
}

#[test]
fn products_of_few_rows_read_stacked_quantised_weights() {
    let (inner, rows) = (192, [33i64, 5, 20]);
    let part = |rows: i64| {
        let bytes = |n: i64| Tensor::randint(256, [n], (Kind::Uint8, Device::Cpu));
        let blocks = rows * inner / 64;
        let weight = kernels::Nf4 {
            codes: bytes(blocks * 32),
            absmax: bytes(blocks),
            nested_absmax: random(&[(blocks + 255) / 256]),
            offset: 0.7,
            levels: random(&[16]),
            absmax_levels: random(&[256]),
        };
        (rows, weight)
    };
    let mut parts = rows.map(part);
    let levels = parts[0].1.levels.shallow_clone();
    let dense = parts.each_mut().map(|(rows, weight)| {
        weight.levels = levels.shallow_clone();
        let dense = poison(&[*rows, inner]);
        kernels::nf4_dequantise(weight, &dense);
        dense
    });
    let compact = Compact::nf4(&parts, inner as usize).expect("whole blocks");
    few_rows(&compact, &Tensor::cat(&dense, 0));
    assert!(Compact::nf4(&parts, 96).is_none(), "a block must not lie in two rows");
}
