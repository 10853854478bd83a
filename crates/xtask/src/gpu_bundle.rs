//! `cargo xtask gpu-bundle`: one archive with all that a run on a GPU machine needs and that machine may lack: the
//! engine with its CUDA kernels, fixtures, benchmarks, a tokenizer, and the Python packages of the comparisons that
//! are not part of a usual installation. `run.sh` in it does the rest.
//!
//! libtorch is not in it: the engine takes the one of the machine's PyTorch, whose version must be the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::run;
use crate::setup;
use crate::up;
use crate::workspace::{Profile, Workspace};

/// The archive is useless on a machine that takes no more.
const LARGEST: u64 = 64 << 20;
const NAME: &str = "finetuned-gpu";
const LIMIT: Duration = Duration::from_secs(10 * 60);
const FIXTURES: &str = "crates/model/tests/fixtures";
/// What `check-device` reads of a fixture.
const OF_A_FIXTURE: [&str; 5] = [
    "golden.safetensors",
    "model/config.json",
    "model/model.safetensors",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
];
const FILES: [&str; 7] = [
    "tests/bench/engine.py",
    "tests/bench/train.py",
    "tests/bench/train_peft.py",
    "tests/bench/dpo.py",
    "tests/bench/dpo_trl.py",
    "tests/bench/gpu/gpu.py",
    "tests/data/address_train.jsonl",
];
const SHAPES: &str = "tests/bench/gpu/shapes";

/// Makes the archive; without a place, in the build folder.
pub fn run(workspace: &Workspace, place: Option<PathBuf>) -> Result {
    setup::run(workspace, false)?;
    up::build(workspace, Profile::Release, &[])?;
    let scratch = setup::scratch(workspace, "gpu-bundle")?;
    let bundle = scratch.join(NAME);
    copy_engine(workspace, &bundle)?;
    for file in FILES {
        copy(&workspace.root.join(file), &bundle.join(file))?;
    }
    copy(&workspace.root.join("tests/bench/gpu/run.sh"), &bundle.join("run.sh"))?;
    for shape in fs::read_dir(workspace.root.join(SHAPES))?.flatten() {
        copy(&shape.path(), &bundle.join(SHAPES).join(shape.file_name()))?;
    }
    copy_fixtures(&workspace.root.join(FIXTURES), &bundle.join(FIXTURES))?;
    copy_tokenizer(workspace, &scratch, &bundle.join("tokenizer"))?;
    setup::compared_on_gpus(workspace, &scratch, &bundle.join("packages"))?;
    fs::write(bundle.join("MANIFEST"), manifest(&bundle.join("bin/finetuned-engine")))?;
    let place = place.map_or_else(|| target(workspace), Ok)?;
    pack(&scratch, &place)?;
    setup::remove(&scratch)
}

fn target(workspace: &Workspace) -> Result<PathBuf> {
    Ok(workspace.binaries(Profile::Release)?.join(format!("{NAME}.tar.gz")))
}

/// The engine without its symbols.
fn copy_engine(workspace: &Workspace, bundle: &Path) -> Result {
    let engine = bundle.join("bin/finetuned-engine");
    copy(&workspace.binaries(Profile::Release)?.join("finetuned-engine"), &engine)?;
    // Only smaller; a machine with a linker has it.
    let _ = Command::new("strip").arg(&engine).status();
    Ok(())
}

fn copy_fixtures(from: &Path, to: &Path) -> Result {
    for fixture in fs::read_dir(from)?.flatten() {
        if !OF_A_FIXTURE.iter().all(|file| fixture.path().join(file).is_file()) {
            continue;
        }
        for file in OF_A_FIXTURE {
            copy(&fixture.path().join(file), &to.join(fixture.file_name()).join(file))?;
        }
    }
    Ok(())
}

/// All of the base model but its weights.
fn copy_tokenizer(workspace: &Workspace, scratch: &Path, to: &Path) -> Result {
    let model = scratch.join("model");
    let mut convert = workspace.program(Profile::Release, "finetuned")?;
    convert.args(["models", "convert"]);
    convert.arg(workspace.models().join(setup::MODEL_FILE)).arg(&model);
    let log = scratch.join("convert.log");
    run::quietly("the base model's tokenizer", &mut convert, &log, None, LIMIT)?;
    for file in fs::read_dir(&model)?.flatten() {
        let name = file.file_name();
        let is_weight = Path::new(&name).extension().is_some_and(|e| e == "safetensors");
        if !is_weight && name != "config.json" {
            copy(&file.path(), &to.join(&name))?;
        }
    }
    setup::remove(&model)
}

/// What the archive was made from, and what the engine in it asks of the machine.
fn manifest(engine: &Path) -> String {
    let commit = run::answer("git", &["describe", "--always", "--dirty"]).unwrap_or_default();
    let date = run::answer("date", &["-u", "+%F %T UTC"]).unwrap_or_default();
    let needs = newest_symbols(engine).join(" ");
    format!("commit {commit}\nmade {date}\nlibtorch {}\nneeds {needs}\n", setup::TORCH_VERSION)
}

/// The newest versions of glibc and of the C++ library that a program names, as far as binutils are there.
fn newest_symbols(program: &Path) -> Vec<String> {
    let path = program.to_string_lossy();
    let text = run::answer("objdump", &["-T", &path]).unwrap_or_default();
    let newest = |prefix: &str| {
        let versions = text.split(['(', ')', ' ', '\n']).filter(|word| word.starts_with(prefix));
        let numbers = |word: &str| -> Vec<u32> {
            word[prefix.len()..].split('.').filter_map(|n| n.parse().ok()).collect()
        };
        versions.max_by_key(|word| numbers(word)).map(str::to_owned)
    };
    ["GLIBC_", "GLIBCXX_"].into_iter().filter_map(newest).collect()
}

fn pack(scratch: &Path, place: &Path) -> Result {
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    let unfinished = scratch.join("bundle.tar.gz");
    let mut tar = Command::new("tar");
    tar.env("GZIP", "-9").arg("-czf").arg(&unfinished).arg("-C").arg(scratch).arg(NAME);
    run::quietly("pack", &mut tar, &scratch.join("tar.log"), None, LIMIT)?;
    let size = fs::metadata(&unfinished)?.len();
    let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    if size > LARGEST {
        let (is, most) = (mebibytes(size), mebibytes(LARGEST));
        return Err(format!("the archive has {is}, it may have {most}").into());
    }
    // The place may be on another file system.
    fs::copy(&unfinished, place)?;
    println!("{}: {}", place.display(), mebibytes(size));
    println!("on the GPU machine: tar -xzf {NAME}.tar.gz && {NAME}/run.sh");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result {
    fs::create_dir_all(to.parent().ok_or("a file needs a folder")?)?;
    fs::copy(from, to).map_err(|error| format!("{}: {error}", from.display()))?;
    Ok(())
}
