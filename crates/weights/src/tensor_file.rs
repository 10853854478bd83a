//! Reading safetensors: one file, or a folder with one file or an index of shards, all mapped.
//!
//! The `safetensors` library checks the header (offsets without gaps or overlaps, shape × type =
//! bytes, the end of the data = the end of the file); before it parses anything, the length of the
//! header is checked against the size of the file and a limit. Bytes are little-endian, as stored.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;

use crate::files::read_limited;
use crate::map::map_file;
use crate::{FileError, MODEL_FILE};

pub(crate) const LENGTH_BYTES: usize = 8;
/// A header of the largest published models has a few hundred kilobytes.
pub(crate) const MAX_HEADER_BYTES: u64 = 32 << 20;
const MAX_INDEX_BYTES: u64 = 32 << 20;
const MAX_TENSORS: usize = 100_000;
const MAX_SHARDS: usize = 1_000;

/// One or more mapped safetensors files seen as one set of named tensors.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    shards: Vec<Shard>,
    shard_of: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    map: Mmap,
    data_start: usize,
    metadata: Metadata,
}

/// One tensor of a file: row-major, the bytes as stored (little-endian).
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: &'a [u8],
}

impl TensorFile {
    /// Opens one safetensors file.
    ///
    /// # Errors
    /// A file that cannot be read, or whose header does not describe exactly its bytes.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let shard = Shard::open(path)?;
        let shard_of = shard.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { path: path.to_owned(), shards: vec![shard], shard_of })
    }

    /// Opens `model.safetensors` of a folder, or else the shards that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// As [`open`](Self::open); and an index that names files outside the folder, or tensors that
    /// its shards do not hold.
    pub fn open_folder(folder: &Path) -> Result<Self, FileError> {
        let single = folder.join(MODEL_FILE);
        let index = folder.join("model.safetensors.index.json");
        if single.exists() || !index.exists() {
            return Self::open(&single);
        }
        let weight_map = read_index(&index)?;
        let mut shards = Vec::new();
        let mut number_of: HashMap<String, usize> = HashMap::new();
        let mut shard_of = BTreeMap::new();
        for (name, file) in weight_map {
            let number = match number_of.get(&file) {
                Some(&number) => number,
                None => {
                    if shards.len() == MAX_SHARDS {
                        return Err(FileError::invalid(
                            &index,
                            format!("it names more than {MAX_SHARDS} files"),
                        ));
                    }
                    shards.push(Shard::open(&folder.join(&file))?);
                    number_of.insert(file.clone(), shards.len() - 1);
                    shards.len() - 1
                }
            };
            if shards[number].metadata.info(&name).is_none() {
                let reason = format!("tensor {name:?} is not in {file:?}, where the index says");
                return Err(FileError::invalid(&index, reason));
            }
            shard_of.insert(name, number);
        }
        Ok(Self { path: folder.to_owned(), shards, shard_of })
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shard_of.keys().map(String::as_str)
    }

    pub fn len(&self) -> usize {
        self.shard_of.len()
    }

    pub fn is_empty(&self) -> bool {
        self.shard_of.is_empty()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.shard_of.contains_key(name)
    }

    /// The text metadata of the header (`__metadata__`), of the first shard.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let shard = self.shards.first()?;
        shard.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// # Errors
    /// [`FileError::MissingTensor`] naming the tensor and the file.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>, FileError> {
        self.shard_of
            .get(name)
            .and_then(|&shard| self.shards[shard].view(name))
            .ok_or_else(|| FileError::MissingTensor { path: self.path.clone(), name: name.into() })
    }

    /// The values of an F32, F16 or BF16 tensor as `f32`, row-major.
    ///
    /// # Errors
    /// A missing tensor, or one of another type.
    pub fn get_f32(&self, name: &str) -> Result<Vec<f32>, FileError> {
        let view = self.get(name)?;
        view.to_f32().ok_or_else(|| FileError::NotFloat {
            path: self.path.clone(),
            name: name.into(),
            dtype: view.dtype,
        })
    }
}

impl TensorView<'_> {
    /// The values as `f32`; `None` for a type other than F32, F16 and BF16.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let tensor_type = crate::gguf::TensorType::of_float(self.dtype)?;
        let mut values = vec![0.0; self.data.len() / tensor_type.block_bytes()];
        tensor_type.dequantise(self.data, &mut values);
        Some(values)
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self, FileError> {
        let map = map_file(path).map_err(|e| FileError::io(path, e))?;
        check_header_length(&map).map_err(|reason| FileError::invalid(path, reason))?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| FileError::invalid(path, header_problem(&e)))?;
        let count = metadata.offset_keys().len();
        if count > MAX_TENSORS {
            let reason = format!("it has {count} tensors; the limit is {MAX_TENSORS}");
            return Err(FileError::invalid(path, reason));
        }
        Ok(Self { map, data_start: LENGTH_BYTES + header, metadata })
    }

    fn view(&self, name: &str) -> Option<TensorView<'_>> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        // In bounds: the library checked that the offsets end where the file ends.
        let data = self.map.get(self.data_start + start..self.data_start + end)?;
        Some(TensorView { dtype: info.dtype, shape: info.shape.clone(), data })
    }
}

fn check_header_length(file: &[u8]) -> Result<(), String> {
    let Some(first) = file.first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("it has {} bytes, too few for a header", file.len()));
    };
    let length = u64::from_le_bytes(*first);
    let rest = (file.len() - LENGTH_BYTES) as u64;
    if length > rest {
        return Err(format!(
            "its header claims {length} bytes but only {rest} follow; is the file truncated?"
        ));
    }
    if length > MAX_HEADER_BYTES {
        return Err(format!("its header has {length} bytes; the limit is {MAX_HEADER_BYTES}"));
    }
    Ok(())
}

fn header_problem(error: &SafeTensorError) -> String {
    match error {
        SafeTensorError::InvalidOffset(name) => {
            format!("tensor {name:?} overlaps another tensor or leaves a gap")
        }
        SafeTensorError::TensorInvalidInfo => {
            "a tensor's shape and type do not match its number of bytes".into()
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            "the tensors do not end where the file ends; is the file truncated?".into()
        }
        SafeTensorError::ValidationOverflow => "a tensor's shape is impossibly large".into(),
        SafeTensorError::InvalidHeaderDeserialization(e) => format!("its header is not valid: {e}"),
        other => other.to_string(),
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, FileError> {
    let text = read_limited(path, MAX_INDEX_BYTES).map_err(|e| FileError::io(path, e))?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| FileError::invalid(path, format!("the index is not valid: {e}")))?;
    if index.weight_map.len() > MAX_TENSORS {
        let reason = format!("the index has more than {MAX_TENSORS} tensors");
        return Err(FileError::invalid(path, reason));
    }
    for file in index.weight_map.values() {
        let plain = !file.contains(['/', '\\', '\0']) && !file.starts_with('.');
        if !plain || !file.ends_with(".safetensors") {
            let reason = format!(
                "the index names {file:?}; it may only name *.safetensors files of its own folder"
            );
            return Err(FileError::invalid(path, reason));
        }
    }
    Ok(index.weight_map)
}
