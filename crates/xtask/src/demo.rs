//! `cargo xtask demo`: one fine-tuning job through the public API, shown from upload to answer.
//!
//! The showing itself is `tests/demo/demo.py`, an ordinary program of the OpenAI SDK; it decides the exit
//! code. Here everything is only started and stopped.

use std::process::ExitCode;
use std::time::Duration;

use crate::Result;
use crate::run;
use crate::server::{TemporaryFolder, Up};
use crate::setup;
use crate::up;
use crate::workspace::{Profile, Workspace};

/// The longest case takes ten minutes on two cores; a machine under other load may need more.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// `case` is one of `tests/demo/cases.py`, which knows them and refuses others.
pub fn run(workspace: &Workspace, case: Option<String>, keep: bool) -> Result<ExitCode> {
    setup::run(workspace, false)?;
    up::build(workspace, Profile::Release, &[])?;
    let mut folder = TemporaryFolder::create("demo")?;
    let up = match Up::start(workspace, Profile::Release, folder.path()) {
        Ok(up) => up,
        Err(error) => {
            folder.keep();
            return Err(error);
        }
    };
    let mut demo = workspace.python("python");
    demo.arg("tests/demo/demo.py")
        .env("OPENAI_BASE_URL", &up.base_url)
        .env("OPENAI_API_KEY", &up.key);
    if let Some(case) = case {
        demo.args(["--case", &case]);
    }
    if keep {
        demo.arg("--show-usage");
    }
    let status = run::status_in_view("demo", &mut demo, LIMIT)?;
    if !status.success() {
        folder.keep();
        eprintln!("the server's log: {}", up.log.display());
    }
    if keep {
        folder.keep();
        println!("\nData and log: {}", folder.path().display());
        if let Some(pid) = up.daemon.detach() {
            println!("The server keeps running. Stop it with:  kill {pid}");
        }
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
