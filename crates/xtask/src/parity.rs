//! `cargo xtask parity`: our numbers against transformers and peft. The scripts in `tests/golden` make the
//! fixtures that the ordinary tests read; here they are made anew and compared, or rewritten.

use std::process::ExitCode;
use std::time::Duration;

use crate::Result;
use crate::run;
use crate::setup;
use crate::workspace::Workspace;

const LIMIT: Duration = Duration::from_secs(60 * 60);
const SCRIPTS: &str = "tests/golden";

pub fn run(workspace: &Workspace, update: bool) -> Result<ExitCode> {
    let mut scripts: Vec<_> = std::fs::read_dir(workspace.root.join(SCRIPTS))
        .map_err(|error| format!("{SCRIPTS}: {error}"))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "py"))
        .collect();
    scripts.sort();
    setup::run(workspace, false)?;
    setup::reference(workspace)?;
    let mut all_agree = true;
    for script in scripts {
        let name = script.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = workspace.python("reference");
        command
            .arg(&script)
            .arg(if update { "--update" } else { "--check" })
            .env("FINETUNED_TEST_MODELS", workspace.models());
        let agrees = run::status_in_view(&name, &mut command, LIMIT)?.success();
        println!("{} {name}", if agrees { '✓' } else { '✗' });
        all_agree &= agrees;
    }
    Ok(if all_agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
