//! `cargo xtask parity`: our numbers against transformers and peft, made anew on this machine.
//!
//! The scripts in `tests/golden` write the fixtures that the ordinary tests read. Here they run in the
//! reference environment, and the tests run against what they wrote. Fixtures that changed stay in the work
//! tree, for git to show; nothing is committed or restored.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::Result;
use crate::run;
use crate::setup;
use crate::workspace::Workspace;

const SCRIPT_LIMIT: Duration = Duration::from_secs(30 * 60);
const TEST_LIMIT: Duration = Duration::from_secs(60 * 60);
const SCRIPTS: &str = "tests/golden";
/// The script that also wants the real base model.
const READS_MODEL: &str = "gguf_fixture.py";
/// The crates whose tests read fixtures.
const TESTED: [&str; 5] = ["dataset", "weights", "kernels", "model", "engine"];

pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    setup::run(workspace, false)?;
    setup::reference(workspace)?;
    for script in scripts(workspace)? {
        let name = script.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = workspace.python("reference");
        command.arg(&script);
        if name == READS_MODEL {
            command.arg(workspace.models().join(setup::MODEL_FILE));
        }
        run::in_view(&name, &mut command, SCRIPT_LIMIT)?;
        println!("✓ {name}");
    }
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--no-fail-fast", "--quiet"]);
    for name in TESTED {
        cargo.args(["--package", name]);
    }
    let status = run::status_in_view("tests of the numbers", &mut cargo, TEST_LIMIT)?;
    let changed = run::answer("git", &["status", "--short", "--", "tests", "crates"]);
    match changed.as_deref() {
        Some("") => println!("the fixtures are the committed ones"),
        Some(list) => println!("changed in the work tree:\n{list}"),
        None => {}
    }
    println!("{}", if status.success() { "✓ the numbers agree" } else { "✗ the numbers differ" });
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn scripts(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let folder = std::fs::read_dir(workspace.root.join(SCRIPTS))
        .map_err(|error| format!("{SCRIPTS}: {error}"))?;
    let mut scripts: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
    scripts.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    scripts.sort();
    Ok(scripts)
}
