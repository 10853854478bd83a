//! What a job that has not ended waits for, and when it will be done.
//!
//! The end of a running job comes from its own speed; that of a queued one from the tokens before it and its own,
//! at the speed of the latest jobs of the same base model on these machines. Where none was measured, other base
//! models' speeds are scaled by their size, and where nothing was measured at all, [`UNMEASURED`] holds. It is an
//! estimate: the turns of other projects and the breaks between runs are not in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use domain::plan::ResolvedHyperparameters;
use domain::{JobStatus, ProjectId};
use serde_json::{Value, json};
use store::Project;
use store::jobs::JobRow;
use store::waiting::{self, LINE, Line, Speed, Standing};
use time::OffsetDateTime;

use crate::error::ApiResult;
use crate::state::AppState;
use crate::wire::job::WaitReason;

/// Weights times tokens per second: what two CPU cores manage.
const UNMEASURED: f64 = 4e10;
const SPEEDS_HOLD: Duration = Duration::from_secs(30);
/// Many clients that ask for jobs of one project share a look at its line.
const LINE_HOLDS: Duration = Duration::from_millis(250);
const LINES_HELD: usize = 1024;
/// Longer than this is no estimate any more.
const LONGEST_SECONDS: f64 = 1e9;

/// What is said of a job beside its row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outlook {
    pub queue_position: Option<u64>,
    pub wait_reason: Option<WaitReason>,
    pub estimated_finish: Option<i64>,
}

impl Outlook {
    /// What the row alone says.
    pub(crate) fn of_row(row: &JobRow, now: OffsetDateTime) -> Self {
        let left = row.progress.as_ref().map(|step| step.seconds_left);
        let left = left.filter(|_| row.status == JobStatus::Running);
        Self { estimated_finish: left.and_then(|left| finish(now, left)), ..Self::default() }
    }
}

fn finish(now: OffsetDateTime, seconds: f64) -> Option<i64> {
    let is_known = seconds.is_finite() && seconds < LONGEST_SECONDS;
    is_known.then(|| now.unix_timestamp() + seconds.max(0.0).ceil() as i64)
}

type Held<T> = (Instant, Arc<T>);

/// Looks at lines and speeds that are recent enough for the next client too.
#[derive(Default)]
pub(crate) struct Looks {
    speeds: Mutex<Option<Held<Speeds>>>,
    lines: Mutex<HashMap<ProjectId, Held<Line>>>,
}

impl Looks {
    async fn line(&self, state: &AppState, project: &Project) -> ApiResult<Arc<Line>> {
        let held =
            self.lines.lock().unwrap_or_else(PoisonError::into_inner).get(&project.id).cloned();
        if let Some((at, line)) = held
            && at.elapsed() < LINE_HOLDS
        {
            return Ok(line);
        }
        let line = Arc::new(waiting::line(&state.store.db, project).await?);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LINES_HELD {
            lines.retain(|_, (at, _)| at.elapsed() < LINE_HOLDS);
        }
        lines.insert(project.id.clone(), (Instant::now(), line.clone()));
        Ok(line)
    }

    pub(crate) async fn speeds(&self, state: &AppState) -> ApiResult<Arc<Speeds>> {
        let held = self.speeds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, speeds)) = held
            && at.elapsed() < SPEEDS_HOLD
        {
            return Ok(speeds);
        }
        let speeds = Arc::new(Speeds(waiting::speeds(&state.store.db).await?));
        *self.speeds.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), speeds.clone()));
        Ok(speeds)
    }
}

/// How fast base models are trained here.
pub(crate) struct Speeds(HashMap<String, Speed>);

impl Speeds {
    pub(crate) fn tokens_per_second(&self, base_model: &str) -> f64 {
        let own = self.0.get(base_model);
        if let Some(measured) = own.and_then(|speed| speed.tokens_per_second) {
            return measured;
        }
        let mut others: Vec<f64> = self
            .0
            .values()
            .filter_map(|speed| Some(speed.tokens_per_second? * speed.parameters as f64))
            .collect();
        others.sort_by(f64::total_cmp);
        let work = others.get(others.len() / 2).copied().unwrap_or(UNMEASURED);
        work / own.map_or(1.0, |speed| speed.parameters.max(1) as f64)
    }

    /// For a job that trains as these settings say, on files with these figures.
    pub(crate) fn seconds_for(
        &self,
        base_model: &str,
        settings: Option<&ResolvedHyperparameters>,
        dataset: Option<&Value>,
        tokens: f64,
    ) -> f64 {
        let own = self.0.get(base_model);
        let kind = settings.map(kind);
        let measured = kind.and_then(|kind| own?.by_kind.get(&kind).copied());
        let speed = measured.unwrap_or_else(|| self.tokens_per_second(base_model));
        tokens * dataset.map_or(1.0, work) / speed
    }

    fn seconds(&self, standing: &Standing) -> f64 {
        let tokens = standing.tokens_left.unwrap_or_default().max(0) as f64;
        tokens / self.tokens_per_second(&standing.base_model)
    }
}

/// As `store::waiting` names it.
fn kind(settings: &ResolvedHyperparameters) -> String {
    let mut kind = format!("{} {}", settings.tuning.as_str(), settings.quantization.as_str());
    let loss_type = settings.preference.as_deref().map(|preference| json!(preference.loss_type));
    if let Some(loss_type) = loss_type.as_ref().and_then(Value::as_str) {
        kind.push(' ');
        kind.push_str(loss_type);
    }
    kind
}

/// What a trained token costs with its share of the evaluations, in trained tokens: as `store::waiting` counts
/// it, so that what was measured and what is estimated are the same.
fn work(dataset: &Value) -> f64 {
    let of = |file: &str, figure: &str| dataset[file][figure].as_f64().filter(|&n| n > 0.0);
    let evaluated = || {
        let tokens = of("validation_file", "tokens_after_truncation")?;
        let rows = of("training_file", "n_sequences")? / of("validation_file", "n_sequences")?;
        Some(tokens * (1.0 + 0.1 * rows) / of("training_file", "tokens_after_truncation")? / 3.0)
    };
    1.0 + evaluated().unwrap_or_default()
}

/// The outlook of each row, in order. Jobs that have ended cost nothing.
pub(crate) async fn outlooks(
    state: &AppState,
    project: &Project,
    rows: &[JobRow],
) -> ApiResult<Vec<Outlook>> {
    let is_any = |status| rows.iter().any(|row| row.status == status);
    let speeds = match is_any(JobStatus::Queued) || is_any(JobStatus::Running) {
        true => Some(state.looks.speeds(state).await?),
        false => None,
    };
    let line = match is_any(JobStatus::Queued) {
        true => Some(state.looks.line(state, project).await?),
        false => None,
    };
    let now = OffsetDateTime::now_utc();
    let mut outlooks = Vec::with_capacity(rows.len());
    for row in rows {
        let mut outlook = Outlook::of_row(row, now);
        match (row.status, &speeds, &line) {
            (JobStatus::ValidatingFiles, ..) => {
                let text = "The files are being checked, or wait for it.";
                outlook.wait_reason = Some(reason("checking_files", text));
            }
            (JobStatus::Paused, ..) => {
                let text = "Its user has paused the job; resume puts it back into the queue.";
                outlook.wait_reason = Some(reason("paused", text));
            }
            (JobStatus::Running, Some(speeds), _) if outlook.estimated_finish.is_none() => {
                outlook.estimated_finish = finish(now, own_seconds(row, speeds));
            }
            (JobStatus::Queued, Some(speeds), Some(line)) => {
                outlook = of_queued(state, project, row, speeds, line).await?;
            }
            _ => {}
        }
        outlooks.push(outlook);
    }
    Ok(outlooks)
}

fn own_seconds(row: &JobRow, speeds: &Speeds) -> f64 {
    let tokens = row.tokens_left.unwrap_or_default() as f64;
    let (settings, dataset) = (row.resolved.as_ref(), row.dataset.as_ref());
    speeds.seconds_for(row.base_model.as_str(), settings, dataset, tokens)
}

async fn of_queued(
    state: &AppState,
    project: &Project,
    row: &JobRow,
    speeds: &Speeds,
    line: &Line,
) -> ApiResult<Outlook> {
    let place = line.queued.iter().position(|standing| standing.id == row.id.as_str());
    let position = match place {
        Some(place) => Some(place as u64),
        // Behind those that were looked at, or newer than that look.
        None => waiting::position(&state.store.db, project, &row.id).await?,
    };
    let now = line.now.unwrap_or_else(OffsetDateTime::now_utc);
    let position = position.unwrap_or_default();
    let before = seconds_before(line, position, speeds) / line.workers.max(1) as f64;
    let back_off = (row.run_after - now).as_seconds_f64().max(0.0);
    let seconds = before.max(back_off) + own_seconds(row, speeds);
    Ok(Outlook {
        queue_position: Some(position),
        wait_reason: Some(wait_reason(row, now, position, line)),
        estimated_finish: finish(now, seconds),
    })
}

/// The work of all runs, and of the jobs before a position. What stands behind those that were looked at is taken
/// to be like them.
fn seconds_before(line: &Line, position: u64, speeds: &Speeds) -> f64 {
    let running: f64 = line.running.iter().map(|run| speeds.seconds(run)).sum();
    let looked_at = (position as usize).min(line.queued.len());
    let known: f64 = line.queued[..looked_at].iter().map(|job| speeds.seconds(job)).sum();
    let unknown = if position as usize > LINE { position as f64 - looked_at as f64 } else { 0.0 };
    running + known + unknown * known / looked_at.max(1) as f64
}

fn wait_reason(row: &JobRow, now: OffsetDateTime, position: u64, line: &Line) -> WaitReason {
    if row.run_after > now {
        let seconds = (row.run_after - now).as_seconds_f64().ceil();
        let why = if row.crashes > 0 { "The run ended badly; it" } else { "It" };
        let text = format!("{why} is tried again in {seconds} s at the earliest.");
        let until = Some(row.run_after.unix_timestamp());
        return WaitReason { until, ..reason("backing_off", text) };
    }
    if line.workers == 0 {
        let text = "No worker is connected. Start one with `finetuned work`.";
        return reason("no_worker", text);
    }
    if position > 0 {
        let jobs = if position == 1 { "job runs" } else { "jobs run" };
        return reason("jobs_before_it", format!("{position} {jobs} before it."));
    }
    if line.running.len() as u64 >= line.workers {
        let runs = line.running.len();
        let text = format!("It is the next one; all workers are busy ({runs} running).");
        return reason("workers_busy", text);
    }
    reason("starting", "It is the next one; a worker is about to take it.")
}

fn reason(code: &'static str, message: impl Into<String>) -> WaitReason {
    WaitReason { code, message: message.into(), until: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speeds(known: &[(&str, u64, Option<f64>)]) -> Speeds {
        let speed = |&(id, parameters, tokens_per_second): &(&str, u64, Option<f64>)| {
            let by_kind = HashMap::new();
            (id.to_owned(), Speed { parameters, tokens_per_second, by_kind })
        };
        Speeds(known.iter().map(speed).collect())
    }

    #[test]
    fn a_speed_is_measured_or_scaled_by_size_or_assumed() {
        let all = speeds(&[("a", 100, Some(50.0)), ("b", 200, None)]);
        assert_eq!(all.tokens_per_second("a"), 50.0);
        assert_eq!(all.tokens_per_second("b"), 25.0);
        let none = speeds(&[("c", 1_000_000, None)]);
        assert_eq!(none.tokens_per_second("c"), UNMEASURED / 1e6);
        assert!(none.tokens_per_second("unknown").is_finite());
    }

    #[test]
    fn evaluations_are_work_and_kinds_have_speeds_of_their_own() {
        let file = |tokens: u64, rows: u64| json!({"tokens_after_truncation": tokens, "n_sequences": rows});
        let dataset = json!({"training_file": file(900, 30), "validation_file": file(270, 10)});
        // An epoch evaluates 270 tokens whole and, in batches, three rows of 27: a third of 351 on 900.
        assert!((work(&dataset) - 1.13).abs() < 1e-9);
        assert_eq!(work(&json!({"training_file": file(900, 30)})), 1.0);
        let mut all = speeds(&[("a", 100, Some(50.0))]);
        all.0.get_mut("a").unwrap().by_kind.insert("lora nf4".to_owned(), 10.0);
        let mut settings = {
            use crate::resolve::{Measured, resolve};
            let (n_examples, has_validation, hidden_size) = (100, false, 64);
            let context_length = None;
            let measured = Measured { n_examples, has_validation, hidden_size, context_length };
            let none = domain::TrainingOptions::default();
            resolve(&domain::Hyperparameters::default(), &none, &none, 0, &measured)
        };
        let seconds =
            |settings: &ResolvedHyperparameters| all.seconds_for("a", Some(settings), None, 100.0);
        assert_eq!(seconds(&settings), 2.0);
        settings.quantization = domain::hyperparameters::Quantization::Nf4;
        assert_eq!(seconds(&settings), 10.0);
    }

    #[test]
    fn the_line_before_a_job_is_added_up_and_extended() {
        let speeds = speeds(&[("a", 100, Some(10.0))]);
        let standing = |tokens| Standing {
            id: "ftjob-x".to_owned(),
            base_model: "a".to_owned(),
            tokens_left: Some(tokens),
            run_after: OffsetDateTime::UNIX_EPOCH,
            crashes: 0,
        };
        let mut line = Line {
            queued: vec![standing(100), standing(300)],
            running: vec![standing(50)],
            ..Line::default()
        };
        assert_eq!(seconds_before(&line, 0, &speeds), 5.0);
        assert_eq!(seconds_before(&line, 2, &speeds), 45.0);
        line.queued = vec![standing(10); LINE];
        assert_eq!(seconds_before(&line, LINE as u64 + 500, &speeds), 1505.0);
    }
}
