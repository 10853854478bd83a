//! Limits in OpenAI's words: headers, durations, and the texts of refusals.

use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::bucket::Bucket;
use super::{Measure, Refusal};

pub(super) struct Names {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
}

pub(super) const REQUESTS: Names = Names {
    limit: HeaderName::from_static("x-ratelimit-limit-requests"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-requests"),
    reset: HeaderName::from_static("x-ratelimit-reset-requests"),
};

pub(super) const TOKENS: Names = Names {
    limit: HeaderName::from_static("x-ratelimit-limit-tokens"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-tokens"),
    reset: HeaderName::from_static("x-ratelimit-reset-tokens"),
};

pub(super) fn tell(headers: &mut HeaderMap, names: &Names, bucket: &mut Bucket, now: Instant) {
    headers.insert(names.limit.clone(), HeaderValue::from(bucket.limit()));
    headers.insert(names.remaining.clone(), HeaderValue::from(bucket.remaining(now)));
    if let Ok(reset) = HeaderValue::from_str(&duration(bucket.reset(now))) {
        headers.insert(names.reset.clone(), reset);
    }
}

/// A duration as Go writes it: `12ms`, `1.5s`, `6m0s`, `1h0m0s`; to the millisecond, rounded up.
fn duration(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let (seconds, rest) = (millis / 1000, millis % 1000);
    if seconds == 0 {
        return if rest == 0 { "0s".to_owned() } else { format!("{rest}ms") };
    }
    let fraction = format!("{rest:03}");
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let end = format!("{}{dot}{fraction}s", seconds % 60);
    match (hours, minutes) {
        (0, 0) => end,
        (0, minutes) => format!("{minutes}m{end}"),
        (hours, minutes) => format!("{hours}h{minutes}m{end}"),
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { measure, project, limit, used, requested, wait } = self;
        let what = match measure {
            Measure::Requests => "requests per min (RPM)",
            Measure::Tokens => "tokens per min (TPM)",
        };
        match wait {
            Some(wait) => write!(
                f,
                "Rate limit reached for {project} on {what}: Limit {limit}, Used {used}, Requested \
                 {requested}. Please try again in {}. The operator of this server sets its limits.",
                duration(*wait)
            ),
            None => write!(
                f,
                "Request too large for {project} on {what}: Limit {limit}, Requested {requested}. \
                 The input or output tokens must be reduced in order to run successfully."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        for (millis, text) in [
            (0, "0s"),
            (12, "12ms"),
            (1000, "1s"),
            (9904, "9.904s"),
            (1500, "1.5s"),
            (360_000, "6m0s"),
            (3_600_000, "1h0m0s"),
            (3_661_010, "1h1m1.01s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(duration(Duration::from_nanos(1)), "1ms");
    }
}
