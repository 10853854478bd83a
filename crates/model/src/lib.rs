//! What is computed: a decoder-only transformer with adapters inside its linear layers, its training pass
//! (forward and hand-written backward), evaluation, and generation over a cache.
//!
//! A model family is a row of a table in the `weights` crate, which reads a `config.json` into one
//! [`DecoderSpec`]; no family knows that adapters exist. Nothing here knows of jobs, files of examples, or processes.
//!
//! Shape letters: `T` tokens of a packed batch, `D` hidden size, `Q` = heads · head_dim,
//! `KV` = key/value heads · head_dim, `F` intermediate size, `V` vocabulary, `R` rank (of a group: the sum).

mod activations;
mod adapter;
mod arrangement;
mod batch;
mod decoder;
mod embed;
#[cfg(test)]
mod finite_differences;
mod form;
mod generate;
mod head;
mod layer;
mod layout;
mod linear;
mod load;
mod products;
pub mod reference;
mod rope;
mod sampler;
mod score;
mod weight;

pub use activations::Recompute;
pub use adapter::{
    Adapter, AdapterError, AdapterOptions, Extent, Gradients, LoraOptions, VirtualTokens,
};
pub use batch::{Batch, BatchError, LossSum};
pub use decoder::{Decoder, PassOptions};
pub use form::{Form, Precision, Quantization};
pub use generate::KvCache;
pub use head::Groups;
pub use kernels::TargetLog;
pub use load::LoadError;
pub use sampler::{Sampler, SamplerOptions};
pub use spec::DecoderSpec;
pub(crate) use weights::spec;
