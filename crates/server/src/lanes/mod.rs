//! Background work of a server. Every lane may run in several servers at once: claims in the
//! database keep them apart, and what one leaves unfinished another takes up.

mod evals;
pub(crate) mod examine;
mod failure;
mod housekeeping;
pub(crate) mod models;
pub(crate) mod notes;
mod reports;
mod validator;
mod webhooks;

use tokio::task::JoinSet;

use crate::follow;
use crate::state::AppState;

/// Starts all lanes; they end when the state's `stopping` fires.
pub(crate) fn spawn(state: &AppState) -> JoinSet<()> {
    let mut lanes = JoinSet::new();
    for _ in 0..state.config.validations.max(1) {
        lanes.spawn(validator::run(state.clone()));
    }
    for _ in 0..state.config.eval_runs.max(1) {
        lanes.spawn(evals::run(state.clone()));
    }
    lanes.spawn(reports::run(state.clone()));
    lanes.spawn(state.models.clone().preload(state.clone()));
    lanes.spawn(webhooks::run(state.clone()));
    lanes.spawn(follow::run(state.clone()));
    lanes.spawn(housekeeping::reap(state.clone()));
    lanes.spawn(housekeeping::collect_garbage(state.clone()));
    lanes
}
