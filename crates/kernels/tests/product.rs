//! Sums of matrix products against libtorch's own, in awkward shapes and every order of memory.

use kernels::{Term, Write, product, reference};
use tch::{Device, Kind, Tensor};

fn random(shape: [i64; 2]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// The same matrix with its columns one after the other in memory.
fn by_columns(shape: [i64; 2]) -> Tensor {
    random([shape[1], shape[0]]).tr()
}

/// The same matrix as a part of something wider.
fn within(shape: [i64; 2]) -> Tensor {
    random([shape[0], shape[1] + 5]).narrow(1, 3, shape[1])
}

fn assert_equal(what: &str, got: &Tensor, expected: &Tensor) {
    let expected = expected.to_kind(Kind::Double);
    let error = (got.to_kind(Kind::Double) - &expected).norm() / expected.norm();
    let error = error.double_value(&[]);
    assert!(error < 1e-6, "{what}: relative distance {error:e}");
}

fn in_doubles(terms: &[Term<'_>], scale: f64, start: &Tensor) -> Tensor {
    let out = start.to_kind(Kind::Double);
    for term in terms {
        let (a, b) = (term.a.to_kind(Kind::Double), term.b.to_kind(Kind::Double));
        let mut columns = out.narrow(1, term.column, b.size()[1]);
        let _ = columns.g_add_(&(a.mm(&b) * scale));
    }
    out
}

#[test]
fn a_product_is_right_in_every_shape_and_order() {
    let forms: [fn([i64; 2]) -> Tensor; 3] = [random, by_columns, within];
    for [m, k, n] in [
        [32, 1, 1],
        [33, 7, 5],
        [45, 20, 16],
        [61, 64, 17],
        [40, 33, 31],
        [90, 20, 33],
        [40, 1100, 70],
        [1100, 8, 40],
        [300, 16, 16],
        [16, 300, 64],
        [7, 30, 40],
    ] {
        for a in forms.map(|form| form([m, k])) {
            for b in forms.map(|form| form([k, n])) {
                for out in forms.map(|form| form([m, n])) {
                    let what = format!("{m}×{k}×{n}, strides {:?} {:?}", a.stride(), b.stride());
                    let terms = [Term::new(&a, &b)];
                    let (fast, slow) = (out.copy(), out.copy());
                    let expected = in_doubles(&terms, 0.5, &out);
                    product(&terms, 0.5, Write::Add, &fast);
                    reference::product(&terms, 0.5, Write::Add, &slow);
                    assert_equal(&what, &fast, &expected);
                    assert_equal(&what, &slow, &expected);
                    product(&terms, 1.0, Write::Over, &out);
                    assert_equal(&what, &out, &in_doubles(&terms, 1.0, &out.zeros_like()));
                }
            }
        }
    }
}

#[test]
fn terms_of_some_columns_add_to_those_alone() {
    let (m, n) = (83, 150);
    let (x, w) = (random([m, 1100]), by_columns([1100, n]));
    let (s, b) = (within([m, 8]), by_columns([8, 70]));
    let (t, d) = (within([m, 3]), random([3, 40]));
    let terms =
        [Term::new(&x, &w), Term { a: &s, b: &b, column: 9 }, Term { a: &t, b: &d, column: 110 }];
    for terms in [&terms[..], &terms[1..], &terms[2..]] {
        for write in [Write::Over, Write::Add] {
            let (fast, slow) = (random([m, n]), random([m, n]));
            let start = if write == Write::Add { fast.copy() } else { fast.zeros_like() };
            slow.shallow_clone().copy_(&fast);
            product(terms, 2.0, write, &fast);
            reference::product(terms, 2.0, write, &slow);
            assert_equal("fast", &fast, &in_doubles(terms, 2.0, &start));
            assert_equal("reference", &slow, &in_doubles(terms, 2.0, &start));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    let (x, w) = (random([400, 1300]), by_columns([1300, 90]));
    let whole = random([400, 90]);
    product(&[Term::new(&x, &w)], 1.0, Write::Over, &whole);
    for (start, len) in [(0, 32), (1, 61), (350, 50)] {
        let part = random([len, 90]);
        let rows = x.narrow(0, start, len);
        product(&[Term::new(&rows, &w)], 1.0, Write::Over, &part);
        assert_eq!(part, whole.narrow(0, start, len));
    }
}
