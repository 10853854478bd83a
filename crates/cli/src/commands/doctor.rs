//! `finetuned doctor`: what was found, what is missing, and the command that mends it.

mod engine;
mod services;

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;

use crate::config::Config;
use crate::output;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Ok,
    /// Works without it.
    Note,
    Missing,
}

/// One line of the report.
#[derive(Debug)]
pub struct Finding {
    state: State,
    what: &'static str,
    detail: String,
    remedy: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { state: State::Ok, what, detail: detail.into(), remedy: None }
    }

    fn note(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (detail, remedy) = (detail.into(), Some(remedy.into()));
        Self { state: State::Note, what, detail, remedy }
    }

    fn missing(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (detail, remedy) = (detail.into(), Some(remedy.into()));
        Self { state: State::Missing, what, detail, remedy }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Missing => "MISSING",
        };
        write!(f, "{state:8} {:10} {}", self.what, self.detail)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n{:20}-> {remedy}", ""),
            None => Ok(()),
        }
    }
}

/// Exit status 1 when something is missing.
pub async fn run(config: &Config) -> Result<ExitCode> {
    let mut findings = engine::findings(&config.worker).await;
    findings.extend(services::findings(config).await);
    for finding in &findings {
        output::line(finding)?;
    }
    let is_complete = findings.iter().all(|finding| finding.state < State::Missing);
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
