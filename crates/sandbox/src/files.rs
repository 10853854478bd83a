//! Which files can be opened: the interpreter, its libraries, the system's libraries, `/dev/null`. None for writing.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope, path_beneath_rules,
};

use crate::{Error, Interpreter};

/// Where shared libraries lie, and the list of them.
const LIBRARIES: [&str; 6] =
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"];
/// The programs that load programs.
const LOADERS: [&str; 4] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];

pub(crate) fn confine(interpreter: &Interpreter) -> Result<(), Error> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let executable: &Path = &interpreter.executable;
    let run = [executable].into_iter().chain(LOADERS.iter().map(Path::new));
    let ruleset = || -> Result<_, landlock::RulesetError> {
        let ruleset = Ruleset::default()
            // Without this one there is no cage.
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))?
            // What newer kernels lock besides: renaming, truncating, device calls; ports; signals and abstract
            // sockets. System calls lock these too.
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .handle_access(AccessNet::from_all(ABI::V5))?
            .scope(Scope::from_all(ABI::V6))?;
        ruleset
            .create()?
            .add_rules(path_beneath_rules(run, AccessFs::Execute | AccessFs::ReadFile))?
            .add_rules(path_beneath_rules(&interpreter.readable, read))?
            .add_rules(path_beneath_rules(LIBRARIES, read))?
            .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?
            .restrict_self()
    };
    let status = ruleset().map_err(|error| Error::Files(error.to_string()))?;
    if status.ruleset == RulesetStatus::NotEnforced || !status.no_new_privs {
        return Err(Error::Files("it is switched off".to_owned()));
    }
    Ok(())
}
