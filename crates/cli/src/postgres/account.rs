//! The account that runs the server: Postgres refuses to run as root, so root steps down.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Gid, Uid, User, getegid, geteuid};

/// The user and group that own the cluster and run the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub uid: Uid,
    pub gid: Gid,
    pub name: String,
    /// True when the server's processes must change to this account first.
    pub is_switched: bool,
}

impl Account {
    /// The present user; for root the first of `postgres` and `nobody` that exists. A cluster that is
    /// already there decides by its owner, because Postgres opens no other account's files.
    pub fn choose(cluster: Option<&Path>) -> Result<Self> {
        let owner = match cluster {
            Some(dir) => {
                let metadata = fs::metadata(dir)
                    .with_context(|| format!("cannot look at {}", dir.display()))?;
                Some((Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid())))
            }
            None => None,
        };
        if !geteuid().is_root() {
            return Self::present_user(owner.map(|(uid, _)| uid), cluster);
        }
        match owner {
            Some((uid, gid)) if !uid.is_root() => {
                let name = User::from_uid(uid).ok().flatten().map_or(uid.to_string(), |u| u.name);
                Ok(Self { uid, gid, name, is_switched: true })
            }
            _ => Self::unprivileged(),
        }
    }

    fn present_user(owner: Option<Uid>, cluster: Option<&Path>) -> Result<Self> {
        let uid = geteuid();
        if let (Some(owner), Some(dir)) = (owner, cluster)
            && owner != uid
        {
            bail!(
                "the database in {} belongs to user {owner}, and this is user {uid}: start as that \
                 user or as root, or choose another --data-dir",
                dir.display()
            );
        }
        let name = User::from_uid(uid).ok().flatten().map_or(uid.to_string(), |user| user.name);
        Ok(Self { uid, gid: getegid(), name, is_switched: false })
    }

    fn unprivileged() -> Result<Self> {
        for name in ["postgres", "nobody"] {
            if let Some(user) =
                User::from_name(name).context("cannot read the password database")?
                && !user.uid.is_root()
            {
                let User { uid, gid, name, .. } = user;
                return Ok(Self { uid, gid, name, is_switched: true });
            }
        }
        bail!(
            "Postgres does not run as root, and neither a user 'postgres' nor 'nobody' exists: create \
             one (useradd --system postgres), start as an ordinary user, or set database.url"
        )
    }

    /// The first folder on the way to `path` (itself included) that this account cannot enter. Parts
    /// that do not exist yet count as enterable: whoever creates them gives them the right owner.
    pub fn barrier(&self, path: &Path) -> Option<PathBuf> {
        let mut ancestors: Vec<&Path> = path.ancestors().collect();
        ancestors.reverse();
        ancestors
            .into_iter()
            .find(|dir| fs::metadata(dir).is_ok_and(|m| m.is_dir() && !self.may_search(&m)))
            .map(Path::to_path_buf)
    }

    fn may_search(&self, metadata: &fs::Metadata) -> bool {
        let mode = metadata.mode();
        if self.uid.is_root() {
            true
        } else if metadata.uid() == self.uid.as_raw() {
            mode & 0o100 != 0
        } else if metadata.gid() == self.gid.as_raw() {
            mode & 0o010 != 0
        } else {
            mode & 0o001 != 0
        }
    }

    /// Gives a file or folder to this account; nothing to do when it is the present user's.
    pub fn own(&self, path: &Path) -> Result<()> {
        if !self.is_switched {
            return Ok(());
        }
        std::os::unix::fs::chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
            .with_context(|| format!("cannot give {} to user {}", path.display(), self.name))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn stranger() -> Account {
        // Nobody's real ids, so that ownership never helps.
        Account {
            uid: Uid::from_raw(3_000_000),
            gid: Gid::from_raw(3_000_000),
            name: "stranger".into(),
            is_switched: true,
        }
    }

    #[test]
    fn a_closed_parent_is_named_as_the_barrier() {
        let open = tempfile::tempdir().unwrap();
        fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let closed = open.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();

        let account = stranger();

        assert_eq!(account.barrier(&open.path().join("not-yet-there")), None);
        assert_eq!(account.barrier(&closed.join("below")), Some(closed));
    }
}
