//! libtorch from the Python registry's `torch`: headers and libraries, without Python and without PyTorch.
//!
//! The CPU set needs two small NVIDIA libraries, because this build of libtorch_cpu.so names them. The CUDA
//! set adds the rest beside them; one engine binary serves both, since it loads CUDA only at start.

use std::fs;
use std::path::Path;

use super::{is_stamped, packages, put_in_place, remove, scratch, stamp};
use crate::Result;
use crate::workspace::Workspace;

/// The version that tch 0.24 is made for. torch-sys checks it against `build-version`.
pub const VERSION: &str = "2.11.0";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Cpu,
    Cuda,
}

const CPU_FILES: [&str; 4] = ["libc10.so", "libtorch_cpu.so", "libgomp.so.1", "libtorch.so"];
const CUDA_FILES: [&str; 2] = ["libtorch_cuda.so", "libc10_cuda.so"];
/// The packages whose libraries libtorch_cuda.so loads. The same names stand in the requirement files.
const CUDA_PACKAGES: [&str; 13] = [
    "nvidia-cuda-nvrtc",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
    "nvidia-cufft",
    "nvidia-cufile",
    "nvidia-curand",
    "nvidia-cusolver",
    "nvidia-cusparse",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvjitlink",
    "nvidia-nvshmem-cu13",
    "nvidia-nvtx",
];

/// The CUDA set when asked for, when a GPU is seen, or when it is there already.
pub fn wanted(workspace: &Workspace, cuda: bool) -> Variant {
    let is_cuda = cuda
        || Path::new("/dev/nvidia0").exists()
        || found(&workspace.own_libtorch()) == Some(Variant::Cuda);
    if is_cuda { Variant::Cuda } else { Variant::Cpu }
}

/// What a libtorch folder holds, if it is whole and of the right version.
pub fn found(libtorch: &Path) -> Option<Variant> {
    let version = fs::read_to_string(libtorch.join("build-version")).unwrap_or_default();
    let has = |files: &[&str]| files.iter().all(|file| libtorch.join("lib").join(file).exists());
    let is_whole = version.trim() == VERSION
        && has(&CPU_FILES)
        && libtorch.join("include/ATen/ATen.h").is_file();
    match (is_whole, has(&CUDA_FILES)) {
        (false, _) => None,
        (true, true) => Some(Variant::Cuda),
        (true, false) => Some(Variant::Cpu),
    }
}

pub fn install(workspace: &Workspace, cuda: bool) -> Result {
    if let Some(chosen) = workspace.foreign_libtorch() {
        return check_foreign(&chosen);
    }
    let variant = wanted(workspace, cuda);
    let place = workspace.own_libtorch();
    let version = format!("{VERSION} {variant:?}\n");
    let is_there =
        found(&place) == Some(variant) && workspace.deps().join("nvidia/cu13/lib").is_dir();
    if is_there {
        // Also adopts a folder that was made by hand with the same layout.
        return if is_stamped(workspace, "libtorch", &version) {
            Ok(())
        } else {
            stamp(workspace, "libtorch", &version)
        };
    }
    if std::env::consts::ARCH != "x86_64" {
        return Err(
            "libtorch is fetched for x86_64 only: set LIBTORCH to one of version 2.11.0".into()
        );
    }
    let folder = scratch(workspace, "libtorch")?;
    fill(workspace, variant, &folder)?;
    put_in_place(&folder.join("nvidia"), &workspace.deps().join("nvidia"))?;
    put_in_place(&folder.join("torch"), &place)?;
    stamp(workspace, "libtorch", &version)?;
    remove(&folder)
}

/// Downloads and unpacks into `folder/torch` and `folder/nvidia`. The two stay neighbours: the libraries
/// find each other by relative paths.
fn fill(workspace: &Workspace, variant: Variant, folder: &Path) -> Result {
    let (requirements, megabytes): (&[&str], u64) = match variant {
        Variant::Cpu => (&["libtorch"], 545),
        Variant::Cuda => (&["libtorch", "libtorch-cuda"], 2_550),
    };
    let title = format!("libtorch {VERSION} ({variant:?})");
    let wheels = packages::download(workspace, &title, requirements, folder, megabytes)?;
    let unpack = |package: &str, patterns: &[&str]| {
        packages::unpack(package, &wheels, package, folder, patterns)
    };
    let mut torch = vec!["torch/include/*"];
    torch.extend(["torch/lib/libc10.so", "torch/lib/libtorch_cpu.so", "torch/lib/libgomp.so.1"]);
    if variant == Variant::Cuda {
        torch.extend(["torch/lib/libc10_cuda.so", "torch/lib/libtorch_cuda*.so"]);
        torch.extend(["torch/lib/libcaffe2_nvrtc.so", "torch/lib/libtorch_nvshmem.so"]);
    }
    unpack("torch", &torch)?;
    match variant {
        Variant::Cpu => {
            unpack("nvidia-cuda-runtime", &["*/libcudart.so.13"])?;
            unpack("nvidia-cuda-cupti", &["*/libcupti.so.13"])?;
        }
        Variant::Cuda => {
            for package in ["nvidia-cuda-runtime", "nvidia-cuda-cupti"].iter().chain(&CUDA_PACKAGES)
            {
                unpack(package, &["nvidia/*.so*"])?;
            }
        }
    }
    // The wheel's own libtorch.so loads libtorch_cuda.so; this one serves every machine.
    std::os::unix::fs::symlink("libtorch_cpu.so", folder.join("torch/lib/libtorch.so"))?;
    fs::write(folder.join("torch/build-version"), format!("{VERSION}\n"))?;
    if found(&folder.join("torch")) != Some(variant) {
        return Err(format!("the wheels of libtorch {VERSION} lack expected files").into());
    }
    Ok(())
}

/// A libtorch that the user names is used as it is, but not one that would fail minutes later.
fn check_foreign(libtorch: &Path) -> Result {
    if libtorch.join("lib/libtorch_cpu.so").exists() {
        return Ok(());
    }
    let at = libtorch.display();
    Err(format!("LIBTORCH={at} holds no lib/libtorch_cpu.so: unset LIBTORCH to have one fetched")
        .into())
}
