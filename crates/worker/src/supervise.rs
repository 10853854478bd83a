//! One engine process: commands down its standard input, replies up its standard output, its log
//! into ours, and its end, however it comes.
//!
//! Replies are routed to whoever waits for them; when the process is gone every waiter's channel
//! closes, and [`Engine::end`] says why. What to do about it is decided elsewhere.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use domain::engine::{Command, GenerateRequest, GenerationEvent, Reply};
use domain::internal::BaseModel;
use domain::{JobId, TrainingPlan};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::backlog;
use crate::launch::{Launch, Spawned};

/// A longer line is not the protocol.
const LINE_BYTES: u64 = 4 << 20;
/// Replies of a run that may wait for the slot; then the engine's pipe fills, and the engine waits.
const RUN_REPLIES: usize = 1024;
/// Lines of the engine's log that are told with its end.
const LAST_WORDS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the engine cannot be started: {program}: {source}")]
    Spawn { program: String, source: std::io::Error },
    #[error("the engine did not become ready: {0}")]
    NotReady(String),
    #[error("the engine is training on the base model '{0}' and cannot load another one now")]
    Busy(String),
}

/// A running engine. Dropping it ends the process: gently first, then not.
pub struct Engine {
    base: BaseModel,
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    routes: Mutex<Routes>,
    last_words: Mutex<VecDeque<String>>,
    /// Close its input; kill it after a grace.
    closing: CancellationToken,
    killing: CancellationToken,
    gone: CancellationToken,
}

#[derive(Default)]
struct Routes {
    ready: Option<oneshot::Sender<()>>,
    runs: HashMap<JobId, mpsc::Sender<Reply>>,
    generations: HashMap<String, backlog::Sender>,
    /// Why the process ended. Set once, and nothing is registered after it.
    end: Option<String>,
}

impl Engine {
    /// Starts a process and waits until its base model is loaded.
    pub async fn start(
        launch: &Launch,
        base: &BaseModel,
        model_dir: &Path,
        start_limit: Duration,
        grace: Duration,
    ) -> Result<Self, EngineError> {
        let spawned = launch.spawn(base, model_dir).await.map_err(|source| EngineError::Spawn {
            program: launch.program.display().to_string(),
            source,
        })?;
        let (ready, is_ready) = oneshot::channel();
        let shared = Arc::new(Shared {
            routes: Mutex::new(Routes { ready: Some(ready), ..Routes::default() }),
            last_words: Mutex::default(),
            closing: CancellationToken::new(),
            killing: CancellationToken::new(),
            gone: CancellationToken::new(),
        });
        let (commands, queue) = mpsc::unbounded_channel();
        tokio::spawn(supervise(spawned, queue, shared.clone(), grace));
        let engine = Self { base: base.clone(), commands, shared };
        match tokio::time::timeout(start_limit, is_ready).await {
            Ok(Ok(())) => Ok(engine),
            Ok(Err(_)) => Err(EngineError::NotReady(engine.end())),
            Err(_) => {
                engine.kill().await;
                let limit = humantime(start_limit);
                Err(EngineError::NotReady(format!("its model was not loaded after {limit}")))
            }
        }
    }

    pub fn base(&self) -> &BaseModel {
        &self.base
    }

    pub fn is_alive(&self) -> bool {
        self.shared.routes().end.is_none()
    }

    /// Why the process ended, with its last words.
    pub fn end(&self) -> String {
        let end = self.shared.routes().end.clone();
        end.unwrap_or_else(|| "it still runs".to_owned())
    }

    /// Begins a run; the channel carries its replies, and closes when the engine is gone.
    pub fn train(&self, plan: TrainingPlan) -> mpsc::Receiver<Reply> {
        let (replies, receiver) = mpsc::channel(RUN_REPLIES);
        let mut routes = self.shared.routes();
        if routes.end.is_none() {
            routes.runs.insert(plan.job_id.clone(), replies);
            drop(routes);
            self.send(Command::Train { plan: Box::new(plan) });
        }
        receiver
    }

    pub fn stop_run(&self, job_id: &JobId, checkpoint: bool) {
        self.send(Command::StopRun { job_id: job_id.clone(), checkpoint });
    }

    /// Begins an answer. Dropping it cancels it.
    pub fn generate(&self, request: GenerateRequest) -> Generation<'_> {
        let (events, receiver) = backlog::channel();
        let id = request.id.clone();
        let mut routes = self.shared.routes();
        if routes.end.is_none() {
            routes.generations.insert(id.clone(), events);
            drop(routes);
            self.send(Command::Generate { request: Box::new(request) });
        }
        Generation { engine: self, id, events: receiver, ended: false }
    }

    /// Ends the process at once and waits until it is gone.
    pub async fn kill(&self) {
        self.shared.killing.cancel();
        self.shared.gone.cancelled().await;
    }

    /// Closes the process's input, kills it after the grace, and waits until it is gone.
    pub async fn stop(self) {
        self.shared.closing.cancel();
        self.shared.gone.cancelled().await;
    }

    fn send(&self, command: Command) {
        // A closed queue means that the process is gone, which the reader of the replies learns
        // anyway.
        let _ = self.commands.send(command);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

/// One answer in the making.
pub struct Generation<'a> {
    engine: &'a Engine,
    id: String,
    events: backlog::Receiver,
    ended: bool,
}

impl Generation<'_> {
    /// The next event; none when the engine is gone.
    pub async fn next(&mut self) -> Option<GenerationEvent> {
        let event = self.events.recv().await;
        if let None | Some(GenerationEvent::Done { .. } | GenerationEvent::Failed { .. }) = event {
            self.ended = true;
        }
        event
    }
}

impl Drop for Generation<'_> {
    fn drop(&mut self) {
        self.engine.shared.routes().generations.remove(&self.id);
        if !self.ended {
            self.engine.send(Command::CancelGenerate { id: self.id.clone() });
        }
    }
}

impl Shared {
    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the end and closes every channel.
    fn ended(&self, reason: String) {
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let end = match words.as_slice() {
            [] => reason,
            words => format!("{reason}; its last words: {}", words.join(" | ")),
        };
        let routes = Routes { end: Some(end), ..Routes::default() };
        *self.routes() = routes;
        self.gone.cancel();
    }
}

async fn supervise(
    mut spawned: Spawned,
    commands: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
    grace: Duration,
) {
    let child = &mut spawned.child;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        return shared.ended("its pipes are missing".to_owned());
    };
    let closing = shared.closing.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = write_commands(stdin, commands) => {}
            () = closing.cancelled() => {} // Dropping the pipe is the message.
        }
    });
    let log = tokio::spawn(forward_log(stderr, shared.clone()));
    let mut replies = tokio::spawn(read_replies(stdout, shared.clone()));
    let mut reason = None;
    let status = tokio::select! {
        status = child.wait() => status,
        broken = &mut replies => {
            reason = broken.ok().flatten();
            if reason.is_some() { kill_group(group) }
            wait_or_kill(child, group, grace).await
        }
        () = shared.killing.cancelled() => {
            kill_group(group);
            child.wait().await
        }
        () = shared.closing.cancelled() => wait_or_kill(child, group, grace).await,
    };
    // What the process wrote before it ended still counts; its children may hold the pipes open.
    let moment = Duration::from_secs(2);
    let _ = tokio::time::timeout(moment, async {
        if !replies.is_finished() {
            let _ = (&mut replies).await;
        }
        let _ = log.await;
    })
    .await;
    replies.abort();
    kill_group(group);
    let reason = reason.unwrap_or_else(|| describe(status));
    tracing::info!("engine ended: {reason}");
    shared.ended(reason);
}

async fn wait_or_kill(
    child: &mut tokio::process::Child,
    group: Option<Pid>,
    grace: Duration,
) -> std::io::Result<ExitStatus> {
    match tokio::time::timeout(grace, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            kill_group(group);
            child.wait().await
        }
    }
}

/// Kills what is left of the engine's process group; nothing left is fine.
fn kill_group(group: Option<Pid>) {
    if let Some(group) = group {
        let _ = killpg(group, Signal::SIGKILL);
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("its end cannot be observed: {error}"),
    }
}

async fn write_commands(mut stdin: ChildStdin, mut commands: mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = commands.recv().await {
        let Ok(mut line) = serde_json::to_vec(&command) else { continue };
        line.push(b'\n');
        if stdin.write_all(&line).await.is_err() {
            return; // The process is going; its end is noticed elsewhere.
        }
    }
}

/// Routes replies until the end of output. Some(reason) if the engine does not speak the protocol.
async fn read_replies(stdout: ChildStdout, shared: Arc<Shared>) -> Option<String> {
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return None,
            Ok(_) if line.last() != Some(&b'\n') => {
                // Cut off by its end, or by the limit.
                let too_long = line.len() as u64 == LINE_BYTES;
                return too_long.then(|| format!("it wrote a line above {LINE_BYTES} bytes"));
            }
            Ok(_) => {}
        }
        match serde_json::from_slice(&line) {
            Ok(reply) => route(reply, &shared).await,
            Err(_) if line.first() != Some(&b'{') => {
                // A library that prints is a nuisance, not a liar.
                let text = String::from_utf8_lossy(&line);
                tracing::warn!(target: "engine", "{}", text.trim_end());
            }
            Err(error) => return Some(format!("it wrote a reply that cannot be read: {error}")),
        }
    }
}

async fn route(reply: Reply, shared: &Shared) {
    match reply {
        Reply::Ready { ref model_type, parameters, ref device, context_length } => {
            tracing::info!(model_type, parameters, device, context_length, "engine ready");
            if let Some(ready) = shared.routes().ready.take() {
                let _ = ready.send(());
            }
        }
        Reply::Generation { id, event } => {
            let mut routes = shared.routes();
            let unheard = routes.generations.get(&id).is_some_and(|to| !to.send(event));
            if unheard {
                routes.generations.remove(&id);
            }
        }
        Reply::Run { ref job_id, .. }
        | Reply::Checkpoint { ref job_id, .. }
        | Reply::RunFinished { ref job_id }
        | Reply::RunStopped { ref job_id }
        | Reply::RunFailed { ref job_id, .. } => {
            let to = shared.routes().runs.get(job_id).cloned();
            let job_id = job_id.clone();
            let unheard = match to {
                Some(to) => to.send(reply).await.is_err(),
                None => false,
            };
            if unheard {
                shared.routes().runs.remove(&job_id);
            }
        }
    }
}

async fn forward_log(stderr: impl tokio::io::AsyncRead + Unpin, shared: Arc<Shared>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // Long lines arrive in pieces; that keeps memory bounded and loses nothing.
        match (&mut reader).take(16 << 10).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        tracing::info!(target: "engine", "{text}");
        let mut words = shared.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() == LAST_WORDS {
            words.pop_front();
        }
        words.push_back(text);
    }
}

/// A duration for people: whole seconds or minutes.
pub(crate) fn humantime(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds if seconds >= 120 && seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}
