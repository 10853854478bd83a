//! The `[worker]` section of the configuration.
//!
//! Every key has a default except the servers and the token, which `finetuned up` fills in itself.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Base URLs of the servers, `http://host:port`. Claims go round them, all are asked for chat.
    #[serde(deserialize_with = "one_or_many")]
    pub server_urls: Vec<String>,
    /// The worker token: `Authorization: Bearer …` of every call.
    pub token: SecretString,
    /// Base models, adapters and scratch folders. One worker process per folder.
    pub work_dir: PathBuf,
    /// The engine binary; none means `finetuned-engine` beside the running program.
    pub engine: Option<PathBuf>,
    /// `auto`, or devices by name: `cpu`, `cuda:0`, … One slot each.
    #[serde(deserialize_with = "one_or_many")]
    pub devices: Vec<String>,
    /// Threads of one engine; 0 shares the processors out among the slots.
    pub threads: usize,
    /// What one engine may take on the CPU: runs that would take more are made smaller, or refused. 0
    /// means what the machine has free.
    pub engine_memory: ByteSize,
    /// The base model to load at start; none means the first that the server lists.
    pub preload_model: Option<String>,
    /// Answers that one engine may generate at the same time; 0 switches chat off for this worker.
    pub max_generations: usize,
    /// Adapters kept on disk; the least recently used go first.
    pub cached_adapters: usize,
    /// How long a shutdown may take to checkpoint and release runs. Below the pod's grace period.
    #[serde(with = "humantime_serde")]
    pub drain_budget: Duration,
    /// How long a claim may wait at the server, 1–30 s.
    #[serde(with = "humantime_serde")]
    pub claim_wait: Duration,
    /// The same for a chat request; short, so that a base model imported just now is soon asked
    /// for.
    #[serde(with = "humantime_serde")]
    pub chat_wait: Duration,
    /// How long an engine may be silent in a run, or ten median steps if that is longer.
    #[serde(with = "humantime_serde")]
    pub stall_limit: Duration,
    /// How long a run goes on without a word from the server before it checkpoints and stops.
    #[serde(with = "humantime_serde")]
    pub unreachable_limit: Duration,
    /// How long an engine may take to load its base model.
    #[serde(with = "humantime_serde")]
    pub engine_start_limit: Duration,
    /// How long an engine may take to end a run, or itself, before it is killed.
    #[serde(with = "humantime_serde")]
    pub engine_grace: Duration,
    /// Engine crashes in a row, without a new checkpoint between them, that a run survives.
    pub crash_limit: u32,
    /// Bytes of unsent reports; a run that has more checkpoints and stops.
    pub spool_bytes: usize,
    /// The least time between two batches of reports.
    #[serde(with = "humantime_serde")]
    pub report_interval: Duration,
    /// The first and the longest pause between attempts to reach the server.
    #[serde(with = "humantime_serde")]
    pub retry_first: Duration,
    #[serde(with = "humantime_serde")]
    pub retry_longest: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server_urls: Vec::new(),
            token: SecretString::default(),
            work_dir: PathBuf::from("data/worker"),
            engine: None,
            devices: vec!["auto".to_owned()],
            threads: 0,
            engine_memory: ByteSize::b(0),
            preload_model: None,
            max_generations: 8,
            cached_adapters: 256,
            drain_budget: Duration::from_secs(150),
            claim_wait: Duration::from_secs(20),
            chat_wait: Duration::from_secs(10),
            stall_limit: Duration::from_secs(15 * 60),
            unreachable_limit: Duration::from_secs(15 * 60),
            engine_start_limit: Duration::from_secs(10 * 60),
            engine_grace: Duration::from_secs(30),
            crash_limit: 3,
            spool_bytes: 10 << 20,
            report_interval: Duration::from_millis(200),
            retry_first: Duration::from_millis(200),
            retry_longest: Duration::from_secs(5),
        }
    }
}

/// A list, or one text with commas: environment variables carry text.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Many(list) => list,
        Either::One(text) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_may_be_a_list_or_a_text_with_commas() {
        for text in [r#"{"devices":["cuda:0","cuda:1"]}"#, r#"{"devices":"cuda:0, cuda:1"}"#] {
            let config: Config = serde_json::from_str(text).unwrap();
            assert_eq!(config.devices, ["cuda:0", "cuda:1"]);
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = serde_json::from_str::<Config>(r#"{"device":"cpu"}"#).unwrap_err().to_string();
        assert!(error.contains("`device`"), "{error}");
    }

    #[test]
    fn the_token_is_not_in_the_debug_text() {
        let config = Config { token: "hunter2".into(), ..Config::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
