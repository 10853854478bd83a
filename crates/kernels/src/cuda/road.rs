//! The public operations for tensors that are not on the CPU: the planned kernel when it can run there, else the
//! plain-tch reference. A launch that the driver refuses ends like an error of libtorch, in a panic with its words.

use tch::{Device, Kind, Tensor};

use super::driver::{Gpu, gpu};
use super::flash;
use super::plan::{self, Gradient, Launch};
use super::roster::is_off;
use super::staged::staged;
use crate::{
    Activation, AdamW, AttentionShape, Factors, Nf4, Rotary, Segment, Segments, TargetLog,
    TokenLoss, reference,
};

/// The kernels of the tensor's device, when it has any.
fn gpu_of(tensor: &Tensor) -> Option<&'static Gpu> {
    match tensor.device() {
        Device::Cuda(number) => gpu(number).ok(),
        _ => None,
    }
}

/// Runs the planned launches, or tells that they cannot run.
fn run<const N: usize>(device_of: &Tensor, plan: impl FnOnce() -> Option<[Launch; N]>) -> bool {
    let Some(gpu) = gpu_of(device_of) else { return false };
    let may_run = |launch: &Launch| gpu.fits(launch) && !is_off(&launch.kernel);
    let Some(launches) = plan().filter(|all| all.iter().all(may_run)) else { return false };
    for launch in &launches {
        if let Err(error) = gpu.launch(launch) {
            panic!("{error}");
        }
    }
    true
}

pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, out: &Tensor, rstd: &Tensor) {
    if !run(x, || plan::rms_norm(x, weight, eps, out, rstd).map(|l| [l])) {
        reference::rms_norm(x, weight, eps, out, rstd);
    }
}

pub fn rms_norm_backward(dy: &Tensor, x: &Tensor, weight: &Tensor, rstd: &Tensor, dx: &Tensor) {
    if !run(x, || plan::rms_norm_backward(dy, x, weight, rstd, dx).map(|l| [l])) {
        reference::rms_norm_backward(dy, x, weight, rstd, dx);
    }
}

pub fn rotate_(x: &Tensor, positions: &[i64], rotary: &Rotary, heads: usize, inverse: bool) {
    let plan = || {
        let positions = staged(positions, Kind::Int64, x.device());
        plan::rotate(x, &positions, rotary, heads, inverse).map(|l| [l])
    };
    if !run(x, plan) {
        reference::rotate_(x, positions, rotary, heads, inverse);
    }
}

pub fn gated(activation: Activation, gate_up: &Tensor, out: &Tensor) {
    if !run(out, || plan::gated(activation, gate_up, out).map(|l| [l])) {
        reference::gated(activation, gate_up, out);
    }
}

pub fn gated_backward_(activation: Activation, gate_up: &Tensor, d_out: &Tensor) {
    if !run(d_out, || plan::gated_backward(activation, gate_up, d_out).map(|l| [l])) {
        reference::gated_backward_(activation, gate_up, d_out);
    }
}

pub fn softcap_(x: &Tensor, cap: f64) {
    if !run(x, || plan::softcap(x, cap).map(|l| [l])) {
        reference::softcap_(x, cap);
    }
}

pub fn softcap_backward_(dy: &Tensor, y: &Tensor, cap: f64) {
    if !run(y, || plan::softcap_backward(dy, y, cap).map(|l| [l])) {
        reference::softcap_backward_(dy, y, cap);
    }
}

pub fn dropout(x: &Tensor, rate: f64, seed: u64, out: &Tensor) {
    if !run(x, || plan::dropout(x, rate, seed, out).map(|l| [l])) {
        reference::dropout(x, rate, seed, out);
    }
}

pub fn adamw(values: &Tensor, grads: &Tensor, m: &Tensor, v: &Tensor, settings: AdamW) {
    if !run(values, || plan::adamw(values, grads, m, v, settings).map(|l| [l])) {
        reference::adamw(values, grads, m, v, settings);
    }
}

pub fn sum_of_squares(x: &Tensor) -> f64 {
    let parts = Tensor::empty([plan::square_parts(x)], (Kind::Double, x.device()));
    if !run(x, || plan::sum_of_squares(x, &parts).map(|l| [l])) {
        return reference::sum_of_squares(x);
    }
    doubles(&parts).iter().sum()
}

pub fn nf4_dequantise(weight: &Nf4, out: &Tensor) {
    if !run(out, || plan::nf4_dequantise(weight, out).map(|l| [l])) {
        reference::nf4_dequantise(weight, out);
    }
}

/// The values of an f64 tensor, row by row. Waits for the device.
fn doubles(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.view(-1).to_device(Device::Cpu)).expect("a vector of doubles")
}

/// Loss and hit of each row, if the kernel can run.
fn rows(logits: &Tensor, targets: &[i64], gradient: Gradient<'_>) -> Option<Vec<[f64; 2]>> {
    let device = logits.device();
    let results = Tensor::empty([targets.len() as i64, 2], (Kind::Double, device));
    let plan = || {
        let targets = staged(targets, Kind::Int64, device);
        plan::cross_entropy(logits, &targets, gradient, &results).map(|l| [l])
    };
    let done = run(logits, plan);
    done.then(|| doubles(&results).chunks_exact(2).map(|row| [row[0], row[1]]).collect())
}

fn sum(rows: &[[f64; 2]]) -> TokenLoss {
    TokenLoss {
        loss: rows.iter().map(|row| row[0]).sum(),
        correct: rows.iter().filter(|row| row[1] != 0.0).count() as u64,
    }
}

pub fn cross_entropy_(logits: &Tensor, targets: &[i64], factors: Factors<'_>) -> TokenLoss {
    let each = match factors {
        Factors::Equal(_) => None,
        Factors::Each(factors) => {
            Some(Tensor::from_slice(factors).to_kind(Kind::Float).to_device(logits.device()))
        }
    };
    let gradient = match (&each, factors) {
        (Some(each), _) => Gradient::Each(each),
        (None, Factors::Equal(factor)) => Gradient::Equal(factor as f32),
        (None, Factors::Each(_)) => unreachable!("factors per row are a tensor"),
    };
    rows(logits, targets, gradient)
        .map_or_else(|| reference::cross_entropy_(logits, targets, factors), |rows| sum(&rows))
}

pub fn cross_entropy_loss(logits: &Tensor, targets: &[i64]) -> TokenLoss {
    rows(logits, targets, Gradient::None).map_or_else(
        || reference::cross_entropy_(logits, targets, Factors::Equal(0.0)),
        |rows| sum(&rows),
    )
}

pub fn target_logs(logits: &Tensor, targets: &[i64]) -> Vec<TargetLog> {
    let Some(rows) = rows(logits, targets, Gradient::None) else {
        return reference::target_logs(logits, targets);
    };
    rows.iter().map(|row| TargetLog { log_p: -row[0], correct: row[1] != 0.0 }).collect()
}

/// Tiles of documents on the device, i32 `[tiles, 3]`; none when a segment sees rows before its own, for which
/// there is no kernel.
fn tiles(segments: &Segments, each: usize, qkv: &Tensor) -> Option<Tensor> {
    let by_itself = |segment: &Segment| segment.before.is_empty();
    if !segments.iter().all(by_itself) || segments.rows() as i64 != qkv.size()[0] {
        return None;
    }
    let mut cu_seqlens = vec![0];
    cu_seqlens.extend(segments.iter().map(|segment| segment.rows.end as i32));
    let tiles: Vec<i64> = plan::tiles(&cu_seqlens, each).into_iter().map(i64::from).collect();
    Some(staged(&tiles, Kind::Int, qkv.device()).view([-1, 3]))
}

/// Without libtorch's kernel.
pub fn own_attention(
    qkv: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    out: &Tensor,
    log_sums: &Tensor,
) {
    let plan = || {
        let tiles = tiles(segments, plan::tile_rows(shape), qkv)?;
        plan::attention(qkv, &tiles, shape, out, log_sums).map(|l| [l])
    };
    if !run(qkv, plan) {
        reference::attention(qkv, segments, shape, out, log_sums);
    }
}

/// The same by the best way that the device has.
pub fn attention(
    qkv: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    out: &Tensor,
    log_sums: &Tensor,
) {
    if !flash::attention(qkv, segments, shape, out, log_sums) {
        own_attention(qkv, segments, shape, out, log_sums);
    }
}

pub fn attention_backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    d_qkv: &Tensor,
) {
    if !flash::attention_backward(d_out, qkv, out, log_sums, segments, shape, d_qkv) {
        own_attention_backward(d_out, qkv, out, log_sums, segments, shape, d_qkv);
    }
}

/// Without libtorch's kernel.
pub fn own_attention_backward(
    d_out: &Tensor,
    qkv: &Tensor,
    out: &Tensor,
    log_sums: &Tensor,
    segments: &Segments,
    shape: AttentionShape,
    d_qkv: &Tensor,
) {
    let plan = || {
        let tiles = tiles(segments, plan::TILE, qkv)?;
        let deltas = log_sums.empty_like();
        plan::attention_backward(d_out, qkv, out, log_sums, &tiles, shape, d_qkv, &deltas)
    };
    if !run(qkv, plan) {
        reference::attention_backward(d_out, qkv, segments, shape, d_qkv);
    }
}

pub fn cached_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    cached: usize,
    shape: AttentionShape,
    out: &Tensor,
) {
    if !run(q, || plan::cached_attention(q, keys, values, cached, shape, out).map(|l| [l])) {
        reference::cached_attention(q, keys, values, cached, shape, out);
    }
}
