//! What the process may take: memory, processor time, descriptors. It cannot raise a limit again.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Open descriptors; imports open a few at once.
const DESCRIPTORS: u64 = 64;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of address space.
    pub memory: u64,
    /// Seconds of processor time, of all threads together.
    pub processor_seconds: u64,
}

pub(crate) fn apply(limits: &Limits, parent: u32) -> Result<(), Error> {
    set_pdeathsig(Signal::SIGKILL)?;
    if u32::try_from(getppid().as_raw()) != Ok(parent) {
        return Err(Error::Orphan);
    }
    let both = |resource, limit| setrlimit(resource, limit, limit);
    both(Resource::RLIMIT_AS, limits.memory)?;
    both(Resource::RLIMIT_CORE, 0)?;
    // Nothing can be opened for writing; should something be, it stays empty.
    both(Resource::RLIMIT_FSIZE, 0)?;
    both(Resource::RLIMIT_NOFILE, DESCRIPTORS)?;
    both(Resource::RLIMIT_MEMLOCK, 0)?;
    let seconds = limits.processor_seconds.max(1);
    setrlimit(Resource::RLIMIT_CPU, seconds, seconds + 1)?;
    Ok(())
}
