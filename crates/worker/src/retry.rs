//! Pauses between attempts: doubling, jittered, bounded.

use std::time::Duration;

/// The pauses of one sequence of attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, attempts: 0 }
    }

    /// Attempts that have failed so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The next pause: between half and the whole of `first` × 2^attempts, at most `longest`.
    pub fn next_pause(&mut self) -> Duration {
        let factor = 1u32 << self.attempts.min(16);
        self.attempts = self.attempts.saturating_add(1);
        let ceiling = self.first.saturating_mul(factor).min(self.longest);
        ceiling.mul_f64(0.5 + 0.5 * random_share())
    }

    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }
}

/// A number in 0–1 that differs between workers, so that they do not call in step.
pub fn random_share() -> f64 {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_bound_and_start_again_after_success() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, longest);
        let pauses: Vec<Duration> = (0..40).map(|_| backoff.next_pause()).collect();
        assert!(pauses[0] >= first / 2 && pauses[0] <= first);
        assert!(pauses[10..].iter().all(|p| *p >= longest / 2 && *p <= longest));
        backoff.reset();
        assert!(backoff.next_pause() <= first);
    }
}
