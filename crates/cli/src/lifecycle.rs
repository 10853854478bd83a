//! Start and end of the process: signals become one cancellation token, and a task that ends by itself
//! ends the process with a reason.

use std::future::Future;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

/// The exit status after a second signal, as shells report an interrupted program.
const INTERRUPTED: i32 = 130;

/// A token that the first SIGTERM or SIGINT cancels; the second one ends the process at once.
pub fn shutdown_on_signals() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if cancelled.is_cancelled() {
                tracing::warn!("second signal: ending at once");
                std::process::exit(INTERRUPTED);
            }
            tracing::info!("stopping in good order; a second signal ends at once");
            cancelled.cancel();
        }
    });
    Ok(token)
}

/// A part of the process that runs until it is told to stop.
pub struct Part {
    name: &'static str,
    stop: CancellationToken,
    /// None once its end was seen.
    task: Option<JoinHandle<Result<()>>>,
}

impl Part {
    /// Starts it; `run` gets the token that stops it.
    pub fn start<F, E>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<anyhow::Error>,
    {
        let stop = CancellationToken::new();
        let future = run(stop.clone());
        let task = tokio::spawn(async move { future.await.map_err(Into::into) });
        Self { name, stop, task: Some(task) }
    }

    /// Waits until it ends by itself, which is a failure even without an error. Never returns for a part
    /// whose end was seen before.
    pub async fn failure(&mut self) -> anyhow::Error {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let result = task.await;
        self.task = None;
        match outcome(self.name, result) {
            Ok(()) => anyhow!("the {} ended by itself", self.name),
            Err(error) => error,
        }
    }

    /// Asks it to stop and waits for that.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        match self.task {
            Some(task) => outcome(self.name, task.await),
            None => Ok(()),
        }
    }
}

fn outcome(name: &str, result: Result<Result<()>, JoinError>) -> Result<()> {
    match result {
        Ok(result) => result.with_context(|| format!("the {name} has failed")),
        Err(error) if error.is_panic() => {
            let panic = error.into_panic();
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".into());
            bail!("the {name} panicked: {text}")
        }
        Err(_) => bail!("the {name} was aborted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_with_its_message() {
        let mut part = Part::start("worker", |_| async {
            if true {
                panic!("no device");
            }
            anyhow::Ok(())
        });
        assert_eq!(part.failure().await.to_string(), "the worker panicked: no device");
    }

    #[tokio::test]
    async fn ending_early_is_a_failure() {
        let mut part = Part::start("server", |_| async { anyhow::Ok(()) });
        assert_eq!(part.failure().await.to_string(), "the server ended by itself");
    }

    #[tokio::test]
    async fn a_part_that_is_told_to_stop_ends_well() {
        let part = Part::start("server", |stop| async move {
            stop.cancelled().await;
            anyhow::Ok(())
        });
        assert!(part.stop().await.is_ok());
    }
}
