//! Other programs, run to their end under a time limit: in view or quietly with a progress line.
//!
//! A program that runs over its limit is killed with everything it started. Servers that keep running are
//! in `server.rs`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;
use crate::progress::Progress;

const POLL: Duration = Duration::from_millis(100);
/// Lines of output shown when a quiet program fails.
const TAIL_LINES: usize = 30;

/// A folder that grows while a program runs, and the size that it will reach.
#[derive(Debug)]
pub struct Growth {
    pub folder: PathBuf,
    pub expected_mb: u64,
}

/// Runs in view of the user. Fails when the program does.
pub fn in_view(title: &str, command: &mut Command, limit: Duration) -> Result {
    succeeded(title, status_in_view(title, command, limit)?)
}

fn succeeded(title: &str, status: ExitStatus) -> Result {
    if status.success() { Ok(()) } else { Err(format!("{title} failed ({status})").into()) }
}

/// Runs in view of the user and returns how it ended.
pub fn status_in_view(title: &str, command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = spawn(title, command)?;
    wait(title, &mut child, limit, || ())
}

/// Runs in view of the user, and keeps the lines of standard output that are worth being said again at the end.
pub fn in_view_keeping(
    title: &str,
    command: &mut Command,
    limit: Duration,
    is_kept: fn(&str) -> bool,
) -> (Result, Vec<String>) {
    let mut child = match spawn(title, command.stdout(Stdio::piped())) {
        Ok(child) => child,
        Err(error) => return (Err(error), Vec::new()),
    };
    let output = child.stdout.take();
    let (keep, kept) = mpsc::channel();
    std::thread::spawn(move || {
        for line in output.into_iter().flat_map(|o| BufReader::new(o).lines()).map_while(|l| l.ok())
        {
            println!("{line}");
            if is_kept(&line) {
                // Nobody may want it any more, when the time is over.
                let _ = keep.send(line);
            }
        }
    });
    match wait(title, &mut child, limit, || ()) {
        Ok(status) => (succeeded(title, status), kept.iter().collect()),
        // What has left the killed tree may hold the output open for ever.
        Err(error) => (Err(error), kept.try_iter().collect()),
    }
}

/// Runs with a progress line. The output is shown only when the program fails, its end alone.
pub fn quietly(
    title: &str,
    command: &mut Command,
    log: &Path,
    growth: Option<&Growth>,
    limit: Duration,
) -> Result {
    let output = File::create(log).map_err(|e| format!("cannot write {}: {e}", log.display()))?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut progress = Progress::start(title);
    let mut child = spawn(title, command)?;
    let outcome = wait(title, &mut child, limit, || progress.tick(&detail(growth)));
    match outcome {
        Ok(status) if status.success() => {
            progress.succeed();
            Ok(())
        }
        Ok(status) => {
            progress.fail();
            Err(format!("{title} failed ({status}):\n{}", tail(log)).into())
        }
        Err(error) => {
            progress.fail();
            Err(error)
        }
    }
}

/// Standard output and error together of a short program, or none when it is missing or fails.
pub fn answer(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output.status.success().then(|| String::from_utf8_lossy(&text).trim().to_owned())
}

/// Waits for the end; `tick` is called meanwhile. Over the limit the whole tree is killed.
fn wait(
    title: &str,
    child: &mut Child,
    limit: Duration,
    mut tick: impl FnMut(),
) -> Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            kill_tree(child);
            return Err(
                format!("{title} took longer than {} s and was ended", limit.as_secs()).into()
            );
        }
        tick();
        sleep(POLL);
    }
}

fn spawn(title: &str, command: &mut Command) -> Result<Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.spawn().map_err(|error| format!("{title}: cannot start {program}: {error}").into())
}

/// Sends a signal (`TERM`, `KILL`) to processes. std has no call for it; every shell has the word.
pub fn signal(name: &str, pids: &[u32]) {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let script = format!("kill -{name} {} 2>/dev/null", pids.join(" "));
    // A process that is gone already is what we want.
    let _ = Command::new("sh").args(["-c", &script]).status();
}

/// Kills a program and all that it started.
pub fn kill_tree(child: &mut Child) {
    let mut pids = descendants(child.id());
    pids.push(child.id());
    signal("KILL", &pids);
    // Reap it, so that nothing is left behind; it cannot outlive the signal.
    let _ = child.wait();
}

/// All processes below `root`, read from /proc.
pub fn descendants(root: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let parents: Vec<(u32, u32)> = entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // "pid (name) state parent …"; the name may hold anything, so count from its last bracket.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let above = found[next];
        found.extend(parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| pid));
        next += 1;
    }
    found.split_off(1)
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn detail(growth: Option<&Growth>) -> String {
    growth.map_or_else(String::new, |growth| {
        let megabytes = folder_bytes(&growth.folder) / 1_000_000;
        format!("{} / {} MB", megabytes.min(growth.expected_mb), growth.expected_mb)
    })
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => folder_bytes(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_over_its_limit_is_killed_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & sleep 60"]);
        let mut child = command.spawn().unwrap();
        while descendants(child.id()).len() < 2 {
            std::thread::yield_now();
        }
        let below = descendants(child.id());
        assert!(wait("sleep", &mut child, Duration::ZERO, || ()).is_err());
        for pid in below {
            // An orphan that was killed may stay a zombie until its new parent reaps it.
            let is_running = || {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
            };
            while is_running() {
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_missing_program_has_no_answer() {
        assert_eq!(answer("no-such-program-anywhere", &[]), None);
        assert_eq!(answer("sh", &["-c", "echo yes"]).as_deref(), Some("yes"));
    }
}
