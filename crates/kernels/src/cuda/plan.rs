//! From shapes to launches: which kernel, how many blocks and threads, which arguments. Pure functions over
//! tensors of any device, so that the tests run the same plans on the CPU. `None` means that no kernel fits
//! (an element type, a width) and the plain-tch reference does the work.
//!
//! Nothing is launched here and no tensor is made.

mod attention;
mod parameters;

use tch::{Kind, Tensor};

use crate::adamw::{AdamW, Factors};
use crate::{Activation, Nf4, Rotary};

pub use attention::{TILE, attention, attention_backward, cached_attention, tile_rows, tiles};
use parameters::{Matrix, Parameters, element, is_plain};

/// One call of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    pub kernel: String,
    /// Blocks; a launch without any is skipped.
    pub grid: (u32, u32),
    /// Of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// The kernel's one argument, a C structure.
    pub parameters: Vec<u8>,
}

impl Launch {
    fn new(kernel: String, grid: (usize, usize), threads: u32, parameters: Parameters) -> Self {
        let count = |blocks: usize| u32::try_from(blocks).expect("the grid fits in 32 bits");
        let grid = (count(grid.0), count(grid.1));
        Self { kernel, grid, threads, shared: 0, parameters: parameters.finish() }
    }
}

/// Threads of kernels that walk along rows; the kernels' launch bounds say the same.
const THREADS: usize = 256;
/// The largest second dimension of a grid.
const GRID_Y_MAX: usize = 65_535;

/// Enough whole warps for a row of `packs`, at most `most` threads.
fn threads_for(packs: usize, most: usize) -> u32 {
    packs.next_multiple_of(32).clamp(32, most) as u32
}

/// A block per row and per run of `THREADS` elements of it.
fn over_elements(
    kernel: &str,
    rows: usize,
    packs: usize,
    parameters: Parameters,
) -> Option<Launch> {
    let columns = packs.div_ceil(THREADS);
    (columns <= GRID_Y_MAX)
        .then(|| Launch::new(kernel.to_owned(), (rows, columns), THREADS as u32, parameters))
}

/// As [`crate::rms_norm`].
pub fn rms_norm(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    out: &Tensor,
    rstd: &Tensor,
) -> Option<Launch> {
    let element = element(&[x, out])?;
    let (x, out, width) = (Matrix::of(x)?, Matrix::of(out)?, weight.numel());
    assert!(x.len == out.len && x.width == out.width);
    let segments = segments(&x, weight, rstd)?;
    let wide = Matrix::are_wide(&[&x, &out], width);
    let parameters = Parameters::new()
        .rows(&x)
        .rows(&out)
        .tensor(weight)
        .tensor(rstd)
        .int(width)
        .int(segments)
        .float(eps as f32)
        .int(usize::from(wide.is_some()));
    let threads = threads_for(width / wide.unwrap_or(1), THREADS);
    let grid = (x.len * segments, 1);
    Some(Launch::new(format!("rms_norm_{element}"), grid, threads, parameters))
}

/// Norms of a row; `rstd` has one number for each.
fn segments(x: &Matrix, weight: &Tensor, rstd: &Tensor) -> Option<usize> {
    let width = weight.numel();
    assert!(x.width.is_multiple_of(width), "rows hold whole segments");
    let segments = x.width / width;
    assert_eq!(rstd.numel(), x.len * segments);
    (is_plain(weight, Kind::Float) && is_plain(rstd, Kind::Float)).then_some(segments)
}

/// As [`crate::rms_norm_backward`].
pub fn rms_norm_backward(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    dx: &Tensor,
) -> Option<Launch> {
    let element = element(&[dy, x, dx])?;
    let (dy, x) = (Matrix::of(dy)?, Matrix::of(x)?);
    let (dx, width) = (Matrix::of(dx)?, weight.numel());
    assert!(dy.len == x.len && dx.len == x.len && dy.width == x.width && dx.width == x.width);
    let segments = segments(&x, weight, rstd)?;
    let wide = Matrix::are_wide(&[&dy, &x, &dx], width);
    let parameters = Parameters::new()
        .rows(&dy)
        .rows(&x)
        .rows(&dx)
        .tensor(weight)
        .tensor(rstd)
        .int(width)
        .int(segments)
        .int(usize::from(wide.is_some()));
    let threads = threads_for(width / wide.unwrap_or(1), THREADS);
    let grid = (x.len * segments, 1);
    Some(Launch::new(format!("rms_norm_backward_{element}"), grid, threads, parameters))
}

/// As [`crate::rotate_`]; positions i64 `[T]` beside x.
pub fn rotate(
    x: &Tensor,
    positions: &Tensor,
    rotary: &Rotary,
    heads: usize,
    inverse: bool,
) -> Option<Launch> {
    let element = element(&[x])?;
    let x = Matrix::of(x)?;
    let half = rotary.cos.size()[1] as usize;
    assert!(positions.numel() == x.len && x.width >= heads * rotary.head_dim);
    let plain = is_plain(positions, Kind::Int64)
        && is_plain(&rotary.cos, Kind::Float)
        && is_plain(&rotary.sin, Kind::Float);
    let parameters = Parameters::new()
        .rows(&x)
        .tensor(positions)
        .tensor(&rotary.cos)
        .tensor(&rotary.sin)
        .int(heads)
        .int(rotary.head_dim)
        .int(half)
        .float(if inverse { -1.0 } else { 1.0 });
    let kernel = format!("rotate_{element}");
    plain.then(|| over_elements(&kernel, x.len, heads * half, parameters)).flatten()
}

/// As [`crate::gated`].
pub fn gated(activation: Activation, gate_up: &Tensor, out: &Tensor) -> Option<Launch> {
    gated_as("gated", activation, gate_up, out)
}

/// As [`crate::gated_backward_`].
pub fn gated_backward(activation: Activation, gate_up: &Tensor, d_out: &Tensor) -> Option<Launch> {
    gated_as("gated_backward", activation, gate_up, d_out)
}

fn gated_as(name: &str, activation: Activation, gate_up: &Tensor, out: &Tensor) -> Option<Launch> {
    let element = element(&[gate_up, out])?;
    let (gate_up, out) = (Matrix::of(gate_up)?, Matrix::of(out)?);
    assert!(gate_up.len == out.len && gate_up.width == 2 * out.width);
    let wide = Matrix::are_wide(&[&gate_up, &out], out.width);
    let parameters = Parameters::new()
        .rows(&gate_up)
        .rows(&out)
        .int(out.width)
        .int(usize::from(activation == Activation::GeluTanh))
        .int(usize::from(wide.is_some()));
    let packs = out.width / wide.unwrap_or(1);
    over_elements(&format!("{name}_{element}"), out.len, packs, parameters)
}

/// As [`crate::softcap_`].
pub fn softcap(x: &Tensor, cap: f64) -> Option<Launch> {
    softcap_as("softcap", x, x, cap)
}

/// As [`crate::softcap_backward_`].
pub fn softcap_backward(dy: &Tensor, y: &Tensor, cap: f64) -> Option<Launch> {
    softcap_as("softcap_backward", dy, y, cap)
}

fn softcap_as(name: &str, x: &Tensor, y: &Tensor, cap: f64) -> Option<Launch> {
    let element = element(&[x, y])?;
    let (x, y) = (Matrix::of(x)?, Matrix::of(y)?);
    assert!(x.len == y.len && x.width == y.width);
    let parameters = Parameters::new().rows(&x).rows(&y).int(x.width).float(cap as f32);
    over_elements(&format!("{name}_{element}"), x.len, x.width, parameters)
}

/// As [`crate::dropout`].
pub fn dropout(x: &Tensor, rate: f64, seed: u64, out: &Tensor) -> Option<Launch> {
    let element = element(&[x, out])?;
    let (x, out) = (Matrix::of(x)?, Matrix::of(out)?);
    assert!(x.len == out.len && x.width == out.width);
    let mask = crate::dropout::Mask::new(rate);
    let parameters = Parameters::new()
        .rows(&x)
        .rows(&out)
        .long(seed)
        .long(mask.threshold)
        .int(x.width)
        .float(mask.keep);
    over_elements(&format!("dropout_{element}"), x.len, x.width, parameters)
}

/// Blocks of kernels that walk a flat buffer: enough for every multiprocessor several times over.
const FLAT_BLOCKS: usize = 1024;

fn flat_blocks(len: usize) -> usize {
    len.div_ceil(THREADS).min(FLAT_BLOCKS)
}

/// As [`crate::adamw()`].
pub fn adamw(
    values: &Tensor,
    grads: &Tensor,
    m: &Tensor,
    v: &Tensor,
    settings: AdamW,
) -> Option<Launch> {
    let len = values.numel();
    let buffers = [values, grads, m, v];
    assert!(buffers.iter().all(|tensor| tensor.numel() == len));
    let f = Factors::new(settings);
    let numbers =
        [f.grad_scale, f.beta1, f.beta2, f.rest1, f.rest2, f.shrink, f.rate, f.root, f.eps];
    let parameters =
        Parameters::new().tensor(values).tensor(m).tensor(v).tensor(grads).long(len as u64);
    let parameters = numbers.iter().fold(parameters, |parameters, x| parameters.float(*x));
    buffers
        .iter()
        .all(|tensor| is_plain(tensor, Kind::Float))
        .then(|| Launch::new("adamw".to_owned(), (flat_blocks(len), 1), THREADS as u32, parameters))
}

/// Numbers that [`sum_of_squares`] writes.
pub fn square_parts(x: &Tensor) -> i64 {
    flat_blocks(x.numel()) as i64
}

/// Σ x² of each block's part of a flat f32 tensor; parts f64 `[square_parts(x)]`.
pub fn sum_of_squares(x: &Tensor, parts: &Tensor) -> Option<Launch> {
    let blocks = flat_blocks(x.numel());
    assert_eq!(parts.numel(), blocks);
    let parameters = Parameters::new().tensor(x).tensor(parts).long(x.numel() as u64);
    (is_plain(x, Kind::Float) && is_plain(parts, Kind::Double))
        .then(|| Launch::new("sum_of_squares".to_owned(), (blocks, 1), THREADS as u32, parameters))
}

/// As [`crate::nf4_dequantise`].
pub fn nf4_dequantise(weight: &Nf4, out: &Tensor) -> Option<Launch> {
    /// Weights per thread.
    const EACH: usize = 8;
    let element = element(&[out])?;
    let len = out.numel();
    assert_eq!(weight.codes.numel(), len.div_ceil(2));
    let floats = [&weight.nested_absmax, &weight.levels, &weight.absmax_levels];
    let plain = out.is_contiguous()
        && floats.iter().all(|tensor| is_plain(tensor, Kind::Float))
        && is_plain(&weight.codes, Kind::Uint8)
        && is_plain(&weight.absmax, Kind::Uint8);
    let parameters = Parameters::new()
        .tensor(&weight.codes)
        .tensor(&weight.absmax)
        .tensor(&weight.nested_absmax)
        .tensor(&weight.levels)
        .tensor(&weight.absmax_levels)
        .tensor(out)
        .long(len as u64)
        .float(weight.offset);
    let grid = (len.div_ceil(EACH * THREADS), 1);
    plain
        .then(|| Launch::new(format!("nf4_dequantise_{element}"), grid, THREADS as u32, parameters))
}

/// What a cross-entropy launch does with the logits.
#[derive(Debug, Clone, Copy)]
pub enum Gradient<'a> {
    /// They stay as they are.
    None,
    /// They become their gradient, times one factor.
    Equal(f32),
    /// The same, times a factor per row, f32 `[N]`.
    Each(&'a Tensor),
}

/// Softmax cross-entropy of logits `[N, V]` against targets i64 `[N]`; results f64 `[N, 2]`: −log p of the
/// target, and 1 where it was the most probable token.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    gradient: Gradient<'_>,
    results: &Tensor,
) -> Option<Launch> {
    const THREADS: usize = 512;
    let element = element(&[logits])?;
    let logits = Matrix::of(logits)?;
    assert!(targets.numel() == logits.len && results.numel() == 2 * logits.len);
    let wide = Matrix::are_wide(&[&logits], logits.width);
    let (factors, factor) = match gradient {
        Gradient::None => (None, 0.0),
        Gradient::Equal(factor) => (None, factor),
        Gradient::Each(factors) => (Some(factors), 0.0),
    };
    let plain = is_plain(targets, Kind::Int64)
        && is_plain(results, Kind::Double)
        && factors.is_none_or(|f| is_plain(f, Kind::Float) && f.numel() == logits.len);
    let parameters = Parameters::new().rows(&logits).tensor(targets);
    let parameters = match factors {
        Some(factors) => parameters.tensor(factors),
        None => parameters.pointer(0),
    };
    let parameters = parameters
        .tensor(results)
        .int(logits.width)
        .float(factor)
        .int(usize::from(!matches!(gradient, Gradient::None)))
        .int(usize::from(wide.is_some()));
    let threads = threads_for(logits.width / wide.unwrap_or(1), THREADS);
    let kernel = format!("cross_entropy_{element}");
    plain.then(|| Launch::new(kernel, (logits.len, 1), threads, parameters))
}
