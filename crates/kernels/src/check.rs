//! The operations on one device against their plain-tch references on the same device: what an engine asks of a GPU
//! before it trusts its kernels, and what `finetuned-engine check-device` prints.
//!
//! Small shapes that meet every path of a kernel: widths that fill 16 bytes and that do not, rows that stand apart,
//! documents that end inside a tile. Nothing is decided here; a [`Finding`] says what was off and which kernels ran.

mod rows;
mod sequences;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Cuda, Device, Kind, Tensor};

use crate::cuda::roster;

/// What one operation gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub operation: &'static str,
    pub kind: Kind,
    /// How far the worst result is from its reference, as a share of what is allowed; not a number when a
    /// result is none.
    pub share: f64,
    /// The distance and the bound of that result, relative in the norm.
    pub error: f64,
    pub bound: f64,
    /// The CUDA kernels that ran; none where all was plain tch.
    pub kernels: Vec<String>,
    /// What ended the operation, if something did.
    pub fault: Option<String>,
}

impl Finding {
    pub fn passes(&self) -> bool {
        self.fault.is_none() && self.share <= 1.0
    }
}

/// f32 results differ by rounding, bf16 ones by one rounding of each number.
fn bound_of(kind: Kind) -> f64 {
    if kind == Kind::BFloat16 { 4e-3 } else { 2e-6 }
}

/// Flash attention rounds probabilities and their gradients too, before it multiplies with them; and of heads that
/// share keys, each one's gradient. Its exponentials and logarithms, and so the log-sums, are the hardware's own.
const FLASH_BOUNDS: Bounds = Bounds { results: 1e-2, statistics: 1e-4 };

/// What is allowed of results in a case's type, and of f32 numbers beside them.
#[derive(Clone, Copy)]
struct Bounds {
    results: f64,
    statistics: f64,
}

/// A result and what it must be.
type Pair = (Tensor, Tensor);
type Case = fn(&On) -> Vec<Pair>;

const FLOAT: &[Kind] = &[Kind::Float];
const HALF: &[Kind] = &[Kind::BFloat16];
const BOTH: &[Kind] = &[Kind::Float, Kind::BFloat16];

/// Name, types, and the operation on all its shapes.
const CASES: [(&str, &[Kind], Case); 15] = [
    ("product", FLOAT, rows::product),
    ("rms_norm and backward", BOTH, rows::norm),
    ("rotate", BOTH, rows::rotation),
    ("gated and backward", BOTH, rows::gated),
    ("softcap and backward", BOTH, rows::softcap),
    ("dropout", BOTH, rows::dropout),
    ("nf4_dequantise", BOTH, rows::four_bits),
    ("adamw", FLOAT, rows::adamw),
    ("sum_of_squares", FLOAT, rows::squares),
    ("cross_entropy", BOTH, rows::cross_entropy),
    ("attention, heads to 64", BOTH, sequences::narrow_heads),
    ("attention, heads to 128", BOTH, sequences::wide_heads),
    ("attention, heads to 256", BOTH, sequences::widest_heads),
    ("attention over a cache", BOTH, sequences::cached),
    ("flash attention", HALF, sequences::flash),
];

/// Runs every operation in both types and hands out what it found, in order. Stops early when the device no longer
/// answers: the last finding then has the fault.
pub fn operations(device: Device, mut each: impl FnMut(&Finding)) {
    for (operation, kinds, case) in CASES {
        for &kind in kinds {
            let finding = tch::no_grad(|| examine(operation, case, device, kind));
            each(&finding);
            if finding.fault.is_some() && device.is_cuda() {
                return;
            }
        }
    }
}

fn examine(operation: &'static str, case: Case, device: Device, kind: Kind) -> Finding {
    let on = On::new(device, kind);
    let work = || {
        let pairs = case(&on);
        if let Device::Cuda(number) = device {
            // A kernel's fault shows when somebody waits for it.
            Cuda::synchronize(number as i64);
        }
        let Bounds { results, statistics } = on.bounds.get();
        let bound = |found: &Tensor| if found.kind() == kind { results } else { statistics };
        let shares = pairs.iter().map(|pair| compare(pair, bound(&pair.0)));
        shares.fold([0.0, 0.0, results], worse)
    };
    let (outcome, kernels) = roster::launched_by(|| catch_unwind(AssertUnwindSafe(work)));
    let (fault, [share, error, bound]) = match outcome {
        Ok(numbers) => (None, numbers),
        Err(panic) => (Some(text_of(&*panic)), [f64::NAN; 3]),
    };
    Finding { operation, kind, share, error, bound, kernels, fault }
}

/// Share of what is allowed, distance, bound.
fn compare((found, expected): &Pair, bound: f64) -> [f64; 3] {
    assert_eq!(found.size(), expected.size(), "results and references are alike");
    let wide = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double);
    let (found, expected) = (wide(found), wide(expected));
    let distance = (found - &expected).norm().double_value(&[]);
    let size = expected.norm().double_value(&[]);
    let error = if distance == 0.0 { 0.0 } else { distance / size };
    [error / bound, error, bound]
}

/// The larger share; what is not a number is the worst.
fn worse(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    if a[0].is_nan() || a[0] >= b[0] { a } else { b }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.and_then(|text| text.lines().next()).unwrap_or("a panic without a message").to_owned()
}

/// Where a case runs, and its random numbers.
pub(super) struct On {
    pub device: Device,
    pub kind: Kind,
    bounds: Cell<Bounds>,
    state: Cell<u64>,
}

impl On {
    fn new(device: Device, kind: Kind) -> Self {
        let bounds = Bounds { results: bound_of(kind), statistics: bound_of(Kind::Float) };
        Self { device, kind, bounds: Cell::new(bounds), state: Cell::new(1) }
    }

    /// Normal numbers in the case's type; the same on every device.
    pub fn random(&self, shape: &[i64]) -> Tensor {
        self.floats(shape).to_kind(self.kind)
    }

    /// The same as f32.
    pub fn floats(&self, shape: &[i64]) -> Tensor {
        // The sum of four uniform numbers, scaled to variance 1: enough of a bell.
        let normal = || ((0..4).map(|_| self.uniform()).sum::<f64>() - 2.0) * 3f64.sqrt();
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| normal() as f32).collect();
        Tensor::from_slice(&values).view(shape).to_device(self.device)
    }

    pub fn bytes(&self, len: i64) -> Tensor {
        let values: Vec<u8> = (0..len).map(|_| (self.uniform() * 256.0) as u8).collect();
        Tensor::from_slice(&values).to_device(self.device)
    }

    fn uniform(&self) -> f64 {
        let next = self.state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.state.set(next);
        (next >> 40) as f64 / (1u64 << 24) as f64
    }

    /// Allows a case more than rounding.
    fn allow(&self, bounds: Bounds) {
        self.bounds.set(bounds);
    }

    /// Room that is no number until it is written.
    pub fn room(&self, shape: &[i64]) -> Tensor {
        Tensor::full(shape, f64::NAN, (Kind::Float, self.device))
    }
}

/// A matrix among columns that nobody may write to.
pub(super) struct Framed {
    whole: Tensor,
    before: i64,
    pub view: Tensor,
}

impl Framed {
    /// Columns behind the matrix; wide enough that rows can begin at multiples of 16 bytes.
    const BEHIND: i64 = 8;
    const MARGIN: f64 = 7.0;

    pub fn of(x: &Tensor, before: i64) -> Self {
        let (size, kind) = (x.size(), x.kind());
        let shape = [size[0], before + size[1] + Self::BEHIND];
        let whole = Tensor::full(shape, Self::MARGIN, (kind, x.device()));
        let mut view = whole.narrow(1, before, size[1]);
        view.copy_(x);
        Self { whole, before, view }
    }

    /// One whose values are no numbers yet.
    pub fn room(on: &On, shape: [i64; 2], before: i64) -> Self {
        Self::of(&on.room(&shape).to_kind(on.kind), before)
    }

    /// The columns around, and what they must be.
    pub fn margin(&self) -> Pair {
        let found = self.whole.copy();
        let _ = found.narrow(1, self.before, self.view.size()[1]).fill_(Self::MARGIN);
        let expected = Tensor::full_like(&found, Self::MARGIN);
        (found, expected)
    }
}

pub(super) fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operations_of_the_cpu_pass() {
        // One thread: tests run beside each other.
        tch::set_num_threads(1);
        let mut seen = 0;
        operations(Device::Cpu, |finding| {
            assert!(finding.passes(), "{finding:?}");
            seen += 1;
        });
        assert_eq!(seen, 26);
    }

    #[test]
    fn a_result_that_is_no_number_or_stops_is_found() {
        let wrong = |on: &On| vec![(on.room(&[2, 2]), on.floats(&[2, 2]))];
        let finding = examine("wrong", wrong, Device::Cpu, Kind::Float);
        assert!(!finding.passes() && finding.fault.is_none());
        let off =
            |on: &On| vec![(on.floats(&[9]) * 1.00001, On::new(on.device, on.kind).floats(&[9]))];
        let finding = examine("off", off, Device::Cpu, Kind::Float);
        assert!(!finding.passes() && (finding.error / 1e-5 - 1.0).abs() < 0.1, "{finding:?}");
        let stops = |_: &On| -> Vec<Pair> { panic!("CUDA driver: launch failed") };
        let finding = examine("stops", stops, Device::Cpu, Kind::Float);
        assert_eq!(finding.fault.as_deref(), Some("CUDA driver: launch failed"));
        assert!(!finding.passes());
    }
}
