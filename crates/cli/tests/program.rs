//! The program as its users meet it: exit codes, what stands on standard output, and `up` without an
//! engine. (Runs with an engine and the official SDK are in `tests/sdk`.)

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

fn finetuned(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_finetuned"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FINETUNED_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder that the database's account may pass through.
fn open_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// `finetuned up` without an engine and without models.
struct Up {
    child: Child,
    output: BufReader<ChildStdout>,
    errors: mpsc::Receiver<String>,
}

impl Up {
    fn start(dir: &Path, key: Option<&str>) -> Self {
        let mut command = finetuned(&["up", "--listen", "127.0.0.1:0"]);
        command.args(["--set", "worker.engine=/nowhere/finetuned-engine", "--data-dir"]);
        command.arg(dir.join("data")).arg("--models-dir").arg(dir.join("models"));
        if let Some(key) = key {
            command.env("FINETUNED_API_KEY", key);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let (sender, errors) = mpsc::channel();
        std::thread::spawn(move || {
            let mut all = String::new();
            let _ = stderr.read_to_string(&mut all);
            let _ = sender.send(all);
        });
        Self { child, output, errors }
    }

    /// The lines up to "ready".
    fn announcement(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                panic!("ended before it was ready: {}", self.errors.recv().unwrap());
            }
            lines.push(line.trim_end().to_owned());
            if line == "ready\n" {
                return lines;
            }
        }
    }

    /// SIGTERM; the exit code and everything on standard error.
    fn terminate(mut self) -> (Option<i32>, String) {
        let status =
            Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
        let code = self.child.wait().unwrap().code();
        (code, self.errors.recv().unwrap())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status of `GET path`.
fn get(base_url: &str, path: &str, key: &str) -> u16 {
    let address = base_url.strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n\
         Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn keys(dir: &Path, arguments: &[&str]) -> Output {
    finetuned(&["keys"]).args(arguments).arg("--data-dir").arg(dir.join("data")).output().unwrap()
}

#[test]
fn up_serves_without_an_engine_and_says_so() {
    let dir = open_folder();
    let mut up = Up::start(dir.path(), None);

    let lines = up.announcement();

    let base_url = lines[0].strip_prefix("Base URL: ").unwrap().to_owned();
    let recorded = fs::read_to_string(dir.path().join("data/url")).unwrap();
    assert_eq!(recorded.trim_end(), base_url);
    let key_file = dir.path().join("data/api-key");
    let key = fs::read_to_string(&key_file).unwrap();
    assert!(lines[1].ends_with(&format!("in {}", key_file.display())), "{}", lines[1]);
    assert!(!lines.join("\n").contains(key.trim()));
    assert_eq!(fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(get(&base_url, "/v1/models", key.trim()), 200);
    assert_eq!(get(&base_url, "/v1/models", "another"), 401);
    let (code, errors) = up.terminate();
    assert_eq!(code, Some(0), "{errors}");
    assert!(
        errors.contains("no worker") && errors.contains("/nowhere/finetuned-engine"),
        "{errors}"
    );
    assert!(!errors.contains(key.trim()));
    assert!(!dir.path().join("data/url").exists());
}

#[test]
fn the_first_key_may_be_any_text_and_more_are_made_by_command() {
    let dir = open_folder();
    let mut up = Up::start(dir.path(), Some("my own key, with spaces"));
    let base_url = up.announcement()[0].strip_prefix("Base URL: ").unwrap().to_owned();
    assert!(!dir.path().join("data/api-key").exists());
    assert_eq!(get(&base_url, "/v1/models", "my own key, with spaces"), 200);

    let made = keys(dir.path(), &["create", "--name", "second"]);
    let secret = text(&made.stdout);
    let secret = secret.trim_end();
    assert!(secret.starts_with("sk-") && !secret.contains(char::is_whitespace), "{secret}");
    assert_eq!(get(&base_url, "/v1/models", secret), 200);
    let listed = text(&keys(dir.path(), &["list"]).stdout);
    assert!(listed.contains("second") && !listed.contains(secret), "{listed}");

    // The private database is there for commands when `up` is not.
    let (code, errors) = up.terminate();
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(text(&keys(dir.path(), &["list"]).stdout), listed);
}

#[test]
fn up_ends_with_an_error_when_its_server_does() {
    let dir = open_folder();
    let mut command = finetuned(&["up", "--listen", "127.0.0.1:0", "--models-dir", "/nowhere"]);
    command.args(["--set", "training.warmup_ratio=7", "--data-dir"]).arg(dir.path().join("data"));

    let output = command.output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    let last = errors.lines().last().unwrap();
    assert!(last.starts_with("finetuned: the server has failed"), "{errors}");
    assert!(last.contains("warmup_ratio"), "{errors}");
}

#[test]
fn a_taken_address_ends_up_with_a_reason() {
    let dir = open_folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = finetuned(&["up", "--models-dir", "/nowhere", "--listen", &address]);

    let output = command.arg("--data-dir").arg(dir.path().join("data")).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("cannot listen on {address}")));
}

#[test]
fn parts_of_a_cluster_name_the_key_that_is_missing() {
    for (command, key) in [("serve", "database.url"), ("work", "worker.token")] {
        let output = finetuned(&[command]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(key), "{command}: {}", text(&output.stderr));
    }
}

#[test]
fn commands_on_an_unused_data_folder_make_nothing() {
    let dir = open_folder();

    let output = keys(dir.path(), &["list"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("there is no database"), "{}", text(&output.stderr));
    assert!(!dir.path().join("data").exists());
}

#[test]
fn a_wrong_configuration_ends_every_command() {
    let output = finetuned(&["config", "check", "--set", "server.listne=x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    assert!(errors.contains("flag --set: unknown key 'server.listne'"), "{errors}");
}

#[test]
fn the_configuration_is_printed_without_secrets() {
    let mut command = finetuned(&["config", "print", "--redact"]);
    let output = command.env("FINETUNED_WORKER__TOKEN", "hunter2").output().unwrap();
    assert!(output.status.success());
    let printed = text(&output.stdout);
    assert!(printed.contains("[server]") && !printed.contains("hunter2"), "{printed}");
}

#[test]
fn doctor_names_the_missing_engine_and_its_remedy() {
    let dir = open_folder();
    let mut command = finetuned(&["doctor", "--set", "worker.engine=/nowhere/engine"]);

    let output = command.arg("--data-dir").arg(dir.path().join("data")).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    assert!(report.contains("MISSING  engine") && report.contains("-> cargo build"), "{report}");
    assert!(report.contains("ok       postgres"), "{report}");
}
