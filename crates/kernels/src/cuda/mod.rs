//! CUDA by presence: the engine links against the CPU libraries alone. libtorch's CUDA part and the driver are
//! loaded when they are there; the project's own kernels are embedded as machine code, made ahead.
//!
//! The functions of [`road`] have the contracts of those of the same names at the crate's root, for tensors that
//! are not on the CPU: the kernel of `cuda/*.cu` when it can run, else the plain-tch reference.

mod driver;
mod flash;
mod inspect;
pub mod plan;
pub(crate) mod road;
pub(crate) mod roster;
mod staged;

use std::mem::forget;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

pub use flash::NAME as FLASH_ATTENTION;
pub use inspect::{DeviceFacts, EntryFacts, device_facts, entry_facts, entry_names, memory_taken};
pub use roster::{ALL, switch_off, switched_off};

/// Loads libtorch's CUDA libraries for the life of the process. Call first thing in `main`, before any tensor
/// exists. `Ok(false)` means that this machine's libtorch has none, which is no fault.
///
/// # Errors
/// When the library is there but will not load, with the loader's words: a driver or a CUDA library is missing.
pub fn load_cuda() -> Result<bool, String> {
    // SAFETY: loading runs libtorch's own initialisers, which register its CUDA back end; nothing of
    // torch has been called yet, and the library is never unloaded.
    match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            forget(library);
            Ok(true)
        }
        Err(error) => {
            let text = words(&error);
            if text.contains("libtorch_cuda.so: cannot open shared object file") {
                Ok(false)
            } else {
                Err(format!("libtorch's CUDA part is installed but does not load: {text}"))
            }
        }
    }
}

/// What the loader itself said; the error's own text is only that it failed.
fn words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The images that this build embeds.
pub mod images {
    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

/// Makes the kernels of a CUDA device ready and says which image runs there.
///
/// # Errors
/// Why they cannot run; everything is then computed by libtorch's operations, slower.
pub fn kernels_of(device: usize) -> Result<&'static str, String> {
    driver::gpu(device).map(|gpu| gpu.image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_is_named_by_the_loader() {
        // SAFETY: there is no such library.
        let missing = unsafe { Library::open(Some("libnone_of_ours.so"), RTLD_NOW) };
        let text = words(&missing.expect_err("no such library"));
        assert!(text.starts_with("libnone_of_ours.so: cannot open shared object file"), "{text}");
    }
}
