//! Three things of the machine: libtorch's place as a run path (tch sets none); the one operation of libtorch that
//! tch leaves out, compiled against its headers; and the compiled CUDA kernels that `cargo xtask setup` made, to
//! embed. Without these the crate works all the same, on CPUs.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(folder) = env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
        compile_shim(Path::new(&folder));
    }
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed=cuda");
    let deps = manifest.join("../../.deps");
    // A path that is missing would run this script at every build; set-up writes a stamp at its end.
    if deps.join("stamps").is_dir() {
        println!("cargo::rerun-if-changed={}", deps.join("stamps").display());
    }
    let images = out.join("images.rs");
    fs::write(&images, embed(&manifest.join("cuda"), &deps.join("kernels"), &out))
        .expect("the build folder can be written");
}

/// Against the headers that torch-sys takes.
fn compile_shim(libraries: &Path) {
    const SOURCE: &str = "shim/flash_attention.cpp";
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    let beside = libraries.parent().unwrap_or(libraries).to_owned();
    let headers = env::var("LIBTORCH_INCLUDE").map_or(beside, PathBuf::from).join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(headers)
        .file(SOURCE)
        .compile("finetuned_shim");
}

/// Constants with the images, empty unless they were made from exactly these sources.
fn embed(sources: &Path, compiled: &Path, out: &Path) -> String {
    let made_from = fs::read_to_string(compiled.join("sources")).unwrap_or_default();
    let current = made_from == text_of(sources);
    let image = |name: &str, file: &str| {
        let mut bytes = Vec::new();
        if current {
            bytes = fs::read(compiled.join(file)).unwrap_or_default();
        }
        fs::write(out.join(file), bytes).expect("the build folder can be written");
        format!(
            "pub const {name}: &[u8] = include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{file}\"));\n"
        )
    };
    image("SM_90", "kernels.sm_90.cubin") + &image("PTX", "kernels.compute_80.ptx")
}

/// All sources, by name, one after the other: what xtask's set-up writes beside the images.
fn text_of(folder: &Path) -> String {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect()
}
