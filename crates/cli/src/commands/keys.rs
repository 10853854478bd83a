//! `finetuned keys`: secrets are made here, shown once, and kept nowhere.

use anyhow::Result;
use domain::ApiKeyId;
use serde_json::json;
use store::KeyKind;

use crate::arguments::{KeyKind as Kind, Keys};
use crate::backend::{Absent, Backend};
use crate::config::Config;
use crate::output;

/// A new secret: the prefix that tools expect of such keys, a word that tells its kind, and 42 random
/// characters (240 random bits).
pub fn new_secret(kind: KeyKind) -> String {
    let random = || domain::id::random_suffix(21);
    format!("sk-{}-{}{}", word(kind), random(), random())
}

fn word(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Project => "project",
        KeyKind::Worker => "worker",
    }
}

pub async fn run(config: &Config, command: Keys) -> Result<()> {
    let backend = Backend::open(config, Absent::Refuse).await?;
    let result = act(&backend, command).await;
    backend.close().await;
    result
}

async fn act(backend: &Backend, command: Keys) -> Result<()> {
    let db = &backend.store.db;
    match command {
        Keys::Create { name, kind, project } => {
            let project = &backend.project_or_default(project).await?;
            let kind = match kind {
                Kind::Project => KeyKind::Project,
                Kind::Worker => KeyKind::Worker,
            };
            let secret = new_secret(kind);
            let row = store::keys::create(db, project, kind, &name, &secret).await?;
            eprintln!("key {} ({}); it is shown this once:", row.id, word(kind));
            output::line(secret)?;
        }
        Keys::List { project, json: is_json } => {
            let rows = store::keys::list(db, &backend.project_or_default(project).await?).await?;
            if is_json {
                let keys: Vec<_> = rows
                    .iter()
                    .map(|row| {
                        json!({
                            "id": row.id,
                            "kind": word(row.kind),
                            "name": row.name,
                            "last_four": row.last_four,
                            "created_at": row.created_at.unix_timestamp(),
                            "revoked_at": row.revoked_at.map(|time| time.unix_timestamp()),
                        })
                    })
                    .collect();
                output::json(&keys)?;
            } else {
                let mut table =
                    output::Table::new(["ID", "KIND", "ENDS IN", "CREATED", "STATE", "NAME"]);
                for row in rows {
                    table.row([
                        row.id.to_string(),
                        word(row.kind).to_owned(),
                        row.last_four,
                        output::minute(row.created_at),
                        if row.revoked_at.is_some() { "revoked" } else { "valid" }.to_owned(),
                        row.name,
                    ]);
                }
                output::text(&table)?;
            }
        }
        Keys::Revoke { id, project } => {
            let project = &backend.project_or_default(project).await?;
            let row = store::keys::revoke(db, project, &ApiKeyId::from(id)).await?;
            output::line(format_args!("revoked {}", row.id))?;
        }
    }
    Ok(())
}
