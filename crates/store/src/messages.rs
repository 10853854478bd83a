//! The texts and data of events, as the API's clients know them (scripts search for these words).

use domain::report::{Level, RunFailure, RunReport, RunStarted, StepMetrics};
use domain::{FileId, JobId, ModelId};
use serde_json::{Value, json};

use crate::events::{EventType, NewEvent};
use crate::jobs::JobError;
use crate::queue::Note;

fn message(level: Level, text: impl Into<String>) -> NewEvent {
    NewEvent { level, kind: EventType::Message, message: text.into(), data: Some(json!({})) }
}

fn info(text: impl Into<String>) -> NewEvent {
    message(Level::Info, text)
}

pub(crate) fn created(job: &JobId) -> NewEvent {
    info(format!("Created fine-tuning job: {job}"))
}

pub(crate) fn validating(training: &FileId, validation: Option<&FileId>) -> NewEvent {
    let and = validation.map(|file| format!(" and validation file: {file}")).unwrap_or_default();
    info(format!("Validating training file: {training}{and}"))
}

pub(crate) fn validated() -> NewEvent {
    info("Files validated, moving job to queued state")
}

pub(crate) fn note(note: &Note) -> NewEvent {
    NewEvent { data: Some(note.data.clone()), ..message(note.level, note.message.clone()) }
}

/// The last event of a failed job says what its error says.
pub(crate) fn failed(error: &JobError, data: Value) -> NewEvent {
    let data = if data.is_null() { json!({}) } else { data };
    NewEvent { data: Some(data), ..message(Level::Error, error.message.clone()) }
}

pub(crate) fn retrying(failure: &RunFailure) -> NewEvent {
    message(
        Level::Warn,
        format!("The run was interrupted and will be tried again: {}", failure.message),
    )
}

pub(crate) fn worker_lost(next: &str) -> NewEvent {
    message(Level::Warn, format!("The worker was lost, moving job to {next} state"))
}

pub(crate) fn released() -> NewEvent {
    info("The worker was stopped, moving job to queued state")
}

pub(crate) fn pausing() -> NewEvent {
    info("Pausing fine-tuning job after the next checkpoint")
}

pub(crate) fn paused() -> NewEvent {
    info("Fine-tuning job paused")
}

pub(crate) fn resumed() -> NewEvent {
    info("Fine-tuning job resumed, moving job to queued state")
}

pub(crate) fn pause_withdrawn() -> NewEvent {
    info("Fine-tuning job goes on")
}

pub(crate) fn cancelled() -> NewEvent {
    info("Fine-tuning job cancelled")
}

pub(crate) fn checkpoint(step: u64, model: &ModelId) -> NewEvent {
    info(format!("Checkpoint created at step {step} with Snapshot ID: {model}"))
}

pub(crate) fn damaged(step: i64) -> NewEvent {
    message(
        Level::Warn,
        format!("The checkpoint of step {step} is damaged, going back to the one before it"),
    )
}

pub(crate) fn model_created(model: &ModelId) -> NewEvent {
    info(format!("New fine-tuned model created: {model}"))
}

pub(crate) fn succeeded() -> NewEvent {
    info("The job has successfully completed")
}

/// A report of the worker as an event.
pub(crate) fn report(report: &RunReport) -> NewEvent {
    match report {
        RunReport::Started(started) => run_started(started),
        RunReport::Step(metrics) => step(metrics),
        RunReport::Message { level, message: text } => message(*level, text.clone()),
        RunReport::Finding(found) => {
            let data = json!({ "finding": found.code, "step": found.step });
            NewEvent { data: Some(data), ..message(Level::Warn, found.message.clone()) }
        }
    }
}

fn run_started(started: &RunStarted) -> NewEvent {
    let text = match started.completed_steps {
        0 => "Fine-tuning job started".to_owned(),
        steps => format!("Fine-tuning job started again after step {steps}"),
    };
    NewEvent { data: serde_json::to_value(started).ok(), ..info(text) }
}

fn step(metrics: &StepMetrics) -> NewEvent {
    let mut text = format!(
        "Step {}/{}: training loss={:.2}",
        metrics.step, metrics.total_steps, metrics.train_loss
    );
    for (name, value) in
        [("validation loss", metrics.valid_loss), ("full validation loss", metrics.full_valid_loss)]
    {
        if let Some(value) = value {
            text.push_str(&format!(", {name}={value:.2}"));
        }
    }
    let rewards = &metrics.rewards;
    for (name, value) in [
        ("training reward accuracy", rewards.train_reward_accuracy),
        ("validation reward accuracy", rewards.valid_reward_accuracy),
        ("full validation reward accuracy", rewards.full_valid_reward_accuracy),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(", {name}={value:.2}"));
        }
    }
    let data = serde_json::to_value(metrics).ok();
    NewEvent { level: Level::Info, kind: EventType::Metrics, message: text, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_shows_two_decimals_and_carries_all_numbers() {
        let mut metrics = StepMetrics {
            step: 10,
            total_steps: 240,
            train_loss: 0.2249,
            train_mean_token_accuracy: 0.5,
            ..StepMetrics::default()
        };
        let event = step(&metrics);
        assert_eq!(event.message, "Step 10/240: training loss=0.22");
        let data = event.data.expect("metrics have data");
        assert_eq!((&data["train_loss"], data.get("valid_loss")), (&json!(0.2249), None));

        (metrics.valid_loss, metrics.full_valid_loss) = (Some(0.314), Some(0.0));
        let with_validation = step(&metrics).message;
        assert_eq!(
            with_validation,
            "Step 10/240: training loss=0.22, validation loss=0.31, full validation loss=0.00"
        );
    }
}
