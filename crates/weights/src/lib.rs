//! Weight files in and out: safetensors, GGUF, PEFT adapters, and the import of a base model into
//! one Hugging Face folder.
//!
//! The families of models are described here too: the importer checks with the same tables that the engine
//! loads with.
//!
//! It is free of libtorch, so that the server and the command line read and check model files too.
//! Every header is untrusted: lengths, counts and offsets are checked against the size of the file
//! before anything is allocated for them.
//!
//! What it deliberately does not do: it does not run a model, does not tokenise, and does not
//! write GGUF.

mod byte_code;
mod durable;
mod families;
mod files;
pub mod gguf;
mod import;
mod map;
pub mod merge;
mod model_folder;
pub mod nf4;
pub mod peft;
pub mod spec;
mod tensor_file;
mod writer;

pub use byte_code::ByteCode;
pub use families::{FAMILIES, Family, SpecError, read_spec};
pub use import::{ImportError, Imported, ImportedFile, default_name, import};
pub use model_folder::{is_model, write_model};
pub use safetensors::Dtype;
pub use tensor_file::{TensorFile, TensorView};
pub use writer::{TensorData, write_safetensors};

use std::path::{Path, PathBuf};

/// The name of the weights in a model folder.
pub const MODEL_FILE: &str = "model.safetensors";

/// A weight file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: not a valid safetensors file: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("{}: tensor {name:?} is not in this file", path.display())]
    MissingTensor { path: PathBuf, name: String },
    #[error("{}: tensor {name:?} has type {dtype:?}; expected F32, F16 or BF16", path.display())]
    NotFloat { path: PathBuf, name: String, dtype: Dtype },
    #[error("{}: {reason}", path.display())]
    Adapter { path: PathBuf, reason: String },
    #[error("{}: cannot write tensor {name:?}: {reason}", path.display())]
    CannotWrite { path: PathBuf, name: String, reason: String },
}

impl FileError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn invalid(path: &Path, reason: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.into() }
    }
}
