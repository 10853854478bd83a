//! A job's report from its beginning to its end: rows are chosen, contenders answer, answers are measured.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use domain::report::StepMetrics;
use graders::compare::{Bootstrap, Tally, bootstrap};
use serde_json::{Map, Value, json};
use store::evals::runs::RunError;
use store::files::FileRow;
use store::jobs::JobRow;
use store::{Project, events, files};

use super::asking::{Contender, Progress, Questions, Said, max_tokens};
use super::examples::{Example, Gathered, gather, text_of};
use super::measures::{Task, of_all, of_row};
use super::shots::Shots;
use super::verdict::verdict;
use super::{Role, Wish};
use crate::state::AppState;

/// Training rows among which shots are looked for.
const TRAINING_ROWS: usize = 2000;
const RESAMPLES: usize = 10_000;
/// Points of a curve.
const MAX_POINTS: usize = 500;
/// Characters that are shown of a row's question, and of each answer.
const SHOWN_CHARACTERS: usize = 4000;
/// Tells the choice of training rows from that of held-out ones.
const OTHER_SEED: u64 = 0x7472_6169_6e00;

/// The primary score of a contender.
pub(crate) struct Score {
    pub role: Role,
    pub value: f64,
    pub shots: usize,
}

/// The tuned model against another contender.
pub(crate) struct Comparison {
    pub than: Role,
    pub bootstrap: Bootstrap,
}

/// What came of the making.
pub(crate) type Made = Result<Value, RunError>;

fn failed(code: &str, message: impl Into<String>) -> Made {
    Err(RunError { code: code.to_owned(), message: message.into() })
}

/// The job's report. An error is passing trouble; everything that would end the same again is made of it.
pub(crate) async fn make(
    state: &AppState,
    project: &Project,
    job: &JobRow,
    wish: &Wish,
    progress: &Progress,
) -> store::Result<Made> {
    let Some(tuned) = &job.fine_tuned_model else {
        return Ok(failed("job_not_succeeded", "The job has made no model."));
    };
    let Some(file) = held_out_file(state, project, job).await? else {
        let message = "The file with the held-out rows is not there any more.";
        return Ok(failed("file_not_found", message));
    };
    let held_out = gather(state, &file, wish.rows, wish.seed, |_| true).await?;
    let training = training_rows(state, project, job, wish).await?;
    let labels = training.as_ref().and_then(Gathered::labels);
    let expected: Vec<&str> = held_out.examples.iter().map(|e| e.expected.as_str()).collect();
    let task = Task::of(labels, &expected);
    let shots = Shots::new(training.map(|training| training.examples).unwrap_or_default());
    let base = job.start.as_ref().map_or(&job.base_model, |start| &start.model).to_string();
    let contender = |role, model: &str, shots| Contender { role, model: model.to_owned(), shots };
    let mut contenders = vec![
        contender(Role::Tuned, tuned.as_str(), 0),
        contender(Role::Base, &base, 0),
        contender(Role::FewShot, &base, wish.few_shot.min(shots.len())),
    ];
    contenders.retain(|contender| contender.role != Role::FewShot || contender.shots > 0);
    let examples = held_out.examples;
    let max_tokens = max_tokens(state, project, &base, &examples).await;
    let wanted = (examples.len() * contenders.len()) as u32;
    progress.wanted.store(wanted, Ordering::Relaxed);
    let questions = Questions { state, project, shots: &shots, max_tokens };
    let mut said = Vec::new();
    for contender in contenders {
        let answers = questions.ask_all(&contender, &examples, progress).await;
        if let Some(error) = answers.iter().find_map(of_server) {
            let message = format!("'{}' could not be asked: {}", contender.model, error.1);
            return Ok(failed(error.0, message));
        }
        said.push((contender, answers));
    }
    let steps = events::step_metrics(&state.store.db, &job.id).await?;
    let facts = json!({
        "method": job.method.as_str(),
        "seed": wish.seed,
        "max_completion_tokens": max_tokens,
        "held_out": {"source": "validation_file", "file": file.id, "rows": examples.len(), "of": held_out.of},
        "loss": losses(&steps),
        "curves": curves(&steps),
    });
    let seed = wish.seed;
    let measuring = move || measured(facts, &task, &examples, &said, seed);
    match tokio::task::spawn_blocking(measuring).await {
        Ok(content) => Ok(Ok(content)),
        Err(error) => {
            Err(store::Error::Inconsistent(format!("measuring a report failed: {error}")))
        }
    }
}

/// None when it is gone.
async fn held_out_file(
    state: &AppState,
    project: &Project,
    job: &JobRow,
) -> store::Result<Option<FileRow>> {
    match &job.validation_file {
        Some(id) => unless_gone(files::of_run(&state.store.db, project, id).await),
        None => Ok(None),
    }
}

/// None when the file is gone: then there are no examples for a prompt.
async fn training_rows(
    state: &AppState,
    project: &Project,
    job: &JobRow,
    wish: &Wish,
) -> store::Result<Option<Gathered>> {
    let file = files::of_run(&state.store.db, project, &job.training_file).await;
    let Some(file) = unless_gone(file)? else { return Ok(None) };
    let seed = wish.seed ^ OTHER_SEED;
    unless_gone(gather(state, &file, TRAINING_ROWS, seed, |_| true).await)
}

fn unless_gone<T>(found: store::Result<T>) -> store::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(store::Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why no answer came, where it is not the row's own fault: such a report would blame the model.
fn of_server(said: &Said) -> Option<(&str, &str)> {
    let error = said.text.as_ref().err()?;
    (error.code != "context_length_exceeded").then_some((&error.code, &error.message))
}

/// Figures of answers, joined to what is known without them.
fn measured(
    facts: Value,
    task: &Task,
    examples: &[Example],
    said: &[(Contender, Vec<Said>)],
    seed: u64,
) -> Value {
    let metric = task.primary();
    let mut rows: Vec<Value> = examples.iter().map(shown_row).collect();
    let (mut contenders, mut scores, mut primaries) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (contender, answers) in said {
        let role = contender.role.as_str();
        let pairs: Vec<(&str, Option<&str>)> = examples
            .iter()
            .zip(answers)
            .map(|(example, said)| (example.expected.as_str(), said.text.as_deref().ok()))
            .collect();
        let of_rows: Vec<Map<String, Value>> =
            pairs.iter().map(|(expected, answer)| of_row(task, expected, *answer)).collect();
        let all = of_all(task, &pairs, &of_rows);
        let primary: Vec<f64> =
            of_rows.iter().map(|row| row[metric].as_f64().unwrap_or(0.0)).collect();
        for ((row, said), scores) in rows.iter_mut().zip(answers).zip(of_rows) {
            row[role] = shown_answer(said, scores);
        }
        let failed = answers.iter().filter(|said| said.text.is_err()).count();
        contenders.push(json!({
            "name": role,
            "model": contender.model,
            "examples_in_prompt": answers.iter().map(|said| said.shots).max().unwrap_or(0),
            "rows": answers.len(),
            "unanswered": failed,
            "metrics": all["metrics"],
            "labels": all["labels"],
            "confusion": all["confusion"],
        }));
        let value = all["metrics"][metric].as_f64().unwrap_or(0.0);
        scores.push(Score { role: contender.role, value, shots: contender.shots });
        primaries.insert(role, primary);
    }
    let mut comparisons = Vec::new();
    let mut comparison = json!({"metric": metric, "base": null, "few_shot": null});
    for than in [Role::Base, Role::FewShot] {
        let (Some(tuned), Some(other)) = (primaries.get("tuned"), primaries.get(than.as_str()))
        else {
            continue;
        };
        let pairs: Vec<(f64, f64)> = tuned.iter().copied().zip(other.iter().copied()).collect();
        let differences: Vec<f64> = pairs.iter().map(|(tuned, other)| tuned - other).collect();
        let Some(found) = bootstrap(&differences, RESAMPLES, seed) else { continue };
        let tally = Tally::of(&pairs);
        comparison[than.as_str()] = json!({
            "difference": found.difference, "low": found.low, "high": found.high, "p": found.p,
            "won": tally.won, "lost": tally.lost, "tied": tally.tied, "sign_test_p": tally.sign_test(),
            "resamples": RESAMPLES,
        });
        comparisons.push(Comparison { than, bootstrap: found });
    }
    let has_rows = !examples.is_empty();
    let mut content = facts;
    content["verdict"] = match has_rows {
        true => verdict(metric, examples.len(), &scores, &comparisons),
        false => without_rows(&content["loss"]),
    }
    .into();
    content["task"] = task.as_str().into();
    content["primary_metric"] = metric.into();
    content["contenders"] = if has_rows { contenders.into() } else { json!([]) };
    content["comparison"] = if has_rows { comparison } else { Value::Null };
    content["rows"] = rows.into();
    content
}

fn without_rows(loss: &Value) -> String {
    let why = "The held-out rows have no answers to compare";
    match (loss["tuned"].as_f64(), loss["tuned_perplexity"].as_f64()) {
        (Some(loss), Some(perplexity)) => format!(
            "{why}. On them the tuned model has a loss of {loss:.4}, which is a perplexity of {perplexity:.2}."
        ),
        _ => format!("{why}, and no loss was measured on them."),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The end of a long conversation is shown.
fn shown_row(example: &Example) -> Value {
    let mut room = SHOWN_CHARACTERS;
    let mut input: Vec<Value> = Vec::new();
    for message in example.messages.iter().rev() {
        if room == 0 {
            break;
        }
        let text = cut(&text_of(message));
        room = room.saturating_sub(text.chars().count().max(1));
        input.push(json!({"role": message["role"], "content": text}));
    }
    input.reverse();
    json!({"row": example.number, "input": input, "expected": cut(&example.expected),
           "tuned": null, "base": null, "few_shot": null})
}

fn shown_answer(said: &Said, scores: Map<String, Value>) -> Value {
    let error = said.text.as_ref().err();
    json!({
        "text": said.text.as_ref().ok().map(|text| cut(text)),
        "error": error.map(|error| json!({"code": error.code, "message": error.message})),
        "scores": scores,
    })
}

/// On the whole validation file; the base model's is not measured.
fn losses(steps: &[StepMetrics]) -> Value {
    let tuned = steps.iter().rev().find_map(|step| step.full_valid_loss);
    json!({"base": null, "tuned": tuned, "base_perplexity": null, "tuned_perplexity": tuned.map(f64::exp)})
}

/// As many steps as a plot can show, and every step with a whole validation.
fn curves(steps: &[StepMetrics]) -> Vec<Value> {
    let every = steps.len().div_ceil(MAX_POINTS).max(1);
    let shown = steps.iter().enumerate().filter(|(i, step)| {
        let is_last = i + 1 == steps.len();
        i % every == 0 || is_last || step.full_valid_loss.is_some()
    });
    shown
        .map(|(_, step)| {
            json!({
                "step": step.step,
                "train_loss": step.train_loss,
                "train_accuracy": step.train_mean_token_accuracy,
                "valid_loss": step.valid_loss,
                "valid_accuracy": step.valid_mean_token_accuracy,
                "full_valid_loss": step.full_valid_loss,
                "full_valid_accuracy": step.full_valid_mean_token_accuracy,
                "train_reward_accuracy": step.rewards.train_reward_accuracy,
                "full_valid_reward_accuracy": step.rewards.full_valid_reward_accuracy,
            })
        })
        .collect()
}
