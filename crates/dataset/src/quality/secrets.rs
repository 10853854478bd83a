//! API keys and tokens, by the beginnings that their makers gave them so that they can be found.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};

/// A beginning, and how many letters, digits, `_` and `-` must follow at least.
const BEGINNINGS: [(&str, usize); 29] = [
    ("sk-ant-", 20),
    ("sk-proj-", 20),
    ("sk-svcacct-", 20),
    ("sk-or-v1-", 20),
    ("sk-", 32),
    ("sk_live_", 16),
    ("rk_live_", 16),
    ("sk_test_", 16),
    ("whsec_", 24),
    ("ghp_", 36),
    ("gho_", 36),
    ("ghu_", 36),
    ("ghs_", 36),
    ("ghr_", 36),
    ("github_pat_", 22),
    ("glpat-", 20),
    ("AKIA", 16),
    ("ASIA", 16),
    ("AIza", 35),
    ("ya29.", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("xoxa-", 20),
    ("hf_", 30),
    ("npm_", 36),
    ("pypi-", 50),
    ("SG.", 22),
    ("eyJ", 10),
    ("-----BEGIN ", 0),
];

static FINDER: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let beginnings = BEGINNINGS.iter().map(|(beginning, _)| beginning);
    let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(beginnings);
    finder.expect("a few short words make an automaton")
});

pub(crate) fn is_in(text: &str) -> bool {
    let bytes = text.as_bytes();
    FINDER.find_iter(text).any(|found| {
        let (beginning, least) = BEGINNINGS[found.pattern().as_usize()];
        let before = found.start().checked_sub(1).map_or(b' ', |at| bytes[at]);
        let rest = &bytes[found.end()..];
        let length = rest.iter().take_while(|b| is_part(b)).count();
        let body = &rest[..length];
        match beginning {
            "-----BEGIN " => is_private_key(&text[found.end()..]),
            _ if before.is_ascii_alphanumeric() || length < least => false,
            "AKIA" | "ASIA" => {
                length == 16 && body.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
            }
            // Three parts, of which the first two are JSON objects.
            "eyJ" => {
                let mut parts = rest.split(|b| *b == b'.').skip(1);
                let second = parts.next().unwrap_or_default();
                let third = parts.next().unwrap_or_default();
                second.starts_with(b"eyJ") && third.iter().take_while(|b| is_part(b)).count() >= 20
            }
            // Words with hyphens are no key: a key has digits.
            _ => body.iter().any(u8::is_ascii_digit),
        }
    })
}

fn is_part(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn is_private_key(rest: &str) -> bool {
    rest.split("-----").next().is_some_and(|name| {
        name.len() < 40 && (name.ends_with("PRIVATE KEY") || name.ends_with("PRIVATE KEY BLOCK"))
    })
}
