//! The engine, libtorch and the GPUs.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::Finding;

const BINARY: &str = "finetuned-engine";
/// Loading libtorch from a cold disk takes a while.
const START_LIMIT: Duration = Duration::from_secs(60);

pub async fn findings(config: &worker::Config) -> Vec<Finding> {
    let program = program(config);
    let libtorch = libtorch(program.as_deref());
    vec![
        engine(program.as_deref(), libtorch.as_deref()).await,
        libtorch_finding(libtorch.as_deref()),
        gpu(libtorch.as_deref()),
    ]
}

/// The configured program, else the one beside this one; None when no file is there.
fn program(config: &worker::Config) -> Option<PathBuf> {
    let path = match &config.engine {
        Some(path) => path.clone(),
        None => std::env::current_exe().ok()?.with_file_name(BINARY),
    };
    path.is_file().then_some(path)
}

/// The folders in which a worker looks for libtorch before it starts the engine.
fn libtorch(program: Option<&Path>) -> Option<PathBuf> {
    let named = std::env::var_os("LIBTORCH").map(|dir| PathBuf::from(dir).join("lib"));
    let beside = program
        .and_then(Path::parent)
        .into_iter()
        .flat_map(|dir| [dir.join("lib"), dir.join("../lib"), dir.join("../../.deps/torch/lib")]);
    let checkout = [PathBuf::from(".deps/torch/lib")];
    named
        .into_iter()
        .chain(beside)
        .chain(checkout)
        .find(|dir| dir.join("libtorch_cpu.so").is_file())
}

async fn engine(program: Option<&Path>, libtorch: Option<&Path>) -> Finding {
    let Some(program) = program else {
        return Finding::missing(
            "engine",
            format!("no {BINARY} beside this program, and worker.engine names none"),
            "cargo build --release -p engine, or set worker.engine",
        );
    };
    match start(program, libtorch).await {
        Ok(output) if output.status.success() => {
            Finding::ok("engine", format!("{} starts", program.display()))
        }
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let line = complaint.lines().next().unwrap_or("it says nothing").to_owned();
            Finding::missing(
                "engine",
                format!("{} ends with {}: {line}", program.display(), output.status),
                "cargo xtask setup, then cargo build --release -p engine",
            )
        }
        Err(reason) => Finding::missing(
            "engine",
            format!("{} does not start: {reason}", program.display()),
            "cargo xtask setup, then cargo build --release -p engine",
        ),
    }
}

async fn start(program: &Path, libtorch: Option<&Path>) -> Result<Output, String> {
    let mut command = Command::new(program);
    command.arg("--help").stdin(Stdio::null()).kill_on_drop(true);
    if let Some(libtorch) = libtorch {
        let present = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let folders =
            std::iter::once(libtorch.to_path_buf()).chain(std::env::split_paths(&present));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(folders).map_err(|e| e.to_string())?);
    }
    match timeout(START_LIMIT, command.output()).await {
        Ok(output) => output.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no end within {} s", START_LIMIT.as_secs())),
    }
}

fn libtorch_finding(dir: Option<&Path>) -> Finding {
    match dir {
        Some(dir) => Finding::ok("libtorch", dir.display().to_string()),
        None => Finding::note(
            "libtorch",
            "not found in LIBTORCH, beside the engine or in .deps/torch",
            "cargo xtask setup, or set LIBTORCH; not needed when the engine starts without it",
        ),
    }
}

fn gpu(libtorch: Option<&Path>) -> Finding {
    let cards = std::fs::read_dir("/dev").into_iter().flatten().flatten().filter(|entry| {
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("nvidia"));
        index.is_some_and(|i| !i.is_empty() && i.bytes().all(|byte| byte.is_ascii_digit()))
    });
    match cards.count() {
        0 => Finding::ok("gpu", "none; training and chat run on the CPU"),
        count if libtorch.is_some_and(|dir| dir.join("libtorch_cuda.so").is_file()) => {
            Finding::ok("gpu", format!("{count} found, and libtorch has its CUDA part"))
        }
        count => Finding::missing(
            "gpu",
            format!("{count} found, but libtorch has no CUDA part"),
            "cargo xtask setup --cuda, or set worker.devices = [\"cpu\"]",
        ),
    }
}
