//! Background work of a server. Every lane may run in several servers at once: claims in the
//! database keep them apart, and what one leaves unfinished another takes up.

mod evals;
mod failure;
mod housekeeping;
pub(crate) mod models;
mod notes;
mod validator;

use tokio::task::JoinSet;

use crate::state::AppState;

/// Starts all lanes; they end when the state's `stopping` fires.
pub(crate) fn spawn(state: &AppState) -> JoinSet<()> {
    let mut lanes = JoinSet::new();
    let models = models::Models::default();
    for _ in 0..state.config.validations.max(1) {
        lanes.spawn(validator::run(state.clone(), models.clone()));
    }
    for _ in 0..state.config.eval_runs.max(1) {
        lanes.spawn(evals::run(state.clone()));
    }
    lanes.spawn(models.preload(state.clone()));
    lanes.spawn(housekeeping::reap(state.clone()));
    lanes.spawn(housekeeping::collect_garbage(state.clone()));
    lanes
}
