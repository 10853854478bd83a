//! `finetuned data`: files of training data before anything is uploaded.

mod check;
mod preview;

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use dataset::{Converted, Problem};

use crate::arguments::Data;
use crate::config::Config;

/// Faults that are printed.
const SHOWN: usize = 50;

pub async fn run(config: &Config, command: Data) -> Result<ExitCode> {
    match command {
        Data::Check(asked) => check::run(config, &asked).await,
        Data::Convert { file, out } => convert(config, &file, out.as_deref()),
        Data::Preview(asked) => preview::run(config, &asked).await,
    }
}

/// Writes the rows to a file, which is there only when none has a fault, or to standard output.
fn convert(config: &Config, file: &Path, out: Option<&Path>) -> Result<ExitCode> {
    let mut from = open(file)?;
    let most = config.server.max_line_bytes.as_u64() as usize;
    let converted = match out {
        None => {
            let mut to = BufWriter::new(io::stdout().lock());
            let converted = dataset::convert(&mut from, &mut to, most);
            converted.and_then(|converted| to.flush().map(|()| converted))
        }
        Some(out) => into_file(&mut from, out, most),
    };
    let converted = match converted {
        // A reader that has gone away (`… | head`) has seen what it wanted.
        Err(error) if out.is_none() && error.kind() == io::ErrorKind::BrokenPipe => {
            return Ok(ExitCode::SUCCESS);
        }
        converted => converted.with_context(|| format!("cannot convert {}", file.display()))?,
    };
    Ok(tell(&converted, out))
}

fn into_file(from: &mut File, out: &Path, most: usize) -> io::Result<Converted> {
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // As any other new file, and not for its owner alone.
    let mut new = tempfile::Builder::new();
    let new = new.permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    let mut to = BufWriter::new(new);
    let converted = dataset::convert(from, &mut to, most)?;
    if converted.total_problems == 0 {
        let whole = to.into_inner().map_err(io::IntoInnerError::into_error)?;
        whole.as_file().sync_all()?;
        whole.persist(out)?;
    }
    Ok(converted)
}

/// What became of the file, on standard error.
fn tell(converted: &Converted, out: Option<&Path>) -> ExitCode {
    let Converted { rows, shape, container, .. } = converted;
    tell_problems(&converted.problems, converted.total_problems);
    let what = shape.map_or("rows".to_owned(), |shape| shape.to_string());
    if converted.total_problems > 0 {
        let left = if out.is_some() { "; nothing was written" } else { "; they were left out" };
        eprintln!("{} fault(s) in {what} in {container}{left}", converted.total_problems);
        return ExitCode::FAILURE;
    }
    eprintln!("{rows} row(s): {what} in {container}");
    ExitCode::SUCCESS
}

fn tell_problems(problems: &[Problem], total: u64) {
    for problem in problems.iter().take(SHOWN) {
        match &problem.path {
            Some(path) if !problem.message.contains(path.as_str()) => {
                eprintln!("{} ({path})", problem.message);
            }
            _ => eprintln!("{}", problem.message),
        }
    }
    let hidden = total.saturating_sub(problems.len().min(SHOWN) as u64);
    if hidden > 0 {
        eprintln!("… and {hidden} more");
    }
}

fn open(file: &Path) -> Result<File> {
    File::open(file).with_context(|| format!("cannot open {}", file.display()))
}
