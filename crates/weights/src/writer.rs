//! Writing safetensors tensor by tensor: the header is known first, then every tensor streams its
//! bytes, so that memory stays small however large the model is.
//!
//! The same tensors and metadata always give the same bytes: a resumed run must end with files that
//! are equal to those of an uninterrupted one.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::{FileError, durable};

const METADATA_KEY: &str = "__metadata__";
/// The data starts at a multiple of this, so that mapped tensors are aligned.
const ALIGNMENT: usize = 8;

/// The values of one tensor: row-major, little-endian.
pub trait TensorData {
    /// Writes exactly the bytes that the type and shape of the tensor ask for.
    ///
    /// # Errors
    /// Those of `out`.
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()>;
}

impl TensorData for &[u8] {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self)
    }
}

impl TensorData for Vec<u8> {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self)
    }
}

impl TensorData for &[f32] {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(4 * self.len().min(16_384));
        for part in self.chunks(16_384) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|value| value.to_le_bytes()));
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}

struct Entry<D> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    data: D,
}

/// Writes `path` durably and at once (temporary file, sync, rename): `(name, type, shape, data)`
/// of each tensor, and text metadata.
///
/// Tensors of wider types come first, so that each is aligned; otherwise the order is kept.
///
/// # Errors
/// File errors; a name that occurs twice; data that is not as long as its type and shape say.
pub fn write_safetensors<N, D>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, Dtype, Vec<usize>, D)>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), FileError>
where
    N: Into<String>,
    D: TensorData,
{
    let mut entries = Vec::new();
    let mut names = HashSet::new();
    for (name, dtype, shape, data) in tensors {
        let name = name.into();
        let refuse = |reason: &str| cannot_write(path, &name, reason);
        if name == METADATA_KEY || !names.insert(name.clone()) {
            return Err(refuse("the name is reserved or occurs twice"));
        }
        let bytes =
            byte_size(dtype, &shape).ok_or_else(|| refuse("its size is not whole bytes"))?;
        entries.push(Entry { name, dtype, shape, bytes, data });
    }
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.dtype.bitsize()));
    let header = header(&entries, metadata);
    durable::write_file(path, |out| write_all(out, &header, &entries)).map_err(|failure| {
        match failure {
            Failure::Io(source) => FileError::io(path, source),
            Failure::Length(name, reason) => cannot_write(path, &name, &reason),
        }
    })
}

fn cannot_write(path: &Path, name: &str, reason: &str) -> FileError {
    FileError::CannotWrite { path: path.into(), name: name.into(), reason: reason.into() }
}

/// Bytes of a tensor; `None` when the shape overflows or the type has no whole bytes.
fn byte_size(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// All that stands before the tensors of a file that holds these, in this order; `None` when the size of one is not
/// whole bytes.
pub(crate) fn file_header(tensors: Vec<(String, Dtype, Vec<usize>)>) -> Option<Vec<u8>> {
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, dtype, shape) in tensors {
        let bytes = byte_size(dtype, &shape)?;
        entries.push(Entry { name, dtype, shape, bytes, data: () });
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = header(&entries, &metadata);
    Some([&(header.len() as u64).to_le_bytes(), header.as_slice()].concat())
}

fn header<D>(entries: &[Entry<D>], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert(METADATA_KEY.into(), json!(metadata));
    }
    let mut start = 0;
    for Entry { name, dtype, shape, bytes, .. } in entries {
        let end = start + bytes;
        map.insert(
            name.clone(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }),
        );
        start = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    text
}

enum Failure {
    Io(io::Error),
    Length(String, String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn write_all<W: Write, D: TensorData>(
    out: &mut BufWriter<W>,
    header: &[u8],
    entries: &[Entry<D>],
) -> Result<(), Failure> {
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header)?;
    for Entry { name, bytes, data, .. } in entries {
        let mut counted = Counted { out, written: 0 };
        data.write_to(&mut counted)?;
        let written = counted.written;
        if written != *bytes {
            let reason = format!("it has {written} bytes; its type and shape need {bytes}");
            return Err(Failure::Length(name.clone(), reason));
        }
    }
    Ok(())
}

/// Counts what passes through.
struct Counted<'a, W> {
    out: &'a mut W,
    written: usize,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
