//! How an engine process is started: where its binary lies, its environment, its process group.
//!
//! The engine must not outlive the worker. Two guards see to it: the end of its standard input, and
//! the kernel's parent-death signal, set by `setpriv` where the machine has it (setting it
//! ourselves between fork and exec would be unsafe code).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use domain::internal::BaseModel;
use tokio::process::{Child, Command};

use crate::Error;

const BINARY: &str = "finetuned-engine";

/// What all engines of one slot are started with.
#[derive(Debug, Clone)]
pub struct Launch {
    pub program: PathBuf,
    pub device: String,
    pub threads: usize,
    /// Bytes that a process may take on the CPU; 0 means what the machine has free.
    pub memory: u64,
    library_path: Option<OsString>,
    setpriv: Option<PathBuf>,
}

impl Launch {
    /// Errors: no engine binary where the configuration says, or beside the running program.
    pub fn find(configured: Option<&Path>, device: &str, threads: usize) -> Result<Self, Error> {
        let program = find_engine(configured)?;
        let library_path = library_path(&program);
        let device = device.to_owned();
        let setpriv = find_in_path("setpriv");
        Ok(Self { program, device, threads, memory: 0, library_path, setpriv })
    }

    /// Starts a process for one base model. Its parent is a thread that lives as long as the
    /// process: the parent-death signal follows the thread that spawned, and the run-time's threads
    /// come and go.
    pub async fn spawn(&self, model: &BaseModel, model_dir: &Path) -> std::io::Result<Spawned> {
        let mut command = self.command(model_dir, model);
        let runtime = tokio::runtime::Handle::current();
        let (started, child) = tokio::sync::oneshot::channel();
        let (parent_needed, until_unneeded) = std::sync::mpsc::channel::<()>();
        std::thread::Builder::new().name("engine-parent".to_owned()).spawn(move || {
            let _inside = runtime.enter();
            if started.send(command.spawn()).is_ok() {
                // Nothing is ever sent: this returns when the other end is dropped.
                let _ = until_unneeded.recv();
            }
        })?;
        let child = child.await.map_err(std::io::Error::other)??;
        let (model, device, pid) = (model.variant(), &self.device, child.id());
        tracing::info!(%model, device, pid, "engine started");
        Ok(Spawned { child, _parent_needed: parent_needed })
    }

    fn command(&self, model_dir: &Path, model: &BaseModel) -> Command {
        let mut command = match &self.setpriv {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .arg("--model")
            .arg(model_dir)
            .args(["--quantization", model.quantization.as_str()])
            .args(["--precision", model.precision.as_str()])
            .args(["--device", &self.device])
            .args(["--threads", &self.threads.to_string()])
            // Threads that spin while they wait starve whatever shares the machine.
            .env("OMP_WAIT_POLICY", "passive")
            .env("OMP_NUM_THREADS", self.threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if self.memory > 0 {
            command.args(["--memory", &self.memory.to_string()]);
        }
        if let Some(path) = &self.library_path {
            command.env("LD_LIBRARY_PATH", path);
        }
        command
    }
}

/// A running process and the thread that is its parent.
pub struct Spawned {
    pub child: Child,
    _parent_needed: std::sync::mpsc::Sender<()>,
}

fn find_engine(configured: Option<&Path>) -> Result<PathBuf, Error> {
    let candidates: Vec<PathBuf> = match configured {
        Some(path) => vec![path.to_owned()],
        None => {
            let program = std::env::current_exe().ok();
            program.iter().filter_map(|exe| exe.parent()).map(|dir| dir.join(BINARY)).collect()
        }
    };
    let found = candidates.iter().find(|path| path.is_file());
    // Absolute, because `setpriv` would look a bare name up in PATH.
    found
        .and_then(|path| path.canonicalize().ok())
        .ok_or_else(|| Error::EngineMissing { looked: candidates.clone() })
}

/// libtorch's folder in front of what the loader searches anyway; none when there is nothing to
/// add.
fn library_path(program: &Path) -> Option<OsString> {
    let torch = std::env::var_os("LIBTORCH").map(|torch| PathBuf::from(torch).join("lib"));
    let beside = program.parent().into_iter().flat_map(|dir| {
        // A release's layouts, then a checkout's: target/<profile>/ and .deps/ are neighbours.
        [dir.join("lib"), dir.join("../lib"), dir.join("../../.deps/torch/lib")]
    });
    let has_torch = |dir: &PathBuf| dir.join("libtorch_cpu.so").is_file();
    let folder = torch.into_iter().chain(beside).find(has_torch)?;
    let mut folders = vec![folder];
    if let Some(present) = std::env::var_os("LD_LIBRARY_PATH") {
        folders.extend(std::env::split_paths(&present));
    }
    std::env::join_paths(folders).ok()
}

fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_engine_is_reported_with_place_and_remedy() {
        let error = Launch::find(Some(Path::new("/nowhere/engine")), "cpu", 1).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nowhere/engine") && text.contains("cargo build"), "{text}");
        let beside = Launch::find(None, "cpu", 1).unwrap_err().to_string();
        assert!(beside.contains("finetuned-engine"), "{beside}");
    }

    #[test]
    fn libtorch_is_found_beside_the_engine() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("lib");
        std::fs::create_dir(&lib).unwrap();
        std::fs::write(lib.join("libtorch_cpu.so"), "").unwrap();
        let path = library_path(&dir.path().join("engine"));
        if std::env::var_os("LIBTORCH").is_none() {
            let path = path.unwrap();
            assert_eq!(std::env::split_paths(&path).next().unwrap(), lib);
        }
    }
}
