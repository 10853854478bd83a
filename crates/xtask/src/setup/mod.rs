//! Set-up: everything that a build, a test or the demo needs and a package registry offers, into `.deps`.
//!
//! Each part is made in a scratch folder, checked, and renamed into place; then its stamp is written. A
//! failure therefore leaves what was there before, and a second run does what is missing and says nothing
//! about the rest. Nothing outside `.deps` is written.

mod base_model;
mod cuda_kernels;
mod libtorch;
mod node;
mod packages;
mod postgres;
mod python;
mod toolchain;

use std::fs::{self, File};
use std::path::Path;

use crate::Result;
use crate::workspace::Workspace;

pub use base_model::{FILE_NAME as MODEL_FILE, is_ready as model_is_ready};
pub use libtorch::{
    VERSION as TORCH_VERSION, Variant, found as found_libtorch, wanted as wanted_variant,
};
pub use postgres::installed as installed_postgres;
pub use python::is_ready as packages_are_ready;
pub use toolchain::{compiler, python_version};

/// Brings `.deps` up to date for building, testing and running.
pub fn run(workspace: &Workspace, cuda: bool) -> Result {
    let _lock = lock(workspace)?;
    toolchain::check(workspace)?;
    libtorch::install(workspace, cuda)?;
    cuda_kernels::install(workspace)?;
    base_model::install(workspace)?;
    postgres::install(workspace)?;
    python::install(workspace, "python", "OpenAI SDK and pytest", 65)
}

/// OpenAI's client for Node.js, for its test only.
pub fn node(workspace: &Workspace) -> Result {
    let _lock = lock(workspace)?;
    node::install(workspace)
}

/// Schemathesis, for its test only.
pub fn schemathesis(workspace: &Workspace) -> Result {
    let _lock = lock(workspace)?;
    python::install(workspace, "schemathesis", "schemathesis", 110)
}

/// A real S3 server, for the storage tests only.
pub fn s3(workspace: &Workspace) -> Result {
    let _lock = lock(workspace)?;
    python::install(workspace, "s3", "S3 server for the tests", 120)
}

/// transformers and peft, for benchmarks and parity only. Several gigabytes.
pub fn reference(workspace: &Workspace) -> Result {
    let _lock = lock(workspace)?;
    toolchain::check(workspace)?;
    python::install(
        workspace,
        "reference",
        "reference environment (torch, transformers, peft)",
        5_000,
    )
}

/// trl, beside the reference environment.
pub fn preference(workspace: &Workspace) -> Result {
    let _lock = lock(workspace)?;
    python::install_alone(workspace, "trl", "trl, for the bench of preference training", 200)
}

/// What runs on a GPU are compared with and usual installations lack: trl and what it needs, Liger's kernels, each
/// unpacked into a folder of its own.
pub fn compared_on_gpus(workspace: &Workspace, scratch: &Path, into: &Path) -> Result {
    let _lock = lock(workspace)?;
    let wheels = packages::download(workspace, "trl and Liger", &["gpu"], scratch, 3)?;
    for package in ["trl", "datasets", "multiprocess", "dill"] {
        packages::unpack(package, &wheels, package, &into.join("trl"), &["*"])?;
    }
    packages::unpack("liger-kernel", &wheels, "liger-kernel", &into.join("liger"), &["*"])
}

/// One set-up at a time: a second one waits here, then finds everything done.
fn lock(workspace: &Workspace) -> Result<File> {
    fs::create_dir_all(workspace.scratch())?;
    let file = File::create(workspace.scratch().join("lock"))?;
    if file.try_lock().is_err() {
        eprintln!("  waiting for another set-up to finish ...");
        file.lock()?;
    }
    Ok(file)
}

/// Whether `part` was completed with exactly these contents (versions, hashes).
fn is_stamped(workspace: &Workspace, part: &str, contents: &str) -> bool {
    fs::read_to_string(stamp_path(workspace, part)).is_ok_and(|stamp| stamp == contents)
}

fn stamp(workspace: &Workspace, part: &str, contents: &str) -> Result {
    let path = stamp_path(workspace, part);
    fs::create_dir_all(path.parent().expect("a stamp lies in a folder"))?;
    Ok(fs::write(path, contents)?)
}

fn stamp_path(workspace: &Workspace, part: &str) -> std::path::PathBuf {
    workspace.deps().join("stamps").join(part)
}

/// An empty scratch folder of that name.
pub fn scratch(workspace: &Workspace, part: &str) -> Result<std::path::PathBuf> {
    let folder = workspace.scratch().join(part);
    remove(&folder)?;
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Puts a finished file or folder in its place, instead of what was there.
fn put_in_place(finished: &Path, place: &Path) -> Result {
    fs::create_dir_all(place.parent().ok_or("a place needs a parent folder")?)?;
    if place.is_dir() {
        // A folder cannot be renamed over another one that has contents.
        let old = finished.with_extension("old");
        remove(&old)?;
        fs::rename(place, &old)?;
        fs::rename(finished, place)?;
        return remove(&old);
    }
    Ok(fs::rename(finished, place)?)
}

pub fn remove(path: &Path) -> Result {
    match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    Ok(())
}
