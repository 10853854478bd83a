//! The private Postgres, on the real programs: it is created, found again, healed, and never left behind.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// A folder that every user may pass through, as a cluster run by another account needs.
fn open_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// `finetuned postgres`, ready; killed when dropped.
struct Launcher {
    child: Child,
    socket: PathBuf,
}

impl Launcher {
    fn command(data_dir: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_finetuned"));
        command.args(["postgres", "--data-dir"]).arg(data_dir);
        command.env("FINETUNED_LOG__LEVEL", "error").env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    fn start(data_dir: &Path) -> Self {
        let mut child = Self::command(data_dir).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let folder = url.trim_end().split("?host=").nth(1).expect("a URL once it is ready");
        let socket = Path::new(folder).join(".s.PGSQL.5432");
        Self { child, socket }
    }

    /// SIGTERM, as from an init system; the exit code.
    fn terminate(mut self) -> Option<i32> {
        signal("TERM", self.child.id());
        self.child.wait().unwrap().code()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap();
    assert!(status.success());
}

fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        if let Some(value) = probe() {
            return value;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not within {} s: {what}", LIMIT.as_secs());
}

fn postmaster(cluster: &Path) -> Option<u32> {
    fs::read_to_string(cluster.join("postmaster.pid")).ok()?.lines().next()?.parse().ok()
}

fn wait_until_gone(pid: u32) {
    eventually("the server has ended", || {
        let is_alive = fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "));
        (!is_alive).then_some(())
    });
}

/// Runs one statement over the protocol itself and returns the bytes of its answer, up to the server's
/// word that it is ready again. No driver: the launcher depends on none.
fn ask(socket: &Path, sql: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut start = 196_608_u32.to_be_bytes().to_vec();
    start.extend(b"user\0postgres\0database\0postgres\0\0");
    stream.write_all(&(start.len() as u32 + 4).to_be_bytes())?;
    stream.write_all(&start)?;
    until_ready(&mut stream)?;
    stream.write_all(b"Q")?;
    stream.write_all(&(sql.len() as u32 + 5).to_be_bytes())?;
    stream.write_all(format!("{sql}\0").as_bytes())?;
    until_ready(&mut stream)
}

fn until_ready(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body)?;
        match head[0] {
            b'Z' => return Ok(answer),
            b'E' => return Err(std::io::Error::other(String::from_utf8_lossy(&body).into_owned())),
            _ => answer.extend(body),
        }
    }
}

fn remember(socket: &Path, word: &str) {
    ask(socket, &format!("create table notes as select '{word}'::text as word")).unwrap();
}

/// Whether `word` is still there; false also while the server does not answer.
fn knows(socket: &Path, word: &str) -> bool {
    ask(socket, "select word from notes")
        .is_ok_and(|answer| answer.windows(word.len()).any(|window| window == word.as_bytes()))
}

#[test]
fn a_stopped_database_keeps_its_rows() {
    let dir = open_folder();
    let data_dir = dir.path().join("data");

    let first = Launcher::start(&data_dir);
    remember(&first.socket, "kept");
    let pid = postmaster(&data_dir.join("postgres")).unwrap();
    assert_eq!(first.terminate(), Some(0));
    wait_until_gone(pid);

    let second = Launcher::start(&data_dir);
    assert!(knows(&second.socket, "kept"));
}

#[test]
fn a_killed_database_comes_back_by_itself() {
    let dir = open_folder();
    let data_dir = dir.path().join("data");
    let launcher = Launcher::start(&data_dir);
    remember(&launcher.socket, "committed");
    let killed = postmaster(&data_dir.join("postgres")).unwrap();

    signal("KILL", killed);

    eventually("the rows are back", || knows(&launcher.socket, "committed").then_some(()));
    assert_ne!(postmaster(&data_dir.join("postgres")), Some(killed));
}

#[test]
fn a_database_ends_with_its_killed_parent_and_starts_again() {
    let dir = open_folder();
    let data_dir = dir.path().join("data");
    let first = Launcher::start(&data_dir);
    remember(&first.socket, "kept");
    let pid = postmaster(&data_dir.join("postgres")).unwrap();

    first.kill();
    wait_until_gone(pid);

    let second = Launcher::start(&data_dir);
    assert!(knows(&second.socket, "kept"));
}

#[test]
fn a_database_that_was_left_running_is_taken_over() {
    let dir = open_folder();
    let data_dir = dir.path().join("data");
    let first = Launcher::start(&data_dir);
    remember(&first.socket, "kept");
    let cluster = data_dir.join("postgres");
    let program = fs::read_link(format!("/proc/{}/exe", postmaster(&cluster).unwrap()))
        .unwrap_or_else(|_| "postgres".into());
    let socket_dir = first.socket.parent().unwrap().to_path_buf();
    first.terminate();
    // A server whose life is tied to nobody's, as if its parent's death had passed it by.
    let owner = fs::metadata(&cluster).unwrap();
    let mut orphan = Command::new(program);
    orphan.arg("-D").arg(fs::canonicalize(&cluster).unwrap());
    orphan.arg("-k").arg(&socket_dir).args(["-c", "listen_addresses="]);
    orphan.current_dir("/").stderr(Stdio::null());
    if owner.uid() != fs::metadata("/proc/self").unwrap().uid() {
        orphan.uid(owner.uid()).gid(owner.gid());
    }
    let mut orphan = orphan.spawn().unwrap();
    let socket = socket_dir.join(".s.PGSQL.5432");
    eventually("the orphan answers", || knows(&socket, "kept").then_some(()));

    let second = Launcher::start(&data_dir);

    assert!(knows(&second.socket, "kept"));
    assert_ne!(postmaster(&cluster), Some(orphan.id()));
    orphan.wait().unwrap();
}

#[test]
fn a_folder_in_use_is_refused() {
    let dir = open_folder();
    let data_dir = dir.path().join("data");
    let holder = Launcher::start(&data_dir);

    let output = Launcher::command(&data_dir).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&format!("in use by process {}", holder.child.id())), "{text}");
}

#[test]
fn a_data_folder_with_a_long_path_works() {
    let dir = open_folder();
    let data_dir = dir.path().join("long".repeat(40)).join("data");

    let launcher = Launcher::start(&data_dir);

    assert!(ask(&launcher.socket, "select 1").is_ok());
    let socket_dir = launcher.socket.parent().unwrap().to_path_buf();
    assert!(!socket_dir.starts_with(dir.path()));
    assert_eq!(fs::metadata(&socket_dir).unwrap().mode() & 0o077, 0);
    launcher.terminate();
    fs::remove_dir(&socket_dir).unwrap();
}

/// Root's own folders are closed to the account that root steps down to.
#[test]
fn a_closed_data_folder_gets_its_database_elsewhere() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return; // Anybody else runs the database as themselves.
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let data_dir = dir.path().join("data");

    let first = Launcher::start(&data_dir);
    remember(&first.socket, "elsewhere");
    let record = fs::read_to_string(data_dir.join("postgres-location")).unwrap();
    let cluster = PathBuf::from(record.trim());
    assert!(cluster.join("PG_VERSION").exists() && !cluster.starts_with(dir.path()));
    first.terminate();

    let second = Launcher::start(&data_dir);
    assert!(knows(&second.socket, "elsewhere"));
    let socket_dir = second.socket.parent().unwrap().to_path_buf();
    second.terminate();
    fs::remove_dir_all(cluster).unwrap();
    fs::remove_dir_all(socket_dir).unwrap();
}

#[test]
fn a_database_of_another_version_is_named() {
    let dir = open_folder();
    let data_dir = dir.path().join("data");
    Launcher::start(&data_dir).terminate();
    fs::write(data_dir.join("postgres/PG_VERSION"), "11\n").unwrap();

    let output = Launcher::command(&data_dir).output().unwrap();

    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("holds a database of Postgres 11"), "{text}");
}

#[test]
fn a_setting_that_the_server_refuses_is_shown_with_its_own_words() {
    let dir = open_folder();

    let output = Launcher::command(&dir.path().join("data"))
        .args(["-c", "max_connections=many"])
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("max_connections") && text.contains("postgres.log"), "{text}");
}
