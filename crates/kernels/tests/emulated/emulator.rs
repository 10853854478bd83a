//! The emulator as a library of the tests, and tensors whose surroundings are watched.

use std::ffi::{CString, c_char, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use kernels::cuda::plan::Launch;
use libloading::os::unix::{Library, Symbol};
use tch::{Device, Kind, Tensor};

type Emulate = unsafe extern "C" fn(
    *const c_char,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    *const c_void,
    c_uint,
    c_uint,
) -> i32;
type Names = unsafe extern "C" fn(usize) -> *const c_char;

struct Emulator {
    emulate: Symbol<Emulate>,
    names: Symbol<Names>,
}

/// Compiled once per run of the tests, from the sources as they are; one kernel at a time, because the block that
/// runs is a global of the library.
fn emulator() -> &'static Mutex<Emulator> {
    static EMULATOR: OnceLock<Mutex<Emulator>> = OnceLock::new();
    EMULATOR.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("emulator-{}.so", std::process::id()));
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let output = Command::new(compiler)
            .args(["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-DEMULATED"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-x", "c++"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/cuda/kernels.cu"))
            .arg("-o")
            .arg(&library)
            .output()
            .expect("a C++ compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // SAFETY: our own library; loading it only registers its kernels, and it is never unloaded.
        let loaded = unsafe { Library::new(&library) }.expect("the emulator loads");
        std::fs::remove_file(&library).expect("just written");
        // SAFETY: the types are those of the functions in emulator.h.
        let (emulate, names) =
            unsafe { (loaded.get(b"emulate\0").unwrap(), loaded.get(b"kernel_name\0").unwrap()) };
        std::mem::forget(loaded);
        Mutex::new(Emulator { emulate, names })
    })
}

/// Names of all kernels.
pub fn kernels() -> Vec<String> {
    let emulator = emulator().lock().unwrap_or_else(PoisonError::into_inner);
    (0..)
        // SAFETY: answers constant strings, or null behind the last.
        .map(|index| unsafe { (emulator.names)(index) })
        .take_while(|name| !name.is_null())
        // SAFETY: as above.
        .map(|name| unsafe { std::ffi::CStr::from_ptr(name) }.to_str().unwrap().to_owned())
        .collect()
}

fn run(launch: &Launch, order: u32) {
    let emulator = emulator().lock().unwrap_or_else(PoisonError::into_inner);
    let name = CString::new(launch.kernel.as_str()).unwrap();
    // SAFETY: the addresses in the parameters are those of live CPU tensors; the sizes are checked there.
    let code = unsafe {
        (emulator.emulate)(
            name.as_ptr(),
            launch.grid.0,
            launch.grid.1,
            launch.threads,
            launch.shared,
            launch.parameters.as_ptr().cast(),
            launch.parameters.len() as c_uint,
            order,
        )
    };
    let problem =
        ["", "no such kernel", "a bad number of threads", "a bad grid", "wrong parameters"];
    assert_eq!(code, 0, "{}: {} in {launch:?}", launch.kernel, problem[code as usize]);
}

/// Results of the case with the threads in one order, after the other orders gave the same. The case makes its
/// tensors anew each time and hands its launches to what it is given.
pub fn in_every_order(case: impl Fn(&dyn Fn(Option<Launch>)) -> Vec<Tensor>) -> Vec<Tensor> {
    const ORDERS: u32 = 3;
    let results = |order| case(&|launch| run(&launch.expect("a kernel for this case"), order));
    let first = results(0);
    for order in 1..ORDERS {
        for (number, (a, b)) in first.iter().zip(results(order)).enumerate() {
            assert_eq!(
                a.to_kind(Kind::Double),
                b.to_kind(Kind::Double),
                "result {number}, order {order}"
            );
        }
    }
    first
}

/// A matrix inside of a larger one that is filled with NaN, which shows whoever reads or writes beside it.
pub struct Watched {
    whole: Tensor,
    pub view: Tensor,
}

impl Watched {
    /// With these values, `before` columns from the start of the larger rows.
    pub fn of(values: &Tensor, before: i64) -> Self {
        let (rows, width) = (values.size()[0], values.size()[1]);
        let wide = (before + width + 9).next_multiple_of_8();
        let whole = Tensor::full([rows + 2, wide], f64::NAN, (values.kind(), Device::Cpu));
        let view = whole.narrow(0, 1, rows).narrow(1, before, width);
        view.shallow_clone().copy_(values);
        Self { whole, view }
    }

    /// Full of NaN, to be written.
    pub fn empty(shape: [i64; 2], kind: Kind, before: i64) -> Self {
        Self::of(&Tensor::full(shape, f64::NAN, (kind, Device::Cpu)), before)
    }

    /// The values, after a look at the surroundings; all must have been written.
    pub fn finish(self) -> Tensor {
        let finite = |t: &Tensor| t.isfinite().sum(Kind::Int64).int64_value(&[]);
        let inside = self.view.numel() as i64;
        assert_eq!(
            finite(&self.view),
            inside,
            "an element nobody wrote, or made of one nobody wrote"
        );
        assert_eq!(finite(&self.whole), inside, "a write beside the matrix");
        self.view.contiguous()
    }
}

trait NextMultiple {
    fn next_multiple_of_8(self) -> i64;
}

impl NextMultiple for i64 {
    fn next_multiple_of_8(self) -> i64 {
        (self + 7) / 8 * 8
    }
}

/// Normal numbers, the same ones in every run: each test has a thread of its own.
pub fn random(shape: &[i64], kind: Kind) -> Tensor {
    thread_local! {
        static STATE: std::cell::Cell<u64> = const { std::cell::Cell::new(1) };
    }
    let uniform = || {
        let state = STATE.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        STATE.set(state);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    // The sum of twelve uniform numbers has variance 1.
    let normal = || (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| normal()).collect();
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

pub fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Float)
}

/// Relative distance in the norm; f32 kernels differ by rounding, bf16 ones by one rounding of each result.
pub fn assert_close(what: &str, kind: Kind, a: &Tensor, b: &Tensor) {
    assert_eq!(a.size(), b.size(), "{what}");
    let bound = if kind == Kind::Float { 2e-6 } else { 4e-3 };
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let distance = ((&a - &b).norm() / b.norm()).double_value(&[]);
    assert!(
        distance <= bound,
        "{what} {kind:?}: relative distance {distance:e}, allowed {bound:e}"
    );
}

pub const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];
