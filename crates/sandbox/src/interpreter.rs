//! Which Python it is, and what it has to read to start. Asked of itself, outside of the cage: the program is the
//! operator's choice, nothing of a user runs here.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::Error;

const PROBE: &str = "
import json, os, sys, sysconfig
paths = [sysconfig.get_path('stdlib'), sysconfig.get_path('platstdlib'), sysconfig.get_config_var('LIBDIR')]
paths += sys.path + [os.path.join(sys.prefix, 'pyvenv.cfg')]
readable = sorted({os.path.realpath(path) for path in paths if path and os.path.exists(path)})
version = '.'.join(map(str, sys.version_info[:3]))
print(json.dumps({'executable': sys.executable, 'version': version, 'readable': readable}))
";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    pub executable: PathBuf,
    pub version: String,
    /// Its library, its packages.
    pub readable: Vec<PathBuf>,
}

impl Interpreter {
    /// Asks `program`, a path or a name on the PATH.
    ///
    /// # Errors
    /// When it cannot be started, or is no Python 3.
    pub fn find(program: &str) -> Result<Self, Error> {
        let missing = |why: &dyn std::fmt::Display| {
            Error::NoInterpreter(format!("`{program}` {why} (graders.python names the program)"))
        };
        let output = Command::new(program)
            .args(["-I", "-B", "-X", "utf8", "-c", PROBE])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| missing(&format!("cannot be started: {error}")))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            let last = words.lines().last().unwrap_or("it says nothing").to_owned();
            return Err(missing(&format!("fails: {last}")));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| missing(&format!("does not answer as Python 3 does: {error}")))
    }
}
