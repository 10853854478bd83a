//! How much a project may ask for within a minute: requests, and for completions tokens too. It protects one
//! project from another that has run wild, not an operator's bill: each server process counts by itself, in memory,
//! and forgets when it ends.
//!
//! Own code and not a rate-limiting library: what a completion takes is known only after it, so an announced
//! amount has to be corrected, and the headers tell what remains. The libraries offer neither.

mod bucket;
mod charge;
mod told;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use domain::ProjectId;

use self::bucket::Bucket;
pub(crate) use self::charge::{Charge, Share, cost};
use crate::config::LimitsConfig;

/// Projects that are remembered before those that have used nothing of late are forgotten.
const FIRST_SWEEP: usize = 1024;

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// It asks a model.
    Completion,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    Requests,
    Tokens,
}

/// A request that comes too early.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub measure: Measure,
    project: ProjectId,
    limit: u64,
    used: u64,
    requested: u64,
    /// None: it is larger than the whole limit, and no waiting helps.
    pub wait: Option<Duration>,
}

pub(crate) struct Limits {
    config: LimitsConfig,
    projects: Mutex<Projects>,
}

/// Bounded by the projects that ask within a minute: only authenticated requests are counted.
#[derive(Default)]
struct Projects {
    buckets: HashMap<ProjectId, Buckets>,
    sweep_at: usize,
}

/// None where there is no limit.
struct Buckets {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    other: Option<Bucket>,
}

impl Buckets {
    fn full(config: &LimitsConfig, now: Instant) -> Self {
        let bucket = |limit: u64| (limit > 0).then(|| Bucket::full(limit, now));
        Self {
            requests: bucket(config.requests_per_minute),
            tokens: bucket(config.tokens_per_minute),
            other: bucket(config.other_requests_per_minute),
        }
    }

    /// The bucket of requests of this class.
    fn of(&mut self, class: Class) -> &mut Option<Bucket> {
        match class {
            Class::Completion => &mut self.requests,
            Class::Other => &mut self.other,
        }
    }

    /// As good as forgotten.
    fn are_full(&mut self, now: Instant) -> bool {
        let all = [&mut self.requests, &mut self.tokens, &mut self.other];
        all.into_iter().flatten().all(|bucket| bucket.reset(now).is_zero())
    }
}

impl Limits {
    pub(crate) fn new(config: LimitsConfig) -> Self {
        Self { config, projects: Mutex::default() }
    }

    /// Counts one request.
    pub(crate) fn request(&self, project: &ProjectId, class: Class) -> Result<(), Refusal> {
        let now = Instant::now();
        self.with(project, now, |buckets| {
            take(buckets.of(class), project, Measure::Requests, 1, now)
        })
    }

    /// Takes the tokens of a request whose prompt has about `prompt` of them and whose answer may have `answer`.
    /// An answer may be allowed more than the limit: it takes what it can. Gives what was taken.
    fn tokens(&self, project: &ProjectId, prompt: u64, answer: u64) -> Result<u64, Refusal> {
        let now = Instant::now();
        let limit = self.config.tokens_per_minute;
        let amount = prompt.max(prompt.saturating_add(answer).min(limit));
        self.with(project, now, |buckets| {
            take(&mut buckets.tokens, project, Measure::Tokens, amount, now)
        })?;
        Ok(amount)
    }

    fn correct(&self, project: &ProjectId, taken: u64, really: u64) {
        let now = Instant::now();
        self.with(project, now, |buckets| {
            if let Some(bucket) = &mut buckets.tokens {
                bucket.correct(taken, really, now);
            }
        });
    }

    /// Where a project stands, as headers of an answer.
    pub(crate) fn headers(&self, project: &ProjectId, class: Class) -> HeaderMap {
        let now = Instant::now();
        self.with(project, now, |buckets| {
            let mut headers = HeaderMap::new();
            if let Some(requests) = buckets.of(class) {
                told::tell(&mut headers, &told::REQUESTS, requests, now);
            }
            if class == Class::Completion
                && let Some(tokens) = &mut buckets.tokens
            {
                told::tell(&mut headers, &told::TOKENS, tokens, now);
            }
            headers
        })
    }

    fn with<T>(&self, project: &ProjectId, now: Instant, act: impl FnOnce(&mut Buckets) -> T) -> T {
        let mut projects: MutexGuard<'_, Projects> =
            self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if !projects.buckets.contains_key(project) {
            projects.make_room(now);
        }
        let fresh = || Buckets::full(&self.config, now);
        act(projects.buckets.entry(project.clone()).or_insert_with(fresh))
    }
}

impl Projects {
    fn make_room(&mut self, now: Instant) {
        if self.buckets.len() >= self.sweep_at.max(FIRST_SWEEP) {
            self.buckets.retain(|_, buckets| !buckets.are_full(now));
            self.sweep_at = 2 * self.buckets.len();
        }
    }
}

fn take(
    bucket: &mut Option<Bucket>,
    project: &ProjectId,
    measure: Measure,
    requested: u64,
    now: Instant,
) -> Result<(), Refusal> {
    let Some(bucket) = bucket else { return Ok(()) };
    let limit = bucket.limit();
    bucket.take(requested, now).map_err(|wait| Refusal {
        measure,
        project: project.clone(),
        limit,
        used: limit - bucket.remaining(now).min(limit),
        requested,
        wait: (requested <= limit).then_some(wait),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests: u64, tokens: u64) -> Limits {
        Limits::new(LimitsConfig {
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            other_requests_per_minute: 0,
        })
    }

    #[test]
    fn projects_have_limits_of_their_own_and_zero_is_none() {
        let limits = limits(1, 0);
        let (one, other) = (ProjectId::from("one"), ProjectId::from("other"));
        limits.request(&one, Class::Completion).unwrap();
        let refusal = limits.request(&one, Class::Completion).unwrap_err();
        assert_eq!((refusal.limit, refusal.used, refusal.requested), (1, 1, 1));
        limits.request(&other, Class::Completion).unwrap();
        for _ in 0..1000 {
            limits.request(&one, Class::Other).unwrap();
            limits.tokens(&one, u64::MAX, u64::MAX).unwrap();
        }
    }

    #[test]
    fn a_prompt_above_the_limit_never_fits_and_a_long_answer_waits_for_a_full_minute() {
        let limits = limits(0, 100);
        let one = ProjectId::from("one");
        assert_eq!(limits.tokens(&one, 101, 0).unwrap_err().wait, None);
        assert_eq!(limits.tokens(&one, 10, u64::MAX).unwrap(), 100);
        let refusal = limits.tokens(&one, 10, u64::MAX).unwrap_err();
        assert!(refusal.wait.unwrap() > Duration::from_secs(59), "{refusal:?}");
    }

    #[test]
    fn projects_that_have_used_nothing_of_late_are_forgotten() {
        let mut projects = Projects::default();
        let config = LimitsConfig { requests_per_minute: 1, ..LimitsConfig::default() };
        let (then, now) = (Instant::now(), Instant::now() + Duration::from_secs(61));
        for number in 0..FIRST_SWEEP {
            let mut buckets = Buckets::full(&config, then);
            if let Some(bucket) = &mut buckets.requests {
                bucket.take(1, if number == 7 { now } else { then }).unwrap();
            }
            projects.buckets.insert(ProjectId::from(number.to_string()), buckets);
        }
        projects.make_room(now);
        assert_eq!(projects.buckets.keys().map(ProjectId::as_str).collect::<Vec<_>>(), ["7"]);
    }
}
