//! `finetuned data check`: what `POST /v1/fine_tuning/jobs/validate` says about files, before they are
//! uploaded.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use dataset::{BadLines, ChatTokenizer, Checked, Checker, FileRole, Limits, Listed, Quality};
use serde_json::{Value, json};

use super::{open, preview};
use crate::arguments::DataCheck;
use crate::config::Config;
use crate::output;

const CHUNK: usize = 1 << 16;
/// Faults that a person is shown; `--json` lists more.
const SHOWN: usize = 20;

/// Fails with status 1 where a row has a fault.
pub async fn run(config: &Config, asked: &DataCheck) -> Result<ExitCode> {
    let tokenizer = preview::tokenizer(config, &asked.model).await?;
    let most = config.server.max_line_bytes.as_u64() as usize;
    let limits = |role, expected| Limits {
        max_line_bytes: most,
        ..Limits::new(role, expected, asked.max_seq_len as usize)
    };
    let expected = preview::expected(asked.method);
    let training = read(&tokenizer, &asked.file, limits(FileRole::Training, expected))?;
    let mut listed = training.listed(FileRole::Training, None, asked.max_seq_len);
    let mut files = vec![(FileRole::Training, &*asked.file, training)];
    if let Some(path) = &asked.validation {
        let like = limits(FileRole::Validation, files[0].2.format.into());
        let checked = read(&tokenizer, path, like)?;
        let cut_at = asked.max_seq_len;
        listed.extend(checked.listed(FileRole::Validation, Some(&files[0].2), cut_at));
        files.push((FileRole::Validation, path, checked));
    }
    if let Some(out) = &asked.bad_lines {
        copy_bad_lines(&files, &listed, out, most)
            .with_context(|| format!("cannot write {}", out.display()))?;
    }
    if asked.json {
        output::json(&as_json(&files, &listed))?;
    } else {
        tell(&files, &listed)?;
    }
    let is_good = files.iter().all(|(.., checked)| checked.total_problems == 0);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(tokenizer: &ChatTokenizer, path: &Path, limits: Limits) -> Result<Checked> {
    let mut checker = Checker::new(tokenizer, limits);
    in_chunks(path, |chunk| {
        checker.push(chunk);
        Ok(())
    })?;
    Ok(checker.finish())
}

fn in_chunks(path: &Path, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut file = open(path)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer).with_context(unreadable)? {
            0 => return Ok(()),
            length => take(&buffer[..length])?,
        }
    }
}

type Files<'p> = [(FileRole, &'p Path, Checked)];

fn copy_bad_lines(files: &Files<'_>, listed: &[Listed], out: &Path, most: usize) -> Result<()> {
    let mut to = BufWriter::new(File::create_new(out)?);
    for (role, path, _) in files {
        let of_file: Vec<Listed> =
            listed.iter().filter(|entry| entry.file == role.field()).cloned().collect();
        let mut bad = BadLines::new(&of_file, most);
        let mut copy = Vec::new();
        in_chunks(path, |chunk| {
            bad.push(chunk, &mut copy);
            to.write_all(&copy)?;
            copy.clear();
            Ok(())
        })?;
        bad.finish(&mut copy);
        to.write_all(&copy)?;
    }
    to.into_inner()?.sync_all()?;
    Ok(())
}

fn as_json(files: &Files<'_>, listed: &[Listed]) -> Value {
    let warnings = listed.iter().filter(|entry| entry.severity == "warning").count() as u64;
    let problems: u64 = files.iter().map(|(.., checked)| checked.total_problems).sum();
    let (mut dataset, mut quality) = (json!({}), json!({}));
    for (role, _, checked) in files {
        let mut figures = json!(checked.stats);
        figures["format"] = json!(checked.shape.as_str());
        figures["container"] = json!(checked.container.as_str());
        dataset[role.field()] = figures;
        quality[role.field()] = json!(checked.quality);
    }
    json!({
        "valid": problems == 0, "problems": listed, "total_problems": problems + warnings,
        "dataset": dataset, "quality": quality,
    })
}

fn tell(files: &Files<'_>, listed: &[Listed]) -> Result<()> {
    for (role, path, checked) in files {
        let stats = &checked.stats;
        output::line(format_args!(
            "{}: {} examples of {} in {}, {} tokens, {} of them trained, the longest {}",
            path.display(),
            stats.n_examples,
            checked.shape,
            checked.container,
            stats.tokens,
            stats.target_tokens,
            stats.max_tokens
        ))?;
        if let Some(quality) = &checked.quality {
            tell_quality(quality)?;
        }
        for severity in ["error", "warning"] {
            let of_kind =
                || listed.iter().filter(|e| e.file == role.field() && e.severity == severity);
            for entry in of_kind().take(SHOWN) {
                let remedy = entry.remedy.unwrap_or_default();
                output::line(format_args!("  {severity}: {} ({})", entry.message, entry.code))?;
                output::line(format_args!("           {remedy}"))?;
            }
            let total = match severity {
                "error" => checked.total_problems,
                _ => of_kind().count() as u64,
            };
            if total > SHOWN as u64 {
                let more = total - SHOWN as u64;
                output::line(format_args!("  and {more} more of this kind; --json lists more"))?;
            }
        }
    }
    Ok(())
}

fn tell_quality(quality: &Quality) -> Result<()> {
    let names = |counts: &[dataset::quality::Count]| {
        let parts: Vec<String> =
            counts.iter().map(|count| format!("{} {}", count.name, count.count)).collect();
        if parts.is_empty() { "none recognised".to_owned() } else { parts.join(", ") }
    };
    output::line(format_args!(
        "  task {} ({}), size {}\n  messages: {}\n  languages of inputs: {}; of outputs: {}",
        quality.task.as_str(),
        quality.task_reason,
        quality.size,
        names(&quality.messages),
        names(&quality.input_languages),
        names(&quality.output_languages)
    ))?;
    if !quality.labels.is_empty() {
        let labels: Vec<String> =
            quality.labels.iter().take(SHOWN).map(|l| l.to_string()).collect();
        output::line(format_args!("  labels: {}", labels.join(", ")))?;
    }
    Ok(())
}
