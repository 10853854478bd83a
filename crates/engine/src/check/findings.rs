//! What a check found, as lines for people or as JSON.

use kernels::cuda::EntryFacts;
use serde::Serialize;
use serde_json::{Value, json};

/// The end of one check.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    pub part: &'static str,
    pub name: String,
    pub precision: &'static str,
    /// Distance from what is right, and what is allowed.
    pub error: f64,
    pub bound: f64,
    /// CUDA kernels that ran.
    pub kernels: Vec<String>,
    pub fault: Option<String>,
    pub passes: bool,
}

impl Outcome {
    pub fn new(part: &'static str, name: &str, precision: &'static str) -> Self {
        let (name, kernels) = (name.to_owned(), Vec::new());
        Self { part, name, precision, error: 0.0, bound: 0.0, kernels, fault: None, passes: true }
    }

    /// A distance against its bound; what is not a number does not pass.
    pub fn measured(self, error: f64, bound: f64) -> Self {
        Self { error, bound, passes: error <= bound, ..self }
    }
}

/// Writes what is found as it comes, and counts.
pub(super) struct Findings {
    json: bool,
    checks: usize,
    failed: Vec<String>,
}

impl Findings {
    pub fn new(json: bool) -> Self {
        Self { json, checks: 0, failed: Vec::new() }
    }

    pub fn take(&mut self, mut outcome: Outcome) {
        outcome.passes &= outcome.fault.is_none();
        self.checks += 1;
        let Outcome { part, name, precision, error, bound, kernels, fault, passes } = &outcome;
        if !passes {
            self.failed.push(format!("{part} {name} {precision}"));
        }
        if self.json {
            println!("{}", json!(outcome));
            return;
        }
        let verdict = if *passes { "ok    " } else { "FAILED" };
        let numbers = match fault {
            Some(fault) => fault.clone(),
            None if *bound > 0.0 => format!("{error:.1e} of {bound:.1e}"),
            None => String::new(),
        };
        println!("{verdict} {part:10} {name:28} {precision:5} {numbers}  {}", kernels.join(" "));
    }

    pub fn facts(&self, facts: &[(&str, Value)]) {
        if self.json {
            let facts: serde_json::Map<String, Value> =
                facts.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            println!("{}", json!({"part": "device", "facts": facts}));
            return;
        }
        for (name, value) in facts {
            println!("{name:32} {}", plain(value));
        }
    }

    pub fn entries(&self, entries: &[EntryFacts]) {
        for entry in entries {
            let EntryFacts { name, registers, shared_bytes, local_bytes, threads_max } = entry;
            if self.json {
                println!(
                    "{}",
                    json!({"part": "entry", "name": name, "registers": registers,
                           "shared_bytes": shared_bytes, "local_bytes": local_bytes,
                           "threads_max": threads_max})
                );
            } else {
                println!(
                    "{name:32} {registers} registers, {shared_bytes} bytes shared, \
                     {local_bytes} local, up to {threads_max} threads"
                );
            }
        }
    }

    /// Says the sum; whether all passed.
    pub fn finish(self) -> bool {
        let (checks, failed) = (self.checks, &self.failed);
        if self.json {
            println!("{}", json!({"part": "summary", "checks": checks, "failed": failed}));
        } else {
            println!("{checks} checks, {} failed", failed.len());
            failed.iter().for_each(|name| println!("  failed: {name}"));
        }
        failed.is_empty()
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
