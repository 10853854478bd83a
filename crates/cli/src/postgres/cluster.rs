//! One cluster on disk: created once, then only started.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::Options;
use super::account::Account;
use super::binaries::Binaries;
use super::location;

/// Past this size the server's log is set aside at the next start; one old log is kept.
const LOG_BYTES: u64 = 16 << 20;

/// Everything that a start of the server needs.
#[derive(Debug)]
pub struct Cluster {
    pub dir: PathBuf,
    pub log: PathBuf,
    socket_dir: PathBuf,
    binaries: Binaries,
    account: Account,
    settings: Vec<String>,
}

impl Cluster {
    /// Finds or creates the cluster of a data folder.
    pub fn prepare(options: &Options) -> Result<Self> {
        let data_dir = fs::canonicalize(&options.data_dir)
            .with_context(|| format!("cannot open {}", options.data_dir.display()))?;
        let existing = location::existing(&data_dir);
        let account = Account::choose(existing.as_deref())?;
        let major = existing.as_deref().map(cluster_major).transpose()?;
        let binaries = reachable(Binaries::find(options.bin.as_deref(), major)?, &account)?;
        let dir = match existing {
            Some(dir) => dir,
            None => location::choose(&data_dir, &account)?,
        };
        if let Some(barrier) = account.barrier(dir.parent().unwrap_or(&dir)) {
            bail!(
                "user {} runs Postgres and can no longer enter {}: give it back the right to (chmod \
                 a+x), or set database.url",
                account.name,
                barrier.display()
            );
        }
        let mut cluster = Self {
            socket_dir: location::socket_dir(&data_dir, &dir, &account)?,
            dir,
            log: data_dir.join("postgres.log"),
            binaries,
            account,
            settings: options.settings.clone(),
        };
        if major.is_none() {
            cluster.initialise()?;
        }
        cluster.dir = fs::canonicalize(&cluster.dir)?;
        set_large_log_aside(&cluster.log)?;
        Ok(cluster)
    }

    pub fn url(&self) -> String {
        url(&self.socket_dir)
    }

    /// `initdb` works in a folder of its own that is renamed when complete, so that an interrupted first
    /// start leaves nothing that looks like a cluster.
    fn initialise(&self) -> Result<()> {
        let unfinished = location::sibling(&self.dir, "unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)
                .with_context(|| format!("cannot remove {}", unfinished.display()))?;
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&unfinished)
            .with_context(|| format!("cannot create {}", unfinished.display()))?;
        self.account.own(&unfinished)?;
        let mut initdb: Vec<OsString> =
            ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "-D"]
                .map(OsString::from)
                .to_vec();
        initdb.push(unfinished.clone().into());
        let output = self
            .command(&self.binaries.initdb(), &initdb)?
            .stdin(Stdio::null())
            .output()
            .context("cannot start initdb")?;
        if !output.status.success() {
            bail!(
                "initdb could not create a database in {}: {}",
                unfinished.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        fs::rename(&unfinished, &self.dir)
            .with_context(|| format!("cannot rename {}", unfinished.display()))?;
        if let Some(parent) = self.dir.parent() {
            fs::File::open(parent)?.sync_all()?;
        }
        tracing::info!(
            version = self.binaries.major,
            "created a database in {}",
            self.dir.display()
        );
        Ok(())
    }

    /// Starts the server. It is not ready yet when this returns. Must be called by a thread that lives as
    /// long as the server should.
    pub fn spawn(&self) -> Result<Child> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log)
            .with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut arguments: Vec<OsString> = vec!["-D".into(), self.dir.clone().into(), "-k".into()];
        arguments.push(self.socket_dir.clone().into());
        // The port only names the socket; fixed here because PGPORT would otherwise have a say.
        let fixed = ["listen_addresses=", "port=5432", "logging_collector=off", "fsync=on"];
        for setting in fixed.into_iter().chain(self.settings.iter().map(String::as_str)) {
            arguments.extend(["-c".into(), setting.into()]);
        }
        self.command(&self.binaries.postgres(), &arguments)?
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binaries.postgres().display()))
    }

    /// The program behind our own hidden `run-guarded` step, which drops root and ties the program's
    /// life to this thread. That cannot be done from here without unsafe code between fork and exec.
    fn command(&self, program: &Path, arguments: &[OsString]) -> Result<Command> {
        // The link, not its target: it works although the file was replaced by a newer build.
        let mut command = Command::new("/proc/self/exe");
        command.arg("run-guarded").arg(format!("--parent={}", std::process::id()));
        if self.account.is_switched {
            command.arg(format!("--uid={}", self.account.uid));
            command.arg(format!("--gid={}", self.account.gid));
        }
        command.arg("--").arg(program).args(arguments);
        // A clean environment: PG* variables and a foreign LD_LIBRARY_PATH must not reach the server.
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/local/bin:/usr/bin:/bin");
        if let Some(zone) = std::env::var_os("TZ") {
            command.env("TZ", zone);
        }
        // Its own process group: Ctrl-C in a terminal is for us to pass on, after the drain.
        command.current_dir("/").process_group(0);
        Ok(command)
    }
}

/// The URL of a server that listens in `socket_dir`.
pub fn url(socket_dir: &Path) -> String {
    format!("postgres://postgres@localhost:5432/postgres?host={}", percent_encoded(socket_dir))
}

/// A path as part of a URL.
pub fn percent_encoded(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;

    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                text.push(byte as char);
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn cluster_major(dir: &Path) -> Result<u32> {
    let path = dir.join("PG_VERSION");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no version", path.display()))
}

/// The same programs where `account` can start them: a package that lies in a closed folder is copied.
fn reachable(binaries: Binaries, account: &Account) -> Result<Binaries> {
    let real = fs::canonicalize(binaries.postgres())?;
    let Some(barrier) = account.barrier(real.parent().unwrap_or(&real)) else {
        return Ok(binaries);
    };
    let Some(package) = binaries.package() else {
        bail!(
            "user {} runs Postgres and cannot enter {}, where its programs are: open that folder \
             (chmod a+x), name another in up.postgres_bin, or set database.url",
            account.name,
            barrier.display()
        );
    };
    // Another package in the same place gets a copy of its own.
    let version = fs::metadata(&real)?;
    let key = package.join(format!("{}-{}", version.mtime(), version.len()));
    let copy = location::fallback_dir("postgres-programs", &key, account)?;
    if !copy.join("bin/postgres").exists() {
        tracing::info!("copying the Postgres programs to {}", copy.display());
        let unfinished = copy.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        copy_tree(package, &unfinished)
            .with_context(|| format!("cannot copy {}", package.display()))?;
        fs::rename(&unfinished, &copy)?;
    }
    Ok(Binaries { dir: copy.join("bin"), major: binaries.major })
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn set_large_log_aside(log: &Path) -> Result<()> {
    if fs::metadata(log).is_ok_and(|file| file.len() > LOG_BYTES) {
        fs::rename(log, log.with_extension("log.old"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_carry_any_folder_name() {
        assert_eq!(
            url(Path::new("/my data/ü&x")),
            "postgres://postgres@localhost:5432/postgres?host=/my%20data/%C3%BC%26x"
        );
    }
}
