//! `finetuned jobs`: a short look at the queue from the machine itself. The API has the rest.

use anyhow::Result;
use domain::JobId;
use serde_json::json;
use store::jobs::{self, JobRow, MetadataFilter};
use store::page::PageQuery;
use store::{events, queue};

use crate::arguments::Jobs;
use crate::backend::{Absent, Backend};
use crate::config::Config;
use crate::output;

/// Events that `show` prints.
const LAST_EVENTS: u32 = 10;
/// One page of `list` at most, as in the API.
const MOST_JOBS: u32 = 100;

pub async fn run(config: &Config, command: Jobs) -> Result<()> {
    let backend = Backend::open(config, Absent::Refuse).await?;
    let result = act(&backend, command).await;
    backend.close().await;
    result
}

async fn act(backend: &Backend, command: Jobs) -> Result<()> {
    let (db, project) = (&backend.store.db, &backend.project);
    match command {
        Jobs::List { limit, json: is_json } => {
            let page = PageQuery::newest(limit.clamp(1, MOST_JOBS));
            let rows = jobs::list(db, project, &MetadataFilter::Any, &page).await?.data;
            if is_json {
                let list: Vec<_> = rows.iter().map(as_json).collect();
                output::json(&list)?;
            } else {
                let mut table = output::Table::new(["ID", "STATUS", "STEP", "MODEL", "CREATED"]);
                for row in rows {
                    table.row([
                        row.id.to_string(),
                        row.status.to_string(),
                        step(&row),
                        row.fine_tuned_model.as_ref().unwrap_or(&row.base_model).to_string(),
                        output::minute(row.created_at),
                    ]);
                }
                output::text(&table)?;
            }
        }
        Jobs::Show { id, json: is_json } => {
            let id = JobId::from(id);
            let row = jobs::get(db, project, &id).await?;
            let mut last =
                events::list(db, project, &id, &PageQuery::newest(LAST_EVENTS)).await?.data;
            last.reverse();
            if is_json {
                let mut job = as_json(&row);
                job["events"] = last
                    .iter()
                    .map(|event| {
                        json!({
                            "created_at": event.created_at.unix_timestamp(),
                            "level": event.level,
                            "message": event.message,
                        })
                    })
                    .collect();
                output::json(&job)?;
            } else {
                print_job(&row)?;
                for event in last {
                    output::line(format_args!(
                        "{}  {}",
                        output::minute(event.created_at),
                        event.message
                    ))?;
                }
            }
        }
        Jobs::Cancel { id } => {
            let row = queue::cancel(db, project, &JobId::from(id)).await?;
            output::line(format_args!("{} {}", row.id, row.status))?;
        }
    }
    Ok(())
}

fn step(row: &JobRow) -> String {
    match &row.progress {
        Some(progress) => format!("{}/{}", progress.step, progress.total_steps),
        None if row.committed_step > 0 => row.committed_step.to_string(),
        None => String::new(),
    }
}

fn as_json(row: &JobRow) -> serde_json::Value {
    json!({
        "id": row.id,
        "status": row.status,
        "base_model": row.base_model,
        "fine_tuned_model": row.fine_tuned_model,
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "hyperparameters": row.resolved,
        "progress": row.progress,
        "attempts": row.attempts,
        "trained_tokens": row.trained_tokens,
        "error": row.error,
        "created_at": row.created_at.unix_timestamp(),
        "finished_at": row.finished_at.map(|time| time.unix_timestamp()),
    })
}

/// One line per fact; what is not known yet is left out.
fn print_job(row: &JobRow) -> std::io::Result<()> {
    let line = |name: &str, value: Option<String>| match value {
        Some(value) if !value.is_empty() => output::line(format_args!("{name:16}{value}")),
        _ => Ok(()),
    };
    line("job", Some(row.id.to_string()))?;
    line("status", Some(row.status.to_string()))?;
    line("base model", Some(row.base_model.to_string()))?;
    line("tuned model", row.fine_tuned_model.as_ref().map(ToString::to_string))?;
    line("training file", Some(row.training_file.to_string()))?;
    line("validation", row.validation_file.as_ref().map(ToString::to_string))?;
    line("step", Some(step(row)))?;
    line("attempts", Some(row.attempts.to_string()))?;
    line("created (UTC)", Some(output::minute(row.created_at)))?;
    line("finished (UTC)", row.finished_at.map(output::minute))?;
    line("error", row.error.as_ref().map(|error| format!("{}: {}", error.code, error.message)))
}
