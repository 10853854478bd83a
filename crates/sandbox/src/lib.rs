//! The cage in which Python graders run: a process of its own that the kernel lets do nothing but compute.
//!
//! [`Cage::command`] starts this program once more, with no environment, as `grade-python`; that process calls
//! [`Cage::enter`], which locks itself in and becomes the interpreter. There is no way out of it to files, network,
//! other processes or more memory, whatever the program does; and where the kernel lacks one of the locks, it
//! refuses to start. [`SELF_TEST`] is a grader that tries the ways out and says which are open.
//!
//! Two locks hold independently: Landlock (which files may be opened, and for what) and seccomp (which system calls
//! exist). What it does not do: keep time by the wall clock, limit how many run at once, read answers. The server
//! does these.

mod files;
mod interpreter;
mod limits;
mod syscalls;

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

pub use interpreter::Interpreter;
pub use limits::Limits;

/// Reads a request from standard input, runs its program, answers with one line.
const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// A grader that returns 1 in a cage that holds, and raises with the ways out otherwise.
pub const SELF_TEST: &str = include_str!("self_test.py");
/// The exit status of a cage that could not be closed. Nothing has been run then.
pub const NOT_LOCKED: u8 = 125;
/// The hidden command of the program that enters a cage.
pub const COMMAND: &str = "grade-python";

/// Why there is no cage, or no interpreter for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no Python: {0}")]
    NoInterpreter(String),
    #[error("this kernel does not confine files (Landlock, Linux 5.13 or newer): {0}")]
    Files(String),
    #[error("this kernel does not confine system calls (seccomp): {0}")]
    SystemCalls(String),
    #[error("cannot limit the process: {0}")]
    Limits(#[from] nix::Error),
    #[error("the parent has ended already")]
    Orphan,
    #[error("cannot start {program}: {source}")]
    Start { program: String, source: std::io::Error },
}

/// What the caged process is told about itself, as its one argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cage {
    pub interpreter: Interpreter,
    pub limits: Limits,
    /// The process that must still be the parent when the cage closes.
    parent: u32,
}

impl Cage {
    pub fn new(interpreter: Interpreter, limits: Limits) -> Self {
        Self { interpreter, limits, parent: std::process::id() }
    }

    /// A caged interpreter, ready to start; `launcher` is the program that has the command [`COMMAND`]. It reads
    /// `{"source", "sample", "item"}` and answers `{"reward": n}` or `{"error": "…"}`; without `item` the program is
    /// read and its function looked for, but not called.
    pub fn command(&self, launcher: &Path) -> Command {
        let mut command = Command::new(launcher);
        let told = serde_json::json!(self).to_string();
        command.arg(COMMAND).arg(told).env_clear().current_dir("/");
        command
    }

    /// Closes the cage around this process and becomes the interpreter. Returns only with an error, and then
    /// nothing has been run. Must be called before the process has a second thread.
    ///
    /// # Errors
    /// When one of the locks is not to be had.
    pub fn enter(&self) -> Result<Infallible, Error> {
        limits::apply(&self.limits, self.parent)?;
        files::confine(&self.interpreter)?;
        syscalls::confine()?;
        let program = &self.interpreter.executable;
        let source = Command::new(program)
            // Isolated, no byte code written, UTF-8.
            .args(["-I", "-B", "-X", "utf8", "-c", BOOTSTRAP])
            .env_clear()
            .exec();
        Err(Error::Start { program: program.display().to_string(), source })
    }
}
