//! Python graders: each sample in a caged process of its own, within a time.
//!
//! Before the first one the cage is tried: a grader looks for the ways out, and as long as one is open, or there is no
//! interpreter, Python graders are refused. Nothing of a user's ever runs outside.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use graders::{Errors, Failure, Python, Variables};
use sandbox::{Cage, Interpreter, Limits};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::{OnceCell, Semaphore};

use crate::config::GradersConfig;
use crate::state::AppState;

/// Bytes that are read of an answer; more is no answer.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// Bytes that are read of the launcher's complaint.
const MAX_COMPLAINT_BYTES: u64 = 4 << 10;
/// How long reading a program, or trying the cage, may take.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

const UNAVAILABLE: &str = "SandboxUnavailable";

/// What runs Python graders.
pub(crate) struct Interpreters {
    config: GradersConfig,
    /// Found, and its cage tried.
    tried: OnceCell<Interpreter>,
    permits: Semaphore,
}

/// Finds the interpreter and tries the cage, so that the log says at the start whether Python graders run.
pub(crate) fn prepare(state: &AppState) {
    let state = state.clone();
    tokio::spawn(async move {
        match state.interpreters.interpreter().await {
            Ok((found, _)) => {
                let executable = found.executable.display().to_string();
                tracing::info!(
                    version = found.version,
                    executable,
                    "Python graders run in a sandbox"
                );
            }
            Err(why) => tracing::info!("Python graders are refused: {why}"),
        }
    });
}

impl Interpreters {
    pub(crate) fn new(config: &GradersConfig) -> Self {
        let permits = Semaphore::new(config.python_processes.max(1));
        Self { config: config.clone(), tried: OnceCell::new(), permits }
    }

    /// The reward that the program gives.
    pub(super) async fn grade(
        &self,
        python: &Python,
        variables: Variables<'_>,
    ) -> Result<f64, Errors> {
        let (item, sample) = (variables.item, variables.sample);
        let request = json!({"source": python.source, "sample": sample, "item": item});
        self.ask(&request, self.config.python_timeout).await
    }

    /// Whether the program can be read and has its function.
    pub(super) async fn check(&self, python: &Python) -> Result<(), Errors> {
        let limit = CHECK_LIMIT.min(self.config.python_timeout);
        self.ask(&json!({"source": python.source}), limit).await.map(drop)
    }

    async fn ask(&self, request: &Value, limit: Duration) -> Result<f64, Errors> {
        let interpreter = self.interpreter().await;
        let unavailable = |why: String| Errors::of_python_server(UNAVAILABLE, why);
        let (interpreter, launcher) = interpreter.map_err(unavailable)?;
        self.run(launcher, interpreter, request, limit).await
    }

    /// The interpreter, once it has been found and its cage has held, and the program that closes the cage.
    async fn interpreter(&self) -> Result<(&Interpreter, &Path), String> {
        let launcher = self.config.launcher.as_deref();
        let launcher = launcher.ok_or("this server has no program to start them with")?;
        let tried = self.tried.get_or_try_init(|| self.try_cage(launcher)).await?;
        Ok((tried, launcher))
    }

    async fn try_cage(&self, launcher: &Path) -> Result<Interpreter, String> {
        let program = self.config.python.clone();
        if program == "off" {
            return Err("they are switched off (graders.python)".to_owned());
        }
        let found = tokio::task::spawn_blocking(move || Interpreter::find(&program)).await;
        let found = found.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let request = json!({"source": sandbox::SELF_TEST, "sample": {}, "item": {}});
        match self.run(launcher, &found, &request, CHECK_LIMIT).await {
            Ok(_) => Ok(found),
            Err(errors) => Err(format!("the sandbox does not hold: {}", errors.summary())),
        }
    }

    async fn run(
        &self,
        launcher: &Path,
        interpreter: &Interpreter,
        request: &Value,
        limit: Duration,
    ) -> Result<f64, Errors> {
        let unavailable = |why: String| Errors::of_python_server(UNAVAILABLE, why);
        let permit = self.permits.acquire().await;
        let _permit = permit.map_err(|error| unavailable(error.to_string()))?;
        let limits = Limits {
            memory: self.config.python_memory.as_u64(),
            processor_seconds: limit.as_secs().max(1),
        };
        let mut command = Command::from(Cage::new(interpreter.clone(), limits).command(launcher));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.kill_on_drop(true).spawn();
        let mut child = child.map_err(|error| unavailable(error.to_string()))?;
        let talk = tokio::time::timeout(limit, converse(&mut child, request)).await;
        // Whatever it still does, it does no longer. This waits for its end, too.
        let _ = child.kill().await;
        match talk {
            Ok(Ok(end)) => end.reward(limits.processor_seconds),
            Ok(Err(error)) => Err(unavailable(error.to_string())),
            Err(_) => {
                let details = format!("the program took longer than {} s", limit.as_secs_f64());
                let errors = Errors::of(Failure::PythonRuntime, details.clone());
                Err(errors.and(Failure::UnresponsiveReward, details))
            }
        }
    }
}

/// What a process has left behind.
struct End {
    answer: Vec<u8>,
    complaint: Vec<u8>,
    /// None when it has said too much to be waited for.
    status: Option<ExitStatus>,
}

async fn converse(child: &mut Child, request: &Value) -> std::io::Result<End> {
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut input) = input {
            // A process that has ended already reads nothing; its end says why.
            let _ = input.write_all(request.to_string().as_bytes()).await;
        }
    };
    let ((), answer, complaint) =
        tokio::join!(write, head(output, MAX_ANSWER_BYTES), head(errors, MAX_COMPLAINT_BYTES));
    let (answer, complaint) = (answer?, complaint?);
    let is_flood = answer.len() as u64 > MAX_ANSWER_BYTES;
    let status = if is_flood { None } else { Some(child.wait().await?) };
    Ok(End { answer, complaint, status })
}

/// The beginning of a stream, and one byte more where there is more.
async fn head(stream: Option<impl AsyncRead + Unpin>, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(limit + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Reward(f64),
    Error(String),
}

impl End {
    fn reward(self, processor_seconds: u64) -> Result<f64, Errors> {
        use std::os::unix::process::ExitStatusExt as _;
        let failed = |details: String| Err(Errors::of(Failure::PythonRuntime, details));
        let Some(status) = self.status else {
            return failed(format!("the program wrote more than {MAX_ANSWER_BYTES} bytes"));
        };
        if status.code() == Some(sandbox::NOT_LOCKED.into()) {
            let complaint = String::from_utf8_lossy(&self.complaint);
            return Err(Errors::of_python_server(UNAVAILABLE, complaint.trim()));
        }
        if let Some(signal) = status.signal() {
            return match signal {
                SIGXCPU | SIGKILL => failed(format!(
                    "the program was stopped: it took more than {processor_seconds} s of processor time, \
                     or the memory of the machine"
                )),
                other => failed(format!("the program crashed (signal {other})")),
            };
        }
        let line = self.answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
        match serde_json::from_slice(line) {
            Ok(Answer::Reward(reward)) => Ok(reward),
            Ok(Answer::Error(error)) => failed(error),
            Err(_) => failed(format!("the program ended without an answer ({status})")),
        }
    }
}

const SIGKILL: i32 = 9;
const SIGXCPU: i32 = 24;
