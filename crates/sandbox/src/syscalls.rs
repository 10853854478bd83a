//! Which system calls there are: those that computing, reading files and threads need. All others fail with "not
//! permitted": sockets, processes, signals, mounts, other processes' memory, raising limits, …

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};

use crate::Error;

/// Allowed whatever their arguments.
const ALLOWED: &[libc::c_long] = &[
    // Descriptors that are there, and files that may be opened.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_openat,
    libc::SYS_getcwd,
    libc::SYS_fadvise64,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads of this process, and its own signal handlers.
    libc::SYS_futex,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Time and randomness.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    libc::SYS_getrandom,
    // Who it is.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    // Becoming the interpreter; Landlock allows no other program, and the cage stays.
    libc::SYS_execve,
    // Answered by the other filter.
    libc::SYS_clone3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
];

/// Commands of `fcntl`: duplicates and flags, no signals, locks or leases.
const FCNTL: [libc::c_int; 6] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
];

pub(crate) fn confine() -> Result<(), Error> {
    let unusable = |error: &dyn std::fmt::Display| Error::SystemCalls(error.to_string());
    for filter in filters().map_err(|error| unusable(&error))? {
        apply_filter(&filter).map_err(|error| unusable(&error))?;
    }
    Ok(())
}

/// The stricter of two filters wins.
fn filters() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let not_permitted = SeccompAction::Errno(libc::EPERM as u32);
    let not_there = SeccompAction::Errno(libc::ENOSYS as u32);
    // Its flags lie in memory, where no filter sees them. "Not there" makes the C library use `clone`.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let arch = std::env::consts::ARCH.try_into()?;
    // The large one last: it allows no further filters.
    Ok([
        SeccompFilter::new(clone3, SeccompAction::Allow, not_there, arch)?.try_into()?,
        SeccompFilter::new(allowed()?, not_permitted, SeccompAction::Allow, arch)?.try_into()?,
    ])
}

fn allowed() -> Result<BTreeMap<libc::c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let when = |argument, length, op, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, length, op, value)?])
    };
    let thread = libc::CLONE_THREAD as u64;
    let mut allowed: BTreeMap<_, _> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Threads, no processes.
    allowed.insert(libc::SYS_clone, vec![when(0, Length::Qword, Op::MaskedEq(thread), thread)?]);
    // Reading limits, not setting them.
    allowed.insert(libc::SYS_prlimit64, vec![when(2, Length::Qword, Op::Eq, 0)?]);
    // Whether a descriptor is a terminal, and closing it when a program starts.
    let requests = [libc::TCGETS, libc::FIOCLEX];
    let requests = requests.map(|request| when(1, Length::Dword, Op::Eq, request));
    allowed.insert(libc::SYS_ioctl, requests.into_iter().collect::<Result<_, _>>()?);
    let commands = FCNTL.map(|command| when(1, Length::Dword, Op::Eq, command as u64));
    allowed.insert(libc::SYS_fcntl, commands.into_iter().collect::<Result<_, _>>()?);
    Ok(allowed)
}
