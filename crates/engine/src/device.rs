//! The device that a process computes on: its name, whether it can be used, and which of our kernels are trusted
//! there.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use kernels::cuda::{ALL, switch_off, switched_off};
use tch::{Cuda, Device};

/// CUDA kernels that must not run, by name and with commas between them, or `all`; libtorch's operations compute
/// instead.
pub const WITHOUT: &str = "FINETUNED_CUDA_WITHOUT";

pub fn parse(text: &str) -> Result<Device> {
    match text.strip_prefix("cuda") {
        None if text == "cpu" => Ok(Device::Cpu),
        Some("") => Ok(Device::Cuda(0)),
        Some(number) => number
            .strip_prefix(':')
            .and_then(|number| number.parse().ok())
            .map(Device::Cuda)
            .with_context(|| format!("--device {text}: expected cpu or cuda:N")),
        None => bail!("--device {text}: expected cpu or cuda:N"),
    }
}

/// The device, if it is there; `cuda` is what [`kernels::load_cuda`] answered.
pub fn usable(device: Device, cuda: &Result<bool, String>) -> Result<Device> {
    let Device::Cuda(number) = device else { return Ok(device) };
    match cuda {
        Err(reason) => bail!("--device cuda:{number}: {reason}"),
        Ok(false) => bail!("--device cuda:{number}: this installation's libtorch has no CUDA part"),
        Ok(true) => {}
    }
    let count = Cuda::device_count();
    if !usize::try_from(count).is_ok_and(|count| number < count) {
        bail!("--device cuda:{number}: libtorch sees {count} CUDA devices");
    }
    Ok(device)
}

pub fn name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(number) => format!("cuda:{number}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Sets the threads of libtorch and of the project's own loops. Call once.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let threads = match threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
    };
    tch::set_num_threads(i32::try_from(threads).context("--threads is too large")?);
    tch::set_num_interop_threads(1);
    kernels::set_threads(threads);
    Ok(())
}

/// Switches off what [`WITHOUT`] names.
pub fn heed_environment() {
    let named = std::env::var(WITHOUT).unwrap_or_default();
    named.split(',').map(str::trim).filter(|name| !name.is_empty()).for_each(switch_off);
}

/// Lets a CUDA device prove each of our kernels before it is used. What is wrong is switched off and told. A kernel
/// that breaks the device ends in a new start of this process without it, because nothing in a process works after
/// that.
///
/// # Errors
/// When the device breaks without any kernel of ours.
pub fn prove_kernels(device: Device) -> Result<()> {
    heed_environment();
    let Device::Cuda(number) = device else { return Ok(()) };
    match kernels::cuda::kernels_of(number) {
        Ok(image) => eprintln!("own CUDA kernels: the {image} image"),
        Err(reason) => {
            eprintln!("no CUDA kernels of our own, so slower: {reason}");
            return Ok(());
        }
    }
    let mut broken = None;
    kernels::check::operations(device, |finding| {
        if finding.passes() {
            return;
        }
        let (kernels, operation) = (finding.kernels.join(","), finding.operation);
        let reason = match &finding.fault {
            Some(fault) => fault.clone(),
            None => format!("off by {:.1e}, allowed {:.1e}", finding.error, finding.bound),
        };
        eprintln!("{operation} in {:?}: {reason}; without [{kernels}] from now on", finding.kind);
        finding.kernels.iter().for_each(|kernel| switch_off(kernel));
        if finding.fault.is_some() {
            broken = Some(finding.kernels.is_empty());
        }
    });
    match broken {
        None => Ok(()),
        Some(_) if std::env::var(WITHOUT).is_ok_and(|names| names.contains(ALL)) => {
            bail!("cuda:{number} breaks without any kernel of ours")
        }
        Some(no_suspect) => {
            if no_suspect {
                switch_off(ALL);
            }
            start_again()
        }
    }
}

/// Becomes this program anew, without what was switched off. Its input has not been touched yet.
fn start_again() -> Result<()> {
    let program = std::env::current_exe().context("this program's own file")?;
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(WITHOUT, switched_off().join(","))
        .exec();
    bail!("cannot start again: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_refused() {
        assert_eq!(usable(Device::Cpu, &Ok(false)).unwrap(), Device::Cpu);
        let error = usable(Device::Cuda(0), &Ok(false)).unwrap_err();
        assert!(error.to_string().contains("no CUDA part"), "{error}");
        let error = usable(Device::Cuda(0), &Err("no driver".to_owned())).unwrap_err();
        assert!(error.to_string().contains("no driver"), "{error}");
    }

    #[test]
    fn names_are_read_back() {
        for text in ["cpu", "cuda:0", "cuda:11"] {
            assert_eq!(name(parse(text).unwrap()), text);
        }
        assert_eq!(parse("cuda").unwrap(), Device::Cuda(0));
        assert!(parse("cuda0").is_err() && parse("gpu").is_err());
    }
}
