//! The numbers of a step that are about progress rather than about learning: speed, time left,
//! epochs.
//!
//! Pure: durations come in from outside. Losses are computed in `step` and `evaluate`.

use std::time::Duration;

/// How much the newest step counts in the running mean of the seconds per step.
const NEWEST_SHARE: f64 = 0.1;

/// Speed since this attempt began.
#[derive(Debug, Clone, Default)]
pub struct Speed {
    /// Exponential mean of the seconds per step, biased towards 0 while `weight` is below 1.
    seconds: f64,
    weight: f64,
}

impl Speed {
    /// Takes one step's wall time, the waiting for other runs and for chat answers included: that
    /// is the speed at which the run will end.
    pub fn record(&mut self, elapsed: Duration) {
        self.seconds += NEWEST_SHARE * (elapsed.as_secs_f64() - self.seconds);
        self.weight += NEWEST_SHARE * (1.0 - self.weight);
    }

    /// Seconds for `steps` more steps; 0 before the first record.
    pub fn seconds_for(&self, steps: u64) -> f64 {
        if self.weight == 0.0 { 0.0 } else { self.seconds / self.weight * steps as f64 }
    }
}

/// Tokens per second; 0 for a time too short to measure.
pub fn tokens_per_second(tokens: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// Epochs completed after `step` (from 1), as a fraction.
pub fn epochs_done(step: u64, steps_per_epoch: u64) -> f64 {
    step as f64 / steps_per_epoch.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_speed_is_known_from_the_first_step_on() {
        let mut speed = Speed::default();
        assert_eq!(speed.seconds_for(10), 0.0);
        for _ in 0..5 {
            speed.record(Duration::from_millis(500));
            assert!((speed.seconds_for(10) - 5.0).abs() < 1e-9);
        }
        assert_eq!(tokens_per_second(100, Duration::from_millis(500)), 200.0);
        assert_eq!(tokens_per_second(100, Duration::ZERO), 0.0);
    }

    #[test]
    fn old_steps_are_forgotten() {
        let mut speed = Speed::default();
        speed.record(Duration::from_secs(100));
        (0..100).for_each(|_| speed.record(Duration::from_secs(1)));
        assert!((speed.seconds_for(1) - 1.0).abs() < 0.01, "{}", speed.seconds_for(1));
    }
}
