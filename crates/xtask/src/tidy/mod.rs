//! The project's own rules, checked: which crate may use which, how long a file may be, what text may hold.
//!
//! It runs as a command and as an ordinary test. What rustfmt and clippy check is not repeated here.

mod crates;
mod text;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::Result;
use crate::workspace::Workspace;

pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let problems = problems(workspace)?;
    for problem in &problems {
        eprintln!("{problem}");
    }
    if problems.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tidy: {} problems; docs/STYLE.md gives the reason of each rule", problems.len());
    Ok(ExitCode::FAILURE)
}

fn problems(workspace: &Workspace) -> Result<Vec<String>> {
    let mut problems = crates::problems(&workspace.metadata()?);
    for path in files(workspace)? {
        let Ok(text) = std::fs::read_to_string(workspace.root.join(&path)) else {
            // Not text (a fixture of numbers), or deleted but not yet committed.
            continue;
        };
        problems.extend(text::problems(&path, &text));
    }
    Ok(problems)
}

/// The files of the project, relative to its root: tracked ones, and new ones that git does not ignore.
fn files(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&workspace.root)
        .output()
        .map_err(|error| format!("git: {error}"))?;
    if !output.status.success() {
        return Err("tidy needs a git checkout".into());
    }
    let names = String::from_utf8(output.stdout)?;
    Ok(names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(|name| Path::new(name).into())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_is_tidy() {
        let problems = problems(&Workspace::find().unwrap()).unwrap();
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }
}
