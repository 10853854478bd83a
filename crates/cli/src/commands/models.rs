//! `finetuned models`, and the import that `finetuned up` does at its start.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use domain::ModelId;
use futures::StreamExt as _;
use serde_json::json;
use server::weights::ModelFiles;
use store::base_models::{self, BaseModelRow, NewBaseModel};
use store::{Project, Store};
use tokio::io::AsyncWriteExt as _;

use crate::arguments::Models;
use crate::backend::{Absent, Backend};
use crate::config::Config;
use crate::output;

pub async fn run(config: &Config, command: Models) -> Result<()> {
    if let Models::Convert { path, folder } = &command {
        // Before the database is opened: this needs none.
        return convert(path, folder);
    }
    let absent = match command {
        Models::Import { .. } | Models::Convert { .. } => Absent::Create,
        Models::List { .. } | Models::Remove { .. } | Models::Export { .. } => Absent::Refuse,
    };
    let backend = Backend::open(config, absent).await?;
    let result = act(&backend, command).await;
    backend.close().await;
    result
}

/// Writes a base model as a folder.
fn convert(path: &Path, folder: &Path) -> Result<()> {
    let imported = weights::import(path, folder)
        .with_context(|| format!("cannot convert {}", path.display()))?;
    let parameters = output::millions(imported.parameters);
    let architecture = &imported.architecture;
    output::line(format_args!("{} ({architecture}, {parameters} parameters)", folder.display()))?;
    Ok(())
}

async fn act(backend: &Backend, command: Models) -> Result<()> {
    let Backend { store, project, .. } = backend;
    match command {
        Models::Convert { path, folder } => convert(&path, &folder)?,
        Models::Import { path, name } => {
            let name = name.unwrap_or_else(|| weights::default_name(&path));
            let row = import(store, project, &path, &name, &std::env::temp_dir()).await?;
            output::line(format_args!(
                "{} ({}, {} parameters)",
                row.id,
                row.architecture,
                output::millions(row.parameters)
            ))?;
        }
        Models::Export { id, out, merged, project } => {
            let project = backend.project_or_default(project).await?;
            export(store, &project, &id, &out, merged).await?;
        }
        Models::List { json: is_json } => {
            let rows = base_models::list(&store.db, project).await?;
            if is_json {
                let models: Vec<_> = rows.iter().map(as_json).collect();
                output::json(&models)?;
            } else {
                let mut table =
                    output::Table::new(["NAME", "ARCHITECTURE", "PARAMETERS", "IMPORTED"]);
                for row in rows {
                    table.row([
                        row.id.to_string(),
                        row.architecture.clone(),
                        output::millions(row.parameters),
                        output::minute(row.created_at),
                    ]);
                }
                output::text(&table)?;
            }
        }
        Models::Remove { name } => {
            base_models::remove(store, project, &ModelId::from(name.as_str()))
                .await
                .with_context(|| format!("cannot remove '{name}'"))?;
            output::line(format_args!("removed {name}"))?;
        }
    }
    Ok(())
}

/// Writes a model's files into a folder that is made for it.
async fn export(
    store: &Store,
    project: &Project,
    id: &str,
    out: &Path,
    is_merged: bool,
) -> Result<()> {
    let model = ModelFiles::of(store, project, &ModelId::from(id), is_merged)
        .await
        .with_context(|| format!("cannot export '{id}'"))?;
    fs::create_dir(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    for file in &model.files {
        let path = out.join(&file.name);
        let written = async {
            let mut content = model.read(file);
            let mut to = tokio::fs::File::create(&path).await?;
            while let Some(chunk) = content.next().await {
                to.write_all(&chunk?).await?;
            }
            to.sync_all().await?;
            anyhow::Ok(())
        };
        written.await.with_context(|| format!("cannot write {}", path.display()))?;
        output::line(format_args!("{} ({} bytes)", path.display(), file.bytes))?;
    }
    Ok(())
}

fn as_json(row: &BaseModelRow) -> serde_json::Value {
    json!({
        "id": row.id,
        "architecture": row.architecture,
        "parameters": row.parameters,
        "digest": row.digest,
        "files": row.files,
        "created_at": row.created_at.unix_timestamp(),
    })
}

/// Converts a GGUF file or model folder in a temporary folder below `scratch`, uploads it and registers
/// it under `name`.
async fn import(
    store: &Store,
    project: &Project,
    path: &Path,
    name: &str,
    scratch: &Path,
) -> Result<BaseModelRow> {
    let folder = tempfile::Builder::new()
        .prefix("finetuned-import-")
        .tempdir_in(scratch)
        .with_context(|| format!("cannot create a folder in {}", scratch.display()))?;
    let (source, target) = (path.to_path_buf(), folder.path().join("model"));
    let imported = tokio::task::spawn_blocking(move || weights::import(&source, &target))
        .await
        .context("the import panicked")?
        .with_context(|| format!("cannot import {}", path.display()))?;
    let new = NewBaseModel {
        id: ModelId::from(name),
        architecture: imported.architecture,
        parameters: imported.parameters,
    };
    base_models::register(store, project, new, &folder.path().join("model"))
        .await
        .with_context(|| format!("cannot register {} as '{name}'", path.display()))
}

/// Imports every model in `dir` that is not registered yet; returns the names of all registered models.
/// A model that cannot be imported is reported and passed over: one bad file must not keep the rest down.
pub async fn import_folder(
    store: &Store,
    project: &Project,
    dir: &Path,
    scratch: &Path,
) -> Result<BTreeSet<String>> {
    let rows = base_models::list(&store.db, project).await?;
    let mut names: BTreeSet<String> = rows.into_iter().map(|row| row.id.to_string()).collect();
    for path in model_sources(dir)? {
        let name = weights::default_name(&path);
        if names.contains(&name) {
            continue;
        }
        tracing::info!("importing {} as '{name}'", path.display());
        match import(store, project, &path, &name, scratch).await {
            Ok(_) => {
                names.insert(name);
            }
            Err(error) => tracing::error!("{error:#}"),
        }
    }
    Ok(names)
}

/// GGUF files, and folders with a `config.json`, by name. An absent folder holds none.
fn model_sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        let is_gguf = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
        if (is_gguf && path.is_file()) || path.join("config.json").is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_files_and_folders_are_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b.GGUF"), "").unwrap();
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/config.json"), "{}").unwrap();

        let found = model_sources(dir.path()).unwrap();

        assert_eq!(found, [dir.path().join("a"), dir.path().join("b.GGUF")]);
        assert!(model_sources(&dir.path().join("absent")).unwrap().is_empty());
    }
}
