//! Arithmetic that the compiler can turn into vector instructions.

/// Lanes of the accumulators: two AVX2 registers, so that additions do not wait for each other.
pub(crate) const LANES: usize = 16;

/// Defines a function compiled twice, for any processor and for AVX2 with FMA; the call picks.
macro_rules! multiversion {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        pub(crate) fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                {
                    // SAFETY: the processor has both features.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// e^x to about 2 units in the last place, without branches; inputs are clamped to the finite range.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.984_127e-4;
    p = p * r + 1.388_889e-3;
    p = p * r + 8.333_334e-3;
    p = p * r + 4.166_667e-2;
    p = p * r + 1.666_666_7e-1;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    // 2^n: the low nine bits of `shifted` are n; 127 is the exponent's bias.
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent to about 3e-7: an odd polynomial near 0, where the other form loses digits.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    // Least squares over |x| < 0.625 at Chebyshev's points.
    let mut p = -5.704_042_5e-3;
    p = p * z + 2.063_786e-2;
    p = p * z - 5.373_915_7e-2;
    p = p * z + 1.333_143_2e-1;
    p = p * z - 3.333_328e-1;
    let near = x + x * z * p;
    let far = 1.0 - 2.0 / (1.0 + exp(2.0 * x));
    if z < 0.625 * 0.625 { near } else { far }
}

/// Σ f(i) over `0..len`, in lanes.
#[inline(always)]
pub(crate) fn lane_sum(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = len - len % LANES;
    let mut start = 0;
    while start < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
        start += LANES;
    }
    let mut sum: f32 = lanes.iter().sum();
    for i in whole..len {
        sum += f(i);
    }
    sum
}

multiversion! {
    /// The scalar product of two vectors of equal length.
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        lane_sum(a.len(), |i| a[i] * b[i])
    }
}

multiversion! {
    /// `y += factor * x`.
    fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += factor * x;
        }
    }
}

multiversion! {
    /// The largest value; −∞ for none.
    fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let chunks = x.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = if *value > *lane { *value } else { *lane };
            }
        }
        lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }
}

multiversion! {
    /// Replaces each x by e^(x · scale − shift) and answers the sum of the results.
    fn exp_sum(x: &mut [f32], scale: f32, shift: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = x.chunks_exact_mut(LANES);
        for chunk in chunks.by_ref() {
            for (value, sum) in chunk.iter_mut().zip(lanes.iter_mut()) {
                *value = exp(*value * scale - shift);
                *sum += *value;
            }
        }
        let mut sum: f32 = lanes.iter().sum();
        for value in chunks.into_remainder() {
            *value = exp(*value * scale - shift);
            sum += *value;
        }
        sum
    }
}

multiversion! {
    /// Replaces each x by `limit · tanh(factor · x)`.
    fn cap(x: &mut [f32], factor: f32, limit: f32) {
        for value in x {
            *value = limit * tanh(*value * factor);
        }
    }
}

multiversion! {
    fn scale(x: &mut [f32], factor: f32) {
        for value in x {
            *value *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_library() {
        for i in -8_700..8_800 {
            let x = i as f32 / 100.0;
            let (ours, exact) = (exp(x), (x as f64).exp());
            let error = ((ours as f64 - exact) / exact).abs();
            assert!(error < 2.5e-7, "exp({x}) = {ours}, off by {error:e}");
        }
    }

    #[test]
    fn tanh_is_close_to_the_library_everywhere() {
        for i in -4_000..=4_000 {
            let x = i as f32 / 200.0;
            let (ours, exact) = (tanh(x), (x as f64).tanh());
            let error = (ours as f64 - exact).abs() / exact.abs().max(1e-30);
            assert!(error < 4e-7, "tanh({x}) = {ours}, off by {error:e}");
        }
        assert_eq!((tanh(0.0), tanh(90.0), tanh(-90.0)), (0.0, 1.0, -1.0));
    }

    #[test]
    fn sums_and_maxima_see_every_element_at_every_length() {
        for len in 1..70 {
            let x: Vec<f32> = (0..len).map(|i| i as f32 - 3.0).collect();
            assert_eq!(max(&x), len as f32 - 4.0);
            let expected: f32 = x.iter().map(|v| v * v).sum();
            assert_eq!(dot(&x, &x), expected, "length {len}");
            let mut e = x.clone();
            let sum = exp_sum(&mut e, 0.1, 0.5);
            assert!((sum - e.iter().sum::<f32>()).abs() <= 1e-4 * sum);
        }
    }
}
