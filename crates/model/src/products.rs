//! Matrix products of f32 and bf16 tensors. Those of f32 are in `kernels`. Products of bf16 are summed in f32 and
//! rounded once, and not at all where the result is f32, as the adapters' gradients and the logits are.

use kernels::{Term, Write};
use tch::{Device, Kind, Tensor};

/// `out (+)= scale · Σ a·b`, in the type of `out`; see [`kernels::product`].
pub(crate) fn products(terms: &[Term<'_>], scale: f64, write: Write, out: &Tensor) {
    if terms.iter().all(|term| term.b.kind() != Kind::BFloat16) {
        return kernels::product(terms, scale, write, out);
    }
    let mut rest = terms;
    if write == Write::Over {
        match terms {
            [first, others @ ..] if scale == 1.0 && first.b.size()[1] == out.size()[1] => {
                product(first.a, first.b, out);
                rest = others;
            }
            _ => drop(out.shallow_clone().zero_()),
        }
    }
    for Term { a, b, column } in rest {
        let mut columns = out.narrow(1, *column, b.size()[1]);
        if scale == 1.0 {
            add_product(a, b, &columns);
        } else {
            let _ = columns.g_add_(&(f32_product(a, b) * scale));
        }
    }
}

/// `out = a·b`, in the type of `out`.
pub(crate) fn product(a: &Tensor, b: &Tensor, out: &Tensor) {
    match Road::of(b, out) {
        Road::Plain => kernels::product(&[Term::new(a, b)], 1.0, Write::Over, out),
        Road::Direct => drop(narrowed(a, b).mm_out(out, b)),
        Road::Wide => in_f32(a, b, |columns, part| {
            columns.of(out).copy_(part);
        }),
        Road::F32Result => out.shallow_clone().copy_(&narrowed(a, b).mm_dtype(b, Kind::Float)),
    }
}

/// `out += a·b`, in the type of `out`.
pub(crate) fn add_product(a: &Tensor, b: &Tensor, out: &Tensor) {
    match Road::of(b, out) {
        Road::Plain => kernels::product(&[Term::new(a, b)], 1.0, Write::Add, out),
        Road::Direct => drop(out.shallow_clone().addmm_(&narrowed(a, b), b)),
        Road::Wide => in_f32(a, b, |columns, part| {
            let _ = columns.of(out).g_add_(part);
        }),
        Road::F32Result => {
            let _ = out.shallow_clone().g_add_(&narrowed(a, b).mm_dtype(b, Kind::Float));
        }
    }
}

/// `a·b` as f32; of f64 factors as f64.
pub(crate) fn f32_product(a: &Tensor, b: &Tensor) -> Tensor {
    let out = Tensor::empty([a.size()[0], b.size()[1]], (kernels::wide_kind(b.kind()), b.device()));
    product(a, b, &out);
    out
}

/// How a product is computed.
enum Road {
    /// All f32, or all f64.
    Plain,
    /// One call: all of one type, and the hardware has it.
    Direct,
    /// Through f32 copies, a block of columns at a time.
    Wide,
    /// The device sums in f32 and can leave it so.
    F32Result,
}

impl Road {
    fn of(b: &Tensor, out: &Tensor) -> Self {
        let same = b.kind() == out.kind();
        if b.kind() != Kind::BFloat16 {
            Self::Plain
        } else if b.device() != Device::Cpu {
            if same { Self::Direct } else { Self::F32Result }
        } else if same && has_bf16_products() {
            Self::Direct
        } else {
            Self::Wide
        }
    }
}

/// libtorch's bf16 products on a CPU without the instructions are several times slower than the way through
/// f32.
fn has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The first factor in the type of the second: what is multiplied with bf16 weights is bf16.
fn narrowed(a: &Tensor, b: &Tensor) -> Tensor {
    a.to_kind(b.kind())
}

#[derive(Clone, Copy)]
struct Columns {
    start: i64,
    width: i64,
}

impl Columns {
    fn of(self, matrix: &Tensor) -> Tensor {
        matrix.narrow(1, self.start, self.width)
    }
}

/// Elements of `b` that are f32 at a time, 16 MB.
const BLOCK: i64 = 1 << 22;

/// Hands out `a·b` by blocks of columns: a weight is never f32 as a whole.
fn in_f32(a: &Tensor, b: &Tensor, mut take: impl FnMut(Columns, &Tensor)) {
    let a = narrowed(a, b).to_kind(Kind::Float);
    let (inner, width) = (b.size()[0], b.size()[1]);
    let step = (BLOCK / inner.max(1)).clamp(1, width.max(1));
    for start in (0..width).step_by(step as usize) {
        let columns = Columns { start, width: step.min(width - start) };
        take(columns, &a.mm(&columns.of(b).to_kind(Kind::Float)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: [i64; 2], kind: Kind) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
    }

    fn distance(ours: &Tensor, exact: &Tensor) -> f64 {
        let ours = ours.to_kind(Kind::Double);
        ((ours - exact).norm() / exact.norm()).double_value(&[])
    }

    #[test]
    fn both_ways_round_the_exact_product_once() {
        // Wide enough for a second block of columns.
        let (a, b) = (random([5, 4096], Kind::BFloat16), random([4096, 1100], Kind::BFloat16));
        let exact = a.to_kind(Kind::Double).mm(&b.to_kind(Kind::Double));
        let rounded = exact.to_kind(Kind::BFloat16);
        let of = distance(&rounded, &exact);
        let out = rounded.zeros_like();
        product(&a, &b, &out);
        assert!(distance(&out, &exact) < 1.01 * of);
        let _ = out.shallow_clone().zero_();
        in_f32(&a, &b, |columns, part| columns.of(&out).copy_(part));
        assert!(distance(&out, &exact) < 1.01 * of);
        add_product(&a, &b, &out);
        assert!(distance(&out, &(&exact * 2.0)) < 2.0 * of);
    }

    #[test]
    fn results_of_bf16_in_f32_are_not_rounded() {
        let (a, b) = (random([7, 300], Kind::BFloat16), random([300, 9], Kind::BFloat16));
        let exact = a.to_kind(Kind::Double).mm(&b.to_kind(Kind::Double));
        assert!(distance(&f32_product(&a, &b), &exact) < 1e-6);
        let sum = random([7, 9], Kind::Float);
        let expected = &exact + sum.to_kind(Kind::Double);
        add_product(&a, &b, &sum);
        assert!(distance(&sum, &expected) < 1e-6);
    }
}
