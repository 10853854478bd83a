//! The thread that owns the server's process: starts it, starts it again when it dies, stops it.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cluster::Cluster;
use super::postmaster::{PidFile, is_postmaster_of};

/// Between two looks at a running server.
const WATCH: Duration = Duration::from_millis(200);
/// Between two looks at one that starts or stops.
const LOOK: Duration = Duration::from_millis(20);
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Tries of the first start: the children of a killed server need a moment to let go of its memory.
const FIRST_TRIES: u32 = 3;
/// What each way of stopping may take: closing connections, aborting, being killed.
const STOP_STEPS: [(Signal, Duration); 3] = [
    (Signal::SIGINT, Duration::from_secs(30)),
    (Signal::SIGQUIT, Duration::from_secs(5)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// Why a start did not end with a server.
enum NotStarted {
    /// The owner wants it stopped; nothing is running.
    Unwanted,
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for NotStarted {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs until `stop` is disconnected; tells `ready` once how the first start went.
pub fn run(cluster: &Cluster, ready: &Sender<Result<()>>, stop: &Receiver<()>) {
    let Some(mut server) = first_start(cluster, ready, stop) else { return };
    let mut delay = FIRST_DELAY;
    while !must_stop_within(stop, WATCH) {
        match server.try_wait() {
            Ok(None) => continue,
            Ok(Some(status)) => tracing::warn!("Postgres ended ({status}); starting it again"),
            Err(error) => tracing::warn!("cannot watch Postgres ({error}); starting it again"),
        }
        match restart(cluster, stop, &mut delay) {
            Some(child) => server = child,
            None => return,
        }
    }
    shut_down(cluster, &mut server);
}

/// Waits for `time`; true as soon as the owner wants the server stopped.
fn must_stop_within(stop: &Receiver<()>, time: Duration) -> bool {
    !matches!(stop.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

fn first_start(
    cluster: &Cluster,
    ready: &Sender<Result<()>>,
    stop: &Receiver<()>,
) -> Option<Child> {
    let mut tries = 1;
    let error = loop {
        match launch(cluster, stop) {
            Ok(server) => {
                let _ = ready.send(Ok(()));
                return Some(server);
            }
            Err(NotStarted::Unwanted) => return None,
            Err(NotStarted::Failed(error)) if tries == FIRST_TRIES => break error,
            Err(NotStarted::Failed(error)) => tracing::debug!("Postgres did not start: {error:#}"),
        }
        tries += 1;
        if must_stop_within(stop, FIRST_DELAY * tries) {
            return None;
        }
    };
    let _ = ready.send(Err(error));
    None
}

/// Tries for as long as it takes: a full disk is emptied some time, and until then the server answers
/// that it is not ready.
fn restart(cluster: &Cluster, stop: &Receiver<()>, delay: &mut Duration) -> Option<Child> {
    loop {
        match launch(cluster, stop) {
            Ok(server) => {
                tracing::info!("Postgres is back");
                *delay = FIRST_DELAY;
                return Some(server);
            }
            Err(NotStarted::Unwanted) => return None,
            Err(NotStarted::Failed(error)) => tracing::error!("Postgres does not start: {error:#}"),
        }
        if must_stop_within(stop, *delay) {
            return None;
        }
        *delay = (*delay * 2).min(LONGEST_DELAY);
    }
}

/// Starts the server and waits until it is ready, however long its recovery takes.
fn launch(cluster: &Cluster, stop: &Receiver<()>) -> Result<Child, NotStarted> {
    clear_predecessor(&cluster.dir)?;
    let mut server = cluster.spawn()?;
    loop {
        if let Some(status) = server.try_wait()? {
            return Err(NotStarted::Failed(exit_error(status, &cluster.log)));
        }
        if PidFile::read(&cluster.dir)
            .is_some_and(|file| file.is_ready && is_postmaster_of(file.pid, &cluster.dir))
        {
            return Ok(server);
        }
        if must_stop_within(stop, LOOK) {
            shut_down(cluster, &mut server);
            return Err(NotStarted::Unwanted);
        }
    }
}

/// Stops a server that a killed parent has left, and removes a note that names somebody else's process
/// by now: Postgres would take that one for its own and refuse to start.
fn clear_predecessor(dir: &Path) -> Result<()> {
    let Some(PidFile { pid, .. }) = PidFile::read(dir) else { return Ok(()) };
    if is_postmaster_of(pid, dir) {
        tracing::warn!("stopping the Postgres (process {pid}) that an earlier run has left");
        return end(pid, || !is_postmaster_of(pid, dir))
            .with_context(|| format!("Postgres of an earlier run, process {pid}, does not end"));
    }
    if kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH) {
        std::fs::remove_file(PidFile::path(dir)).context("cannot remove a stale postmaster.pid")?;
    }
    Ok(())
}

fn shut_down(cluster: &Cluster, server: &mut Child) {
    // With a wrapper script on PATH the child may be another process than the server.
    let child = i32::try_from(server.id()).unwrap_or_default();
    let pid = PidFile::read(&cluster.dir)
        .map(|file| file.pid)
        .filter(|&pid| is_postmaster_of(pid, &cluster.dir))
        .unwrap_or(child);
    let ended = end(pid, || !matches!(server.try_wait(), Ok(None)));
    match ended {
        Ok(()) => tracing::debug!("Postgres has stopped"),
        Err(error) => tracing::error!("Postgres does not stop: {error:#}"),
    }
}

/// Sends ever stronger signals until `is_gone`.
fn end(pid: i32, mut is_gone: impl FnMut() -> bool) -> Result<()> {
    for (signal, patience) in STOP_STEPS {
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context(format!("cannot send {signal}")),
        }
        let begin = Instant::now();
        while begin.elapsed() < patience {
            if is_gone() {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        tracing::warn!("Postgres did not end within {} s of {signal}", patience.as_secs());
    }
    Err(anyhow!("process {pid} is still there"))
}

fn exit_error(status: ExitStatus, log: &Path) -> anyhow::Error {
    let tail = last_lines(log, 6).unwrap_or_default();
    anyhow!("Postgres ended at once ({status}); the end of {}:\n{tail}", log.display())
}

fn last_lines(path: &Path, count: usize) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(count)..].join("\n"))
}
