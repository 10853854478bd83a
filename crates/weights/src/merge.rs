//! An adapter of the LoRA family merged into its base: W + s·B·A of every adapted matrix, with DoRA's magnitudes,
//! in the base's own types.
//!
//! It works where the files are elsewhere: from the headers alone [`MergePlan`] says what the merged file holds and
//! which bytes of which file each part is made of; then one matrix at a time is [`apply`]ed. So a model of any size is
//! merged in the memory of its largest matrix. Reading and writing are the caller's.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::gguf::TensorType;
use crate::peft::{AdapterConfig, LoraConfig, lora_a_key, lora_b_key, magnitude_key};
use crate::tensor_file::{LENGTH_BYTES, MAX_HEADER_BYTES};
use crate::writer;

const WEIGHT: &str = ".weight";

/// Where one tensor stands in a safetensors file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorPlace {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<u64>,
}

/// How many bytes a safetensors file's header takes, its length field included.
///
/// # Errors
/// A length that the file or the limit does not allow.
pub fn header_bytes(first: [u8; LENGTH_BYTES], file_bytes: u64) -> Result<u64, String> {
    let length = u64::from_le_bytes(first);
    let rest = file_bytes.saturating_sub(LENGTH_BYTES as u64);
    if length > rest.min(MAX_HEADER_BYTES) {
        return Err(format!("its header claims {length} bytes of {rest}"));
    }
    Ok(length + LENGTH_BYTES as u64)
}

/// The tensors of a safetensors file in the order of their bytes, from its [header](header_bytes).
///
/// # Errors
/// A header that does not describe exactly a file of `file_bytes`.
pub fn tensor_places(header: &[u8], file_bytes: u64) -> Result<Vec<TensorPlace>, String> {
    let text = header.get(LENGTH_BYTES..).unwrap_or_default();
    // The library checks that there are no gaps or overlaps, and that shapes and types match the bytes.
    let metadata: Metadata = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let start = header.len() as u64;
    let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| TensorPlace {
        name,
        dtype: info.dtype,
        shape: info.shape.clone(),
        bytes: start + info.data_offsets.0 as u64..start + info.data_offsets.1 as u64,
    };
    let mut places: Vec<TensorPlace> = metadata.tensors().into_iter().map(place).collect();
    places.sort_by_key(|place| (place.bytes.start, place.bytes.end));
    if places.last().map_or(start, |last| last.bytes.end) != file_bytes {
        return Err("its tensors do not end where the file ends".to_owned());
    }
    Ok(places)
}

/// What a merged model file consists of: the header, then the parts, one behind the other.
#[derive(Debug)]
pub struct MergePlan {
    pub header: Vec<u8>,
    pub parts: Vec<Part>,
    /// Of the whole file.
    pub bytes: u64,
}

/// A stretch of the merged file.
#[derive(Debug)]
pub struct Part {
    /// The base's file, by its place among those given, and its bytes there.
    pub file: usize,
    pub bytes: Range<u64>,
    /// What is added to them; none are copied as they are.
    pub update: Option<Update>,
}

/// What an adapter adds to one matrix.
#[derive(Debug)]
pub struct Update {
    dtype: Dtype,
    /// `[out, in]`
    shape: [usize; 2],
    rank: usize,
    scale: f64,
    /// In the adapter's file: A `[rank, in]`, B `[out, rank]`, and magnitudes `[out]`.
    pub a: TensorPlace,
    pub b: TensorPlace,
    pub magnitude: Option<TensorPlace>,
}

impl MergePlan {
    /// From the tensors of the base's files and of the adapter's.
    ///
    /// # Errors
    /// Why they cannot be merged.
    pub fn new(
        base: &[Vec<TensorPlace>],
        config: &AdapterConfig,
        adapter: Vec<TensorPlace>,
    ) -> Result<Self, String> {
        let AdapterConfig::Lora(config) = config else {
            return Err(
                "virtual tokens stand before a text and are no part of the weights".to_owned()
            );
        };
        if config.scores {
            return Err("a reward model has a head that the base model has no place for".to_owned());
        }
        let mut left: HashMap<String, TensorPlace> =
            adapter.into_iter().map(|place| (place.name.clone(), place)).collect();
        let mut parts: Vec<Part> = Vec::new();
        let mut named = BTreeMap::new();
        let mut entries = Vec::new();
        for (file, places) in base.iter().enumerate() {
            for place in places {
                if named.insert(place.name.as_str(), file).is_some() {
                    return Err(format!("the base model has the tensor {:?} twice", place.name));
                }
                entries.push((place.name.clone(), place.dtype, place.shape.clone()));
                let update = Update::take(config, place, &mut left)?;
                match parts.last_mut() {
                    // What is only copied is copied in one go.
                    Some(last)
                        if update.is_none()
                            && last.update.is_none()
                            && last.file == file
                            && last.bytes.end == place.bytes.start =>
                    {
                        last.bytes.end = place.bytes.end;
                    }
                    _ => parts.push(Part { file, bytes: place.bytes.clone(), update }),
                }
            }
        }
        if let Some(name) = left.keys().min() {
            return Err(format!("the adapter's tensor {name:?} fits no matrix of the base model"));
        }
        let header = writer::file_header(entries).ok_or("a tensor's size is not whole bytes")?;
        let length = |part: &Part| part.bytes.end - part.bytes.start;
        let bytes = header.len() as u64 + parts.iter().map(length).sum::<u64>();
        Ok(Self { header, parts, bytes })
    }
}

impl Update {
    /// What the adapter has for a tensor of the base, taken out of what is left of it.
    fn take(
        config: &LoraConfig,
        place: &TensorPlace,
        left: &mut HashMap<String, TensorPlace>,
    ) -> Result<Option<Self>, String> {
        let Some(module) = place.name.strip_suffix(WEIGHT) else { return Ok(None) };
        let Some(a) = left.remove(&lora_a_key(module)) else { return Ok(None) };
        let b =
            left.remove(&lora_b_key(module)).ok_or_else(|| format!("{module} has no lora_B"))?;
        let magnitude = left.remove(&magnitude_key(module));
        let rank = config.rank_of(module) as usize;
        let &[out, width] = place.shape.as_slice() else {
            return Err(format!("{module} is no matrix in the base model"));
        };
        let fits = a.shape == [rank, width]
            && b.shape == [out, rank]
            && magnitude.as_ref().map_or(!config.use_dora, |m| config.use_dora && m.shape == [out]);
        if !fits {
            return Err(format!("{module}: the adapter's shapes do not fit [{out}, {width}]"));
        }
        let floats = [Some(&a), Some(&b), magnitude.as_ref()];
        let types = floats.into_iter().flatten().map(|place| place.dtype).chain([place.dtype]);
        if let Some(other) = types.into_iter().find(|dtype| TensorType::of_float(*dtype).is_none())
        {
            return Err(format!("{module}: {other:?} is no type to compute with"));
        }
        let scale = config.scale_of(module);
        Ok(Some(Self { dtype: place.dtype, shape: [out, width], rank, scale, a, b, magnitude }))
    }

    /// Adds the update to a matrix, on all cores: `matrix` are the base's bytes, the others those of the adapter's
    /// tensors. Sums are in f32, and rounded once, to the nearest.
    ///
    /// # Errors
    /// Bytes that are not as many as the shapes say.
    pub fn apply(
        &self,
        matrix: &mut [u8],
        a: &[u8],
        b: &[u8],
        magnitude: Option<&[u8]>,
    ) -> Result<(), String> {
        let [out, width] = self.shape;
        let a = floats(self.a.dtype, a, self.rank * width)?;
        let b = floats(self.b.dtype, b, out * self.rank)?;
        let magnitude = match (&self.magnitude, magnitude) {
            (Some(place), Some(bytes)) => Some(floats(place.dtype, bytes, out)?),
            (None, None) => None,
            _ => return Err("the magnitudes are missing".to_owned()),
        };
        let row_bytes = width * self.dtype.bitsize() / 8;
        if matrix.len() != out * row_bytes {
            return Err(format!("{} bytes are not {out} rows of {row_bytes}", matrix.len()));
        }
        if matrix.is_empty() {
            return Ok(());
        }
        let scale = self.scale as f32;
        matrix.par_chunks_mut(row_bytes).enumerate().for_each_init(
            || (vec![0.0f32; width], vec![0.0f32; width]),
            |(row, delta), (index, bytes)| {
                read_row(self.dtype, bytes, row);
                delta.fill(0.0);
                for (of_b, of_a) in
                    b[index * self.rank..].iter().zip(a.chunks_exact(width)).take(self.rank)
                {
                    for (sum, value) in delta.iter_mut().zip(of_a) {
                        *sum += of_b * value;
                    }
                }
                for (value, delta) in row.iter_mut().zip(delta.iter()) {
                    *value += scale * delta;
                }
                if let Some(magnitude) = &magnitude {
                    let squares: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
                    let gain = (f64::from(magnitude[index]) / squares.sqrt()) as f32;
                    row.iter_mut().for_each(|value| *value *= gain);
                }
                write_row(self.dtype, row, bytes);
            },
        );
        Ok(())
    }
}

fn floats(dtype: Dtype, bytes: &[u8], count: usize) -> Result<Vec<f32>, String> {
    let expected = count * dtype.bitsize() / 8;
    if bytes.len() != expected {
        return Err(format!("an adapter's tensor has {} bytes of {expected}", bytes.len()));
    }
    let mut values = vec![0.0; count];
    read_row(dtype, bytes, &mut values);
    Ok(values)
}

fn read_row(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    // The types were checked when the plan was made.
    if let Some(stored) = TensorType::of_float(dtype) {
        stored.dequantise(bytes, values);
    }
}

fn write_row(dtype: Dtype, values: &[f32], bytes: &mut [u8]) {
    match dtype {
        Dtype::F16 => {
            for (bytes, value) in bytes.chunks_exact_mut(2).zip(values) {
                bytes.copy_from_slice(&f16::from_f32(*value).to_le_bytes());
            }
        }
        Dtype::BF16 => {
            for (bytes, value) in bytes.chunks_exact_mut(2).zip(values) {
                bytes.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
            }
        }
        _ => {
            for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}
