//! `finetuned-engine check-device`: what a device is, and whether what is computed there is right: every operation
//! against plain tch, small training steps against autograd, and fixtures against the numbers recorded in them.
//!
//! Each finding is written as soon as it is there, so that a run that is cut short has told what it knew.

mod findings;
mod fixtures;
mod steps;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use kernels::cuda;
use serde_json::json;
use tch::{Cuda, Device, Kind};

use self::findings::{Findings, Outcome};
use crate::device;

const USAGE: &str = "\
usage: finetuned-engine check-device [--device cpu|cuda:N] [--fixtures FOLDER] [--threads N] [--json]

Says what a device is and proves the kernels on it. Ends with 0 only if every check passed.

  --device DEVICE    cpu or cuda:N (default: the first CUDA device, or the CPU where there is none)
  --fixtures FOLDER  also compares models of crates/model/tests/fixtures with their recorded numbers
  --threads N        CPU threads (default: all cores)
  --json             one JSON object a line";

struct Options {
    device: Option<Device>,
    fixtures: Option<PathBuf>,
    threads: Option<usize>,
    json: bool,
}

/// Whether every check passed.
///
/// # Errors
/// When the device cannot be used, or an argument is wrong.
pub fn run(arguments: impl Iterator<Item = String>, cuda: &Result<bool, String>) -> Result<bool> {
    let Some(options) = parse(arguments)? else {
        println!("{USAGE}");
        return Ok(true);
    };
    let device = device::usable(options.device.unwrap_or(best(cuda)), cuda)?;
    device::set_threads(options.threads)?;
    device::heed_environment();
    let mut findings = Findings::new(options.json);
    describe(device, cuda, &mut findings);
    operations(device, &mut findings);
    steps::run(device, &mut findings);
    if let Some(folder) = options.fixtures {
        fixtures::run(device, &folder, &mut findings)?;
    }
    Ok(findings.finish())
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options { device: None, fixtures: None, threads: None, json: false };
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "-h" | "--help" => return Ok(None),
            "--device" => options.device = Some(device::parse(&value()?)?),
            "--fixtures" => options.fixtures = Some(PathBuf::from(value()?)),
            "--threads" => options.threads = Some(value()?.parse().context("--threads")?),
            "--json" => options.json = true,
            _ => bail!("unknown argument '{name}'; see check-device --help"),
        }
    }
    Ok(Some(options))
}

/// The first CUDA device, if there is one.
fn best(cuda: &Result<bool, String>) -> Device {
    let is_there = matches!(cuda, Ok(true)) && Cuda::device_count() > 0;
    if is_there { Device::Cuda(0) } else { Device::Cpu }
}

fn describe(device: Device, cuda: &Result<bool, String>, findings: &mut Findings) {
    let embedded = cuda::entry_names().count();
    let libtorch = match cuda {
        Ok(true) => "its CUDA part is loaded".to_owned(),
        Ok(false) => "it has no CUDA part".to_owned(),
        Err(reason) => reason.clone(),
    };
    let mut facts = vec![
        ("device", json!(device::name(device))),
        ("libtorch", json!(libtorch)),
        ("embedded kernels", json!(embedded)),
        ("switched off", json!(cuda::switched_off())),
    ];
    match device {
        Device::Cuda(number) => describe_gpu(number, &mut facts, findings),
        _ => {
            facts.push(("threads", json!(tch::get_num_threads())));
            facts.push(("instructions", json!(instructions())));
        }
    }
    findings.facts(&facts);
}

fn describe_gpu(
    number: usize,
    facts: &mut Vec<(&'static str, serde_json::Value)>,
    findings: &mut Findings,
) {
    let mut outcome = Outcome::new("kernels", "load", "");
    match cuda::device_facts(number) {
        Ok(found) => facts.extend([
            ("name", json!(found.name)),
            ("driver", json!(driver_version())),
            ("cuda of the driver", json!(found.cuda)),
            ("compute capability", json!(found.capability)),
            ("multiprocessors", json!(found.multiprocessors)),
            ("memory, MiB", json!(found.memory_bytes >> 20)),
            ("free, MiB", json!(found.free_bytes >> 20)),
            ("shared memory of a block, bytes", json!(found.shared_bytes)),
        ]),
        Err(reason) => outcome.fault = Some(reason),
    }
    match cuda::kernels_of(number).and_then(|image| Ok((image, cuda::entry_facts(number)?))) {
        Ok((image, entries)) => {
            facts.push(("image", json!(image)));
            findings.entries(&entries);
            outcome.kernels = vec![format!("{} of the {image} image", entries.len())];
        }
        Err(reason) => outcome.fault = Some(reason),
    }
    findings.take(outcome);
}

/// As the driver tells the system: 580.159.04.
fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.starts_with(char::is_numeric);
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// What of the CPU the kernels can use.
fn instructions() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ] {
        if there {
            found.push(name);
        }
    }
    found
}

/// Every operation, and on a GPU that every embedded kernel was among them.
fn operations(device: Device, findings: &mut Findings) {
    let (off, mut ran) = (cuda::switched_off(), BTreeSet::new());
    kernels::check::operations(device, |finding| {
        ran.extend(finding.kernels.iter().cloned());
        findings.take(Outcome {
            error: finding.error,
            bound: finding.bound,
            kernels: finding.kernels.clone(),
            fault: finding.fault.clone(),
            passes: finding.passes(),
            ..Outcome::new("operation", finding.operation, precision(finding.kind))
        });
    });
    let is_off = |name: &str| off.iter().any(|off| off == name || off == cuda::ALL);
    if device.is_cuda() {
        let names = cuda::entry_names().chain([cuda::FLASH_ATTENTION]);
        for name in names.filter(|name| !ran.contains(*name) && !is_off(name)) {
            let fault = Some("no check ran it".to_owned());
            findings.take(Outcome { fault, ..Outcome::new("kernels", name, "") });
        }
    }
}

fn precision(kind: Kind) -> &'static str {
    if kind == Kind::BFloat16 { "bf16" } else { "fp32" }
}
