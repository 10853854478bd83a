//! `cargo xtask up`: set-up, a release build, then the daemon in place of this process.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use crate::Result;
use crate::run;
use crate::setup;
use crate::workspace::{Profile, Workspace};

/// From nothing, on two slow cores, with room to spare.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);

pub fn run(workspace: &Workspace, arguments: &[String]) -> Result {
    setup::run(workspace, false)?;
    build(workspace, Profile::Release, &[])?;
    let mut daemon = workspace.program(Profile::Release, "finetuned")?;
    // Replaces this process, so that signals and the exit code are the daemon's own.
    let error = daemon.arg("up").args(arguments).exec();
    Err(format!("cannot start finetuned: {error}").into())
}

/// Builds the two programs, and in the same call what else is named: Cargo would build the dependencies
/// again for another selection of packages, whose features differ.
pub fn build(workspace: &Workspace, profile: Profile, also: &[&str]) -> Result {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package", "cli", "--package", "engine", "--bins"]).args(also);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    run::in_view("build of finetuned and finetuned-engine", &mut cargo, BUILD_LIMIT)
}
