//! Python graders: refused until there is a sandbox to run them in.

use graders::{Errors, Python, Variables};

use crate::state::AppState;

pub(super) async fn run(
    _state: &AppState,
    _python: &Python,
    _variables: Variables<'_>,
) -> Result<f64, Errors> {
    Err(Errors::of_python_server("SandboxUnavailable", "this server has no sandbox for Python"))
}
