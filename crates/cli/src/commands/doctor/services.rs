//! The database, the storage and the models.

use std::path::Path;
use std::time::Duration;

use store::{Blobs, DatabaseConfig, Db, base_models};

use super::Finding;
use crate::backend;
use crate::config::Config;
use crate::postgres::{self, Binaries};

/// A doctor is impatient: a server that needs longer is worth a line.
const PATIENCE: Duration = Duration::from_secs(5);

pub async fn findings(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let url = match &config.database.url {
        Some(url) => Some(url.clone()),
        None => {
            findings.push(programs(config));
            postgres::running_url(&config.up.data_dir).map(Into::into)
        }
    };
    match url {
        Some(_) => {
            let database = DatabaseConfig { url, ..config.database.clone() };
            findings.extend(database_and_models(&database).await);
        }
        None => findings.push(resting(config)),
    }
    findings.push(storage(config).await);
    findings
}

/// The programs of the private cluster.
fn programs(config: &Config) -> Finding {
    match Binaries::find(config.up.postgres_bin.as_deref(), None) {
        Ok(Binaries { dir, major }) => {
            Finding::ok("postgres", format!("version {major} in {}", dir.display()))
        }
        Err(error) => Finding::missing("postgres", error.to_string(), "cargo xtask setup"),
    }
}

/// A private cluster that nobody runs at the moment.
fn resting(config: &Config) -> Finding {
    let dir = config.up.data_dir.display();
    if postgres::exists(&config.up.data_dir) {
        let remedy = "finetuned up, then finetuned doctor again to see the models";
        Finding::note("database", format!("a private one in {dir}, not running"), remedy)
    } else {
        Finding::note("database", format!("none in {dir} yet"), "finetuned up makes one")
    }
}

async fn database_and_models(config: &DatabaseConfig) -> Vec<Finding> {
    let db = match Db::connect(config, PATIENCE).await {
        Ok(db) => db,
        Err(error) => {
            let remedy = "start the database, or correct database.url";
            return vec![Finding::missing("database", format!("not reachable: {error}"), remedy)];
        }
    };
    let findings = match store::projects::default_project(&db).await {
        Ok(project) => {
            let models = match base_models::list(&db, &project).await {
                Ok(rows) if rows.is_empty() => Finding::missing(
                    "models",
                    "no base model is registered",
                    "finetuned models import PATH",
                ),
                Ok(rows) => {
                    let names: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
                    Finding::ok("models", names.join(", "))
                }
                Err(error) => Finding::missing("models", error.to_string(), "finetuned migrate"),
            };
            vec![Finding::ok("database", "reachable and migrated"), models]
        }
        Err(error) => vec![Finding::missing(
            "database",
            format!("reachable, but its schema is not there: {error}"),
            "finetuned migrate",
        )],
    };
    db.close().await;
    findings
}

async fn storage(config: &Config) -> Finding {
    if config.storage.url.is_none() {
        return folder(&config.up.data_dir);
    }
    let shown = config.storage.url.clone().unwrap_or_default();
    let opened = match backend::storage(&config.storage, &config.up.data_dir) {
        Ok(storage) => Blobs::open(&storage).await.map_err(|error| error.to_string()),
        Err(error) => Err(format!("{error:#}")),
    };
    match opened {
        Ok(_) => Finding::ok("storage", shown),
        Err(error) => {
            let remedy = "correct storage.url and the section [storage]";
            Finding::missing("storage", format!("{shown}: {error}"), remedy)
        }
    }
}

/// Whether the data folder, or the nearest folder above it that exists, can be written to.
fn folder(data_dir: &Path) -> Finding {
    let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_path_buf());
    let existing = absolute.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    match tempfile::tempfile_in(existing) {
        Ok(_) => Finding::ok("storage", format!("{} can be written to", absolute.display())),
        Err(error) => Finding::missing(
            "storage",
            format!("cannot write to {}: {error}", existing.display()),
            "choose another --data-dir, or set storage.url",
        ),
    }
}
