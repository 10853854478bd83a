//! What AdamW remembers of each value: two moments, in f32 or as 8-bit codes.
//!
//! Codes are blockwise, as in bitsandbytes' AdamW8bit: a tensor's blocks begin with the tensor, and one that
//! is small keeps its moments in f32. The arithmetic is in `kernels`.

use kernels::{AdamW, Code, MOMENT_BLOCK};
use model::Extent;
use tch::{Device, Kind, Tensor};
use weights::ByteCode;

/// Smaller tensors than this have no codes: bitsandbytes' `min_8bit_size`.
const MIN_CODED: usize = 4096;

/// The moments of a run's values.
#[derive(Debug)]
pub enum Moments {
    /// Flat, like the values.
    Floats {
        m: Tensor,
        v: Tensor,
    },
    Bytes(Box<ByteMoments>),
}

/// Those of large tensors as codes, one tensor behind the other; those of small ones as numbers, likewise.
#[derive(Debug)]
pub struct ByteMoments {
    coded: kernels::Moments,
    m_small: Tensor,
    v_small: Tensor,
    first: Code,
    second: Code,
}

/// How many numbers each buffer of [`ByteMoments`] has.
#[derive(Debug, Clone, Copy, Default)]
struct Sizes {
    coded: usize,
    blocks: usize,
    small: usize,
}

impl Moments {
    pub fn floats(extents: &[Extent], device: Device) -> Self {
        let len: usize = extents.iter().map(|extent| extent.len).sum();
        let zeros = || Tensor::zeros([len as i64], (Kind::Float, device));
        Self::Floats { m: zeros(), v: zeros() }
    }

    pub fn bytes(extents: &[Extent], device: Device) -> Self {
        let sizes = Sizes::of(extents);
        let zeros = |len: usize, kind| Tensor::zeros([len as i64], (kind, device));
        let codes = || zeros(sizes.coded, Kind::Uint8);
        let numbers = |len| zeros(len, Kind::Float);
        Self::Bytes(Box::new(ByteMoments {
            coded: kernels::Moments {
                m: codes(),
                v: codes(),
                m_absmax: numbers(sizes.blocks),
                v_absmax: numbers(sizes.blocks),
            },
            m_small: numbers(sizes.small),
            v_small: numbers(sizes.small),
            first: code(true, device),
            second: code(false, device),
        }))
    }

    /// The buffers by their names in a checkpoint.
    pub fn buffers(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Floats { m, v } => vec![("m", m), ("v", v)],
            Self::Bytes(bytes) => vec![
                ("m", &bytes.m_small),
                ("v", &bytes.v_small),
                ("m.absmax", &bytes.coded.m_absmax),
                ("v.absmax", &bytes.coded.v_absmax),
                ("m.codes", &bytes.coded.m),
                ("v.codes", &bytes.coded.v),
            ],
        }
    }

    /// One update of the values; `settings` of a tensor whose values do not decay has no decay.
    pub fn update(&self, values: &Tensor, grads: &Tensor, extents: &[Extent], settings: AdamW) {
        match self {
            Self::Floats { m, v } => {
                for run in runs(extents) {
                    let part = |t: &Tensor| t.narrow(0, run.offset as i64, run.len as i64);
                    let (m, v) = (part(m), part(v));
                    kernels::adamw(
                        &part(values),
                        &part(grads),
                        &m,
                        &v,
                        settings_of(&run, settings),
                    );
                }
            }
            Self::Bytes(bytes) => bytes.update(values, grads, extents, settings),
        }
    }
}

impl ByteMoments {
    fn update(&self, values: &Tensor, grads: &Tensor, extents: &[Extent], settings: AdamW) {
        let part = |t: &Tensor, start: usize, len: usize| t.narrow(0, start as i64, len as i64);
        let mut done = Sizes::default();
        for extent in extents {
            let settings = settings_of(extent, settings);
            let [values, grads] = [values, grads].map(|t| part(t, extent.offset, extent.len));
            let sizes = Sizes::of(std::slice::from_ref(extent));
            if sizes.small > 0 {
                let [m, v] =
                    [&self.m_small, &self.v_small].map(|t| part(t, done.small, sizes.small));
                kernels::adamw(&values, &grads, &m, &v, settings);
            } else {
                let codes = |t: &Tensor| part(t, done.coded, sizes.coded);
                let absmax = |t: &Tensor| part(t, done.blocks, sizes.blocks);
                let moments = kernels::Moments {
                    m: codes(&self.coded.m),
                    v: codes(&self.coded.v),
                    m_absmax: absmax(&self.coded.m_absmax),
                    v_absmax: absmax(&self.coded.v_absmax),
                };
                let codes = [&self.first, &self.second];
                kernels::adamw_8bit(&values, &grads, &moments, codes, settings);
            }
            done = done.plus(sizes);
        }
    }
}

impl Sizes {
    fn of(extents: &[Extent]) -> Self {
        extents.iter().fold(Self::default(), |sum, extent| {
            sum.plus(if extent.len < MIN_CODED {
                Self { small: extent.len, ..Self::default() }
            } else {
                Self { coded: extent.len, blocks: extent.len.div_ceil(MOMENT_BLOCK), small: 0 }
            })
        })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            coded: self.coded + other.coded,
            blocks: self.blocks + other.blocks,
            small: self.small + other.small,
        }
    }
}

fn settings_of(extent: &Extent, settings: AdamW) -> AdamW {
    let weight_decay = if extent.decays { settings.weight_decay } else { 0.0 };
    AdamW { weight_decay, ..settings }
}

/// Neighbours that are treated alike, joined.
fn runs(extents: &[Extent]) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for extent in extents {
        match runs.last_mut() {
            Some(last) if last.decays == extent.decays => last.len += extent.len,
            _ => runs.push(*extent),
        }
    }
    runs
}

fn code(has_signs: bool, device: Device) -> Code {
    let code = ByteCode::dynamic(has_signs);
    Code {
        levels: Tensor::from_slice(&code.levels).to_device(device),
        nearest: Tensor::from_slice(&code.nearest).to_device(device),
    }
}
