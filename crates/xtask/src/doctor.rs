//! `cargo xtask doctor`: what was found, what is missing, and the command that mends it. Changes nothing.

use std::path::Path;
use std::process::ExitCode;

use crate::Result;
use crate::setup::{self, Variant};
use crate::workspace::{Profile, Workspace, python};
use crate::{run, setup::TORCH_VERSION};

const SETUP: &str = "cargo xtask setup";

/// One line of the report: what was found, or the command that mends its absence.
#[derive(Clone)]
struct Finding {
    name: &'static str,
    found: Option<String>,
    remedy: &'static str,
    is_needed: bool,
}

pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let findings = [machine(workspace), fetched(workspace), optional(workspace)].concat();
    for finding in &findings {
        match &finding.found {
            Some(found) => println!("✓ {:<16} {found}", finding.name),
            None if finding.is_needed => {
                println!("✗ {:<16} missing: {}", finding.name, finding.remedy);
            }
            None => println!("· {:<16} not there; {}", finding.name, finding.remedy),
        }
    }
    let is_complete = findings.iter().all(|f| f.found.is_some() || !f.is_needed);
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn needed(name: &'static str, found: Option<String>, remedy: &'static str) -> Finding {
    Finding { name, found, remedy, is_needed: true }
}

/// What the machine must bring along.
fn machine(workspace: &Workspace) -> Vec<Finding> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let pip = run::answer(python(), &["-m", "pip", "--version"])
        .map(|text| text.split(" from ").next().unwrap_or(&text).to_owned());
    vec![
        needed("rustc", run::answer(rustc, &["--version"]), "rustup toolchain install"),
        needed("C++ compiler", setup::compiler(), "apt-get install -y g++"),
        needed("Python", setup::python_version(), "apt-get install -y python3"),
        needed("pip", pip, "apt-get install -y python3-pip"),
        needed("disk", free_space(&workspace.root), "free some space: a build needs about 6 GB"),
    ]
}

/// What set-up brings.
fn fetched(workspace: &Workspace) -> Vec<Finding> {
    let libtorch = workspace.libtorch();
    let torch = match setup::found_libtorch(&libtorch) {
        Some(variant) => Some(format!("{TORCH_VERSION} ({variant:?}) in {}", libtorch.display())),
        None => workspace
            .foreign_libtorch()
            .map(|chosen| format!("{} (your LIBTORCH, version not checked)", chosen.display())),
    };
    let model = setup::model_is_ready(workspace)
        .then(|| workspace.models().join(setup::MODEL_FILE).display().to_string());
    let postgres = setup::installed_postgres(workspace)
        .map(|(folder, version)| format!("{version} in {}", folder.display()));
    let sdk = setup::packages_are_ready(workspace, "python")
        .then(|| workspace.deps().join("python").display().to_string());
    vec![
        needed("libtorch", torch, SETUP),
        needed("base model", model, SETUP),
        needed("Postgres", postgres, SETUP),
        needed("OpenAI SDK", sdk, SETUP),
    ]
}

/// What only some commands want.
fn optional(workspace: &Workspace) -> Vec<Finding> {
    let gpu = Path::new("/dev/nvidia0").exists().then(|| {
        run::answer("nvidia-smi", &["--query-gpu=name,memory.total", "--format=csv,noheader"])
            .unwrap_or_else(|| "seen, but nvidia-smi does not answer".into())
    });
    let release = workspace
        .program(Profile::Release, "finetuned")
        .and(workspace.program(Profile::Release, "finetuned-engine"))
        .ok()
        .map(|_| "built".to_owned());
    let reference =
        setup::packages_are_ready(workspace, "reference").then(|| "installed".to_owned());
    let node = run::answer("node", &["--version"])
        .filter(|_| run::answer("npm", &["--version"]).is_some());
    let openssl = run::answer("openssl", &["version"]);
    let mut findings = vec![
        Finding {
            name: "Node.js",
            found: node,
            remedy: "tests with OpenAI's client for it are skipped",
            is_needed: false,
        },
        Finding {
            name: "openssl",
            found: openssl,
            remedy: "the test of webhooks over TLS is skipped",
            is_needed: false,
        },
        Finding { name: "GPU", found: gpu, remedy: "the CPU is used", is_needed: false },
        Finding {
            name: "release build",
            found: release,
            remedy: "`cargo xtask up` and `demo` build it",
            is_needed: false,
        },
        Finding {
            name: "reference",
            found: reference,
            remedy: "`cargo xtask bench` and `parity` fetch it",
            is_needed: false,
        },
    ];
    if setup::wanted_variant(workspace, false) == Variant::Cuda
        && setup::found_libtorch(&workspace.libtorch()) == Some(Variant::Cpu)
    {
        findings.push(needed("CUDA libraries", None, SETUP));
    }
    findings
}

/// Free space where the checkout lies, when it suffices for a build.
fn free_space(root: &Path) -> Option<String> {
    let answer = run::answer("df", &["-Pm", root.to_str()?])?;
    let megabytes: u64 = answer.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    (megabytes >= 6_000).then(|| format!("{} GB free", megabytes / 1_000))
}
