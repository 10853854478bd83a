//! From "something went wrong inside a turn" to the failure that its owner is told.
//!
//! libtorch's errors arrive as panics with the error's text, so their kind is read from that text,
//! once, here. This module decides nothing about retrying with less memory: `train` does.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use domain::report::RunFailure;

/// A turn that panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Host or device memory ran out; the process is sound.
    OutOfMemory(String),
    /// The device is gone or poisoned: nothing in this process will work again.
    DeviceLost(String),
    /// A bug, or weights that do not fit their configuration.
    Internal(String),
}

impl Fault {
    fn from_text(text: String) -> Self {
        let lower = text.to_lowercase();
        // libtorch's CPU allocator says the second, cuBLAS the third when its handle finds no room.
        let memory = ["out of memory", "can't allocate memory", "cublas_status_alloc_failed"];
        if memory.iter().any(|words| lower.contains(words)) {
            Self::OutOfMemory(text)
        } else if ["cuda error", "cuda driver", "cudnn error", "cublas_status"]
            .iter()
            .any(|w| lower.contains(w))
        {
            Self::DeviceLost(text)
        } else {
            Self::Internal(text)
        }
    }

    /// The first line of libtorch's text; the rest is a C++ back-trace, which the log has.
    pub fn message(&self) -> &str {
        let (Self::OutOfMemory(text) | Self::DeviceLost(text) | Self::Internal(text)) = self;
        text.lines().next().unwrap_or_default()
    }
}

/// Runs one turn; a panic in it is returned as a [`Fault`].
pub fn guard<T>(turn: impl FnOnce() -> T) -> Result<T, Fault> {
    // The caller drops or resets whatever the turn was working on, so no broken state is seen
    // again.
    catch_unwind(AssertUnwindSafe(turn)).map_err(|payload| Fault::from_text(panic_text(payload)))
}

fn panic_text(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(text) => (*text).to_owned(),
            Err(_) => "a panic without a message".to_owned(),
        },
    }
}

/// A failure that another attempt would only repeat.
pub fn permanent(code: &str, param: Option<&str>, message: impl Into<String>) -> RunFailure {
    RunFailure {
        code: code.to_owned(),
        param: param.map(str::to_owned),
        message: message.into(),
        retryable: false,
    }
}

/// A failure of the machine, not of the plan.
pub fn retryable(code: &str, message: impl Into<String>) -> RunFailure {
    RunFailure { code: code.to_owned(), param: None, message: message.into(), retryable: true }
}

impl From<&Fault> for RunFailure {
    fn from(fault: &Fault) -> Self {
        let reason = fault.message();
        match fault {
            Fault::OutOfMemory(_) => permanent(
                "out_of_memory",
                Some("micro_batch_tokens"),
                format!(
                    "The device's memory does not suffice, also with half the micro-batch: \
                     {reason}. Lower micro_batch_tokens or max_seq_len."
                ),
            ),
            Fault::DeviceLost(_) => {
                retryable("device_lost", format!("The device failed: {reason}"))
            }
            Fault::Internal(_) => {
                permanent("internal_error", None, format!("The training engine failed: {reason}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_fault_of_its_kind() {
        let fault_of = |text: &'static str| guard(|| panic!("{text}")).unwrap_err();
        let cpu = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't \
                   allocate memory: you tried to allocate 12 bytes.\nException raised from ...";
        assert!(matches!(fault_of(cpu), Fault::OutOfMemory(_)));
        assert!(matches!(fault_of("CUDA out of memory. Tried to allocate"), Fault::OutOfMemory(_)));
        let lost = "CUDA error: an illegal memory access was encountered";
        assert!(matches!(fault_of(lost), Fault::DeviceLost(_)));
        assert_eq!(fault_of("shape mismatch\nbacktrace").message(), "shape mismatch");
        assert_eq!(guard(|| 7), Ok(7));
    }
}
