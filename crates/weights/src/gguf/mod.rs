//! Reading GGUF files (versions 2 and 3, little-endian), mapped.
//!
//! Opening walks the header once with every count, length, offset and size checked against the
//! file, and allocates only for keys and tensor entries; values stay in the map until asked for.

mod cursor;
mod dequantise;
mod header;
mod value;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use dequantise::TensorType;
pub use value::ValueType;

use crate::map::map_file;
use value::Value;

/// A GGUF file that cannot be read, or does not hold what is asked for.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: not a valid GGUF file: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error(
        "{}: tensor {tensor:?} is stored as {type_name}, which is not supported; \
         supported are Q4_0, Q4_1, Q8_0, F16, BF16 and F32", path.display()
    )]
    UnsupportedTensorType { path: PathBuf, tensor: String, type_name: String },
    #[error("{}: the key {key:?} is missing", path.display())]
    MissingKey { path: PathBuf, key: String },
    #[error("{}: the key {key:?} holds {found}; expected {expected}", path.display())]
    WrongType { path: PathBuf, key: String, expected: &'static str, found: String },
}

/// A mapped GGUF file with a checked header.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Mmap,
    values: HashMap<String, Value>,
    tensors: Vec<TensorInfo>,
    number_of: HashMap<String, usize>,
}

/// Where and how one tensor is stored.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    pub name: String,
    pub tensor_type: TensorType,
    /// Row-major, the outermost dimension first (the reverse of GGUF's own order).
    pub shape: Vec<usize>,
    start: usize,
    end: usize,
}

impl GgufFile {
    /// # Errors
    /// A file that cannot be read, a header that does not fit the file, or a tensor type without
    /// a decoder.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let map = map_file(path).map_err(|source| GgufError::Io { path: path.into(), source })?;
        let header = header::read(&map).map_err(|problem| match problem {
            header::Problem::Invalid(reason) => GgufError::Invalid { path: path.into(), reason },
            header::Problem::UnsupportedTensorType { tensor, type_name } => {
                GgufError::UnsupportedTensorType { path: path.into(), tensor, type_name }
            }
        })?;
        let names = header.tensors.iter().map(|tensor| tensor.name.clone());
        let number_of = names.enumerate().map(|(number, name)| (name, number)).collect();
        let (values, tensors) = (header.values, header.tensors);
        Ok(Self { path: path.into(), map, values, tensors, number_of })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.number_of.get(name).map(|&number| &self.tensors[number])
    }

    /// The bytes of a tensor of this file, as stored.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        self.map.get(tensor.start..tensor.end).unwrap_or_default()
    }

    /// All values of a tensor of this file as `f32`, row-major.
    pub fn dequantise(&self, tensor: &TensorInfo) -> Vec<f32> {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.tensor_type.dequantise(self.data(tensor), &mut values);
        values
    }

    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// # Errors
    /// The key holds something else than text in UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let text = match value {
            Value::Text(range) => self.utf8(range),
            _ => None,
        };
        text.map(Some).ok_or_else(|| self.wrong_type(key, "text in UTF-8", value))
    }

    /// # Errors
    /// The key holds something else than a whole number ≥ 0.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.scalar(key, "a whole number, not negative", |value| match value {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        })
    }

    /// # Errors
    /// The key holds something else than a finite floating-point number.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.scalar(key, "a finite number", |value| match value {
            Value::F32(number) => shortest(*number),
            Value::F64(number) => Some(*number).filter(|number| number.is_finite()),
            _ => None,
        })
    }

    /// # Errors
    /// The key holds something else than true or false.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.scalar(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// # Errors
    /// The key holds something else than a list of texts in UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let texts = match value {
            Value::Array(array) => array.text_ranges(&self.map).and_then(|ranges| {
                ranges.iter().map(|range| self.utf8(range)).collect::<Option<Vec<_>>>()
            }),
            _ => None,
        };
        texts.map(Some).ok_or_else(|| self.wrong_type(key, "a list of texts in UTF-8", value))
    }

    /// # Errors
    /// The key holds something else than a list of whole numbers that fit `i64`.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        self.scalar(key, "a list of whole numbers", |value| match value {
            Value::Array(array) => array.integers(&self.map),
            _ => None,
        })
    }

    fn scalar<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong_type(key, expected, value))
    }

    fn utf8(&self, range: &std::ops::Range<usize>) -> Option<&str> {
        std::str::from_utf8(self.map.get(range.clone())?).ok()
    }

    fn wrong_type(&self, key: &str, expected: &'static str, value: &Value) -> GgufError {
        let found = value.describe();
        GgufError::WrongType { path: self.path.clone(), key: key.into(), expected, found }
    }
}

/// The shortest decimal number that is this `f32`: 1e-5 and not 9.99999974e-6. Rounded to `f32`
/// again, as every user of it does, it is the same number.
fn shortest(number: f32) -> Option<f64> {
    number.to_string().parse().ok().filter(|number: &f64| number.is_finite())
}
