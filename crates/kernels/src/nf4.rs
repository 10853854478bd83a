//! NF4 weights back to numbers: 4-bit codes, two to a byte, times the absmax of their block of 64, which is
//! itself an 8-bit code. How weights become codes is not known here.

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::cuda::road;
use crate::on_cpu;
use crate::rows::{Rows, bytes};

/// Weights under one absmax, and absmax codes under one of theirs.
pub(crate) const BLOCK: usize = 64;
pub(crate) const NESTED_BLOCK: usize = 256;

/// A quantised matrix; all tensors on one device.
#[derive(Debug)]
pub struct Nf4 {
    /// u8 `[weights / 2]`, the first weight in the upper half.
    pub codes: Tensor,
    /// u8 `[weights / 64]`, rounded up.
    pub absmax: Tensor,
    /// f32, one per 256 absmax codes, rounded up.
    pub nested_absmax: Tensor,
    pub offset: f32,
    /// f32 `[16]`
    pub levels: Tensor,
    /// f32 `[256]`
    pub absmax_levels: Tensor,
}

/// Writes the weights to `out`, contiguous, of as many elements as there are weights.
pub fn nf4_dequantise(weight: &Nf4, out: &Tensor) {
    if out.device() == Device::Cpu && out.kind() == Kind::BFloat16 {
        let dense = Tensor::empty(out.size(), (Kind::Float, Device::Cpu));
        nf4_dequantise(weight, &dense);
        return out.shallow_clone().copy_(&dense);
    }
    if !on_cpu(out) {
        return road::nf4_dequantise(weight, out);
    }
    let len = out.numel();
    let (codes, absmax) = (bytes(&weight.codes), bytes(&weight.absmax));
    assert!(out.is_contiguous() && codes.len() == len.div_ceil(2));
    assert_eq!(absmax.len(), len.div_ceil(BLOCK));
    assert_eq!(weight.absmax_levels.kind(), Kind::Float);
    let rows = [&weight.nested_absmax, &weight.levels, &weight.absmax_levels].map(Rows::of);
    let [nested, levels, map] = rows.each_ref().map(|rows| rows.row(0));
    assert!(levels.len() == 16 && map.len() == 256 && nested.len() * NESTED_BLOCK >= absmax.len());
    let (levels, offset): (&[f32; 16], f32) =
        (levels.try_into().expect("16 levels"), weight.offset);
    let out = Rows::of(&out.view(-1));
    // SAFETY: nobody else has a view of `out`, and each chunk goes to one thread.
    let out = unsafe { out.row_mut(0) };
    /// Blocks per task: enough that handing it to a thread costs nothing beside it.
    const TASK: usize = 128;
    out.par_chunks_mut(TASK * BLOCK).enumerate().for_each(|(task, out)| {
        for (n, out) in out.chunks_mut(BLOCK).enumerate() {
            let block = task * TASK + n;
            let scale = map[absmax[block] as usize] * nested[block / NESTED_BLOCK] + offset;
            let first = block * BLOCK / 2;
            dequantise_block(&codes[first..first + out.len().div_ceil(2)], levels, scale, out);
        }
    });
}

/// The absmax of every block.
pub(crate) fn scales(weight: &Nf4) -> Vec<f32> {
    let [nested, map] = [&weight.nested_absmax, &weight.absmax_levels].map(Rows::of);
    let codes = bytes(&weight.absmax).iter().enumerate();
    codes
        .map(|(block, &code)| {
            map.row(0)[code as usize] * nested.row(0)[block / NESTED_BLOCK] + weight.offset
        })
        .collect()
}

fn dequantise_block(codes: &[u8], levels: &[f32; 16], scale: f32, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if out.len() == BLOCK && std::arch::is_x86_feature_detected!("avx2") {
        let codes: &[u8; BLOCK / 2] = codes.try_into().expect("two codes per byte");
        let out: &mut [f32; BLOCK] = out.try_into().expect("a whole block");
        // SAFETY: the processor has the feature.
        return unsafe { whole_block(codes, levels, scale, out) };
    }
    for (i, out) in out.iter_mut().enumerate() {
        let code = if i.is_multiple_of(2) { codes[i / 2] >> 4 } else { codes[i / 2] & 15 };
        *out = levels[code as usize] * scale;
    }
}

/// The 16 levels stand in two registers; a code picks from both, and its top bit chooses between them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn whole_block(codes: &[u8; BLOCK / 2], levels: &[f32; 16], scale: f32, out: &mut [f32; BLOCK]) {
    use std::arch::x86_64::*;
    // SAFETY: eight floats from the start and the middle of sixteen.
    let (low, high) =
        unsafe { (_mm256_loadu_ps(levels.as_ptr()), _mm256_loadu_ps(levels.as_ptr().add(8))) };
    let scale = _mm256_set1_ps(scale);
    let (low, high) = (_mm256_mul_ps(low, scale), _mm256_mul_ps(high, scale));
    let pick = |code: __m256i| {
        let top = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code));
        let (low, high) =
            (_mm256_permutevar8x32_ps(low, code), _mm256_permutevar8x32_ps(high, code));
        _mm256_blendv_ps(low, high, top)
    };
    for (codes, out) in codes.chunks_exact(8).zip(out.chunks_exact_mut(16)) {
        let packed = i64::from_le_bytes(codes.try_into().expect("eight bytes"));
        let wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(packed));
        let even = pick(_mm256_srli_epi32::<4>(wide));
        let odd = pick(_mm256_and_si256(wide, _mm256_set1_epi32(15)));
        // Pairs, in halves of the registers: 0–3 and 8–11, 4–7 and 12–15.
        let (first, second) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
        // SAFETY: sixteen floats, written as two times eight.
        unsafe {
            let lower = _mm256_permute2f128_ps::<0x20>(first, second);
            let upper = _mm256_permute2f128_ps::<0x31>(first, second);
            _mm256_storeu_ps(out.as_mut_ptr(), lower);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), upper);
        }
    }
}
