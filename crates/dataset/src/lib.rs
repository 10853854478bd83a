//! Uploaded bytes to checked, tokenised, packed batches. No libtorch, no network, no database.
//!
//! - [`Checker`] reads a file as a stream and names every fault by line ([`Problem`]), in bounded
//!   memory, counts tokens ([`Stats`]) and tells what is doubtful ([`Quality`], [`Remark`]).
//! - [`ChatTokenizer`] holds a model's tokenizer and chat template: prompts and training rows to
//!   ids, generated ids to text ([`TextStream`]).
//! - [`load`] reads a checked file as a [`Dataset`]: an order per epoch, batches per step, and
//!   [`pack`] arranges one step's examples into micro-batches without padding.

mod calls;
mod chat;
mod check;
mod container;
mod control;
mod convert;
mod encode;
mod error;
mod format;
mod inspect;
mod json;
mod labelled;
mod lines;
mod listing;
mod mask;
mod message;
mod order;
mod pack;
mod preference;
mod preview;
mod problem;
pub mod quality;
mod remark;
mod remedy;
mod row;
mod shape;
mod stats;
mod stream;
mod tally;
mod template;
#[cfg(test)]
mod testing;
mod text;
mod tokenizer;

pub use calls::CallForm;
pub use check::{Checked, Checker, FileRole, Limits, load};
pub use container::ContainerKind;
pub use convert::{Converted, Converter, convert};
pub use error::{LoadError, TemplateError};
pub use format::{Expected, Format};
pub use listing::{BadLines, Listed};
pub use mask::Example;
pub use order::{Cursor, Dataset};
pub use pack::{Packed, PackedRows, Room, pack, pack_rows};
pub use preview::{NoSuchRow, Preview, Previewed};
pub use problem::{Problem, code};
pub use quality::Quality;
pub use remark::Remark;
pub use remedy::remedy;
pub use row::Conversation;
pub use shape::Shape;
pub use stats::{LengthBucket, Stats};
pub use stream::TextStream;
pub use tokenizer::{ChatTokenizer, TokenizerParts};
