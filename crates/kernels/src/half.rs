//! Half precision (IEEE binary16): to `f32`, and back where that loses nothing.

/// Exact for every value.
#[inline(always)]
pub(crate) fn to_f32(half: u16) -> f32 {
    let half = u32::from(half);
    let sign = (half & 0x8000) << 16;
    let magnitude = half & 0x7fff;
    let bits = match magnitude {
        0x7c00.. => 0x7f80_0000 | ((magnitude & 0x3ff) << 13),
        0x0400.. => (magnitude << 13) + ((127 - 15) << 23),
        // Zero and subnormals count 2^-24 each.
        _ => (magnitude as f32 * UNIT).to_bits(),
    };
    f32::from_bits(sign | bits)
}

/// The smallest number above 0.
const UNIT: f32 = f32::from_bits((127 - 24) << 23);
/// The smallest number with a full significand.
const NORMAL: f32 = f32::from_bits((127 - 14) << 23);

/// The half that is this number, if there is one.
pub(crate) fn exact(x: f32) -> Option<u16> {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = x.abs();
    let bits = match magnitude {
        _ if magnitude > 65504.0 || magnitude.is_nan() => return None,
        _ if magnitude < NORMAL => (magnitude / UNIT) as u32,
        _ => (magnitude.to_bits() >> 13) - ((127 - 15) << 10),
    };
    let half = sign | bits as u16;
    (to_f32(half) == x).then_some(half)
}

/// The number of half precision that is nearest to a positive one, as far as there is one.
pub(crate) fn nearest(x: f32) -> f32 {
    if x < NORMAL {
        return (x / UNIT).round() * UNIT;
    }
    // Half a step of the eleven bits that stay, then the rest away.
    f32::from_bits((x.to_bits() + (1 << 12)) & !((1 << 13) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_itself_again() {
        for half in 0..=u16::MAX {
            let value = to_f32(half);
            if value.is_finite() {
                assert_eq!(exact(value), Some(half), "{half:#06x} = {value}");
                assert_eq!(nearest(value.abs()), value.abs(), "{half:#06x}");
            } else {
                assert_eq!(exact(value), None);
            }
        }
    }

    #[test]
    fn what_lies_between_two_halves_is_neither() {
        for half in [0x0001, 0x03ff, 0x0400, 0x3c00, 0x7bfe] {
            let (a, b) = (to_f32(half), to_f32(half + 1));
            assert_eq!(exact(a + (b - a) / 4.0), None);
            assert_eq!(nearest(a + (b - a) / 4.0), a);
            assert_eq!(nearest(b - (b - a) / 4.0), b);
        }
        assert_eq!((exact(1e30), exact(1e-30)), (None, None));
    }
}
