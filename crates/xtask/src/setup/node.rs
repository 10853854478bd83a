//! OpenAI's client for Node.js, where the machine has Node.js with npm; its test is skipped elsewhere. The lock file
//! pins it by its hash.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::{is_stamped, put_in_place, remove, scratch, stamp};
use crate::Result;
use crate::run;
use crate::workspace::Workspace;

const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Puts the packages of `requirements/node` into `.deps/node`.
pub fn install(workspace: &Workspace) -> Result {
    let wanted = workspace.root.join("crates/xtask/requirements/node");
    let lock = fs::read_to_string(wanted.join("package-lock.json"))?;
    let place = workspace.deps().join("node");
    let is_there = place.is_dir() && is_stamped(workspace, "node", &lock);
    if is_there || run::answer("npm", &["--version"]).is_none() {
        return Ok(());
    }
    let folder = scratch(workspace, "node")?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(wanted.join(name), folder.join(name))?;
    }
    let mut command = Command::new("npm");
    command
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=peer", "--prefix"])
        .arg(&folder);
    let log = folder.join("install.log");
    run::quietly("install OpenAI's Node client", &mut command, &log, None, LIMIT)?;
    put_in_place(&folder.join("node_modules"), &place)?;
    stamp(workspace, "node", &lock)?;
    remove(&folder)
}
