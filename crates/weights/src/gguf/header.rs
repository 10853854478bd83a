//! The header of a GGUF file: magic, version, counts, key-value pairs, tensor entries; then the
//! aligned data. Nothing in it is believed.

use std::collections::{HashMap, HashSet};

use super::TensorInfo;
use super::cursor::Cursor;
use super::dequantise::TensorType;
use super::value::Value;

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
const MAX_KEYS: usize = 65_536;
const MAX_TENSORS: usize = 100_000;
const MAX_NAME_BYTES: usize = 1_024;
const MAX_DIMENSIONS: u32 = 4;

pub struct Header {
    pub values: HashMap<String, Value>,
    pub tensors: Vec<TensorInfo>,
}

pub enum Problem {
    Invalid(String),
    UnsupportedTensorType { tensor: String, type_name: String },
}

impl From<String> for Problem {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

pub fn read(file: &[u8]) -> Result<Header, Problem> {
    let cursor = &mut Cursor::new(file, 0);
    check_version(file, cursor)?;
    // An entry has at least: name length, dimension count, type, offset; a pair: key length, type
    // and one byte.
    let tensor_count = limited(cursor.count("tensors", 24)?, MAX_TENSORS, "tensors")?;
    let key_count = limited(cursor.count("keys", 13)?, MAX_KEYS, "keys")?;
    let values = read_values(cursor, key_count)?;
    let alignment = alignment(&values)?;
    let mut tensors = read_tensors(cursor, tensor_count)?;
    let data_start = cursor.position().next_multiple_of(alignment);
    for tensor in &mut tensors {
        place(tensor, data_start, alignment, file.len())?;
    }
    check_overlaps(&tensors)?;
    Ok(Header { values, tensors })
}

fn check_version(file: &[u8], cursor: &mut Cursor<'_>) -> Result<(), String> {
    if file.get(..MAGIC.len()) != Some(MAGIC) {
        return Err("it does not begin with \"GGUF\"".into());
    }
    cursor.skip(MAGIC.len())?;
    match cursor.u32()? {
        2 | 3 => Ok(()),
        version if version.swap_bytes() <= 3 => Err("it is big-endian".into()),
        version => Err(format!("version {version} is not supported; supported are 2 and 3")),
    }
}

fn limited(count: usize, limit: usize, what: &str) -> Result<usize, String> {
    if count > limit {
        return Err(format!("it has {count} {what}; the limit is {limit}"));
    }
    Ok(count)
}

fn read_values(cursor: &mut Cursor<'_>, count: usize) -> Result<HashMap<String, Value>, String> {
    let mut values = HashMap::with_capacity(count);
    for _ in 0..count {
        let key = cursor.name(MAX_NAME_BYTES)?;
        let value = Value::read(cursor).map_err(|reason| format!("key {key:?}: {reason}"))?;
        if values.insert(key.to_owned(), value).is_some() {
            return Err(format!("the key {key:?} occurs twice"));
        }
    }
    Ok(values)
}

fn alignment(values: &HashMap<String, Value>) -> Result<usize, String> {
    let alignment = match values.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Unsigned(number)) => *number,
        Some(other) => return Err(format!("general.alignment holds {}", other.describe())),
    };
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(format!("general.alignment is {alignment}; it must be a small power of two"));
    }
    usize::try_from(alignment).map_err(|e| e.to_string())
}

/// Reads the entries; `start` is still relative to the data, and `end` holds the size.
fn read_tensors(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<TensorInfo>, Problem> {
    let mut tensors = Vec::with_capacity(count);
    let mut names = HashSet::with_capacity(count);
    for _ in 0..count {
        let name = cursor.name(MAX_NAME_BYTES)?;
        if !names.insert(name) {
            return Err(Problem::Invalid(format!("the tensor {name:?} occurs twice")));
        }
        tensors.push(read_tensor(cursor, name)?);
    }
    Ok(tensors)
}

fn read_tensor(cursor: &mut Cursor<'_>, name: &str) -> Result<TensorInfo, Problem> {
    let wrong = |reason: &str| Problem::Invalid(format!("tensor {name:?}: {reason}"));
    let dimensions = cursor.u32()?;
    if dimensions == 0 || dimensions > MAX_DIMENSIONS {
        return Err(wrong(&format!("it has {dimensions} dimensions; 1 to 4 are allowed")));
    }
    let mut shape = Vec::with_capacity(4);
    for _ in 0..dimensions {
        let size = usize::try_from(cursor.u64()?).ok().filter(|&size| size > 0);
        shape.push(size.ok_or_else(|| wrong("a dimension is zero or too large"))?);
    }
    shape.reverse();
    let tensor_type = TensorType::from_code(cursor.u32()?).map_err(|type_name| {
        Problem::UnsupportedTensorType { tensor: name.to_owned(), type_name }
    })?;
    let start = usize::try_from(cursor.u64()?).map_err(|_| wrong("its offset is too large"))?;
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(tensor_type.block_values()) {
        let block = tensor_type.block_values();
        return Err(wrong(&format!("its rows of {row} values are not whole blocks of {block}")));
    }
    let size = shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .and_then(|values| {
            (values / tensor_type.block_values()).checked_mul(tensor_type.block_bytes())
        })
        .ok_or_else(|| wrong("its shape is impossibly large"))?;
    Ok(TensorInfo { name: name.to_owned(), tensor_type, shape, start, end: size })
}

/// Turns the relative offset and the size into the range in the file, or refuses them.
fn place(
    tensor: &mut TensorInfo,
    data_start: usize,
    alignment: usize,
    file_bytes: usize,
) -> Result<(), String> {
    let name = &tensor.name;
    if !tensor.start.is_multiple_of(alignment) {
        return Err(format!("tensor {name:?}: its offset is not a multiple of {alignment}"));
    }
    let start = data_start.checked_add(tensor.start);
    let end = start.and_then(|start| start.checked_add(tensor.end));
    let (Some(start), Some(end)) = (start, end) else {
        return Err(format!("tensor {name:?}: its offset is too large"));
    };
    if end > file_bytes {
        return Err(format!(
            "tensor {name:?} ends at byte {end}, but the file has {file_bytes}; is it truncated?"
        ));
    }
    (tensor.start, tensor.end) = (start, end);
    Ok(())
}

fn check_overlaps(tensors: &[TensorInfo]) -> Result<(), String> {
    let mut sorted: Vec<&TensorInfo> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.start);
    match sorted.windows(2).find(|pair| pair[0].end > pair[1].start) {
        Some(pair) => Err(format!("tensors {:?} and {:?} overlap", pair[0].name, pair[1].name)),
        None => Ok(()),
    }
}
