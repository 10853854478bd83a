//! Weights that came from blocks of few bits, recognised by their values.
//!
//! A file with 4-bit or 8-bit blocks is kept as the `f32` values that its blocks mean. Those values lie on a
//! lattice, `scale · code + low`, whose spacing the largest and the smallest of a block give away. A
//! block counts only if scale, low and codes give back every value of it exactly, and without rounding before
//! the addition, so that it does not matter how a processor multiplies and adds.

use crate::half;

/// Weights of a block.
pub(crate) const BLOCK: usize = 32;

/// `scale · code + low`, codes 0–15.
pub(crate) fn four_bits(values: &[f32; BLOCK]) -> Option<(f32, f32, [u8; BLOCK])> {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let spread = f64::from(high) - f64::from(low);
    if spread == 0.0 {
        let constant = values.iter().all(|&value| value == low);
        return constant.then_some((0.0, low, [0; BLOCK]));
    }
    // The smallest has the code 0; the largest nearly always 15.
    spacings(spread, 15).find_map(|scale| {
        let mut codes = [0; BLOCK];
        for (code, &value) in codes.iter_mut().zip(values) {
            let number = ((value - low) / scale).round();
            let fits = number <= 15.0 && is_exact(number, scale) && number * scale + low == value;
            if !fits {
                return None;
            }
            *code = number as u8;
        }
        Some((scale, low, codes))
    })
}

/// `scale · code`, codes −127–127.
pub(crate) fn eight_bits(values: &[f32; BLOCK]) -> Option<(f32, [i8; BLOCK])> {
    let largest = values.iter().copied().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest == 0.0 {
        let zero = values.iter().all(|&value| value == 0.0);
        return zero.then_some((0.0, [0; BLOCK]));
    }
    spacings(f64::from(largest), 127).find_map(|scale| {
        let mut codes = [0; BLOCK];
        for (code, &value) in codes.iter_mut().zip(values) {
            let number = (value / scale).round();
            let fits = number.abs() <= 127.0 && is_exact(number, scale) && number * scale == value;
            if !fits {
                return None;
            }
            *code = number as i8;
        }
        Some((scale, codes))
    })
}

/// What the spacing may be when `length` is this many steps or fewer, the likeliest first: as it is, and as
/// half precision, in which files keep it, when the values were rounded.
fn spacings(length: f64, most: u32) -> impl Iterator<Item = f32> {
    (1..=most).rev().flat_map(move |steps| {
        let spacing = (length / f64::from(steps)) as f32;
        [spacing, half::nearest(spacing)].into_iter().filter(|x| x.is_normal())
    })
}

/// Whether the product needs no rounding.
fn is_exact(number: f32, scale: f32) -> bool {
    f64::from(number) * f64::from(scale) == f64::from(number * scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A finite, positive half that is not tiny.
    fn half_number() -> impl Strategy<Value = f32> {
        (0x0400u16..0x5000).prop_map(half::to_f32)
    }

    proptest! {
        #[test]
        fn four_bit_blocks_come_back(
            scale in half_number(),
            low in half_number(),
            codes in prop::array::uniform32(0u8..16),
            offset in any::<bool>(),
        ) {
            // With a minimum of its own, and centred.
            let low = if offset { -low } else { -8.0 * scale };
            let values = codes.map(|code| scale * f32::from(code) + low);
            if let Some((scale, low, codes)) = four_bits(&values) {
                prop_assert_eq!(codes.map(|code| scale * f32::from(code) + low), values);
                prop_assert_eq!(codes.map(|code| f32::from(code).mul_add(scale, low)), values);
            } else {
                // Only where an addition was rounded.
                let rounded = codes.iter().zip(&values).any(|(&code, &value)| {
                    f64::from(scale) * f64::from(code) + f64::from(low) != f64::from(value)
                });
                prop_assert!(rounded, "scale {scale}, low {low}, codes {codes:?}");
            }
        }

        #[test]
        fn eight_bit_blocks_come_back(
            scale in half_number(),
            codes in prop::array::uniform32(-127i8..=127),
        ) {
            let values = codes.map(|code| scale * f32::from(code));
            let (scale, codes) = eight_bits(&values).expect("products of few bits are exact");
            prop_assert_eq!(codes.map(|code| scale * f32::from(code)), values);
        }

        #[test]
        fn other_numbers_are_left_alone(values in prop::array::uniform32(-1.0f32..1.0)) {
            prop_assert_eq!(four_bits(&values), None);
            prop_assert_eq!(eight_bits(&values), None);
        }
    }

    #[test]
    fn constant_blocks_have_one_code_and_odd_ones_none() {
        assert_eq!(four_bits(&[0.25; BLOCK]), Some((0.0, 0.25, [0; BLOCK])));
        assert_eq!(eight_bits(&[0.0; BLOCK]), Some((0.0, [0; BLOCK])));
        for odd in [f32::NAN, f32::INFINITY] {
            let mut values = [0.0; BLOCK];
            values[7] = odd;
            assert_eq!(four_bits(&values), None);
            assert_eq!(eight_bits(&values), None);
        }
    }
}
