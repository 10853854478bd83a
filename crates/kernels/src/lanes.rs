//! Vectors of `f32` of several widths behind one set of operations, so that a loop is written once and
//! compiled for each kind of processor.
//!
//! A value of [`Avx2`] or [`Avx512`] is the proof that the processor was asked: only [`with_lanes`] makes one,
//! and it runs the loop inside a function that is compiled for those instructions. All kinds sum in the same
//! order; the portable one rounds between multiplication and addition, the others do not.

/// Numbers that stand side by side in memory: a vector is all of them or a half.
pub(crate) const PANEL: usize = 16;

/// Operations on vectors of `WIDTH` lanes, taken from `lane` on of an array of [`PANEL`].
pub(crate) trait Lanes: Copy {
    type Vector: Copy;
    const WIDTH: usize;

    fn splat(self, x: f32) -> Self::Vector;
    fn load(self, from: &[f32; PANEL], lane: usize) -> Self::Vector;
    fn store(self, vector: Self::Vector, to: &mut [f32; PANEL], lane: usize);
    /// `a · b`
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a · b + c`
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The numbers 0–15 in bits `4 · nth` and up.
    fn nibble(self, from: &[u32; PANEL], lane: usize, nth: usize) -> Self::Vector;
    /// What `levels` says for them.
    fn level(
        self,
        from: &[u32; PANEL],
        lane: usize,
        nth: usize,
        levels: &[f32; 16],
    ) -> Self::Vector;
    fn byte(self, from: &[i8; PANEL], lane: usize) -> Self::Vector;
    /// The upper halves of `f32`.
    fn bf16(self, from: &[u16; PANEL], lane: usize) -> Self::Vector;
    fn f16(self, from: &[u16; PANEL], lane: usize) -> Self::Vector;
}

/// A loop over vectors.
pub(crate) trait Loop {
    type Output;
    /// Must be `#[inline(always)]`, to be compiled for the instructions of `lanes`.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs a loop with the widest vectors that this processor has.
pub(crate) fn with_lanes<T: Loop>(work: T) -> T::Output {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") {
            // SAFETY: the processor has the feature.
            return unsafe { x86::on_avx512(work) };
        }
        if has!("avx2") && has!("fma") && has!("f16c") {
            // SAFETY: the processor has the features.
            return unsafe { x86::on_avx2(work) };
        }
    }
    work.run(Portable)
}

/// The same loop with every kind of vectors that this processor has, the portable ones first.
#[cfg(test)]
pub(crate) fn with_all_lanes<T: Loop>(work: impl Fn() -> T) -> Vec<T::Output> {
    let mut results = vec![work().run(Portable)];
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx2") && has!("fma") && has!("f16c") {
            // SAFETY: the processor has the features.
            results.push(unsafe { x86::on_avx2(work()) });
        }
        if has!("avx512f") {
            // SAFETY: the processor has the feature.
            results.push(unsafe { x86::on_avx512(work()) });
        }
    }
    results
}

/// Plain arrays, which the compiler turns into whatever vectors the target has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Lanes for Portable {
    type Vector = [f32; PANEL];
    const WIDTH: usize = PANEL;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Vector {
        [x; PANEL]
    }
    #[inline(always)]
    fn load(self, from: &[f32; PANEL], _: usize) -> Self::Vector {
        *from
    }
    #[inline(always)]
    fn store(self, vector: Self::Vector, to: &mut [f32; PANEL], _: usize) {
        *to = vector;
    }
    #[inline(always)]
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn nibble(self, from: &[u32; PANEL], _: usize, nth: usize) -> Self::Vector {
        from.map(|word| ((word >> (4 * nth)) & 15) as f32)
    }
    #[inline(always)]
    fn level(self, from: &[u32; PANEL], _: usize, nth: usize, levels: &[f32; 16]) -> Self::Vector {
        from.map(|word| levels[((word >> (4 * nth)) & 15) as usize])
    }
    #[inline(always)]
    fn byte(self, from: &[i8; PANEL], _: usize) -> Self::Vector {
        from.map(f32::from)
    }
    #[inline(always)]
    fn bf16(self, from: &[u16; PANEL], _: usize) -> Self::Vector {
        from.map(|half| f32::from_bits(u32::from(half) << 16))
    }
    #[inline(always)]
    fn f16(self, from: &[u16; PANEL], _: usize) -> Self::Vector {
        from.map(crate::half::to_f32)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, Loop, PANEL};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn on_avx2<T: Loop>(work: T) -> T::Output {
        work.run(Avx2(()))
    }

    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub fn on_avx512<T: Loop>(work: T) -> T::Output {
        work.run(Avx512(()))
    }

    /// Eight lanes; made in functions that are compiled for these instructions only.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    /// Sixteen lanes.
    #[derive(Clone, Copy)]
    pub struct Avx512(());

    /// Instructions that a token proves to be there, on memory that a slice of the vector's width covers.
    macro_rules! proved {
        ($($body:tt)*) => {
            // SAFETY: the token in `self` proves the instructions; loads and stores go through slices as
            // long as a vector, of elements for which every bit pattern is valid.
            unsafe { $($body)* }
        };
    }

    impl Lanes for Avx2 {
        type Vector = __m256;
        const WIDTH: usize = 8;

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            proved!(_mm256_set1_ps(x))
        }
        #[inline(always)]
        fn load(self, from: &[f32; PANEL], lane: usize) -> __m256 {
            proved!(_mm256_loadu_ps(from[lane..lane + 8].as_ptr()))
        }
        #[inline(always)]
        fn store(self, vector: __m256, to: &mut [f32; PANEL], lane: usize) {
            proved!(_mm256_storeu_ps(to[lane..lane + 8].as_mut_ptr(), vector))
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            proved!(_mm256_mul_ps(a, b))
        }
        #[inline(always)]
        fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            proved!(_mm256_fmadd_ps(a, b, c))
        }
        #[inline(always)]
        fn nibble(self, from: &[u32; PANEL], lane: usize, nth: usize) -> __m256 {
            proved! {
                let words = _mm256_loadu_si256(from[lane..lane + 8].as_ptr().cast());
                let moved = _mm256_srl_epi32(words, _mm_cvtsi32_si128(4 * nth as i32));
                _mm256_cvtepi32_ps(_mm256_and_si256(moved, _mm256_set1_epi32(15)))
            }
        }
        #[inline(always)]
        fn level(self, from: &[u32; PANEL], lane: usize, nth: usize, levels: &[f32; 16]) -> __m256 {
            // A code picks from both halves of the levels, and its top bit chooses between them.
            proved! {
                let words = _mm256_loadu_si256(from[lane..lane + 8].as_ptr().cast());
                let moved = _mm256_srl_epi32(words, _mm_cvtsi32_si128(4 * nth as i32));
                let low = _mm256_loadu_ps(levels[..8].as_ptr());
                let high = _mm256_loadu_ps(levels[8..].as_ptr());
                let (low, high) =
                    (_mm256_permutevar8x32_ps(low, moved), _mm256_permutevar8x32_ps(high, moved));
                let top = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(moved));
                _mm256_blendv_ps(low, high, top)
            }
        }
        #[inline(always)]
        fn byte(self, from: &[i8; PANEL], lane: usize) -> __m256 {
            proved! {
                let bytes = _mm_loadl_epi64(from[lane..lane + 8].as_ptr().cast());
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
            }
        }
        #[inline(always)]
        fn bf16(self, from: &[u16; PANEL], lane: usize) -> __m256 {
            proved! {
                let halves = _mm_loadu_si128(from[lane..lane + 8].as_ptr().cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
            }
        }
        #[inline(always)]
        fn f16(self, from: &[u16; PANEL], lane: usize) -> __m256 {
            proved!(_mm256_cvtph_ps(_mm_loadu_si128(from[lane..lane + 8].as_ptr().cast())))
        }
    }

    impl Lanes for Avx512 {
        type Vector = __m512;
        const WIDTH: usize = 16;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            proved!(_mm512_set1_ps(x))
        }
        #[inline(always)]
        fn load(self, from: &[f32; PANEL], _: usize) -> __m512 {
            proved!(_mm512_loadu_ps(from.as_ptr()))
        }
        #[inline(always)]
        fn store(self, vector: __m512, to: &mut [f32; PANEL], _: usize) {
            proved!(_mm512_storeu_ps(to.as_mut_ptr(), vector))
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            proved!(_mm512_mul_ps(a, b))
        }
        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            proved!(_mm512_fmadd_ps(a, b, c))
        }
        #[inline(always)]
        fn nibble(self, from: &[u32; PANEL], lane: usize, nth: usize) -> __m512 {
            const NUMBERS: [f32; 16] = [
                0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0,
                15.0,
            ];
            self.level(from, lane, nth, &NUMBERS)
        }
        #[inline(always)]
        fn level(self, from: &[u32; PANEL], _: usize, nth: usize, levels: &[f32; 16]) -> __m512 {
            // The permutation looks at the lowest four bits alone.
            proved! {
                let words = _mm512_loadu_si512(from.as_ptr().cast());
                let moved = _mm512_srl_epi32(words, _mm_cvtsi32_si128(4 * nth as i32));
                _mm512_permutexvar_ps(moved, _mm512_loadu_ps(levels.as_ptr()))
            }
        }
        #[inline(always)]
        fn byte(self, from: &[i8; PANEL], _: usize) -> __m512 {
            proved! {
                let bytes = _mm_loadu_si128(from.as_ptr().cast());
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
            }
        }
        #[inline(always)]
        fn bf16(self, from: &[u16; PANEL], _: usize) -> __m512 {
            proved! {
                let halves = _mm256_loadu_si256(from.as_ptr().cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
            }
        }
        #[inline(always)]
        fn f16(self, from: &[u16; PANEL], _: usize) -> __m512 {
            proved!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
        }
    }
}
