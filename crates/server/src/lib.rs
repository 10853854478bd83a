//! The HTTP server: the public API in OpenAI's shapes, the internal API for workers, and the
//! background lanes that validate files, take runs back from silent workers and remove garbage.
//!
//! [`serve`] is all of it. The server is stateless: what it holds in memory (waiting chat requests,
//! loaded tokenizers, wake-up calls) is safe to lose, and several servers may share one store. It
//! speaks SQL and object storage only through `store`, and knows no tensors.

mod advice;
mod base64_text;
mod config;
mod convert;
mod costs;
mod describe;
mod egress;
mod error;
mod evals;
mod extract;
mod faults;
mod file_rules;
mod follow;
mod grading;
mod heads;
mod hyperparameters;
mod inference;
mod integrations;
mod internal;
mod lanes;
mod limits;
mod listen;
mod method;
mod observe;
mod outlook;
mod preference;
mod reasons;
mod reinforcement;
mod remedy;
mod repeats;
mod report;
mod request;
mod resolve;
mod results;
mod router;
mod routes;
mod start;
mod state;
mod tuning;
mod upload_turns;
mod webhooks;
pub mod weights;
mod wire;

use std::sync::LazyLock;

use store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{Config, GradersConfig, LimitsConfig, Pause, WebhooksConfig};
pub use costs::{CostsConfig, HostedPrice};

use crate::egress::Egress;
use crate::state::AppState;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("configuration: {0}")]
    Config(String),
}

/// Serves on `listener` until `shutdown` fires, then drains: `/readyz` fails at once, after
/// `config.drain_delay` no connection is accepted any more, and open requests get
/// `config.drain_timeout`. The store's migrations must have been applied.
///
/// # Errors
/// When the operator's training defaults or list of allowed addresses cannot be used.
pub async fn serve(
    config: Config,
    store: Store,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    hyperparameters::check_options(&config.training, "training")
        .map_err(|error| Error::Config(error.to_string()))?;
    let egress = Egress::new(&config.webhooks.allow, config.webhooks.timeout)
        .map_err(|error| Error::Config(format!("webhooks.allow: {error}")))?;
    let stop_accepting = CancellationToken::new();
    let state = AppState::new(config.clone(), store, egress, shutdown.clone());
    let mut lanes = lanes::spawn(&state);
    grading::prepare(&state);
    let router = router::router(state);
    let drain = {
        let stop_accepting = stop_accepting.clone();
        async move {
            shutdown.cancelled().await;
            tracing::info!("shutting down");
            tokio::time::sleep(config.drain_delay).await;
            stop_accepting.cancel();
        }
    };
    tokio::join!(listen::run(listener, router, &config, stop_accepting), drain);
    while lanes.join_next().await.is_some() {}
    Ok(())
}

/// The description of the public API, as `/openapi.json` serves it.
pub fn openapi() -> serde_json::Value {
    static DESCRIPTION: LazyLock<serde_json::Value> =
        LazyLock::new(|| describe::complete(&router::public().1));
    DESCRIPTION.clone()
}
