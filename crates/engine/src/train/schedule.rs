//! The learning rate as a pure function of the step.
//!
//! The factors equal those of transformers' `get_{linear,cosine,constant}_schedule_with_warmup`,
//! its convention for the first step included: optimizer step k, counted from 0, uses `factor(k)`,
//! so with a warm-up the very first update has a rate of 0. Nothing here remembers anything.

use std::f64::consts::PI;

use domain::hyperparameters::Schedule;

/// The share of the peak learning rate at optimizer step `step` (from 0) of `total_steps`.
pub fn factor(schedule: Schedule, step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
    if step < warmup_steps {
        return step as f64 / warmup_steps as f64;
    }
    // Warm-ups longer than the run are legal: such a run ends before its peak.
    let decay_steps = total_steps.saturating_sub(warmup_steps).max(1) as f64;
    let progress = (step - warmup_steps) as f64 / decay_steps;
    match schedule {
        Schedule::Linear => (total_steps.saturating_sub(step) as f64 / decay_steps).max(0.0),
        Schedule::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
        Schedule::Constant => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from transformers 5 with a base rate of 1 and 10 steps.
    const LINEAR: [f64; 11] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0];
    const COSINE: [f64; 11] = [
        1.0,
        0.9755282581475768,
        0.9045084971874737,
        0.7938926261462366,
        0.6545084971874737,
        0.5,
        0.34549150281252633,
        0.2061073738537635,
        0.09549150281252633,
        0.024471741852423234,
        0.0,
    ];
    const LINEAR_AFTER_3: [f64; 11] = [
        0.0,
        0.3333333333333333,
        0.6666666666666666,
        1.0,
        0.8571428571428571,
        0.7142857142857143,
        0.5714285714285714,
        0.42857142857142855,
        0.2857142857142857,
        0.14285714285714285,
        0.0,
    ];
    const COSINE_AFTER_3: [f64; 11] = [
        0.0,
        0.3333333333333333,
        0.6666666666666666,
        1.0,
        0.9504844339512095,
        0.8117449009293668,
        0.6112604669781572,
        0.38873953302184283,
        0.18825509907063326,
        0.04951556604879048,
        0.0,
    ];
    const CONSTANT_AFTER_3: [f64; 11] =
        [0.0, 0.3333333333333333, 0.6666666666666666, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];

    #[test]
    fn factors_equal_those_of_transformers() {
        let tables = [
            (Schedule::Linear, 0, LINEAR),
            (Schedule::Linear, 3, LINEAR_AFTER_3),
            (Schedule::Cosine, 0, COSINE),
            (Schedule::Cosine, 3, COSINE_AFTER_3),
            (Schedule::Constant, 0, [1.0; 11]),
            (Schedule::Constant, 3, CONSTANT_AFTER_3),
        ];
        for (schedule, warmup, table) in tables {
            for (step, expected) in table.into_iter().enumerate() {
                let got = factor(schedule, step as u64, warmup, 10);
                assert!((got - expected).abs() < 1e-15, "{schedule:?} {warmup} {step}: {got}");
            }
        }
    }

    #[test]
    fn a_warm_up_longer_than_the_run_only_rises() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            let factors: Vec<f64> = (0..10).map(|step| factor(schedule, step, 20, 10)).collect();
            assert!(factors.windows(2).all(|pair| pair[0] < pair[1]), "{schedule:?}: {factors:?}");
        }
    }
}
