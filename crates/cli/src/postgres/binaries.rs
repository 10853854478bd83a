//! Where the programs `postgres` and `initdb` are.
//!
//! Order: the folder that the configuration names, `PATH`, the distribution's versioned folders (newest
//! first), and the package that set-up unpacks into `.deps/postgres` of the working directory.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The oldest major version that the schema is written for.
pub const OLDEST_MAJOR: u32 = 15;
const DISTRIBUTION: &str = "/usr/lib/postgresql";
const PACKAGE: &str = ".deps/postgres/bin";

/// A usable set of server programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    pub dir: PathBuf,
    pub major: u32,
}

impl Binaries {
    pub fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    pub fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }

    /// The folder that holds everything, when these are the package that set-up has unpacked.
    pub fn package(&self) -> Option<&Path> {
        if self.dir.ends_with(PACKAGE) { self.dir.parent() } else { None }
    }

    /// The programs in `dir`, or why they cannot be used.
    fn look(dir: &Path) -> Result<Self, String> {
        for program in ["postgres", "initdb"] {
            let path = dir.join(program);
            match fs::metadata(&path) {
                Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => {}
                Ok(_) => return Err(format!("{} is not executable", path.display())),
                Err(_) => return Err(format!("{} has no {program}", dir.display())),
            }
        }
        let postgres = dir.join("postgres");
        let output = Command::new(&postgres)
            .arg("--version")
            .output()
            .map_err(|error| format!("{} does not start: {error}", postgres.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(major) = major_version(&text) else {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{} does not start: {}", postgres.display(), complaint.trim()));
        };
        if major < OLDEST_MAJOR {
            return Err(format!(
                "{} is version {major}, and {OLDEST_MAJOR} is the oldest that works",
                postgres.display()
            ));
        }
        Ok(Self { dir: dir.to_path_buf(), major })
    }

    /// Every usable set, best first, and what was wrong with the other candidates.
    pub fn all(configured: Option<&Path>) -> (Vec<Self>, Vec<String>) {
        let mut found = Vec::new();
        let mut rejected = Vec::new();
        for dir in candidates(configured) {
            match Self::look(&dir) {
                Ok(binaries) => found.push(binaries),
                Err(reason) => rejected.push(reason),
            }
        }
        (found, rejected)
    }

    /// The best usable set; with `major`, the best of exactly that version (a cluster is bound to one).
    pub fn find(configured: Option<&Path>, major: Option<u32>) -> Result<Self> {
        let (found, rejected) = Self::all(configured);
        if found.is_empty() {
            let reasons = if rejected.is_empty() {
                format!("nothing on PATH, below {DISTRIBUTION} or in {PACKAGE}")
            } else {
                rejected.join("; ")
            };
            bail!(
                "no Postgres of version {OLDEST_MAJOR} or newer was found ({reasons}): run `cargo \
                 xtask setup` in a checkout, install your distribution's `postgresql`, name a folder \
                 in up.postgres_bin, or set database.url"
            );
        }
        let versions: BTreeSet<u32> = found.iter().map(|binaries| binaries.major).collect();
        match found.into_iter().find(|binaries| major.is_none_or(|wanted| binaries.major == wanted))
        {
            Some(binaries) => Ok(binaries),
            None => {
                let wanted = major.unwrap_or_default();
                let versions: Vec<String> = versions.iter().map(u32::to_string).collect();
                bail!(
                    "the data folder holds a database of Postgres {wanted}, but the programs found \
                     are of version {}: install Postgres {wanted}, name its folder in \
                     up.postgres_bin, or move the data with pg_dumpall",
                    versions.join(", ")
                )
            }
        }
    }
}

fn candidates(configured: Option<&Path>) -> Vec<PathBuf> {
    if let Some(dir) = configured {
        return vec![std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf())];
    }
    let mut dirs: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    dirs.retain(|dir| dir.is_absolute() && dir.join("postgres").exists());
    dirs.extend(distribution_folders(Path::new(DISTRIBUTION)));
    if let Ok(package) = std::path::absolute(PACKAGE)
        && package.exists()
    {
        dirs.push(package);
    }
    dirs
}

/// `<root>/<major>/bin`, newest first.
fn distribution_folders(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let mut majors: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&major| major >= OLDEST_MAJOR)
        .collect();
    majors.sort_unstable_by(|a, b| b.cmp(a));
    majors.into_iter().map(|major| root.join(major.to_string()).join("bin")).collect()
}

/// `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` → 15; also of `17beta1`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_postgres_prints() {
        for (text, major) in [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("cannot open shared object file", None),
        ] {
            assert_eq!(major_version(text), major, "{text}");
        }
    }

    #[test]
    fn distribution_folders_come_newest_first_and_not_too_old() {
        let root = tempfile::tempdir().unwrap();
        for name in ["9.6", "14", "15", "17", "readme"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let dirs = distribution_folders(root.path());
        assert_eq!(dirs, [root.path().join("17/bin"), root.path().join("15/bin")]);
    }

    #[test]
    fn a_folder_without_programs_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = Binaries::find(Some(dir.path()), None).unwrap_err().to_string();
        assert!(error.contains(&format!("{} has no postgres", dir.path().display())), "{error}");
    }
}
