//! What an answer may look like, token by token: a JSON Schema becomes a small machine over bytes
//! ([`Grammar`], [`Matcher`]), and the machine's state becomes the set of tokens that may come next
//! ([`Masks`] over a [`Vocabulary`]).
//!
//! The subset of JSON Schema is the one that a machine can hold to byte by byte; [`SchemaError`] names
//! whatever is outside it. Sampling, tokenizers and the API are other crates' business.

mod frame;
mod grammar;
mod machine;
mod schema;
mod vocabulary;

pub use grammar::{Function, Grammar};
pub use machine::Matcher;
pub use schema::{SchemaError, Strictness};
pub use vocabulary::{Mask, Masks, Vocabulary};
