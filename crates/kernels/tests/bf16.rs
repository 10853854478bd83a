//! The operations on bf16 tensors against the fast f32 forms on the same numbers: they may differ by the one
//! rounding where a result is written.

use kernels::{Activation, AttentionShape, Factors, Rotary, Segment, Segments};
use tch::{Device, IndexOp, Kind, Tensor};

/// Numbers that bf16 holds, as f32.
fn random(shape: &[i64]) -> Tensor {
    half(&Tensor::randn(shape, (Kind::Float, Device::Cpu))).to_kind(Kind::Float)
}

fn half(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::BFloat16)
}

/// `ours` is `wide` rounded, but for what f32 sums in another order may have moved over a rounding's edge.
fn assert_rounded(what: &str, ours: &Tensor, wide: &Tensor) {
    assert_eq!(ours.kind(), Kind::BFloat16, "{what}");
    let rounded = half(wide).to_kind(Kind::Float);
    let off = (ours.to_kind(Kind::Float) - &rounded).abs();
    // A bf16 step; and what the two f32 forms differ by where 1 + tanh nearly vanishes.
    let allowed = rounded.abs() * 2f64.powi(-7) + rounded.abs().max() * 1e-5;
    assert_eq!(off.gt_tensor(&allowed).sum(Kind::Int64).int64_value(&[]), 0, "{what}");
    let moved = off.gt(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!(moved < 5e-2, "{what}: {moved} of the numbers were rounded otherwise");
}

#[test]
fn norms() {
    let (x, w, dy) = (random(&[33, 96]), random(&[48]), random(&[33, 96]));
    let dx = random(&[33, 96]);
    let (out, rstd) = (x.empty_like(), Tensor::empty([33, 2], (Kind::Float, Device::Cpu)));
    let (half_out, half_rstd) = (half(&x).empty_like(), rstd.empty_like());
    kernels::rms_norm(&x, &w, 1e-5, &out, &rstd);
    kernels::rms_norm(&half(&x), &w, 1e-5, &half_out, &half_rstd);
    assert_rounded("norm", &half_out, &out);
    assert!((&rstd - &half_rstd).abs().max().double_value(&[]) < 1e-6);
    let half_dx = half(&dx);
    kernels::rms_norm_backward(&dy, &x, &w, &rstd, &dx);
    kernels::rms_norm_backward(&half(&dy), &half(&x), &w, &rstd, &half_dx);
    assert_rounded("gradient", &half_dx, &dx);
}

#[test]
fn rotation() {
    let frequencies: Vec<f64> = (0..16).map(|i| 10_000f64.powf(-f64::from(i) / 16.0)).collect();
    let rotary = Rotary::new(&[frequencies], 64, 32, 1.0, Device::Cpu);
    let x = random(&[20, 5 * 32]);
    let positions: Vec<i64> = (0..20).map(|t| (t * 7) % 64).collect();
    let narrow = half(&x);
    for inverse in [false, true] {
        let wide = narrow.to_kind(Kind::Float);
        kernels::rotate_(&wide, &positions, &rotary, 4, inverse);
        kernels::rotate_(&narrow, &positions, &rotary, 4, inverse);
        assert_rounded("rotate", &narrow, &wide);
    }
}

#[test]
fn gated_activations() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let (gate_up, out, d_out) = (random(&[19, 90]) * 2.0, random(&[19, 45]), random(&[19, 45]));
        let (half_gate_up, half_out, half_d_out) = (half(&gate_up), half(&out), half(&d_out));
        kernels::gated(activation, &gate_up, &out);
        kernels::gated(activation, &half_gate_up, &half_out);
        assert_rounded("gated", &half_out, &out);
        kernels::gated_backward_(activation, &gate_up, &d_out);
        kernels::gated_backward_(activation, &half_gate_up, &half_d_out);
        assert_rounded("gradient", &half_gate_up, &gate_up);
        assert_rounded("again", &half_d_out, &d_out);
    }
}

#[test]
fn attention() {
    let plain = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        scale: 0.25,
        window: None,
        softcap: None,
    };
    for shape in [plain, AttentionShape { window: Some(5), softcap: Some(2.0), ..plain }] {
        let rows = [0..1, 1..30, 30..61, 61..101];
        let shared = 1..30;
        let before = [vec![], vec![], vec![shared.clone()], vec![shared]];
        let segments = rows.into_iter().zip(before);
        let segments = segments.map(|(rows, before)| Segment { rows, before });
        let segments = Segments::new(segments.collect());
        let (qkv, d_out) = (random(&[101, shape.width() as i64]), random(&[101, 64]));
        let out = d_out.empty_like();
        let sums = Tensor::empty([101, 4], (Kind::Float, Device::Cpu));
        let (half_out, half_sums) = (half(&out), sums.empty_like());
        kernels::attention(&qkv, &segments, shape, &out, &sums);
        kernels::attention(&half(&qkv), &segments, shape, &half_out, &half_sums);
        assert_rounded("attention", &half_out, &out);
        assert!((&sums - &half_sums).abs().max().double_value(&[]) < 1e-5);
        let d_qkv = qkv.empty_like();
        let half_d_qkv = half(&d_qkv);
        kernels::attention_backward(&d_out, &qkv, &out, &sums, &segments, shape, &d_qkv);
        kernels::attention_backward(
            &half(&d_out),
            &half(&qkv),
            &half_out,
            &half_sums,
            &segments,
            shape,
            &half_d_qkv,
        );
        assert_rounded("gradient", &half_d_qkv, &d_qkv);

        let keys = qkv.i(30..101).narrow(1, 64, 32).contiguous();
        let values = qkv.i(30..101).narrow(1, 96, 32).contiguous();
        let queries = qkv.i(90..101).narrow(1, 0, 64);
        let cached = queries.empty_like();
        let half_cached = half(&cached);
        kernels::cached_attention(&queries, &keys, &values, 60, shape, &cached);
        let [queries, keys, values] = [&queries, &keys, &values].map(half);
        kernels::cached_attention(&queries, &keys, &values, 60, shape, &half_cached);
        assert_rounded("cached", &half_cached, &cached);
    }
}

#[test]
fn dropout_has_the_mask_of_f32() {
    let x = random(&[16, 64]);
    let (out, half_out) = (x.empty_like(), half(&x).empty_like());
    kernels::dropout(&x, 0.25, 7, &out);
    kernels::dropout(&half(&x), 0.25, 7, &half_out);
    assert_rounded("dropout", &half_out, &out);
}

#[test]
fn heads_of_bf16_logits() {
    let logits = random(&[5, 301]) * 4.0;
    let targets = [1, 300, 7, 8, 9];
    let (narrow, capped) = (half(&logits), half(&logits));
    let exact = narrow.to_kind(Kind::Float);
    let ours = kernels::cross_entropy_(&narrow, &targets, Factors::Equal(0.5));
    let wide = kernels::cross_entropy_(&exact, &targets, Factors::Equal(0.5));
    assert!((ours.loss - wide.loss).abs() < 1e-4);
    assert_rounded("gradient", &narrow, &exact);
    let exact = capped.to_kind(Kind::Float);
    kernels::softcap_(&capped, 5.0);
    kernels::softcap_(&exact, 5.0);
    assert_rounded("cap", &capped, &exact);
}

#[test]
fn quantised_weights() {
    let bytes = |n: i64| Tensor::randint(256, [n], (Kind::Uint8, Device::Cpu));
    let weight = kernels::Nf4 {
        codes: bytes(320),
        absmax: bytes(10),
        nested_absmax: random(&[1]),
        offset: 0.7,
        levels: random(&[16]),
        absmax_levels: random(&[256]),
    };
    let out = Tensor::empty([640], (Kind::Float, Device::Cpu));
    let half_out = half(&out);
    kernels::nf4_dequantise(&weight, &out);
    kernels::nf4_dequantise(&weight, &half_out);
    assert_eq!(half_out, half(&out));
}
