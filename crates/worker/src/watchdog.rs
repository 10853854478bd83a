//! Tells a hang from work: how long an engine has been silent, compared with its own pace.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Steps that the median is taken over.
const WINDOW: usize = 31;

pub struct Watchdog {
    least: Duration,
    last_sign: Instant,
    last_step: Option<Instant>,
    steps: VecDeque<Duration>,
}

impl Watchdog {
    /// `least`: a silence that is never a hang.
    pub fn new(least: Duration, now: Instant) -> Self {
        Self { least, last_sign: now, last_step: None, steps: VecDeque::new() }
    }

    /// The engine has said something.
    pub fn sign(&mut self, now: Instant) {
        self.last_sign = now;
    }

    /// The engine has done a step.
    pub fn step(&mut self, now: Instant) {
        if let Some(last) = self.last_step.replace(now) {
            if self.steps.len() == WINDOW {
                self.steps.pop_front();
            }
            self.steps.push_back(now - last);
        }
    }

    /// The silence that counts as a hang: ten median steps, but never less than `least`.
    pub fn limit(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.steps.iter().copied().collect();
        sorted.sort_unstable();
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        self.least.max(median.saturating_mul(10))
    }

    /// When the present silence becomes a hang.
    pub fn deadline(&self) -> Instant {
        self.last_sign + self.limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_steps_are_given_ten_of_themselves() {
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(Duration::from_secs(60), now);
        assert_eq!(watchdog.deadline() - now, Duration::from_secs(60));
        for _ in 0..5 {
            now += Duration::from_secs(30);
            watchdog.sign(now);
            watchdog.step(now);
        }
        assert_eq!(watchdog.deadline() - now, Duration::from_secs(300));
    }

    #[test]
    fn a_sign_starts_the_silence_anew() {
        let begin = Instant::now();
        let mut watchdog = Watchdog::new(Duration::from_secs(60), begin);
        watchdog.sign(begin + Duration::from_secs(50));
        assert_eq!(watchdog.deadline() - begin, Duration::from_secs(110));
    }
}
