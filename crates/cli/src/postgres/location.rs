//! Where the cluster and its socket lie: in the data folder, unless the server's account cannot enter it
//! or its path is too long for a socket.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::account::Account;

/// In the data folder: the path of a cluster that had to be placed elsewhere.
pub const RECORD: &str = "postgres-location";
/// Where root's clusters go when the data folder is closed to the server's account.
const FALLBACK: &str = "/var/lib/finetuned";
/// The longest path of a unix socket is 107 bytes, and the server appends `/.s.PGSQL.5432`.
const LONGEST_SOCKET_DIR: usize = 107 - "/.s.PGSQL.5432".len();

/// The cluster of this data folder, if one has been created.
pub fn existing(data_dir: &Path) -> Option<PathBuf> {
    let dir = recorded(data_dir).unwrap_or_else(|| data_dir.join("postgres"));
    dir.join("PG_VERSION").exists().then(|| fs::canonicalize(&dir).unwrap_or(dir))
}

fn recorded(data_dir: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(data_dir.join(RECORD)).ok()?;
    Some(PathBuf::from(text.trim_end()))
}

/// The folder for a new cluster, created for `account` and still without its last part.
pub fn choose(data_dir: &Path, account: &Account) -> Result<PathBuf> {
    let Some(barrier) = account.barrier(data_dir) else {
        return Ok(data_dir.join("postgres"));
    };
    let elsewhere = fallback_dir("postgres", data_dir, account).with_context(|| {
        format!(
            "user {} runs Postgres and cannot enter {}; choose a --data-dir below a folder that every \
             user can enter, or set database.url",
            account.name,
            barrier.display()
        )
    })?;
    let elsewhere = unused(elsewhere);
    tracing::warn!(
        "user {} cannot enter {}: the database is placed in {} instead",
        account.name,
        barrier.display(),
        elsewhere.display()
    );
    fs::write(data_dir.join(RECORD), format!("{}\n", elsewhere.display()))
        .with_context(|| format!("cannot write {}", data_dir.join(RECORD).display()))?;
    Ok(elsewhere)
}

/// `dir`, or its name with a number. A database may lie there whose data folder was deleted: its files
/// are gone, so it is neither used nor thrown away unasked.
fn unused(dir: PathBuf) -> PathBuf {
    if !dir.exists() {
        return dir;
    }
    tracing::warn!("{} holds a database that no data folder refers to any more", dir.display());
    let mut numbered = (2..).map(|number: u32| sibling(&dir, &number.to_string()));
    numbered.find(|dir| !dir.exists()).unwrap_or_else(|| dir.clone())
}

/// A folder outside the data folder, the same one for the same `of`, that `account` can reach.
pub fn fallback_dir(purpose: &str, of: &Path, account: &Account) -> Result<PathBuf> {
    let root = Path::new(FALLBACK);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(root)
        .with_context(|| format!("cannot create {}", root.display()))?;
    if let Some(barrier) = account.barrier(root) {
        bail!("user {} cannot enter {}", account.name, barrier.display());
    }
    Ok(root.join(format!("{purpose}-{:016x}", hash(of))))
}

/// `<cluster>-<purpose>`: several clusters may lie side by side.
pub fn sibling(cluster: &Path, purpose: &str) -> PathBuf {
    let name = cluster.file_name().unwrap_or_default().to_string_lossy();
    cluster.with_file_name(format!("{name}-{purpose}"))
}

/// A private folder for the socket, short enough, created and checked.
pub fn socket_dir(data_dir: &Path, cluster: &Path, account: &Account) -> Result<PathBuf> {
    let beside = sibling(cluster, "socket");
    if beside.as_os_str().len() <= LONGEST_SOCKET_DIR {
        private_dir(&beside, account)?;
        return Ok(beside);
    }
    let mut roots = vec![PathBuf::from("/tmp")];
    // Root's own runtime folder is closed to the account that root steps down to.
    if !account.is_switched
        && let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR")
    {
        roots.insert(0, PathBuf::from(runtime));
    }
    let mut last = None;
    for root in roots.iter().filter(|root| root.is_absolute()) {
        let dir = root.join(format!("finetuned-{}-{:016x}", account.uid, hash(data_dir)));
        if dir.as_os_str().len() > LONGEST_SOCKET_DIR {
            continue;
        }
        match private_dir(&dir, account) {
            Ok(()) => return Ok(dir),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no folder is short enough")))
        .context("no place for the database's socket; choose a shorter --data-dir")
}

/// Creates `dir` for `account` alone. One that is there must be just that: in a folder that everybody
/// may write to, somebody else could have made it first.
fn private_dir(dir: &Path, account: &Account) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return account.own(dir),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot create {}", dir.display()));
        }
    }
    let found = fs::symlink_metadata(dir)?;
    if !found.is_dir() || found.mode() & 0o077 != 0 || found.uid() != account.uid.as_raw() {
        bail!("{} exists and is not a private folder of user {}", dir.display(), account.name);
    }
    Ok(())
}

fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn me() -> Account {
        Account { is_switched: false, ..Account::choose(None).unwrap() }
    }

    fn owner_of(dir: &Path) -> Account {
        use nix::unistd::Uid;
        Account { uid: Uid::from_raw(fs::metadata(dir).unwrap().uid()), ..me() }
    }

    #[test]
    fn a_long_data_folder_gets_a_short_socket_folder() {
        let root = tempfile::tempdir().unwrap();
        let account = owner_of(root.path());
        let cluster = root.path().join("d".repeat(90)).join("postgres");

        let dir = socket_dir(root.path(), &cluster, &account).unwrap();

        assert!(dir.as_os_str().len() <= LONGEST_SOCKET_DIR, "{}", dir.display());
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        fs::remove_dir(dir).unwrap();
    }

    #[test]
    fn a_database_without_its_data_folder_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let first = root.path().join("postgres-1");
        assert_eq!(unused(first.clone()), first);
        fs::create_dir(&first).unwrap();
        assert_eq!(unused(first), root.path().join("postgres-1-2"));
    }

    #[test]
    fn an_open_folder_is_never_taken_for_the_socket() {
        let root = tempfile::tempdir().unwrap();
        let account = owner_of(root.path());
        let open = root.path().join("postgres-socket");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();

        let error = socket_dir(root.path(), &root.path().join("postgres"), &account).unwrap_err();

        assert!(error.to_string().contains("is not a private folder"), "{error}");
    }
}
