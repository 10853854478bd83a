//! A GGUF file into a Hugging Face folder.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype;

use super::gguf_names::{RowOrder, gguf_name};
use super::{ImportError, gguf_config, gguf_tokenizer};
use crate::gguf::{GgufFile, TensorInfo};
use crate::spec::TensorSpec;
use crate::writer::TensorData;
use crate::{MODEL_FILE, write_safetensors};

/// Values that are decoded at a time: memory stays small, whatever the tensor's size.
const CHUNK_VALUES: usize = 1 << 16;

pub fn import(source: &Path, folder: &Path) -> Result<(&'static str, u64), ImportError> {
    let file = GgufFile::open(source)?;
    if file.unsigned("split.count")?.unwrap_or(1) > 1 {
        return Err(ImportError::unsupported(source, "a model split into several GGUF files"));
    }
    let config = gguf_config::read(&file)?;
    let expected: Vec<Expected> = config.spec.tensors().into_iter().map(Expected::from).collect();
    let tensors = match_tensors(&file, &expected)?;
    let tokenizer = gguf_tokenizer::read(&file, &config)?;

    let mut parameters = 0;
    let entries = tensors.iter().map(|&(tensor, expected)| {
        parameters += tensor.shape.iter().product::<usize>() as u64;
        let data = Decoded { file: &file, tensor, expected, head_size: config.spec.head_dim };
        (expected.hf.as_str(), stored_dtype(tensor), tensor.shape.clone(), data)
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    write_safetensors(&folder.join(MODEL_FILE), entries, &metadata)?;
    config.write(folder, main_dtype(&tensors))?;
    tokenizer.write(folder)?;
    Ok((config.family.model_type, parameters))
}

/// A tensor that the file must have.
struct Expected {
    gguf: String,
    hf: String,
    shape: Vec<usize>,
    rows: RowOrder,
}

impl From<TensorSpec> for Expected {
    fn from(tensor: TensorSpec) -> Self {
        let (gguf, rows) = gguf_name(&tensor.name);
        Self { gguf, hf: tensor.name, shape: tensor.shape, rows }
    }
}

/// Pairs every expected tensor with the one in the file; none may be missing or left over.
fn match_tensors<'a>(
    file: &'a GgufFile,
    expected: &'a [Expected],
) -> Result<Vec<(&'a TensorInfo, &'a Expected)>, ImportError> {
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.gguf.as_str()).collect();
    if let Some(extra) = file.tensors().iter().find(|tensor| !known.contains(&*tensor.name)) {
        let what = format!("the tensor {:?}", extra.name);
        return Err(ImportError::unsupported(file.path(), what));
    }
    let find = |expected: &'a Expected| {
        let name = &expected.gguf;
        let tensor = file.tensor(name).ok_or_else(|| {
            ImportError::invalid(file.path(), format!("the tensor {name:?} is missing"))
        })?;
        if tensor.shape != expected.shape {
            let (found, wanted) = (&tensor.shape, &expected.shape);
            let reason = format!("tensor {name:?} has shape {found:?}; expected {wanted:?}");
            return Err(ImportError::invalid(file.path(), reason));
        }
        if tensor.shape.len() == 1 && tensor.tensor_type.same_dtype().is_none() {
            let what = format!("the quantised vector {name:?}");
            return Err(ImportError::unsupported(file.path(), what));
        }
        Ok((tensor, expected))
    };
    expected.iter().map(find).collect()
}

fn stored_dtype(tensor: &TensorInfo) -> Dtype {
    tensor.tensor_type.same_dtype().unwrap_or(Dtype::F32)
}

/// The type of the matrices, which `config.json` names: F32 unless all of them are half precision
/// of one kind (norms often stay F32 beside them).
fn main_dtype(tensors: &[(&TensorInfo, &Expected)]) -> Dtype {
    let mut matrices = tensors.iter().filter(|(tensor, _)| tensor.shape.len() > 1);
    let Some(first) = matrices.next().map(|(tensor, _)| stored_dtype(tensor)) else {
        return Dtype::F32;
    };
    if matrices.all(|(tensor, _)| stored_dtype(tensor) == first) { first } else { Dtype::F32 }
}

/// A tensor of the file with its rows in Hugging Face order, decoded if it is quantised.
struct Decoded<'a> {
    file: &'a GgufFile,
    tensor: &'a TensorInfo,
    expected: &'a Expected,
    head_size: usize,
}

impl Decoded<'_> {
    /// The row of the file that becomes row `row`.
    fn source_row(&self, row: usize) -> usize {
        match self.expected.rows {
            RowOrder::Same => row,
            RowOrder::Interleaved => {
                let (head, within) = (row / self.head_size, row % self.head_size);
                let half = self.head_size / 2;
                head * self.head_size + 2 * (within % half) + within / half
            }
        }
    }

    fn write_rows(&self, blocks: &[u8], out: &mut dyn Write) -> io::Result<()> {
        let tensor_type = self.tensor.tensor_type;
        if tensor_type.same_dtype().is_some() {
            return out.write_all(blocks);
        }
        let most = CHUNK_VALUES / tensor_type.block_values();
        let mut values = vec![0.0; most * tensor_type.block_values()];
        for part in blocks.chunks(most * tensor_type.block_bytes()) {
            let count = part.len() / tensor_type.block_bytes() * tensor_type.block_values();
            tensor_type.dequantise(part, &mut values[..count]);
            (&values[..count]).write_to(out)?;
        }
        Ok(())
    }
}

impl TensorData for Decoded<'_> {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let blocks = self.file.data(self.tensor);
        if self.expected.rows == RowOrder::Same {
            return self.write_rows(blocks, out);
        }
        let rows = self.tensor.shape[0];
        let row_bytes = blocks.len() / rows;
        for row in 0..rows {
            let start = self.source_row(row) * row_bytes;
            self.write_rows(&blocks[start..start + row_bytes], out)?;
        }
        Ok(())
    }
}
