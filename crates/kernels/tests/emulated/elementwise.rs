//! Operations on rows and flat buffers.

use kernels::cuda::plan::{self, Gradient};
use kernels::{Activation, AdamW, Factors, Nf4, Rotary, reference};
use tch::{Device, Kind, Tensor};

use crate::emulator::{KINDS, Watched, assert_close, in_every_order, random, wide};

/// Rows, width, and columns before the matrix: aligned and not, narrow and wider than a block.
const SHAPES: [(i64, i64, i64); 5] =
    [(1, 7, 3), (3, 64, 8), (5, 257, 1), (2, 2064, 8), (2, 2064, 4)];

fn empty(shape: &[i64]) -> Tensor {
    Tensor::full(shape, f64::NAN, (Kind::Float, Device::Cpu))
}

#[test]
fn rms_norm_and_its_gradient() {
    for kind in KINDS {
        for (t, d, before) in SHAPES {
            for segments in [1, 3] {
                let (x, w) = (random(&[t, segments * d], kind), random(&[d], Kind::Float));
                let (dy, dx) = (random(&[t, segments * d], kind), random(&[t, segments * d], kind));
                let results = in_every_order(|run| {
                    let rstd = empty(&[t, segments]);
                    let (x, dy) = (Watched::of(&x, before), Watched::of(&dy, before));
                    let out = Watched::empty([t, segments * d], kind, before);
                    let dx = Watched::of(&dx, before);
                    run(plan::rms_norm(&x.view, &w, 1e-5, &out.view, &rstd));
                    run(plan::rms_norm_backward(&dy.view, &x.view, &w, &rstd, &dx.view));
                    vec![out.finish(), rstd, dx.finish(), x.finish()]
                });
                let (x, dy, dx) = (wide(&x), wide(&dy), wide(&dx));
                let (out, rstd) = (x.empty_like(), empty(&[t, segments]));
                reference::rms_norm(&x, &w, 1e-5, &out, &rstd);
                reference::rms_norm_backward(&dy, &x, &w, &rstd, &dx);
                assert_close("out", kind, &results[0], &out);
                assert_close("rstd", Kind::Float, &results[1], &rstd);
                assert_close("dx", kind, &results[2], &dx);
            }
        }
    }
}

#[test]
fn rotation_of_a_part_of_each_head() {
    for kind in KINDS {
        for (frequencies, head_dim, heads) in [(3, 8, 2), (32, 64, 5), (5, 10, 1)] {
            let sets = [(0..frequencies).map(|i| 0.7f64.powi(i)).collect::<Vec<_>>()];
            let rotary = Rotary::new(&sets, 50, head_dim, 1.5, Device::Cpu);
            let positions: Vec<i64> = (0..4).map(|t| (t * 17) % 50).collect();
            let x = random(&[4, (heads * head_dim) as i64 + 5], kind);
            for inverse in [false, true] {
                let results = in_every_order(|run| {
                    let (x, positions) = (Watched::of(&x, 3), Tensor::from_slice(&positions));
                    run(plan::rotate(&x.view, &positions, &rotary, heads, inverse));
                    vec![x.finish()]
                });
                let expected = wide(&x).copy();
                reference::rotate_(&expected, &positions, &rotary, heads, inverse);
                assert_close("rotate", kind, &results[0], &expected);
            }
        }
    }
}

#[test]
fn gated_activations_and_their_gradients() {
    for kind in KINDS {
        for (t, f, before) in SHAPES {
            for activation in [Activation::Silu, Activation::GeluTanh] {
                let (gate_up, d_out) = (random(&[t, 2 * f], kind) * 3.0, random(&[t, f], kind));
                let results = in_every_order(|run| {
                    let (gate_up, out) =
                        (Watched::of(&gate_up, before), Watched::empty([t, f], kind, before));
                    let d_out = Watched::of(&d_out, before);
                    run(plan::gated(activation, &gate_up.view, &out.view));
                    run(plan::gated_backward(activation, &gate_up.view, &d_out.view));
                    vec![out.finish(), gate_up.finish(), d_out.finish()]
                });
                let (gate_up, d_out) = (wide(&gate_up).copy(), wide(&d_out).copy());
                let out = d_out.empty_like();
                reference::gated(activation, &gate_up, &out);
                reference::gated_backward_(activation, &gate_up, &d_out);
                for (result, expected) in results.iter().zip([&out, &gate_up, &d_out]) {
                    assert_close("gated", kind, result, expected);
                }
            }
        }
    }
}

#[test]
fn the_soft_cap_and_its_gradient() {
    for kind in KINDS {
        for (t, d, before) in SHAPES {
            let (x, dy) = (random(&[t, d], kind) * 20.0, random(&[t, d], kind));
            let results = in_every_order(|run| {
                let (x, dy) = (Watched::of(&x, before), Watched::of(&dy, before));
                run(plan::softcap(&x.view, 30.0));
                run(plan::softcap_backward(&dy.view, &x.view, 30.0));
                vec![x.finish(), dy.finish()]
            });
            let (expected, dy) = (wide(&x).copy(), wide(&dy).copy());
            reference::softcap_(&expected, 30.0);
            assert_close("cap", kind, &results[0], &expected);
            reference::softcap_backward_(&dy, &wide(&results[0]), 30.0);
            assert_close("slope", kind, &results[1], &dy);
        }
    }
}

#[test]
fn dropout_has_the_mask_of_the_cpu() {
    for kind in KINDS {
        for (t, d, before) in SHAPES {
            let x = random(&[t, d], kind);
            let results = in_every_order(|run| {
                let (x, out) = (Watched::of(&x, before), Watched::empty([t, d], kind, before));
                run(plan::dropout(&x.view, 0.3, 0xfeed_0000_1234, &out.view));
                vec![out.finish()]
            });
            let expected = wide(&x).empty_like();
            kernels::dropout(&wide(&x), 0.3, 0xfeed_0000_1234, &expected);
            assert_eq!(wide(&results[0]), expected.to_kind(kind).to_kind(Kind::Float));
        }
    }
}

#[test]
fn the_optimizer_and_the_sum_of_squares() {
    let settings = AdamW {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 3,
        grad_scale: 0.5,
    };
    for len in [1, 300, 5000] {
        let [values, grads, m] = [0; 3].map(|_| random(&[len], Kind::Float));
        let v = random(&[len], Kind::Float).square();
        let results = in_every_order(|run| {
            let [values, m, v] = [&values, &m, &v].map(Tensor::copy);
            run(plan::adamw(&values, &grads, &m, &v, settings));
            let parts =
                Tensor::full([plan::square_parts(&grads)], f64::NAN, (Kind::Double, Device::Cpu));
            run(plan::sum_of_squares(&grads, &parts));
            vec![values, m, v, parts.sum(Kind::Double)]
        });
        let sum = results[3].double_value(&[]);
        assert!((sum / reference::sum_of_squares(&grads) - 1.0).abs() < 1e-12);
        let [values, m, v] = [&values, &m, &v].map(Tensor::copy);
        reference::adamw(&values, &grads, &m, &v, settings);
        for (result, expected) in results.iter().zip([&values, &m, &v]) {
            assert_close("adamw", Kind::Float, result, expected);
        }
    }
}

#[test]
fn four_bit_weights_have_the_bits_of_the_cpu() {
    for len in [1, 63, 64, 1000, 64 * 256 + 70] {
        let bytes = |n: i64| Tensor::randint(256, [n], (Kind::Uint8, Device::Cpu));
        let blocks = (len as i64 + 63) / 64;
        let weight = Nf4 {
            codes: bytes((len as i64 + 1) / 2),
            absmax: bytes(blocks),
            nested_absmax: random(&[(blocks + 255) / 256], Kind::Float),
            offset: 0.37,
            levels: random(&[16], Kind::Float),
            absmax_levels: random(&[256], Kind::Float),
        };
        let expected = empty(&[len as i64]);
        kernels::nf4_dequantise(&weight, &expected);
        for kind in KINDS {
            let results = in_every_order(|run| {
                let out = Watched::empty([1, len as i64], kind, 3);
                run(plan::nf4_dequantise(&weight, &out.view));
                vec![out.finish().view(-1)]
            });
            assert_eq!(wide(&results[0]), expected.to_kind(kind).to_kind(Kind::Float), "{len}");
        }
    }
}

#[test]
fn cross_entropy_its_gradient_and_its_hits() {
    for kind in KINDS {
        for (n, v, before) in SHAPES {
            let logits = random(&[n, v], kind);
            let top = logits.argmax(-1, false);
            // The first row's target is its most probable token.
            let targets: Vec<i64> =
                (0..n).map(|i| if i == 0 { top.int64_value(&[0]) } else { (i * 31) % v }).collect();
            let factors: Vec<f64> = (0..n).map(|i| 0.5 - i as f64).collect();
            for each in [false, true] {
                let results = in_every_order(|run| {
                    let logits = Watched::of(&logits, before);
                    let targets = Tensor::from_slice(&targets);
                    let factors = Tensor::from_slice(&factors).to_kind(Kind::Float);
                    let plain = Tensor::full([n, 2], f64::NAN, (Kind::Double, Device::Cpu));
                    let rows = plain.copy();
                    run(plan::cross_entropy(&logits.view, &targets, Gradient::None, &plain));
                    let gradient =
                        if each { Gradient::Each(&factors) } else { Gradient::Equal(0.25) };
                    run(plan::cross_entropy(&logits.view, &targets, gradient, &rows));
                    assert_eq!(plain, rows);
                    vec![logits.finish(), rows]
                });
                let expected = wide(&logits).copy();
                let kinds = if each { Factors::Each(&factors) } else { Factors::Equal(0.25) };
                let sum = reference::cross_entropy_(&expected, &targets, kinds);
                assert_close("gradient", kind, &results[0], &expected);
                let rows = results[1].sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
                assert!((rows.double_value(&[0]) - sum.loss).abs() < 2e-6 * (1.0 + sum.loss));
                assert_eq!(rows.double_value(&[1]) as u64, sum.correct);
            }
        }
    }
}

#[test]
fn what_is_not_a_number_in_the_logits_is_one_in_the_loss() {
    let logits = random(&[1, 300], Kind::Float);
    let _ = logits.narrow(1, 177, 1).fill_(f64::NAN);
    let results = Tensor::zeros([1, 2], (Kind::Double, Device::Cpu));
    let targets = Tensor::from_slice(&[5i64]);
    in_every_order(|run| {
        run(plan::cross_entropy(&logits, &targets, Gradient::None, &results));
        vec![]
    });
    assert!(results.double_value(&[0, 0]).is_nan());
}
