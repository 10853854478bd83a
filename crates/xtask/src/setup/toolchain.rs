//! What must be on the machine already: a C++17 compiler, and Python 3 with pip.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{is_stamped, stamp};
use crate::Result;
use crate::run;
use crate::workspace::{Workspace, python};

/// The first line of the compiler's version. torch-sys calls `c++`, or what `CXX` names.
pub fn compiler() -> Option<String> {
    let version = run::answer(compiler_name(), &["--version"])?;
    version.lines().next().map(str::to_owned)
}

/// `3.11`, for instance. Packages with machine code belong to one such version.
pub fn python_version() -> Option<String> {
    run::answer(python(), &["-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
}

pub fn check(workspace: &Workspace) -> Result {
    let python_version = python_version()
        .ok_or("Python 3 is missing: apt-get install -y python3 python3-pip (or set PYTHON)")?;
    let compiler = compiler().ok_or("a C++ compiler is missing: apt-get install -y g++")?;
    let found = format!("python {python_version}\n{compiler}\n");
    if is_stamped(workspace, "toolchain", &found) {
        return Ok(());
    }
    let minor = python_version.strip_prefix("3.").and_then(|minor| minor.parse().ok());
    if minor.is_none_or(|minor: u32| minor < 10) {
        return Err(
            format!("Python 3.10 or newer is needed, found {python_version}: set PYTHON").into()
        );
    }
    if run::answer(python(), &["-m", "pip", "--version"]).is_none() {
        return Err("pip is missing: apt-get install -y python3-pip".into());
    }
    if !compiles_cpp17() {
        return Err(format!("{compiler} does not compile C++17: apt-get install -y g++").into());
    }
    stamp(workspace, "toolchain", &found)
}

fn compiles_cpp17() -> bool {
    let source = "#include <optional>\nint main() { if (std::optional<int> x; !x) return 0; }\n";
    let child = Command::new(compiler_name())
        .args(["-std=c++17", "-fsyntax-only", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    if let Some(mut input) = child.stdin.take() {
        // A compiler that does not read its input fails below.
        let _ = input.write_all(source.as_bytes());
    }
    child.wait().is_ok_and(|status| status.success())
}

fn compiler_name() -> std::ffi::OsString {
    std::env::var_os("CXX").unwrap_or_else(|| "c++".into())
}
