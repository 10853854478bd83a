//! The configuration sections `[database]`, `[storage]` and `[lease]`.
//!
//! Plain data with defaults. Reading files, environment and flags is the command line's work.

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

/// `[database]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://user:password@host:port/database`; `?host=/folder` names a Unix socket's folder.
    pub url: Option<SecretString>,
    /// Connections of the general pool. A small pool for calls about leases comes on top.
    pub max_connections: u32,
    /// How long a call waits for a free connection before it answers "unavailable".
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// Longest run time of one statement.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: None,
            max_connections: 16,
            acquire_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(30),
        }
    }
}

/// `[storage]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// `file:///folder` or `s3://bucket/prefix`.
    pub url: Option<String>,
    /// Base URL of an S3 server other than Amazon's.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// Absent keys are taken from the usual `AWS_*` variables and machine roles.
    pub access_key_id: Option<SecretString>,
    pub secret_access_key: Option<SecretString>,
    /// Permits an `http://` endpoint.
    pub allow_http: bool,
}

/// `[lease]`: how long a silent worker keeps its run.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// A lease lasts so long from each heartbeat.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// Workers send heartbeats at this interval.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Interval of the reaper's ticks.
    #[serde(with = "humantime_serde")]
    pub reap_every: Duration,
    /// The reaper leaves a lease alone until it has been over for so long.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(60),
            heartbeat: Duration::from_secs(10),
            reap_every: Duration::from_secs(10),
            grace: Duration::from_secs(15),
        }
    }
}
