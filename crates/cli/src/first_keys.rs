//! The keys that exist before anybody could make one: the first API key and the worker's token.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use secrecy::{ExposeSecret as _, SecretString};
use store::{Db, Error, KeyKind, Project, keys};

use crate::commands::keys::new_secret;
use crate::data_dir::secret_file;

/// Sets the first API key; any text will do.
pub const API_KEY_VARIABLE: &str = "FINETUNED_API_KEY";

/// Makes sure that the secret of an environment or configuration value is a valid key.
pub async fn ensure(
    db: &Db,
    project: &Project,
    kind: KeyKind,
    name: &str,
    secret: &SecretString,
) -> Result<()> {
    match keys::create(db, project, kind, name, secret.expose_secret()).await {
        Ok(_) => Ok(()),
        Err(Error::Conflict(_)) => bail!(
            "the key in {name} was revoked, or is a key of another kind: choose another secret"
        ),
        Err(error) => Err(error).with_context(|| format!("cannot store the key in {name}")),
    }
}

/// The API key of `FINETUNED_API_KEY`, when that is set. True when it is.
pub async fn from_environment(db: &Db, project: &Project) -> Result<bool> {
    match std::env::var(API_KEY_VARIABLE) {
        Ok(secret) if !secret.is_empty() => {
            ensure(db, project, KeyKind::Project, API_KEY_VARIABLE, &secret.into()).await?;
            Ok(true)
        }
        Ok(_) | Err(std::env::VarError::NotPresent) => Ok(false),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{API_KEY_VARIABLE} is not UTF-8"),
    }
}

/// The key in `path`, made when there is none. A revoked one is left as it is: revoking was a decision.
pub async fn from_file(
    db: &Db,
    project: &Project,
    kind: KeyKind,
    path: &Path,
) -> Result<SecretString> {
    let secret = secret_file(path, || new_secret(kind))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match keys::create(db, project, kind, &name, secret.expose_secret()).await {
        Ok(_) => {}
        Err(Error::Conflict(_)) => tracing::warn!(
            "the key in {} was revoked; remove the file and start again for a new one",
            path.display()
        ),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot store the key in {}", path.display()));
        }
    }
    Ok(secret)
}
