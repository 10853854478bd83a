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
    pub fn new(least: Duration) -> Self {
        Self { least, last_sign: Instant::now(), last_step: None, steps: VecDeque::new() }
    }

    /// The engine has said something.
    pub fn sign(&mut self) {
        self.last_sign = Instant::now();
    }

    /// The engine has done a step.
    pub fn step(&mut self) {
        let now = Instant::now();
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

    /// Waits until the engine has been silent for too long.
    pub async fn expired(&self) {
        tokio::time::sleep_until(self.last_sign + self.limit()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_steps_are_given_ten_of_themselves() {
        let mut watchdog = Watchdog::new(Duration::from_secs(60));
        assert_eq!(watchdog.limit(), Duration::from_secs(60));
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(30)).await;
            watchdog.sign();
            watchdog.step();
        }
        assert_eq!(watchdog.limit(), Duration::from_secs(300));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_starts_the_silence_anew() {
        let mut watchdog = Watchdog::new(Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(50)).await;
        watchdog.sign();
        let begin = Instant::now();
        watchdog.expired().await;
        let waited = begin.elapsed();
        assert!(
            waited >= Duration::from_secs(60) && waited < Duration::from_secs(61),
            "{waited:?}"
        );
    }
}
