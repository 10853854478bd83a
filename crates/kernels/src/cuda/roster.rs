//! Which kernels must not run, and which did: a self-check switches off what it finds wrong, and asks what a call
//! launched. A kernel that is off is replaced by the plain-tch reference, so that a fault costs speed alone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Stands for every kernel.
pub const ALL: &str = "all";

static OFF: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static ANY_OFF: AtomicBool = AtomicBool::new(false);
static LAUNCHED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static RECORDING: AtomicBool = AtomicBool::new(false);
/// One record at a time.
static TURN: Mutex<()> = Mutex::new(());

fn names(of: &Mutex<BTreeSet<String>>) -> MutexGuard<'_, BTreeSet<String>> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on the kernel of this name is not launched; [`ALL`] means every one.
pub fn switch_off(kernel: &str) {
    names(&OFF).insert(kernel.to_owned());
    ANY_OFF.store(true, Ordering::Release);
}

/// What was switched off, by name.
pub fn switched_off() -> Vec<String> {
    names(&OFF).iter().cloned().collect()
}

pub(super) fn is_off(kernel: &str) -> bool {
    // Nearly always nothing is off, and this is asked before every launch.
    ANY_OFF.load(Ordering::Acquire) && {
        let off = names(&OFF);
        off.contains(kernel) || off.contains(ALL)
    }
}

/// What the work gives, and the names of the kernels that it launched.
pub(crate) fn launched_by<R>(work: impl FnOnce() -> R) -> (R, Vec<String>) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    names(&LAUNCHED).clear();
    RECORDING.store(true, Ordering::Release);
    let result = work();
    RECORDING.store(false, Ordering::Release);
    (result, names(&LAUNCHED).iter().cloned().collect())
}

pub(super) fn note(kernel: &str) {
    if RECORDING.load(Ordering::Acquire) {
        names(&LAUNCHED).insert(kernel.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_off_once_it_was_switched_off() {
        assert!(!is_off("made_up"));
        switch_off("made_up");
        assert!(is_off("made_up") && !is_off("another"));
        assert!(switched_off().contains(&"made_up".to_owned()));
    }

    #[test]
    fn what_was_launched_is_known_afterwards() {
        note("before");
        let (seven, kernels) = launched_by(|| {
            note("one");
            note("one");
            7
        });
        note("after");
        assert_eq!((seven, kernels), (7, vec!["one".to_owned()]));
    }
}
