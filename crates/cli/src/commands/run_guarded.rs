//! The hidden step between fork and exec: drop root, ask the kernel to be interrupted when the parent
//! ends, become the program. Done in a program of its own because doing it in a forked child is `unsafe`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getppid, setgid, setgroups, setuid};

use crate::arguments::RunGuarded;

/// Returns only with an error.
pub fn run(arguments: &RunGuarded) -> Result<std::convert::Infallible> {
    if let Some(gid) = arguments.gid {
        setgroups(&[]).context("cannot drop the supplementary groups")?;
        setgid(Gid::from_raw(gid)).with_context(|| format!("cannot change to group {gid}"))?;
    }
    if let Some(uid) = arguments.uid {
        setuid(Uid::from_raw(uid)).with_context(|| format!("cannot change to user {uid}"))?;
    }
    // After the change of user, which clears it.
    set_pdeathsig(Signal::SIGINT).context("cannot tie the program to its parent")?;
    if getppid().as_raw() != arguments.parent {
        bail!("the parent has ended already");
    }
    let (program, rest) = arguments.program.split_first().context("no program given")?;
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
