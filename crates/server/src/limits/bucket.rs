//! A bucket of requests or tokens: it holds a minute's worth, and fills again within a minute.

use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Bucket {
    limit: u64,
    /// Below zero after a request that took more than it had announced.
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(limit: u64, now: Instant) -> Self {
        Self { limit, level: limit as f64, at: now }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes `amount`, or tells how long it would have to wait.
    pub(super) fn take(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        let after = self.level - amount as f64;
        if after < 0.0 {
            return Err(self.time_for(-after));
        }
        self.level = after;
        Ok(())
    }

    /// Replaces `taken` by what it really was.
    pub(super) fn correct(&mut self, taken: u64, really: u64, now: Instant) {
        self.fill(now);
        self.level = (self.level + taken as f64 - really as f64).min(self.limit as f64);
    }

    pub(super) fn remaining(&mut self, now: Instant) -> u64 {
        self.fill(now);
        self.level.max(0.0) as u64
    }

    /// Until it is full.
    pub(super) fn reset(&mut self, now: Instant) -> Duration {
        self.fill(now);
        self.time_for(self.limit as f64 - self.level)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let gained = self.limit as f64 * passed.as_secs_f64() / MINUTE.as_secs_f64();
        self.level = (self.level + gained).min(self.limit as f64);
    }

    fn time_for(&self, amount: f64) -> Duration {
        Duration::try_from_secs_f64(MINUTE.as_secs_f64() * amount / self.limit as f64)
            .unwrap_or(MINUTE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_within_a_minute_and_tells_the_wait() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut bucket = Bucket::full(60, start);
        assert_eq!(bucket.take(50, at(0)), Ok(()));
        assert_eq!(bucket.take(12, at(0)), Err(Duration::from_secs(2)));
        assert_eq!((bucket.remaining(at(0)), bucket.reset(at(0))), (10, Duration::from_secs(50)));
        assert_eq!(bucket.take(12, at(2)), Ok(()));
        assert_eq!(bucket.remaining(at(600)), 60, "never more than a minute's worth");
    }

    #[test]
    fn what_was_really_taken_counts_in_both_directions() {
        let start = Instant::now();
        let mut bucket = Bucket::full(60, start);
        bucket.take(40, start).unwrap();
        bucket.correct(40, 10, start);
        assert_eq!(bucket.remaining(start), 50);
        bucket.correct(0, 80, start);
        assert_eq!(bucket.remaining(start), 0);
        assert_eq!(bucket.take(1, start), Err(Duration::from_secs(31)), "30 are owed");
        bucket.correct(200, 0, start);
        assert_eq!(bucket.remaining(start), 60);
    }
}
