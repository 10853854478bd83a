//! Stored blocks to `f32`. The arithmetic (order and rounding of every operation) is that of the
//! format's reference, so that the result is bit-equal to it.

use safetensors::Dtype;

/// How the values of a tensor are stored. Another type is one more row here and one decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    F32,
    F16,
    Bf16,
    /// Blocks of 32: scale (f16), 16 bytes with the first 16 values low and the others high.
    Q4_0,
    /// As `Q4_0`, with a minimum (f16) after the scale.
    Q4_1,
    /// Blocks of 32: scale (f16), 32 signed bytes.
    Q8_0,
}

/// The names of the format's other types, for messages: code, name.
const OTHER_TYPES: &[(u32, &str)] = &[
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl TensorType {
    /// The type of a code in a file, or the name of what is not supported.
    pub(super) fn from_code(code: u32) -> Result<Self, String> {
        match code {
            0 => Ok(Self::F32),
            1 => Ok(Self::F16),
            2 => Ok(Self::Q4_0),
            3 => Ok(Self::Q4_1),
            8 => Ok(Self::Q8_0),
            30 => Ok(Self::Bf16),
            _ => Err(OTHER_TYPES
                .iter()
                .find(|(other, _)| *other == code)
                .map_or_else(|| format!("type {code}"), |(_, name)| (*name).to_owned())),
        }
    }

    /// The unquantised type that is the same as a safetensors type.
    pub(crate) fn of_float(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// The safetensors type that holds the same bytes; `None` for quantised types.
    pub fn same_dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::BF16),
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => None,
        }
    }

    /// Values in one block.
    pub fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q8_0 => 2 + 32,
        }
    }

    /// Decodes whole blocks. Values beyond the shorter of the two slices are left as they are.
    pub fn dequantise(self, blocks: &[u8], values: &mut [f32]) {
        match self {
            Self::F32 => {
                each::<4, 1>(blocks, values, |block, out| out[0] = f32::from_le_bytes(*block))
            }
            Self::F16 => {
                each::<2, 1>(blocks, values, |block, out| out[0] = f16(block[0], block[1]))
            }
            Self::Bf16 => each::<2, 1>(blocks, values, |block, out| {
                out[0] = f32::from_le_bytes([0, 0, block[0], block[1]]);
            }),
            Self::Q4_0 => each::<18, 32>(blocks, values, q4_0),
            Self::Q4_1 => each::<20, 32>(blocks, values, q4_1),
            Self::Q8_0 => each::<34, 32>(blocks, values, q8_0),
        }
    }
}

fn each<const BYTES: usize, const VALUES: usize>(
    blocks: &[u8],
    values: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (blocks, _) = blocks.as_chunks::<BYTES>();
    let (values, _) = values.as_chunks_mut::<VALUES>();
    for (block, out) in blocks.iter().zip(values) {
        decode(block, out);
    }
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16(block[0], block[1]);
    for (index, &pair) in block[2..].iter().enumerate() {
        out[index] = scale * (f32::from(pair & 15) - 8.0);
        out[index + 16] = scale * (f32::from(pair >> 4) - 8.0);
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (f16(block[0], block[1]), f16(block[2], block[3]));
    for (index, &pair) in block[4..].iter().enumerate() {
        out[index] = scale * f32::from(pair & 15) + minimum;
        out[index + 16] = scale * f32::from(pair >> 4) + minimum;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16(block[0], block[1]);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(byte.cast_signed());
    }
}

/// Half precision (IEEE binary16, little-endian bytes) to `f32`: exact for every value.
fn f16(low: u8, high: u8) -> f32 {
    let half = u32::from(u16::from_le_bytes([low, high]));
    let sign = (half & 0x8000) << 16;
    let magnitude = half & 0x7fff;
    let bits = match magnitude {
        0x7c00.. => 0x7f80_0000 | ((magnitude & 0x3ff) << 13),
        0x0400.. => (magnitude << 13) + ((127 - 15) << 23),
        // Zero and subnormals count 2^-24 each.
        _ => (magnitude as f32 * f32::from_bits((127 - 24) << 23)).to_bits(),
    };
    f32::from_bits(sign | bits)
}
