//! Import of a base model: a GGUF file or a Hugging Face folder becomes one folder that
//! transformers, this project's engine and its tokenizer all load:
//! `config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json`,
//! `chat_template.jinja` (when there is a template) and `generation_config.json`.
//!
//! The folder is made beside its place and renamed, so that half a model is never seen.

mod gguf_config;
mod gguf_file;
mod gguf_names;
mod gguf_tokenizer;
mod hf_folder;
mod highest_id;
mod name;
mod text_model;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use name::default_name;

use crate::families::{SpecError, supported};
use crate::gguf::GgufError;
use crate::{FileError, durable};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Why a model was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: neither a GGUF file nor a model folder with config.json and safetensors",
        path.display()
    )]
    UnknownSource { path: PathBuf },
    #[error("{}: the output folder exists and is not empty", path.display())]
    OutputExists { path: PathBuf },
    #[error(
        "{}: the architecture {architecture:?} is not supported; supported: {}",
        path.display(), supported()
    )]
    UnsupportedArchitecture { path: PathBuf, architecture: String },
    #[error("{}: {what} is not supported", path.display())]
    Unsupported { path: PathBuf, what: String },
    #[error("{}: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
}

impl ImportError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    fn invalid(path: &Path, reason: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.into() }
    }

    /// A configuration that was read from `path`.
    fn spec(path: &Path, error: SpecError) -> Self {
        let path = path.to_owned();
        match error {
            SpecError::Family(architecture) => Self::UnsupportedArchitecture { path, architecture },
            SpecError::Unsupported(what) => Self::Unsupported { path, what },
            SpecError::Invalid(reason) => Self::Invalid { path, reason },
        }
    }

    fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into() }
    }
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// `model_type` of `config.json`, such as `llama`.
    pub architecture: String,
    /// Number of weights; tied ones count once.
    pub parameters: u64,
    /// Sorted by name.
    pub files: Vec<ImportedFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedFile {
    /// Relative to the folder, without separators.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// Imports a GGUF file or a Hugging Face folder into `out_dir`, which must be absent or empty.
///
/// # Errors
/// [`ImportError`], which names the file and the cause; nothing is left at `out_dir` then.
pub fn import(source: &Path, out_dir: &Path) -> Result<Imported, ImportError> {
    check_empty(out_dir)?;
    if let Some(parent) = out_dir.parent() {
        fs::create_dir_all(parent).map_err(|e| ImportError::io(parent, e))?;
    }
    let work = WorkFolder::create(out_dir)?;
    let (architecture, parameters) = if source.is_dir() {
        hf_folder::import(source, &work.path)?
    } else if is_gguf(source)? {
        gguf_file::import(source, &work.path)?
    } else {
        return Err(ImportError::UnknownSource { path: source.to_owned() });
    };
    let files = list_files(&work.path).map_err(|e| ImportError::io(&work.path, e))?;
    work.rename_to(out_dir)?;
    Ok(Imported { architecture: architecture.to_owned(), parameters, files })
}

fn check_empty(out_dir: &Path) -> Result<(), ImportError> {
    let empty = match fs::read_dir(out_dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => true,
        Err(e) => return Err(ImportError::io(out_dir, e)),
    };
    if empty { Ok(()) } else { Err(ImportError::OutputExists { path: out_dir.to_owned() }) }
}

fn is_gguf(source: &Path) -> Result<bool, ImportError> {
    let mut magic = Vec::new();
    File::open(source)
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .map_err(|e| ImportError::io(source, e))?;
    let named_so = source.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    Ok(named_so || magic == b"GGUF")
}

fn list_files(folder: &Path) -> io::Result<Vec<ImportedFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.push(ImportedFile { name, size: entry.metadata()?.len() });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// The folder while it is being filled; removed unless it was renamed.
struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    fn create(out_dir: &Path) -> Result<Self, ImportError> {
        let path = durable::temporary_sibling(out_dir);
        fs::create_dir(&path).map_err(|e| ImportError::io(&path, e))?;
        Ok(Self { path })
    }

    fn rename_to(self, out_dir: &Path) -> Result<(), ImportError> {
        fs::rename(&self.path, out_dir)
            .and_then(|()| durable::sync_folder_of(out_dir))
            .map_err(|e| ImportError::io(out_dir, e))
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // After the rename there is nothing left under this name.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn write_text(folder: &Path, name: &str, text: &str) -> Result<(), ImportError> {
    let path = folder.join(name);
    durable::write_bytes(&path, text.as_bytes()).map_err(|e| ImportError::io(&path, e))
}

fn write_json(folder: &Path, name: &str, value: &serde_json::Value) -> Result<(), ImportError> {
    write_text(folder, name, &format!("{value:#}\n"))
}
