//! `cargo xtask`: set-up, start, demo, tests, benchmarks and the checks of the project's own rules.
//!
//! It depends on std alone, so that a fresh machine compiles it in seconds and can then be told what else
//! is missing. It is not shipped, and no product code may depend on it.

mod bench;
mod demo;
mod doctor;
mod gpu_bundle;
mod json;
mod parity;
mod progress;
mod run;
mod server;
mod setup;
mod test;
mod tidy;
mod up;
mod workspace;

use std::error::Error;
use std::process::ExitCode;

use workspace::Workspace;

/// What went wrong, for the person at the terminal: what, where, and the command that mends it.
type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
cargo xtask COMMAND

  setup [--cuda]     fetch libtorch, the base model, Postgres and the OpenAI SDK into .deps (once)
  doctor             say what was found, what is missing, and the command that mends it
  up [ARGS...]       set up, build for release, then run `finetuned up ARGS...`
  demo [--case NAME] [--keep]  set up, build, start everything, run one fine-tuning job and show it; the cases:
                     sentiment (the default), address, companies, reviews, opinions
  test [--sdk-only]  set up, then run every test: Rust, and the OpenAI SDK against a real server
  bench NAME         measure NAME against the reference: a table, then one JSON line (train, api, …)
  gpu-bundle [--out FILE]  one archive for a machine with a GPU: engine, fixtures, benchmarks, run.sh
  parity             make the fixtures anew with transformers and peft, and test against them
  tidy               check the project's own rules: dependencies, file lengths, text
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = arguments.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    match dispatch(command, rest) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &str, rest: &[String]) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match command {
        "setup" => {
            let [cuda] = flags(rest, ["--cuda"])?;
            setup::run(&workspace, cuda)?;
        }
        "doctor" => {
            let [] = flags(rest, [])?;
            return doctor::run(&workspace);
        }
        "up" => up::run(&workspace, rest)?,
        "demo" => {
            let (case, rest) = value_of("--case", rest)?;
            let [keep] = flags(&rest, ["--keep"])?;
            return demo::run(&workspace, case, keep);
        }
        "test" => {
            let [sdk_only] = flags(rest, ["--sdk-only"])?;
            return test::run(&workspace, sdk_only);
        }
        "bench" => return bench::run(&workspace, rest),
        "gpu-bundle" => gpu_bundle::run(&workspace, place(rest)?)?,
        "parity" => {
            let [] = flags(rest, [])?;
            return parity::run(&workspace);
        }
        "tidy" => {
            let [] = flags(rest, [])?;
            return tidy::run(&workspace);
        }
        "help" | "--help" | "-h" => print!("{USAGE}"),
        unknown => return Err(format!("unknown command `{unknown}`\n\n{USAGE}").into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The value of `--out`, the one argument that there may be.
fn place(given: &[String]) -> Result<Option<std::path::PathBuf>> {
    match given {
        [] => Ok(None),
        [name, value] if name == "--out" => Ok(Some(value.into())),
        _ => Err(format!("expected --out FILE\n\n{USAGE}").into()),
    }
}

/// The value of an argument that may be there, and the other arguments.
fn value_of(name: &str, given: &[String]) -> Result<(Option<String>, Vec<String>)> {
    let mut rest = given.to_vec();
    let Some(at) = rest.iter().position(|argument| argument == name) else {
        return Ok((None, rest));
    };
    if at + 1 == rest.len() {
        return Err(format!("{name} takes a value\n\n{USAGE}").into());
    }
    let value = rest.remove(at + 1);
    rest.remove(at);
    Ok((Some(value), rest))
}

/// Whether each of `known` was given. Anything else on the command line is an error.
fn flags<const N: usize>(given: &[String], known: [&str; N]) -> Result<[bool; N]> {
    if let Some(unknown) = given.iter().find(|flag| !known.contains(&flag.as_str())) {
        return Err(format!("unknown argument `{unknown}`\n\n{USAGE}").into());
    }
    Ok(known.map(|flag| given.iter().any(|g| g == flag)))
}
