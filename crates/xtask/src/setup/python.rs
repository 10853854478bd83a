//! Folders of Python packages, each for one purpose. No virtual environment: `pip install --target` works
//! without the venv package and where the system's Python is marked as managed from outside.

use std::fs;
use std::time::Duration;

use super::{is_stamped, packages, put_in_place, remove, scratch, stamp, toolchain};
use crate::Result;
use crate::run::{self, Growth};
use crate::workspace::Workspace;

const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Whether the packages of that requirement file are there, for the present Python.
pub fn is_ready(workspace: &Workspace, name: &str) -> bool {
    workspace.deps().join(name).is_dir()
        && wanted(workspace, name).is_ok_and(|wanted| is_stamped(workspace, name, &wanted))
}

/// Installs `requirements/NAME.txt` into `.deps/NAME`.
pub fn install(workspace: &Workspace, name: &str, title: &str, expected_mb: u64) -> Result {
    install_with(workspace, name, title, expected_mb, &[])
}

/// The same without what the packages need themselves: the file names all of them, or they are in another
/// folder that is used together with this one.
pub fn install_alone(workspace: &Workspace, name: &str, title: &str, expected_mb: u64) -> Result {
    install_with(workspace, name, title, expected_mb, &["--no-deps"])
}

fn install_with(
    workspace: &Workspace,
    name: &str,
    title: &str,
    expected_mb: u64,
    options: &[&str],
) -> Result {
    if is_ready(workspace, name) {
        return Ok(());
    }
    let folder = scratch(workspace, name)?;
    let finished = folder.join("finished");
    let mut command = packages::pip(&folder)?;
    command
        .args(["install", "--no-warn-script-location", "--no-warn-conflicts"])
        .args(options)
        .arg("--target")
        .arg(&finished)
        .arg("-r")
        .arg(workspace.requirements(name))
        .env("PIP_ROOT_USER_ACTION", "ignore");
    let growth = Growth { folder: folder.clone(), expected_mb };
    let log = folder.join("install.log");
    run::quietly(&format!("install {title}"), &mut command, &log, Some(&growth), LIMIT)?;
    put_in_place(&finished, &workspace.deps().join(name))?;
    stamp(workspace, name, &wanted(workspace, name)?)?;
    remove(&folder)
}

/// The stamp: the requirements, and the Python that the machine code in them was chosen for.
fn wanted(workspace: &Workspace, name: &str) -> Result<String> {
    let requirements = fs::read_to_string(workspace.requirements(name))?;
    let version = toolchain::python_version().ok_or("Python 3 is missing")?;
    Ok(format!("{requirements}python {version}\n"))
}
