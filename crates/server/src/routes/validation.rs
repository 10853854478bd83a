//! A request for a job that creates nothing: all faults of the request and of its files at once, and what the
//! job would be.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use dataset::{Checked, FileRole};
use domain::{MethodType, ModelId};
use serde_json::{Value, json};
use store::base_models::{self, BaseModelRow};
use store::files::FileRow;
use store::queue::Note;
use tokio::sync::SemaphorePermit;

use crate::advice::Facts;
use crate::convert;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, JsonObject};
use crate::faults::Faults;
use crate::integrations::WANDB_NOTE;
use crate::lanes::examine::{Examination, Findings};
use crate::lanes::models::{self, ModelError};
use crate::lanes::notes::field;
use crate::preference;
use crate::remedy::remedy;
use crate::request::{self, Wanted};
use crate::routes::estimate;
use crate::state::AppState;
use crate::wire::job::CreateJob;
use crate::wire::validation::{JobValidation, Problem};

/// For a turn: as many requests are served at once as files are checked for jobs.
const TURN: Duration = Duration::from_secs(30);
/// For both files.
const TIME: Duration = Duration::from_secs(300);
const BUSY_SECONDS: u64 = 10;

/// Check the request of a job without creating it: every fault at once, and what the job would be. An
/// extension of this server's.
#[utoipa::path(post, path = "/fine_tuning/jobs/validate", tag = "Fine-tuning",
    operation_id = "validateFineTuningJob",
    request_body = CreateJob,
    responses((status = 200, body = JobValidation)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<JobValidation>> {
    let mut faults = Faults::default();
    let wanted = request::read(&state, &project, body, &mut faults).await?;
    // The hyperparameters are what they were meant to be only if nothing is wrong with them.
    let can_examine =
        !faults.blame("method") && !faults.blame("hyperparameters") && !faults.blame("finetuned");
    let mut answer = Answer::new(faults);
    let Some(wanted) = wanted else { return Ok(Json(answer.wire)) };
    answer.wire.method = Some(wanted.method.as_str());
    let model = wanted.start.as_ref().map(|start| &start.model).or(wanted.base_model.as_ref());
    answer.wire.model = model.map(ToString::to_string);
    if !wanted.integrations.is_empty() {
        answer.warn("integration_without_effect", None, WANDB_NOTE);
    }
    if can_examine && wanted.method != MethodType::Reinforcement {
        examine(&state, &wanted, &mut answer).await?;
    }
    Ok(Json(answer.wire))
}

/// Waits until one more file may be read.
pub(super) async fn turn(state: &AppState) -> ApiResult<SemaphorePermit<'_>> {
    match tokio::time::timeout(TURN, state.checks.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        _ => Err(ApiError::Unavailable {
            message: "The server is checking as many files as it may at once; please try again."
                .to_owned(),
            retry_after_seconds: BUSY_SECONDS,
        }),
    }
}

/// What a check of both files finds, unless it takes too long.
pub(super) async fn in_time<T>(check: impl Future<Output = T>) -> ApiResult<T> {
    tokio::time::timeout(TIME, check).await.map_err(|_| {
        ApiError::BadRequest(format!(
            "The files could not be checked within {} seconds. Create the job: its own check has no \
             limit of time.",
            TIME.as_secs()
        ))
    })
}

async fn examine(state: &AppState, wanted: &Wanted, answer: &mut Answer) -> ApiResult<()> {
    let (Some(model), Some(file)) = (&wanted.base_model, &wanted.training_file) else {
        return Ok(());
    };
    let row = base_model(state, model).await?;
    let model = match state.models.get(&state.store, &row).await {
        Ok(model) => model,
        Err(ModelError::Store(error)) => return Err(error.into()),
        Err(unusable @ ModelError::Unusable { .. }) => {
            answer.fail("model_not_available", None, Some("model"), unusable.to_string());
            return Ok(());
        }
    };
    let examination = Examination {
        state,
        model: &model,
        method: wanted.method,
        hyperparameters: &wanted.hyperparameters,
        options: &wanted.options,
    };
    if let Some(message) = examination.misfit() {
        let path = Some("finetuned.virtual_tokens.count");
        answer.fail("invalid_hyperparameters", None, path, message);
        return Ok(());
    }
    let _turn = turn(state).await?;
    let reading = read_files(&examination, file, wanted.validation_file.as_ref(), answer);
    let Some((training, validation)) = in_time(reading).await?? else { return Ok(()) };
    answer.look(&examination, &training, validation.as_ref());
    if training.total_problems > 0 || validation.as_ref().is_some_and(|v| v.total_problems > 0) {
        return Ok(());
    }
    let findings = examination.findings(wanted.seed, &training, validation.as_ref());
    let config = models::config(&state.store, &row).await.map_err(|error| match error {
        ModelError::Store(error) => error.into(),
        unusable @ ModelError::Unusable { .. } => ApiError::internal(unusable),
    })?;
    let memory = estimate::memory(
        &row,
        &config,
        &findings.hyperparameters,
        training.stats.max_tokens,
        validation.is_some(),
    );
    answer.wire.memory = Some(memory);
    let speeds = state.looks.speeds(state).await?;
    let (settings, dataset) = (Some(&findings.hyperparameters), Some(&findings.dataset));
    let tokens = findings.planned_tokens as f64;
    let seconds = speeds.seconds_for(row.id.as_str(), settings, dataset, tokens).ceil();
    answer.wire.estimated_seconds = Some(seconds);
    let parameters = config.shape.parameters();
    let cost = state.config.costs.of_run(seconds, findings.planned_tokens, parameters);
    answer.wire.cost = Some(cost);
    let facts = Facts {
        shape: &config.shape,
        settings: &findings.hyperparameters,
        longest: training.stats.max_tokens,
        n_examples: training.stats.n_examples,
        has_validation: validation.is_some(),
        memory: Some(state.config.device_memory.as_u64()).filter(|&memory| memory > 0),
    };
    answer.wire.advice = Some(facts.advise());
    answer.tell(wanted, findings);
    Ok(())
}

/// Both files, checked; none unless both can be read.
async fn read_files(
    examination: &Examination<'_>,
    file: &FileRow,
    validation: Option<&FileRow>,
    answer: &mut Answer,
) -> ApiResult<Option<(Checked, Option<Checked>)>> {
    let Some(training) = examination.training(file).await? else {
        answer.unreadable(FileRole::Training);
        return Ok(None);
    };
    answer.add_faults(FileRole::Training, &training);
    let Some(validation) = validation else {
        return Ok(Some((training, None)));
    };
    let Some(checked) = examination.validation(validation, training.format).await? else {
        answer.unreadable(FileRole::Validation);
        return Ok(None);
    };
    answer.add_faults(FileRole::Validation, &checked);
    Ok(Some((training, Some(checked))))
}

/// The right to it was established with the request.
pub(super) async fn base_model(state: &AppState, id: &ModelId) -> ApiResult<BaseModelRow> {
    base_models::get_for_workers(&state.store.db, id).await.map_err(|error| match error {
        store::Error::NotFound(_) => ApiError::ModelNotTrainable(id.to_string()),
        other => other.into(),
    })
}

/// The answer as it grows.
struct Answer {
    wire: JobValidation,
}

impl Answer {
    fn new(faults: Faults) -> Self {
        let problems: Vec<Problem> = faults.into_vec().iter().map(of_request).collect();
        Self {
            wire: JobValidation {
                object: "fine_tuning.job.validation",
                valid: problems.is_empty(),
                total_problems: problems.len() as u64,
                problems,
                model: None,
                method: None,
                hyperparameters: None,
                finetuned: None,
                reasons: None,
                dataset: None,
                quality: None,
                steps: None,
                trained_tokens: None,
                estimated_seconds: None,
                memory: None,
                cost: None,
                advice: None,
            },
        }
    }

    fn add(&mut self, problem: Problem) {
        self.wire.valid &= problem.severity != "error";
        self.wire.total_problems += 1;
        self.wire.problems.push(problem);
    }

    fn fail(&mut self, code: &str, file: Option<FileRole>, path: Option<&str>, message: String) {
        self.add(Problem {
            severity: "error",
            code: code.to_owned(),
            file: file.map(field),
            line: None,
            path: path.map(str::to_owned),
            message,
            remedy: remedy(code),
            lines: None,
        });
    }

    fn warn(&mut self, code: &str, path: Option<&str>, message: &str) {
        self.fail(code, None, path, message.to_owned());
        if let Some(last) = self.wire.problems.last_mut() {
            last.severity = "warning";
        }
        self.wire.valid = self.wire.problems.iter().all(|problem| problem.severity != "error");
    }

    fn unreadable(&mut self, role: FileRole) {
        let message = "The content of the file is not in the storage any more.".to_owned();
        self.fail(dataset::code::UNREADABLE_FILE, Some(role), None, message);
    }

    fn add_faults(&mut self, role: FileRole, checked: &Checked) {
        let unlisted = checked.total_problems - checked.problems.len() as u64;
        for problem in &checked.problems {
            self.add(of_row(role, problem));
        }
        self.wire.total_problems += unlisted;
    }

    /// What is doubtful about the rows that have no fault.
    fn look(
        &mut self,
        examination: &Examination<'_>,
        training: &Checked,
        validation: Option<&Checked>,
    ) {
        let warnings = examination.notes(training, validation).into_iter().filter_map(of_note);
        warnings.for_each(|warning| self.add(warning));
        let mut quality = json!({ field(FileRole::Training): training.quality });
        if let Some(validation) = validation {
            quality[field(FileRole::Validation)] = json!(validation.quality);
        }
        self.wire.quality = Some(quality);
    }

    /// What good files amount to.
    fn tell(&mut self, wanted: &Wanted, findings: Findings) {
        let resolved = findings.hyperparameters;
        let openais = convert::openais(&resolved);
        let requested = wanted.hyperparameters.preference;
        let shown = preference::shown_with(resolved.preference.as_deref(), requested, &openais);
        self.wire.hyperparameters = Some(shown);
        self.wire.finetuned = Some(convert::resolved(resolved));
        self.wire.reasons = Some(findings.reasons);
        self.wire.dataset = Some(findings.dataset);
        self.wire.steps = Some(findings.steps);
        self.wire.trained_tokens = Some(findings.planned_tokens);
    }
}

/// A fault of a file.
pub(super) fn of_row(role: FileRole, problem: &dataset::Problem) -> Problem {
    Problem {
        severity: "error",
        code: problem.code.to_owned(),
        file: Some(field(role)),
        line: problem.line,
        path: problem.path.clone(),
        message: problem.message.clone(),
        remedy: remedy(problem.code),
        lines: None,
    }
}

/// A fault of the request as a problem.
fn of_request(fault: &ApiError) -> Problem {
    let error = fault.envelope().error;
    let code = error.code.unwrap_or_else(|| match fault {
        ApiError::ReferencedFileNotFound { .. } => "file_not_found".to_owned(),
        _ => "invalid_request".to_owned(),
    });
    let path = error
        .param
        .or_else(|| matches!(fault, ApiError::ModelNotTrainable(_)).then(|| "model".to_owned()));
    Problem {
        severity: "error",
        file: None,
        line: None,
        path,
        message: error.message,
        remedy: remedy(&code),
        code,
        lines: None,
    }
}

/// A remark about files as a problem; none for one that needs no attention.
fn of_note(note: Note) -> Option<Problem> {
    if note.level == domain::report::Level::Info {
        return None;
    }
    let code = note.data["finding"].as_str().unwrap_or_default();
    let role = match note.data["file"].as_str() {
        Some("validation_file") => FileRole::Validation,
        _ => FileRole::Training,
    };
    let lines = note.data.get("lines").filter(|lines| !lines.is_null());
    Some(Problem {
        severity: "warning",
        code: code.to_owned(),
        file: Some(field(role)),
        line: lines.and_then(|lines| lines[0].as_u64()),
        path: None,
        message: note.message,
        remedy: remedy(code),
        lines: lines.map(|lines: &Value| json!(lines)),
    })
}
