//! The CUDA kernels of `crates/kernels/cuda`, compiled ahead: machine code for Hopper, and a text that the driver
//! compiles for any other GPU since Ampere. NVIDIA's compiler comes from the Python registry and runs without a
//! GPU. The build script of `kernels` embeds what lies here; without it the engine computes on CPUs alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{is_stamped, packages, put_in_place, remove, scratch, stamp};
use crate::Result;
use crate::run;
use crate::workspace::Workspace;

const VERSION: &str = "13.0.88";
const COMPILE_LIMIT: Duration = Duration::from_secs(15 * 60);

pub fn install(workspace: &Workspace) -> Result {
    if std::env::consts::ARCH != "x86_64" {
        return Ok(());
    }
    install_compiler(workspace)?;
    let sources = workspace.root.join("crates/kernels/cuda");
    let text = text_of(&sources)?;
    let made_from = format!("{VERSION}\n{text}");
    let place = workspace.deps().join("kernels");
    if is_stamped(workspace, "kernels", &made_from) && place.is_dir() {
        return Ok(());
    }
    let folder = scratch(workspace, "kernels")?;
    let made = folder.join("made");
    fs::create_dir_all(&made)?;
    compile(workspace, &sources, &made, "sm_90", &["-cubin", "-Xptxas=-v"])?;
    compile(workspace, &sources, &made, "compute_80", &["-ptx"])?;
    fs::rename(made.join("sm_90.log"), made.join("ptxas.txt"))?;
    remove(&made.join("compute_80.log"))?;
    fs::write(made.join("sources"), text)?;
    put_in_place(&made, &place)?;
    stamp(workspace, "kernels", &made_from)?;
    remove(&folder)
}

fn compiler(workspace: &Workspace) -> PathBuf {
    workspace.deps().join("nvcc/bin/nvcc")
}

fn install_compiler(workspace: &Workspace) -> Result {
    let version = format!("{VERSION}\n");
    if is_stamped(workspace, "nvcc", &version) && compiler(workspace).is_file() {
        return Ok(());
    }
    let folder = scratch(workspace, "nvcc")?;
    let wheels = packages::download(workspace, "CUDA compiler", &["nvcc"], &folder, 101)?;
    let unpack = |package: &str, patterns: &[&str]| {
        packages::unpack(package, &wheels, package, &folder, patterns)
    };
    let programs = ["*/bin/nvcc", "*/bin/nvcc.profile", "*/bin/ptxas", "*/bin/cudafe++"];
    unpack("nvidia-cuda-nvcc", &programs)?;
    unpack("nvidia-nvvm", &["*/nvvm/bin/cicc", "*/libdevice.10.bc"])?;
    unpack("nvidia-cuda-crt", &["*/include/*"])?;
    unpack("nvidia-cuda-runtime", &["*/include/*"])?;
    put_in_place(&folder.join("nvidia/cu13"), &workspace.deps().join("nvcc"))?;
    stamp(workspace, "nvcc", &version)?;
    remove(&folder)
}

/// One image of all kernels; what the compiler said lies beside it.
fn compile(
    workspace: &Workspace,
    sources: &Path,
    made: &Path,
    target: &str,
    options: &[&str],
) -> Result {
    let ending = if target.starts_with("sm_") { "cubin" } else { "ptx" };
    let mut nvcc = Command::new(compiler(workspace));
    nvcc.args(["-std=c++17", "-O3", "-Werror=all-warnings", "-allow-unsupported-compiler"])
        .args(options)
        .arg(format!("-arch={target}"))
        .arg(sources.join("kernels.cu"))
        .arg("-o")
        .arg(made.join(format!("kernels.{target}.{ending}")));
    if let Some(host) = std::env::var_os("CXX") {
        nvcc.arg("-ccbin").arg(host);
    }
    let log = made.join(format!("{target}.log"));
    run::quietly(
        &format!("compile the CUDA kernels ({target})"),
        &mut nvcc,
        &log,
        None,
        COMPILE_LIMIT,
    )
}

/// All sources, by name, one after the other, as the build script of `kernels` reads them.
fn text_of(folder: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|e| e.path()).collect();
    files.sort();
    let texts: std::io::Result<Vec<String>> = files.iter().map(fs::read_to_string).collect();
    Ok(texts?.concat())
}
