//! `cargo xtask test`: set-up, then every test: Rust against a private Postgres, then the OpenAI SDK
//! against real server, worker and engine processes. Stops what it started.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::Result;
use crate::run;
use crate::server::{self, Daemon, TemporaryFolder};
use crate::setup;
use crate::workspace::{Profile, Workspace};

const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);
/// Several times what they take on two processors: whoever waits longer waits for ever.
const RUST_LIMIT: Duration = Duration::from_secs(15 * 60);
const SDK_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Marks every process that the tests start, so that a forgotten one is found.
const MARK: &str = "FINETUNED_TEST_RUN";

/// One part of the run, for the closing summary.
struct Part {
    name: &'static str,
    error: Option<String>,
    took: Duration,
}

impl Part {
    fn passed(&self) -> bool {
        self.error.is_none()
    }
}

pub fn run(workspace: &Workspace, sdk_only: bool) -> Result<ExitCode> {
    let mut parts = vec![part("set-up", || {
        setup::run(workspace, false)?;
        setup::s3(workspace)?;
        setup::node(workspace)?;
        setup::schemathesis(workspace)
    })];
    if parts[0].passed() {
        parts.push(part("build", || build(workspace)));
    }
    if parts.iter().all(Part::passed) {
        if !sdk_only {
            parts.push(part("Rust tests", || rust_tests(workspace)));
        }
        parts.push(part("OpenAI SDK tests", || sdk_tests(workspace)));
        parts.push(part("nothing left", nothing_left));
    }
    println!();
    for Part { name, error, took } in &parts {
        let mark = if error.is_none() { '✓' } else { '✗' };
        println!("{mark} {name:<18} {:>5} s", took.as_secs());
        if let Some(error) = error {
            println!("{error}");
        }
    }
    let passed = parts.iter().all(Part::passed);
    println!("{}", if passed { "all tests passed" } else { "FAILED" });
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one part; a failure is shown at once and does not stop the parts that do not need it.
fn part(name: &'static str, work: impl FnOnce() -> Result) -> Part {
    println!("== {name}");
    let started = Instant::now();
    let outcome = work();
    if let Err(error) = &outcome {
        eprintln!("{name}: {error}");
    }
    let error = outcome.err().map(|error| error.to_string());
    Part { name, error, took: started.elapsed() }
}

/// Builds the tests and, with them, the programs. One selection of packages for both: Cargo would build
/// the dependencies twice for two selections, whose features differ.
fn build(workspace: &Workspace) -> Result {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--no-run"]);
    run::in_view("cargo test --no-run", &mut cargo, BUILD_LIMIT)
}

fn rust_tests(workspace: &Workspace) -> Result {
    let folder = TemporaryFolder::create("test")?;
    let (_postgres, database_url) = database(workspace, &folder)?;
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]).env("DATABASE_URL", database_url);
    prepare(&mut cargo);
    let is_bad = |line: &str| line.ends_with("... FAILED") || line.contains("has been running for");
    let (outcome, bad) = run::in_view_keeping("cargo test", &mut cargo, RUST_LIMIT, is_bad);
    // At the end, where it is looked for: thousands of lines stand before.
    outcome.map_err(|error| format!("{error}\n{}", bad.join("\n")).into())
}

/// The database of the tests: the user's, or a private one that lives as long as the guard.
fn database(workspace: &Workspace, folder: &TemporaryFolder) -> Result<(Option<Daemon>, String)> {
    if let Ok(url) = std::env::var("DATABASE_URL") {
        return Ok((None, url));
    }
    let (daemon, url) = server::postgres(workspace, folder.path())?;
    Ok((Some(daemon), url))
}

fn sdk_tests(workspace: &Workspace) -> Result {
    let binaries = workspace.binaries(Profile::Dev)?;
    let mut pytest = workspace.python("python");
    pytest
        .args(["-m", "pytest", "-p", "no:cacheprovider", "--durations=8", "-q", "tests/sdk"])
        .env("FINETUNED_BIN", binaries.join("finetuned"))
        .env("FINETUNED_TEST_MODELS", workspace.models())
        .env("FINETUNED_TEST_S3", workspace.deps().join("s3"))
        .env("FINETUNED_TEST_NODE", workspace.deps().join("node"))
        .env("FINETUNED_TEST_SCHEMATHESIS", workspace.deps().join("schemathesis"))
        .env("LIBTORCH", workspace.libtorch());
    prepare(&mut pytest);
    run::in_view("OpenAI SDK tests", &mut pytest, SDK_LIMIT)
}

/// No process that the tests started may outlive them.
fn nothing_left() -> Result {
    let mark = format!("{MARK}={}", std::process::id());
    let left: Vec<String> = fs::read_dir("/proc")?
        .flatten()
        .filter(|entry| {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            format!("{} ({})", name.trim(), entry.file_name().to_string_lossy())
        })
        .collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left running: {}", left.join(", ")).into()) }
}

fn prepare(command: &mut Command) {
    // OpenMP threads that spin while they wait starve everything else on a small machine.
    command.env("OMP_WAIT_POLICY", "passive").env(MARK, std::process::id().to_string());
}
