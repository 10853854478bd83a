//! A server in memory that implements the internal API: a queue of runs, leases, checkpoints, chat
//! requests. It notes every call, checks every hash, and can be told to be away or to hang up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State as Shared};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use domain::engine::GenerationEvent;
use domain::internal::*;
use domain::report::RunFailure;
use domain::{CheckpointId, ModelId, RunReport};
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

pub const TOKEN: &str = "worker-token";

#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Finished { checkpoint_id: CheckpointId, trained_tokens: u64 },
    Failed(RunFailure),
    Released,
}

pub struct Checkpoint {
    pub id: CheckpointId,
    pub begun: BeginCheckpoint,
    pub files: HashMap<String, Vec<u8>>,
    pub committed: bool,
}

#[derive(Default)]
pub struct State {
    /// Every call that changes something, in order.
    pub calls: Vec<String>,
    pub claims: Vec<ClaimRequest>,
    pub polls: Vec<NextInference>,
    pub heartbeats: usize,
    pub queue: VecDeque<ClaimedRun>,
    pub leases: HashMap<String, (i64, String)>,
    pub reports: Vec<RunReport>,
    /// Reports that came again.
    pub repeated: usize,
    pub checkpoints: Vec<Checkpoint>,
    pub ends: Vec<End>,
    pub pause: bool,
    /// Answers 503 to everything, and counts.
    pub away: bool,
    pub turned_away: usize,
    /// Batches of reports to record and then to deny with a 503.
    pub lose_replies: usize,
    /// Chat requests to hang up on after their first event.
    pub hang_up: bool,
    pub blobs: HashMap<String, Vec<u8>>,
    pub models: Vec<(BaseModel, HashMap<String, Vec<u8>>)>,
    pub chats: VecDeque<InferenceTask>,
    pub answers: HashMap<String, Vec<GenerationEvent>>,
    pub answered: Vec<String>,
}

pub struct Fake {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    pub url: String,
}

impl Fake {
    pub async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fake = Arc::new(Self { state: Mutex::default(), changes: watch::Sender::new(0), url });
        let router = router(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        fake
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock().unwrap());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap())
    }

    /// Waits until the state holds what is looked for. The limit only ends a test that has failed.
    pub async fn until<T>(&self, what: &str, look: impl Fn(&State) -> Option<T>) -> T {
        let found = tokio::time::timeout(Duration::from_secs(60), self.when(|s| look(s)));
        found.await.unwrap_or_else(|_| {
            let calls = self.look(|state| state.calls.join("\n  "));
            panic!("waited in vain until {what}; the calls were\n  {calls}")
        })
    }

    async fn when<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Some(found) = take(&mut self.state.lock().unwrap()) {
                return found;
            }
            changes.changed().await.unwrap();
        }
    }

    pub async fn end(&self) -> End {
        self.until("a run ends", |state| state.ends.first().cloned()).await
    }
}

pub fn entry(name: &str, content: &[u8]) -> ManifestFile {
    let sha256 = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    ManifestFile { name: name.to_owned(), bytes: content.len() as u64, sha256 }
}

fn router(fake: Arc<Fake>) -> Router {
    let run = "/internal/v1/runs/{job}";
    let checkpoint = format!("{run}/checkpoints/{{id}}");
    Router::new()
        .route("/internal/v1/runs/claim", post(claim))
        .route(&format!("{run}/heartbeat"), post(heartbeat))
        .route(&format!("{run}/reports"), post(reports))
        .route(&format!("{run}/files/{{file}}"), get(file))
        .route(&format!("{run}/checkpoints"), post(begin))
        .route(&format!("{checkpoint}/files/{{name}}"), put(put_file).get(get_file))
        .route(&format!("{checkpoint}/commit"), post(commit))
        .route(&format!("{run}/finish"), post(finish))
        .route(&format!("{run}/fail"), post(fail))
        .route(&format!("{run}/release"), post(release))
        .route("/internal/v1/models", get(models))
        .route("/internal/v1/models/{model}/files/{name}", get(model_file))
        .route("/internal/v1/adapters/{model}/files/{name}", get(adapter_file))
        .route("/internal/v1/inference/next", post(next_chat))
        .route("/internal/v1/inference/{id}/events", post(chat_events))
        .layer(axum::middleware::from_fn_with_state(fake.clone(), gate))
        .with_state(fake)
}

type Server = Shared<Arc<Fake>>;

async fn gate(Shared(fake): Server, request: Request, next: Next) -> Response {
    let authorized = request
        .headers()
        .get("authorization")
        .is_some_and(|value| value.to_str().is_ok_and(|text| text == format!("Bearer {TOKEN}")));
    if !authorized {
        return refuse(StatusCode::UNAUTHORIZED, "unauthorized");
    }
    if fake.look(|state| state.away) {
        fake.change(|state| state.turned_away += 1);
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
    }
    next.run(request).await
}

fn refuse(status: StatusCode, code: &str) -> Response {
    let error = InternalError { code: code.to_owned(), message: format!("fake: {code}") };
    (status, Json(error)).into_response()
}

/// Runs a change under a lease, notes it, and answers 409 to everybody else.
fn leased<T: IntoResponse>(
    fake: &Fake,
    job: &str,
    headers: &HeaderMap,
    call: &str,
    change: impl FnOnce(&mut State) -> T,
) -> Response {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let shown = (text(FENCE_HEADER).to_owned(), text(LEASE_HEADER).to_owned());
    fake.change(|state| {
        let held = state.leases.get(job).map(|(fence, token)| (fence.to_string(), token.clone()));
        if held != Some(shown) {
            state.calls.push(format!("{call} (lease lost)"));
            return refuse(StatusCode::CONFLICT, "lease_lost");
        }
        if !call.is_empty() {
            state.calls.push(call.to_owned());
        }
        change(state).into_response()
    })
}

async fn claim(Shared(fake): Server, Json(request): Json<ClaimRequest>) -> Response {
    let wait = Duration::from_secs(request.wait_seconds);
    fake.change(|state| state.claims.push(request));
    let claimed = tokio::time::timeout(wait, fake.when(|state| state.queue.pop_front())).await;
    let Ok(run) = claimed else { return StatusCode::NO_CONTENT.into_response() };
    fake.change(|state| {
        state.calls.push("claim".to_owned());
        let lease = (run.fence, run.lease_token.clone());
        state.leases.insert(run.job_id.to_string(), lease);
    });
    Json(run).into_response()
}

async fn heartbeat(Shared(fake): Server, Path(job): Path<String>, headers: HeaderMap) -> Response {
    leased(&fake, &job, &headers, "", |state| {
        state.heartbeats += 1;
        let directive = if state.pause { Directive::Pause } else { Directive::Continue };
        Json(HeartbeatReply { directive, lease_seconds: 60.0 })
    })
}

async fn reports(
    Shared(fake): Server,
    Path(job): Path<String>,
    headers: HeaderMap,
    Json(batch): Json<ReportBatch>,
) -> Response {
    leased(&fake, &job, &headers, "reports", |state| {
        let known = state.reports.len() as u64;
        assert!(batch.first_seq <= known, "a gap: {} after {known}", batch.first_seq);
        let repeated = (known - batch.first_seq) as usize;
        state.repeated += repeated.min(batch.reports.len());
        state.reports.extend(batch.reports.into_iter().skip(repeated));
        match state.lose_replies {
            0 => StatusCode::NO_CONTENT,
            _ => {
                state.lose_replies -= 1;
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    })
}

async fn file(
    Shared(fake): Server,
    Path((job, file)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    leased(&fake, &job, &headers, &format!("file {file}"), |state| bytes(state.blobs.get(&file)))
}

fn bytes(content: Option<&Vec<u8>>) -> Response {
    match content {
        Some(content) => content.clone().into_response(),
        None => refuse(StatusCode::NOT_FOUND, "not_found"),
    }
}

async fn begin(
    Shared(fake): Server,
    Path(job): Path<String>,
    headers: HeaderMap,
    Json(begun): Json<BeginCheckpoint>,
) -> Response {
    let call = format!("begin {} {}", begun.kind.as_str(), begun.step);
    leased(&fake, &job, &headers, &call, |state| {
        let id = CheckpointId::new();
        let (files, committed) = (HashMap::new(), false);
        state.checkpoints.push(Checkpoint { id: id.clone(), begun, files, committed });
        Json(CheckpointBegun { checkpoint_id: id })
    })
}

async fn put_file(
    Shared(fake): Server,
    Path((job, id, name)): Path<(String, String, String)>,
    headers: HeaderMap,
    content: Bytes,
) -> Response {
    leased(&fake, &job, &headers, &format!("put {name}"), |state| {
        let checkpoint = state.checkpoints.iter_mut().find(|c| c.id.as_str() == id).unwrap();
        if !checkpoint.begun.files.contains(&entry(&name, &content)) {
            return refuse(StatusCode::UNPROCESSABLE_ENTITY, "hash_mismatch");
        }
        checkpoint.files.insert(name, content.to_vec());
        StatusCode::NO_CONTENT.into_response()
    })
}

async fn get_file(
    Shared(fake): Server,
    Path((job, id, name)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    leased(&fake, &job, &headers, &format!("get {name}"), |state| {
        let checkpoint = state.checkpoints.iter().find(|c| c.id.as_str() == id);
        bytes(checkpoint.and_then(|checkpoint| checkpoint.files.get(&name)))
    })
}

async fn commit(
    Shared(fake): Server,
    Path((job, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    leased(&fake, &job, &headers, "commit", |state| {
        let checkpoint = state.checkpoints.iter_mut().find(|c| c.id.as_str() == id).unwrap();
        assert_eq!(checkpoint.files.len(), checkpoint.begun.files.len(), "all files are there");
        let step = checkpoint.begun.step;
        let reported = |report: &RunReport| matches!(report, RunReport::Step(m) if m.step >= step);
        assert!(state.reports.iter().any(reported), "step {step} is reported before");
        checkpoint.committed = true;
        StatusCode::NO_CONTENT
    })
}

async fn finish(
    Shared(fake): Server,
    Path(job): Path<String>,
    headers: HeaderMap,
    Json(finish): Json<FinishRun>,
) -> Response {
    leased(&fake, &job, &headers, "finish", |state| {
        state.leases.clear();
        let FinishRun { checkpoint_id, trained_tokens } = finish;
        state.ends.push(End::Finished { checkpoint_id, trained_tokens });
        Json(RunFinished { fine_tuned_model: "ft:base:org::1".into() })
    })
}

async fn fail(
    Shared(fake): Server,
    Path(job): Path<String>,
    headers: HeaderMap,
    Json(failure): Json<RunFailure>,
) -> Response {
    leased(&fake, &job, &headers, "fail", |state| {
        state.leases.clear();
        state.ends.push(End::Failed(failure));
        StatusCode::NO_CONTENT
    })
}

async fn release(Shared(fake): Server, Path(job): Path<String>, headers: HeaderMap) -> Response {
    leased(&fake, &job, &headers, "release", |state| {
        state.leases.clear();
        state.ends.push(End::Released);
        StatusCode::NO_CONTENT
    })
}

async fn models(Shared(fake): Server) -> Json<Vec<BaseModel>> {
    Json(fake.look(|state| state.models.iter().map(|(model, _)| model.clone()).collect()))
}

async fn model_file(Shared(fake): Server, Path((model, name)): Path<(String, String)>) -> Response {
    fake.change(|state| {
        state.calls.push(format!("model file {name}"));
        let model = state.models.iter().find(|(m, _)| m.id.as_str() == model);
        bytes(model.and_then(|(_, files)| files.get(&name)))
    })
}

async fn adapter_file(Shared(fake): Server, Path((_, name)): Path<(ModelId, String)>) -> Response {
    fake.change(|state| {
        state.calls.push(format!("adapter file {name}"));
        bytes(state.blobs.get(&name))
    })
}

async fn next_chat(Shared(fake): Server, Json(request): Json<NextInference>) -> Response {
    let wait = Duration::from_secs(request.wait_seconds);
    fake.change(|state| state.polls.push(request.clone()));
    let next = fake.when(|state| {
        let served =
            |task: &InferenceTask| request.base_models.contains(&task.base_model.variant());
        let index = state.chats.iter().position(served)?;
        state.chats.remove(index)
    });
    match tokio::time::timeout(wait, next).await {
        Ok(task) => Json(task).into_response(),
        Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn chat_events(Shared(fake): Server, Path(id): Path<String>, body: Body) -> StatusCode {
    let mut body = body.into_data_stream();
    let mut text = Vec::new();
    while let Some(Ok(chunk)) = body.next().await {
        text.extend_from_slice(&chunk);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let event = serde_json::from_slice(&line).unwrap();
            fake.change(|state| state.answers.entry(id.clone()).or_default().push(event));
        }
        if fake.look(|state| state.hang_up && state.answers.contains_key(&id)) {
            break;
        }
    }
    fake.change(|state| state.answered.push(id));
    StatusCode::NO_CONTENT
}
