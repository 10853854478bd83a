//! Whose answers are better, and may it be chance: two contenders that answered the same rows.
//!
//! Scores are paired by row. The interval and its p come from a bootstrap over rows, the sign test from the rows
//! won and lost alone. Labels are compared as labels. What it does not do: ask models, or choose the score.

mod labels;

pub use labels::{Confusion, OfLabel};

/// Numbers that look random and are the same for the same seed: SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.draw()) * end as u128) >> 64) as usize
    }
}

/// Rows on which the first contender scored higher, lower, and the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub won: u64,
    pub lost: u64,
    pub tied: u64,
}

impl Tally {
    /// Of (first, second) per row.
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        let mut tally = Self::default();
        for (first, second) in pairs {
            match first.total_cmp(second) {
                std::cmp::Ordering::Greater => tally.won += 1,
                std::cmp::Ordering::Less => tally.lost += 1,
                std::cmp::Ordering::Equal => tally.tied += 1,
            }
        }
        tally
    }

    /// The exact two-sided sign test: how likely a fair coin that is thrown for every row but the ties is at
    /// least as one-sided. 1 where there are ties only.
    pub fn sign_test(&self) -> f64 {
        let n = self.won + self.lost;
        let few = self.won.min(self.lost);
        // Binomial coefficients over 2^n by their logarithms: they overflow soon.
        let mut logarithm = -(n as f64) * std::f64::consts::LN_2;
        let mut sum = logarithm.exp();
        for k in 1..=few {
            logarithm += ((n - k + 1) as f64).ln() - (k as f64).ln();
            sum += logarithm.exp();
        }
        (2.0 * sum).min(1.0)
    }
}

/// What a bootstrap says of a mean difference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    /// The mean difference itself.
    pub difference: f64,
    /// 95 % of the resampled means lie within.
    pub low: f64,
    pub high: f64,
    /// Two-sided: twice the share of resampled means on the other side of 0, or on it.
    pub p: f64,
}

/// Draws rows with replacement `resamples` times, and looks where the mean difference lies. None without rows.
pub fn bootstrap(differences: &[f64], resamples: usize, seed: u64) -> Option<Bootstrap> {
    if differences.is_empty() || resamples == 0 {
        return None;
    }
    let rows = differences.len();
    let mut random = Random::new(seed);
    let mean = |sum: f64| sum / rows as f64;
    let mut means: Vec<f64> = (0..resamples)
        .map(|_| mean((0..rows).map(|_| differences[random.below(rows)]).sum()))
        .collect();
    means.sort_by(f64::total_cmp);
    // Sums of scores in another order differ in the last bits, which must not take sides.
    let zero = 1e-12;
    let not_above = means.iter().filter(|mean| **mean <= zero).count();
    let not_below = means.iter().filter(|mean| **mean >= -zero).count();
    let p = 2.0 * (not_above.min(not_below) + 1) as f64 / (resamples + 1) as f64;
    Some(Bootstrap {
        difference: mean(differences.iter().sum()),
        low: quantile(&means, 0.025),
        high: quantile(&means, 0.975),
        p: p.min(1.0),
    })
}

/// Between the two nearest of sorted values, as numpy's default.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let above = sorted[(below + 1).min(sorted.len() - 1)];
    sorted[below] + (above - sorted[below]) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_test_is_the_binomial_one() {
        // scipy.stats.binomtest(k, n).pvalue
        for (won, lost, p) in [
            (8, 2, 0.109_375),
            (2, 8, 0.109_375),
            (10, 0, 0.001_953_125),
            (5, 5, 1.0),
            (0, 0, 1.0),
            (37, 4, 1.025_837_264_023_721_2e-7),
            (600, 400, 2.728_464_156_066_018_4e-10),
        ] {
            let found = Tally { won, lost, tied: 7 }.sign_test();
            assert!((found - p).abs() <= 1e-9 * p, "{won}:{lost}: {found}, wanted {p}");
        }
    }

    #[test]
    fn rows_are_won_lost_or_tied() {
        let tally = Tally::of(&[(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.25)]);
        assert_eq!(tally, Tally { won: 2, lost: 1, tied: 1 });
    }

    #[test]
    fn a_bootstrap_finds_the_interval_of_a_mean() {
        // 60 wins, 40 ties: the mean is a binomial's share, whose standard deviation is 0.049.
        let differences: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i < 60))).collect();
        let found = bootstrap(&differences, 10_000, 7).unwrap();
        assert!((found.difference - 0.6).abs() < 1e-12);
        assert!(
            (found.low - 0.504).abs() < 0.011 && (found.high - 0.696).abs() < 0.011,
            "{found:?}"
        );
        assert!(found.p <= 2.0 / 10_001.0 + 1e-12);
        assert_eq!(bootstrap(&differences, 10_000, 7), Some(found));
        // As many won as lost: nothing is shown.
        let even: Vec<f64> = (0..100).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let found = bootstrap(&even, 10_000, 7).unwrap();
        assert!(found.p > 0.9 && found.low < 0.0 && found.high > 0.0, "{found:?}");
        let ties = bootstrap(&[0.0; 10], 100, 7).unwrap();
        assert_eq!((ties.p, ties.low, ties.high), (1.0, 0.0, 0.0));
        assert_eq!(bootstrap(&[], 100, 7), None);
    }

    #[test]
    fn quantiles_lie_between_values() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.5), 2.5);
        assert_eq!(quantile(&[1.0], 0.975), 1.0);
    }

    #[test]
    fn draws_are_even_and_within() {
        let mut random = Random::new(1);
        let mut counts = [0; 5];
        (0..10_000).for_each(|_| counts[random.below(5)] += 1);
        assert!(counts.iter().all(|count| (1_850..2_150).contains(count)), "{counts:?}");
    }
}
