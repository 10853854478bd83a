//! The data folder of `finetuned up`: who uses it, and what lies where.
//!
//! ```text
//! lock            held by the process that uses the folder
//! postgres/       the private database (or postgres-location names its place)
//! postgres.log    what the database says
//! blobs/          uploads, checkpoints, models
//! work/           the worker's scratch folder
//! api-key         the first API key      } readable by the owner alone
//! worker-token    the worker's key       }
//! url             the base URL of the running server
//! ```

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use secrecy::SecretString;

/// An opened data folder. The lock is held until this is dropped, or the process ends in any way.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: Flock<fs::File>,
}

impl DataDir {
    /// Creates the folder if needed and takes its lock.
    pub fn open(path: &Path) -> Result<Self> {
        // Root's database runs under another account, which must be able to pass through.
        let mode = if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .with_context(|| format!("cannot create the data folder {}", path.display()))?;
        let path = fs::canonicalize(path)
            .with_context(|| format!("cannot open the data folder {}", path.display()))?;
        let lock = Self::lock(&path)?;
        for private in ["blobs", "work"] {
            let dir = path.join(private);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(Self { path, _lock: lock })
    }

    fn lock(path: &Path) -> Result<Flock<fs::File>> {
        let name = path.join("lock");
        let file = fs::OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&name)
            .with_context(|| format!("cannot open {}", name.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                lock.set_len(0)?;
                write!(&*lock, "{}", std::process::id())?;
                Ok(lock)
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                bail!(
                    "the data folder {} is in use by process {}: stop that one, or choose another \
                     --data-dir",
                    path.display(),
                    if holder.is_empty() { "(unknown)" } else { holder.trim() }
                )
            }
            Err((_, error)) => {
                Err(error).with_context(|| format!("cannot lock {}", name.display()))
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    pub fn api_key(&self) -> PathBuf {
        self.path.join("api-key")
    }

    pub fn worker_token(&self) -> PathBuf {
        self.path.join("worker-token")
    }

    pub fn url(&self) -> PathBuf {
        self.path.join("url")
    }
}

/// The secret in `path`; when there is none, `make` one and store it for the owner alone. The file is
/// complete or absent, whatever happens in between.
pub fn secret_file(path: &Path, make: impl FnOnce() -> String) -> Result<SecretString> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned().into()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let secret = make();
    write_file(path, &format!("{secret}\n"), 0o600)?;
    Ok(secret.into())
}

/// Writes a small file so that readers see the old content or the new, never half of it.
pub fn write_file(path: &Path, text: &str, mode: u32) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&unfinished);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn two_processes_cannot_use_one_folder() {
        let root = tempfile::tempdir().unwrap();
        let first = DataDir::open(&root.path().join("data")).unwrap();

        let error = DataDir::open(&root.path().join("data")).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");

        drop(first);
        assert!(DataDir::open(&root.path().join("data")).is_ok());
    }

    #[test]
    fn a_secret_is_made_once_and_is_private() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("api-key");

        let made = secret_file(&path, || "first".into()).unwrap();
        let read = secret_file(&path, || "second".into()).unwrap();

        assert_eq!((made.expose_secret(), read.expose_secret()), ("first", "first"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}
