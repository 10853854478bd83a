//! Frozen weights of linear layers: dense, or quantised and made dense for one product at a time.

use std::sync::{Arc, Mutex, PoisonError};

use kernels::{Compact, Nf4, nf4_dequantise};
use tch::{Device, Kind, Tensor};
use weights::nf4;

/// A weight `[out, in]`.
#[derive(Debug)]
pub(crate) enum Weight {
    Dense(Tensor),
    Nf4(Quantised),
}

/// Several linears' weights, stacked, each quantised by itself.
#[derive(Debug)]
pub(crate) struct Quantised {
    parts: Vec<(i64, Nf4)>,
    in_width: i64,
    scratch: Scratch,
}

/// The one buffer in which all quantised weights of a model become dense, one after the other; as large as
/// the largest of them.
#[derive(Debug, Clone)]
pub(crate) struct Scratch(Arc<Mutex<Tensor>>);

impl Scratch {
    /// An empty one; `kind` is what products take.
    pub fn new(kind: Kind, device: Device) -> Self {
        Self(Arc::new(Mutex::new(Tensor::empty([0], (kind, device)))))
    }

    fn matrix(&self, rows: i64, columns: i64) -> Tensor {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if (buffer.numel() as i64) < rows * columns {
            *buffer = Tensor::empty([rows * columns], (buffer.kind(), buffer.device()));
        }
        buffer.narrow(0, 0, rows * columns).view([rows, columns])
    }
}

impl Weight {
    /// Of linears' quantised weights, each with its rows.
    pub fn nf4(parts: Vec<(i64, Nf4)>, in_width: i64, scratch: &Scratch) -> Self {
        Self::Nf4(Quantised { parts, in_width, scratch: scratch.clone() })
    }

    /// The weight as products take it, `[out, in]`. Of a quantised one this is a buffer that the next call
    /// of any weight of the model overwrites.
    pub fn dense(&self) -> Tensor {
        let quantised = match self {
            Self::Dense(weight) => return weight.shallow_clone(),
            Self::Nf4(quantised) => quantised,
        };
        let rows = quantised.parts.iter().map(|(rows, _)| rows).sum();
        let dense = quantised.scratch.matrix(rows, quantised.in_width);
        let mut start = 0;
        for (rows, part) in &quantised.parts {
            nf4_dequantise(part, &dense.narrow(0, start, *rows));
            start += rows;
        }
        dense
    }

    /// The smallest form that has exactly these weights, for products with few rows on the CPU; none where
    /// only `f32` is exact.
    pub fn compact(&self) -> Option<Compact> {
        match self {
            Self::Dense(weight) => Compact::exact(weight),
            Self::Nf4(quantised) => Compact::nf4(&quantised.parts, quantised.in_width as usize),
        }
    }

    /// Another handle of the same weight.
    pub fn share(&self) -> Self {
        let quantised = match self {
            Self::Dense(weight) => return Self::Dense(weight.shallow_clone()),
            Self::Nf4(quantised) => quantised,
        };
        let share = |part: &Nf4| Nf4 {
            codes: part.codes.shallow_clone(),
            absmax: part.absmax.shallow_clone(),
            nested_absmax: part.nested_absmax.shallow_clone(),
            offset: part.offset,
            levels: part.levels.shallow_clone(),
            absmax_levels: part.absmax_levels.shallow_clone(),
        };
        let parts = quantised.parts.iter().map(|(rows, part)| (*rows, share(part))).collect();
        let (in_width, scratch) = (quantised.in_width, quantised.scratch.clone());
        Self::Nf4(Quantised { parts, in_width, scratch })
    }

    /// Bytes that it occupies, the shared buffer apart.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.numel() * weight.kind().elt_size_in_bytes(),
            Self::Nf4(quantised) => {
                let bytes = |(_, part): &(i64, Nf4)| {
                    part.codes.numel() + part.absmax.numel() + 4 * part.nested_absmax.numel()
                };
                quantised.parts.iter().map(bytes).sum()
            }
        }
    }
}

/// Random codes, as those of weights of this spread could be.
pub(crate) fn random_nf4(len: i64, spread: f64, device: Device) -> Nf4 {
    let bytes = |len: i64| Tensor::randint(256, [len], (Kind::Uint8, device));
    let blocks = (len + 63) / 64;
    // The largest of 64 normal numbers is about 2.4 times their spread.
    let absmax = 2.4 * spread;
    Nf4 {
        codes: bytes((len + 1) / 2),
        absmax: bytes(blocks),
        nested_absmax: Tensor::full([(blocks + 255) / 256], 0.2 * absmax, (Kind::Float, device)),
        offset: absmax as f32,
        levels: Tensor::from_slice(&nf4::LEVELS).to_device(device),
        absmax_levels: Tensor::from_slice(&nf4::absmax_levels()[..]).to_device(device),
    }
}

/// As bitsandbytes does, to the last bit.
pub(crate) fn quantise(values: &[f32], device: Device) -> Nf4 {
    let quantised = nf4::quantise(values, torch_mean);
    Nf4 {
        codes: Tensor::from_slice(&quantised.codes).to_device(device),
        absmax: Tensor::from_slice(&quantised.absmax).to_device(device),
        nested_absmax: Tensor::from_slice(&quantised.nested_absmax).to_device(device),
        offset: quantised.offset,
        levels: Tensor::from_slice(&nf4::LEVELS).to_device(device),
        absmax_levels: Tensor::from_slice(&nf4::absmax_levels()[..]).to_device(device),
    }
}

/// As bitsandbytes takes it, to the last bit; on one thread, because the order of the sum depends on their
/// number and a model must not.
fn torch_mean(values: &[f32]) -> f32 {
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let mean = Tensor::from_slice(values).mean(Kind::Float).double_value(&[]) as f32;
    tch::set_num_threads(threads);
    mean
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::weights::TensorFile;

    /// The offset is a mean, whose last bit is the order of the sum.
    #[test]
    fn offsets_are_those_of_bitsandbytes() {
        let path = "../weights/tests/fixtures/nf4/nf4.safetensors";
        let golden = TensorFile::open(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
        let golden = golden.unwrap();
        for name in ["single", "half", "short"] {
            let floats = |what: &str| golden.get_f32(&format!("{name}.{what}")).unwrap();
            let ours = quantise(&floats("weight"), Device::Cpu);
            assert_eq!(ours.offset.to_bits(), floats("offset")[0].to_bits(), "{name}");
        }
    }
}
