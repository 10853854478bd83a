//! The operations of the training step that libtorch does not have, or has only in a form that visits memory
//! too often: each as a safe, shape-checked function over tensors.
//!
//! Every operation exists twice. [`reference`] holds it in plain tch operations: readable, right on any
//! device, the oracle of the tests. The modules hold it for `f32` tensors on the CPU, in loops that the
//! compiler turns into AVX2 and that run on all cores. Each public function picks by device and type.
//!
//! Tensors are f32 or bf16, in one call all of one type. Statistics (1/rms, log-sums), norms' weights, rotary
//! tables, losses and the optimizer's buffers are always f32. Of bf16 tensors every operation computes in f32
//! and rounds once, where it writes.
//!
//! Matrix products of training are in `product`; those of few rows, with compact weights, in [`skinny`]. The only
//! `unsafe` of the project is here: views of tensor memory as slices, and calls of functions compiled for AVX2
//! or AVX-512 after the processor was asked.

mod adamw;
mod adamw_8bit;
mod attention;
pub mod check;
mod compact;
mod cross_entropy;
pub mod cuda;
mod dropout;
mod gated;
mod half;
mod lanes;
mod lattice;
mod nf4;
mod norm;
mod panels;
mod product;
pub mod reference;
mod rope;
mod rows;
mod segments;
mod simd;
mod skinny;
mod softcap;
mod tile;

pub use adamw::{AdamW, adamw, sum_of_squares};
pub use adamw_8bit::{Code, MOMENT_BLOCK, Moments, adamw_8bit};
pub use attention::{
    AttentionShape, CacheEnd, attend_caches, attention, attention_backward, cached_attention,
};
pub use compact::Compact;
pub use cross_entropy::{
    Factors, TargetLog, TokenLoss, cross_entropy_, cross_entropy_loss, target_logs,
};
pub use cuda::load_cuda;
pub use dropout::dropout;
pub use gated::{Activation, gated, gated_backward_};
pub use nf4::{Nf4, nf4_dequantise};
pub use norm::{rms_norm, rms_norm_backward};
pub use product::{Term, Write, product};
pub use rope::{Rotary, rotate_};
pub use rows::read_values;
pub use segments::{Segment, Segments};
pub use skinny::skinny;
pub use softcap::{softcap_, softcap_backward_};

use tch::{Device, Kind, Tensor};

/// True when the fast CPU form of an operation may look at this tensor's memory. Tensors of f64 are for proofs:
/// a backward pass is held against differences of its forward pass there.
fn on_cpu(tensor: &Tensor) -> bool {
    let kind = tensor.kind();
    let known = matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Double);
    assert!(known, "kernels work on f32, bf16 and f64 tensors");
    tensor.device() == Device::Cpu && kind == Kind::Float
}

/// What tensors of a type are computed and summed in.
pub fn wide_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// Threads for Rust's own loops; libtorch's are set apart. Call once, at the start of the process.
pub fn set_threads(threads: usize) {
    // A second call changes nothing: the pool lives as long as the process.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}
