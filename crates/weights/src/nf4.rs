//! NF4 with double quantisation, as QLoRA defines it and bitsandbytes computes it on the CPU, bit by bit.
//!
//! A weight is taken as one row-major vector in blocks of 64. A block is scaled by its largest
//! magnitude (`absmax`) and each value becomes the nearest of 16 levels: four bits, two to a byte,
//! the first in the upper half. The absmax values, less their mean, are in turn kept as 8-bit codes
//! of a dynamic map in blocks of 256. Altogether 4.13 bits per weight.
//!
//! It quantises and has the plain way back; the fast way back is with the kernels.

use std::sync::LazyLock;

use crate::byte_code::ByteCode;

/// Weights under one absmax.
pub const BLOCK: usize = 64;
/// Absmax values under one absmax of their own.
pub const NESTED_BLOCK: usize = 256;

/// The 16 levels, by code.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The code of the absmax values.
static ABSMAX: LazyLock<ByteCode> = LazyLock::new(|| ByteCode::dynamic(true));

/// The 256 values of the absmax codes, ascending.
pub fn absmax_levels() -> &'static [f32; 256] {
    &ABSMAX.levels
}

/// A quantised weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    /// Weights.
    pub len: usize,
    /// Two weights per byte.
    pub codes: Vec<u8>,
    /// One code per block of weights.
    pub absmax: Vec<u8>,
    /// One per block of absmax codes.
    pub nested_absmax: Vec<f32>,
    /// The mean of the absmax values.
    pub offset: f32,
}

/// Quantises a weight. `mean` is the mean of a vector: the last bit of it depends on the order of
/// the sum, so whoever wants the same bits as another program passes that program's.
pub fn quantise(weight: &[f32], mean: impl FnOnce(&[f32]) -> f32) -> Nf4 {
    let mut codes = vec![0u8; weight.len()];
    let blocks = weight.chunks(BLOCK).zip(codes.chunks_mut(BLOCK));
    let absmax: Vec<f32> = blocks.map(|(block, codes)| quantise_block(block, codes)).collect();
    let offset = mean(&absmax);
    let shifted: Vec<f32> = absmax.iter().map(|value| value - offset).collect();
    let (absmax, nested_absmax) = quantise_absmax(&shifted);
    let pair = |pair: &[u8]| pair[0] << 4 | pair.get(1).copied().unwrap_or(ZERO);
    let codes = codes.chunks(2).map(pair).collect();
    Nf4 { len: weight.len(), codes, absmax, nested_absmax, offset }
}

/// The code of 0.
const ZERO: u8 = 7;

/// Writes one code per weight and answers the absmax.
fn quantise_block(block: &[f32], codes: &mut [u8]) -> f32 {
    let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let whole = block.len() == BLOCK;
    let divisor = largest.max(1e-38);
    let inverse = 1.0 / divisor;
    codes.fill(0);
    for (code, x) in codes.iter_mut().zip(block) {
        // A last block that is short is divided by its absmax; whole ones take the reciprocal.
        let scaled = if whole { x * inverse } else { x / divisor };
        let scaled = scaled.clamp(-1.0, 1.0);
        for pair in LEVELS.windows(2) {
            *code += u8::from(scaled > (pair[0] + pair[1]) / 2.0);
        }
    }
    if whole { largest } else { divisor }
}

fn quantise_absmax(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut codes = Vec::with_capacity(values.len());
    let mut nested = Vec::with_capacity(values.len().div_ceil(NESTED_BLOCK));
    for block in values.chunks(NESTED_BLOCK) {
        let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest == 0.0 { 0.0 } else { 1.0 / largest };
        codes.extend(block.iter().map(|x| {
            let step = ((x * inverse + 1.0) / 2.0 * 65535.0 + 0.5).clamp(0.0, 65535.0);
            ABSMAX.nearest[step as usize]
        }));
        nested.push(largest);
    }
    (codes, nested)
}

impl Nf4 {
    /// The absmax of every block of weights.
    pub fn block_absmax(&self) -> Vec<f32> {
        let decoded = self.absmax.iter().enumerate().map(|(block, &code)| {
            ABSMAX.levels[code as usize] * self.nested_absmax[block / NESTED_BLOCK] + self.offset
        });
        decoded.collect()
    }

    /// The weights as a model with this weight computes with them: the plain form.
    pub fn dequantise(&self) -> Vec<f32> {
        let absmax = self.block_absmax();
        let value = |i: usize| {
            let byte = self.codes[i / 2];
            let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            LEVELS[code as usize] * absmax[i / BLOCK]
        };
        (0..self.len).map(value).collect()
    }
}
