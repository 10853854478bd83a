//! `finetuned projects`: each owns its files, jobs and models, and is opened by keys of its own.

use anyhow::Result;
use serde_json::json;
use store::projects;

use crate::arguments::Projects;
use crate::backend::{Absent, Backend};
use crate::config::Config;
use crate::output;

pub async fn run(config: &Config, command: Projects) -> Result<()> {
    let backend = Backend::open(config, Absent::Refuse).await?;
    let result = act(&backend, command).await;
    backend.close().await;
    result
}

async fn act(backend: &Backend, command: Projects) -> Result<()> {
    let (db, project) = (&backend.store.db, &backend.project);
    match command {
        Projects::Create { name } => {
            output::line(projects::create(db, project, &name).await?.id)?;
        }
        Projects::List { json: is_json } => {
            let rows = projects::list(db, project).await?;
            if is_json {
                let list: Vec<_> = rows
                    .iter()
                    .map(|row| {
                        json!({
                            "id": row.id,
                            "name": row.name,
                            "created_at": row.created_at.unix_timestamp(),
                        })
                    })
                    .collect();
                output::json(&list)?;
            } else {
                let mut table = output::Table::new(["ID", "CREATED", "NAME"]);
                for row in rows {
                    table.row([row.id.to_string(), output::minute(row.created_at), row.name]);
                }
                output::text(&table)?;
            }
        }
    }
    Ok(())
}
