//! Seeds for every random choice of a run, computed from the plan's seed and plain counters.
//!
//! No generator is kept alive between steps, so there is no generator state to save: a resumed run
//! computes the same seeds as one that was never interrupted. This module draws no random numbers
//! itself.

/// What a seed is for; streams of different purpose are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    AdapterInit = 1,
    DataOrder = 2,
    Dropout = 3,
    Sampling = 4,
}

/// The seed number (`a`, `b`) of the stream `purpose` under the root `seed`.
pub fn derive(seed: u64, purpose: Purpose, a: u64, b: u64) -> u64 {
    // Words go in unmixed: mixing both sides would make seed 1 with word 2 equal to seed 2 with
    // word 1.
    mix([purpose as u64, a, b].into_iter().fold(seed, |state, word| mix(state) ^ word))
}

/// The finaliser of SplitMix64: every input bit moves every output bit.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn streams_and_counters_never_share_a_seed() {
        let mut seen = HashSet::new();
        for seed in 0..4 {
            for purpose in [Purpose::AdapterInit, Purpose::DataOrder, Purpose::Dropout] {
                for a in 0..20 {
                    for b in 0..20 {
                        assert!(
                            seen.insert(derive(seed, purpose, a, b)),
                            "{seed} {purpose:?} {a} {b}"
                        );
                    }
                }
            }
        }
    }
}
