//! Where things lie: the checkout, the folder of fetched dependencies, libtorch, build outputs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::json::Json;

/// Which build of the binaries is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

/// The checkout.
#[derive(Debug)]
pub struct Workspace {
    pub root: PathBuf,
}

impl Workspace {
    pub fn find() -> Result<Self> {
        // Cargo sets the variable at run time too; the compiled-in value serves a binary started by hand.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.ancestors().nth(2).ok_or("xtask must run inside the checkout")?;
        if !root.join("crates/xtask").is_dir() {
            return Err(format!("{} is not a checkout of finetuned", root.display()).into());
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Everything that set-up fetches; ignored by git, safe to delete.
    pub fn deps(&self) -> PathBuf {
        self.root.join(".deps")
    }

    /// Unfinished work of set-up. On the same file system as its final place, so that a rename suffices.
    pub fn scratch(&self) -> PathBuf {
        self.deps().join("tmp")
    }

    pub fn models(&self) -> PathBuf {
        self.deps().join("models")
    }

    pub fn requirements(&self, name: &str) -> PathBuf {
        self.root.join("crates/xtask/requirements").join(format!("{name}.txt"))
    }

    /// Where set-up puts libtorch. `.cargo/config.toml` names the same place.
    pub fn own_libtorch(&self) -> PathBuf {
        self.deps().join("torch")
    }

    /// A libtorch that the user chose, which wins over ours. Cargo sets `LIBTORCH` to our own place when
    /// the user has not.
    pub fn foreign_libtorch(&self) -> Option<PathBuf> {
        let chosen = PathBuf::from(std::env::var_os("LIBTORCH")?);
        let same = chosen == self.own_libtorch()
            || matches!((chosen.canonicalize(), self.own_libtorch().canonicalize()),
                (Ok(a), Ok(b)) if a == b);
        (!same).then_some(chosen)
    }

    pub fn libtorch(&self) -> PathBuf {
        self.foreign_libtorch().unwrap_or_else(|| self.own_libtorch())
    }

    /// `cargo`, told where libtorch is, with the libraries found when tests start.
    pub fn cargo(&self) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(&self.root);
        self.with_libtorch(&mut command);
        command
    }

    /// A program of ours that was built before.
    pub fn program(&self, profile: Profile, name: &str) -> Result<Command> {
        let path = self.binaries(profile)?.join(name);
        if !path.is_file() {
            return Err(format!("{} is not built", path.display()).into());
        }
        let mut command = Command::new(path);
        command.current_dir(&self.root);
        self.with_libtorch(&mut command);
        Ok(command)
    }

    /// The Python interpreter with one of the folders of packages that set-up made.
    pub fn python(&self, packages: &str) -> Command {
        let mut command = Command::new(python());
        command
            .current_dir(&self.root)
            .env("PYTHONPATH", self.deps().join(packages))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1");
        command
    }

    /// The folder of the built programs.
    pub fn binaries(&self, profile: Profile) -> Result<PathBuf> {
        let folder = match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        let target = self
            .metadata()?
            .get("target_directory")
            .and_then(Json::as_str)
            .ok_or("cargo metadata names no target directory")?
            .to_owned();
        Ok(Path::new(&target).join(folder))
    }

    /// What Cargo knows about our own crates.
    pub fn metadata(&self) -> Result<Json> {
        let arguments = ["metadata", "--no-deps", "--offline", "--format-version=1"];
        let output = self.cargo().args(arguments).output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("cargo metadata failed: {}", text.trim()).into());
        }
        Json::parse(&String::from_utf8(output.stdout)?)
    }

    fn with_libtorch(&self, command: &mut Command) {
        let lib = self.libtorch().join("lib");
        let mut path = OsString::from(lib);
        if let Some(inherited) = std::env::var_os("LD_LIBRARY_PATH").filter(|p| !p.is_empty()) {
            path.push(":");
            path.push(inherited);
        }
        command.env("LIBTORCH", self.libtorch()).env("LD_LIBRARY_PATH", path);
    }
}

/// The Python interpreter; `PYTHON` chooses another one.
pub fn python() -> OsString {
    std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into())
}
