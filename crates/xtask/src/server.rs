//! Long-running programs of ours: `finetuned up` for the demo, a private Postgres for the tests.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;
use crate::progress::Progress;
use crate::run;
use crate::workspace::{Profile, Workspace};

const POLL: Duration = Duration::from_millis(100);
/// First start: a database cluster is made and the base model imported.
const START_LIMIT: Duration = Duration::from_secs(180);
/// A drain checkpoints a running job first.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A temporary folder that an unprivileged database user may enter too; removed at the end.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    is_kept: bool,
}

impl TemporaryFolder {
    pub fn create(purpose: &str) -> Result<Self> {
        let name = format!("finetuned-{purpose}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path)?;
        Ok(Self { path, is_kept: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder where it is.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if !self.is_kept {
            // The system clears its temporary folder too.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A program of ours that runs until it is told to stop. Dropping it stops it.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
}

impl Daemon {
    /// Ends it politely, then by force.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        run::signal("TERM", &[child.id()]);
        let deadline = Instant::now() + STOP_LIMIT;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                return run::kill_tree(&mut child);
            }
            sleep(POLL);
        }
    }

    /// Lets it run on after this process; returns its process id.
    pub fn detach(mut self) -> Option<u32> {
        self.child.take().map(|child| child.id())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `finetuned up` on a free port, with a key of its own.
#[derive(Debug)]
pub struct Up {
    pub daemon: Daemon,
    pub base_url: String,
    pub key: String,
    pub log: PathBuf,
}

impl Up {
    /// Starts it and waits until it is ready.
    pub fn start(workspace: &Workspace, profile: Profile, data_dir: &Path) -> Result<Self> {
        let address = free_address()?;
        let key = format!("sk-{:016x}", random()?);
        let log = data_dir.join("finetuned.log");
        let output = File::create(&log)?;
        let mut command = workspace.program(profile, "finetuned")?;
        command
            .args(["up", "--listen", &address.to_string(), "--data-dir"])
            .arg(data_dir)
            .env("FINETUNED_API_KEY", &key)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A group of its own: with --keep it outlives the terminal's Ctrl-C.
            .process_group(0);
        let child = command.spawn().map_err(|e| format!("cannot start finetuned: {e}"))?;
        let mut up = Self {
            daemon: Daemon { child: Some(child) },
            base_url: format!("http://{address}/v1"),
            key,
            log,
        };
        up.wait_until_ready(address)?;
        Ok(up)
    }

    fn wait_until_ready(&mut self, address: SocketAddr) -> Result {
        let mut progress = Progress::start("start Postgres, server, worker and engine");
        let deadline = Instant::now() + START_LIMIT;
        while !is_ready(address) {
            let ended = match &mut self.daemon.child {
                Some(child) => child.try_wait()?.map(|status| status.to_string()),
                None => Some("stopped".into()),
            };
            let problem = match ended {
                Some(status) => format!("finetuned up ended ({status})"),
                None if Instant::now() >= deadline => "finetuned up is not ready in time".into(),
                None => {
                    progress.tick("");
                    sleep(POLL);
                    continue;
                }
            };
            progress.fail();
            return Err(format!("{problem}:\n{}", run::tail(&self.log)).into());
        }
        progress.succeed();
        Ok(())
    }
}

/// A private Postgres for the tests of this run; returns its URL.
pub fn postgres(workspace: &Workspace, data_dir: &Path) -> Result<(Daemon, String)> {
    let log = File::create(data_dir.join("postgres-launcher.log"))?;
    let mut command = workspace.program(Profile::Dev, "finetuned")?;
    // Through the guard, so that it ends even when this process is killed.
    let itself = command.get_program().to_owned();
    command.args(["run-guarded", "--parent", &std::process::id().to_string(), "--"]).arg(itself);
    command.args(["postgres", "--data-dir"]).arg(data_dir.join("postgres"));
    let (daemon, url) = first_line(command.stderr(log))?;
    if !url.starts_with("postgres") {
        return Err(
            format!("`finetuned postgres` printed `{url}`, expected a postgres:// URL").into()
        );
    }
    Ok((daemon, url))
}

/// Starts a program that says one line when it is ready. Its later output is read and dropped.
fn first_line(command: &mut Command) -> Result<(Daemon, String)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|e| format!("cannot start {program}: {e}"))?;
    let output = child.stdout.take().ok_or("the program has no output")?;
    let daemon = Daemon { child: Some(child) };
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
            if send.send(line).is_err() {
                // Nobody asks for more; reading on keeps the program's pipe open.
                continue;
            }
        }
    });
    match receive.recv_timeout(START_LIMIT) {
        Ok(line) => Ok((daemon, line.trim().to_owned())),
        Err(_) => Err(format!("{program} said nothing in {} s", START_LIMIT.as_secs()).into()),
    }
}

/// A port that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(64 * 1024).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
