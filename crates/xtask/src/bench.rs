//! `cargo xtask bench NAME`: a measurement against the reference on the same machine, in one run. Each is
//! a script in `tests/bench` that prints a readable table and, last, one JSON line with every figure.

use std::process::ExitCode;
use std::time::Duration;

use crate::Result;
use crate::run;
use crate::setup;
use crate::up;
use crate::workspace::{Profile, Workspace};

const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Asks the server alone: needs no reference packages, but the program that fills its database.
const API: &str = "tests/bench/api.py";
/// Runs the command line alone: needs no reference packages either.
const DATA: &str = "tests/bench/data.py";
/// Writes rows and events straight into a database: `crates/store/examples/fill.rs`.
const FILL: [&str; 4] = ["--package", "store", "--example", "fill"];

/// Name, script, and what it measures.
const BENCHES: [(&str, &str, &str); 9] = [
    ("train", "tests/bench/train.py", "tokens per second and peak memory of training"),
    ("qlora", "tests/bench/qlora.py", "the same over a base model in 4 bits"),
    ("dpo", "tests/bench/dpo.py", "training on preference pairs, against trl"),
    ("decode", "tests/bench/decode.py", "tokens per second of answers, one and eight at once"),
    ("memory", "tests/bench/memory.py", "the memory estimate against what the engine takes"),
    ("adapter", "tests/bench/adapter.py", "our adapter in peft: the same greedy answers"),
    ("reward", "tests/bench/reward.py", "our reward model in peft: the same scores"),
    ("data", DATA, "the check of 100,000 rows of training data: time and memory"),
    ("api", API, "uploads against the disk, lists at a million rows, 5,000 event streams"),
];

pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<ExitCode> {
    let (name, rest) = arguments.split_first().ok_or_else(known_names)?;
    let (_, script, _) =
        BENCHES.iter().find(|(known, ..)| known == name).ok_or_else(known_names)?;
    setup::run(workspace, false)?;
    let mut packages = vec![workspace.deps().join("python")];
    if ![API, DATA].contains(script) {
        setup::reference(workspace)?;
        packages = vec![workspace.deps().join("reference")];
    }
    if name == "dpo" {
        setup::preference(workspace)?;
        packages.push(workspace.deps().join("trl"));
    }
    up::build(workspace, Profile::Release, if *script == API { &FILL } else { &[] })?;
    let mut bench = workspace.python("reference");
    bench
        .arg(script)
        .args(rest)
        .env("PYTHONPATH", std::env::join_paths(packages)?)
        .env("FINETUNED_BIN", workspace.binaries(Profile::Release)?.join("finetuned"))
        .env("FINETUNED_ENGINE", workspace.binaries(Profile::Release)?.join("finetuned-engine"))
        .env("FINETUNED_TEST_MODELS", workspace.models())
        .env("LIBTORCH", workspace.libtorch());
    let status = run::status_in_view(&format!("bench {name}"), &mut bench, LIMIT)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn known_names() -> String {
    let list: String =
        BENCHES.iter().map(|(name, _, what)| format!("\n  {name:<10} {what}")).collect();
    format!("which one? cargo xtask bench NAME{list}")
}
