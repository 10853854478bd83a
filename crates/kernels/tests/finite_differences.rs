//! Every hand-written backward pass of the crate, proved by arithmetic alone: in f64, where the plain references compute,
//! against central differences of its forward pass; and the f32 form of the CPU against the f64 one. Neither autograd
//! nor another library has a part in it.
//!
//! **The bound.** A central difference errs by h²·f‴/6, because it is a secant, and by ε·|f|/h, because both values are
//! rounded (ε = 1.1e-16). With h = 1e-5 and sums of about 100 these are about 1e-10 and 1e-9 for slopes of about 1.

use std::collections::BTreeSet;

use kernels::{Activation, AttentionShape, Factors, Rotary, Segment, Segments, Term, Write};
use tch::{Device, IndexOp, Kind, Tensor};

const STEP: f64 = 1e-5;
const BOUND: f64 = 1e-6;
/// Of the f32 forms, as in `parity.rs`.
const ROUNDING: f64 = 2e-6;

/// Every operation that training differentiates, with its proof. An operation that is its own backward pass, or whose
/// forward pass leaves the gradient, stands here by its own name.
const PROVED: [(&str, fn()); 8] = [
    ("rms_norm_backward", rms_norm),
    ("rotate_", rotation),
    ("gated_backward_", gated),
    ("softcap_backward_", softcap),
    ("cross_entropy_", cross_entropy),
    ("attention_backward", attention),
    ("dropout", dropout),
    ("product", product),
];

/// The forward passes of those with a backward pass of another name.
const FORWARD: [&str; 6] =
    ["rms_norm", "gated", "softcap_", "cross_entropy_loss", "target_logs", "attention"];

/// What nothing is differentiated through: the optimizer, generation, frozen weights, the surroundings.
const APART: [&str; 11] = [
    "adamw",
    "adamw_8bit",
    "sum_of_squares",
    "cached_attention",
    "attend_caches",
    "skinny",
    "nf4_dequantise",
    "read_values",
    "load_cuda",
    "set_threads",
    "wide_kind",
];

#[test]
fn every_backward_pass_is_the_slope_of_its_forward_pass() {
    tch::set_num_threads(1);
    // The same numbers in every run: nothing else here draws any.
    tch::manual_seed(7);
    for (_, proof) in PROVED {
        proof();
    }
}

/// A new operation is in one of the lists, or this fails.
#[test]
fn every_operation_is_proved_or_known_to_have_no_backward_pass() {
    let root = include_str!("../src/lib.rs");
    let exported = root.split("pub use ").skip(1).flat_map(|rest| {
        let list = rest.split(';').next().unwrap();
        list.rsplit("::").next().unwrap().split([',', '{', '}'])
    });
    let of = |source: &'static str| {
        let names = source.lines().filter_map(|line| line.strip_prefix("pub fn "));
        names.map(|rest| rest.split(['(', '<']).next().unwrap())
    };
    let functions = exported.map(str::trim).filter(|name| name.starts_with(char::is_lowercase));
    let references = of(include_str!("../src/reference.rs"));
    let found: BTreeSet<&str> = functions.chain(of(root)).chain(references).collect();
    let proved = PROVED.map(|(name, _)| name);
    let listed = proved.into_iter().chain(FORWARD).chain(APART);
    assert_eq!(found, listed.collect(), "found (left), listed (right)");
    for name in found.iter().filter(|name| name.contains("backward")) {
        assert!(proved.contains(name), "{name} has no proof");
    }
}

/// Random numbers that f32 has too, so that both types compute with the same.
fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::Double)
}

/// Statistics of a pass over `x`.
fn statistics(shape: &[i64], x: &Tensor) -> Tensor {
    Tensor::full(shape, f64::NAN, (kernels::wide_kind(x.kind()), Device::Cpu))
}

/// From the inputs to the result.
type Forward<'a> = &'a dyn Fn(&[Tensor]) -> Tensor;
/// From the inputs and the result's gradient to the gradient of each input, in the inputs' type.
type Backward<'a> = &'a dyn Fn(&[Tensor], &Tensor) -> Vec<Tensor>;

fn check(what: &str, inputs: &[Tensor], forward: Forward<'_>, backward: Backward<'_>) {
    let dy = random(&forward(inputs).size());
    let gradients = backward(inputs, &dy);
    let narrow = |tensor: &Tensor| tensor.to_kind(Kind::Float);
    let fast = backward(&inputs.iter().map(narrow).collect::<Vec<_>>(), &narrow(&dy));
    assert_eq!((gradients.len(), fast.len()), (inputs.len(), inputs.len()), "{what}");
    let (mut worst, mut worst_fast) = (0.0, 0.0);
    for (number, gradient) in gradients.iter().enumerate() {
        assert_eq!((gradient.kind(), fast[number].kind()), (Kind::Double, Kind::Float), "{what}");
        let value = |step: f64, direction: &Tensor| {
            let mut moved: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
            moved[number] = &inputs[number] + direction * step;
            (forward(&moved) * &dy).sum(Kind::Double).double_value(&[])
        };
        let rms = (gradient.norm() / (gradient.numel() as f64).sqrt()).double_value(&[]);
        for direction in directions(gradient) {
            let measured = (value(STEP, &direction) - value(-STEP, &direction)) / (2.0 * STEP);
            let computed = (gradient * &direction).sum(Kind::Double).double_value(&[]);
            // What a derivative in a direction of this length amounts to, lest a small one by chance counts.
            let size = rms * direction.norm().double_value(&[]);
            let error = (measured - computed).abs() / size;
            assert!(error < BOUND, "{what}, input {number}: {computed} against {measured}");
            worst = f64::max(worst, error);
        }
        let distance = ((&fast[number] - gradient).norm() / gradient.norm()).double_value(&[]);
        assert!(distance < ROUNDING, "{what}, input {number} in f32: {distance:e}");
        worst_fast = f64::max(worst_fast, distance);
    }
    println!("{what}: {worst:.1e}; in f32 {worst_fast:.1e}");
}

/// Directions: every element at once with random signs, three times; the element with the largest gradient; any one.
fn directions(gradient: &Tensor) -> Vec<Tensor> {
    let element = |at: i64| {
        let direction = gradient.zeros_like();
        let _ = direction.view(-1).i(at).fill_(1.0);
        direction
    };
    let largest = gradient.abs().view(-1).argmax(0, false).int64_value(&[]);
    let any = Tensor::randint(gradient.numel() as i64, [1], (Kind::Int64, Device::Cpu));
    let signs = |_| random(&gradient.size()).sign();
    let single = [element(largest), element(any.int64_value(&[0]))];
    (0..3).map(signs).chain(single).collect()
}

fn rms_norm() {
    // Of rows, and of the heads in a part of each row.
    for (t, n, d) in [(5, 1, 67), (7, 3, 16)] {
        let weight = random(&[d]).to_kind(Kind::Float);
        let forward = |x: &Tensor| {
            let (out, rstd) = (x.zeros_like(), statistics(&[t, n], x));
            kernels::rms_norm(x, &weight, 1e-5, &out, &rstd);
            (out, rstd)
        };
        check(
            &format!("norm of {n} in a row"),
            &[random(&[t, n * d]) * 0.5],
            &|inputs| forward(&inputs[0]).0,
            &|inputs, dy| {
                let dx = inputs[0].zeros_like();
                let rstd = forward(&inputs[0]).1;
                kernels::rms_norm_backward(dy, &inputs[0], &weight, &rstd, &dx);
                vec![dx]
            },
        );
    }
}

fn rotation() {
    // Six of eight elements of a head are rotated, by the tables of long texts, and one head is not.
    let sets = [vec![1.0, 0.1, 0.01], vec![0.5, 0.05, 0.005]];
    let rotary = Rotary::new(&sets, 32, 8, 1.5, Device::Cpu);
    let positions: Vec<i64> = (0..9).map(|t| t * 7).collect();
    let turn = |x: &Tensor, inverse| {
        let x = x.copy();
        kernels::rotate_(&x, &positions, &rotary, 2, inverse);
        x
    };
    check("rotation", &[random(&[9, 24])], &|inputs| turn(&inputs[0], false), &|_, dy| {
        vec![turn(dy, true)]
    });
}

fn gated() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        check(
            &format!("gate {activation:?}"),
            &[random(&[6, 2 * 19]) * 2.0],
            &|inputs| {
                let out = inputs[0].narrow(1, 0, 19).contiguous().zeros_like();
                kernels::gated(activation, &inputs[0], &out);
                out
            },
            &|inputs, dy| {
                let gradient = inputs[0].copy();
                kernels::gated_backward_(activation, &gradient, &dy.copy());
                vec![gradient]
            },
        );
    }
}

fn softcap() {
    let capped = |x: &Tensor| {
        let y = x.copy();
        kernels::softcap_(&y, 5.0);
        y
    };
    // Up to where the slope is nearly gone.
    check("cap", &[random(&[4, 61]) * 4.0], &|inputs| capped(&inputs[0]), &|inputs, dy| {
        let gradient = dy.copy();
        kernels::softcap_backward_(&gradient, &capped(&inputs[0]), 5.0);
        vec![gradient]
    });
}

fn cross_entropy() {
    let targets = [3, 0, 58, 17, 17];
    let logits = random(&[5, 59]) * 3.0;
    let gradient = |inputs: &[Tensor], factors: Factors<'_>| {
        let logits = inputs[0].copy();
        kernels::cross_entropy_(&logits, &targets, factors);
        vec![logits]
    };
    check(
        "sum of cross-entropies",
        &[logits.copy()],
        &|inputs| Tensor::from(kernels::cross_entropy_loss(&inputs[0].copy(), &targets).loss),
        &|inputs, dy| gradient(inputs, Factors::Equal(dy.double_value(&[]))),
    );
    check(
        "each cross-entropy",
        &[logits],
        &|inputs| {
            let logs = kernels::target_logs(&inputs[0].copy(), &targets);
            Tensor::from_slice(&logs.iter().map(|log| -log.log_p).collect::<Vec<_>>())
        },
        &|inputs, dy| {
            let factors: Vec<f64> = Vec::try_from(dy.to_kind(Kind::Double)).unwrap();
            gradient(inputs, Factors::Each(&factors))
        },
    );
}

fn attention() {
    let plain = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        scale: 0.3,
        window: None,
        softcap: None,
    };
    let segment = |rows, before: &[(usize, usize)]| Segment {
        rows,
        before: before.iter().map(|&(start, end)| start..end).collect(),
    };
    // Learned keys behind all rows that everyone sees, a beginning with two answers, one of them of a single
    // token, and a document between them; one is longer than the blocks of the f32 form.
    let learned = &[(105, 108)];
    let shared = || {
        Segments::new(vec![
            segment(0..70, learned),
            segment(70..83, &[(105, 108), (0, 70)]),
            segment(83..84, &[(105, 108), (0, 70)]),
            segment(84..97, learned),
            segment(97..105, &[(105, 108), (84, 97)]),
        ])
    };
    for (what, shape, segments, rows) in [
        ("attention in documents", plain, Segments::documents(&[0, 1, 8, 78]), 78),
        ("attention that sees beginnings and learned keys", plain, shared(), 108),
        ("the same in a window", AttentionShape { window: Some(6), ..plain }, shared(), 108),
        ("the same with a cap", AttentionShape { softcap: Some(2.0), ..plain }, shared(), 108),
        (
            "the same with both, one group of heads",
            AttentionShape { kv_heads: 1, window: Some(33), softcap: Some(1.5), ..plain },
            shared(),
            108,
        ),
    ] {
        let forward = |qkv: &Tensor| {
            let sizes = [segments.rows() as i64, 32];
            let out = Tensor::full(sizes, f64::NAN, (qkv.kind(), Device::Cpu));
            let log_sums = statistics(&[sizes[0], 4], qkv);
            kernels::attention(qkv, &segments, shape, &out, &log_sums);
            (out, log_sums)
        };
        check(
            what,
            &[random(&[rows, shape.width() as i64])],
            &|inputs| forward(&inputs[0]).0,
            &|inputs, dy| {
                let (out, log_sums) = forward(&inputs[0]);
                let gradient = inputs[0].full_like(f64::NAN);
                kernels::attention_backward(
                    dy, &inputs[0], &out, &log_sums, &segments, shape, &gradient,
                );
                vec![gradient]
            },
        );
    }
}

fn dropout() {
    let dropped = |x: &Tensor| {
        let out = x.zeros_like();
        kernels::dropout(x, 0.3, 7, &out);
        out
    };
    check("dropout", &[random(&[8, 33])], &|inputs| dropped(&inputs[0]), &|_, dy| {
        vec![dropped(dy)]
    });
}

/// A frozen product with an update of some of its columns, forward and back by the same function: `x·Wᵀ` and, from
/// column 5 on, `s·Bᵀ`.
fn product() {
    let (t, inner, out, rank, column) = (41, 24, 20, 3, 5);
    let width = 9;
    let sizes = [[t, inner], [out, inner], [t, rank], [width, rank]];
    let inputs = sizes.map(|size| random(&size));
    let sum = |terms: &[Term<'_>], rows: i64, columns: i64| {
        let kind = terms[0].b.kind();
        let out = Tensor::full([rows, columns], f64::NAN, (kind, Device::Cpu));
        kernels::product(terms, 1.0, Write::Over, &out);
        out
    };
    check(
        "product with an update",
        &inputs,
        &|inputs| {
            let [x, w, s, b] = inputs else { unreachable!() };
            let (w, b) = (w.tr(), b.tr());
            sum(&[Term::new(x, &w), Term { a: s, b: &b, column }], t, out)
        },
        &|inputs, dy| {
            let [x, w, s, b] = inputs else { unreachable!() };
            let part = dy.narrow(1, column, width);
            let d_x = sum(&[Term::new(dy, w)], t, inner);
            let d_w = sum(&[Term::new(&dy.tr(), x)], out, inner);
            let d_s = sum(&[Term::new(&part, b)], t, rank);
            // Added with a factor, as the gradient of a scaled B is.
            let d_b = b.zeros_like();
            for factor in [0.25, 0.75] {
                let d_bt = d_b.tr();
                kernels::product(&[Term::new(&s.tr(), &part)], factor, Write::Add, &d_bt);
            }
            vec![d_x, d_w, d_s, d_b]
        },
    );
}
