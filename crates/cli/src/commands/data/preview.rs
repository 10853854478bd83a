//! `finetuned data preview`: a row as a model sees it. What is trained stands in brackets, or in colour on a
//! terminal.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use dataset::{ChatTokenizer, Example, Expected, FileRole, Format, Limits, Preview, Previewed};
use serde_json::json;
use store::base_models;

use super::{open, tell_problems};
use crate::arguments::{PreviewRow, RowMethod};
use crate::backend::{Absent, Backend};
use crate::config::Config;
use crate::output;

/// What a tokenizer is read from; only the first must be there.
const FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Before and behind what is trained.
const BRACKETS: (&str, &str) = ("⟦", "⟧");
/// Black on green, which is readable on dark and on light terminals.
const COLOURS: (&str, &str) = ("\x1b[30;42m", "\x1b[0m");

pub async fn run(config: &Config, asked: &PreviewRow) -> Result<ExitCode> {
    let tokenizer = tokenizer(config, &asked.model).await?;
    let found = find(config, &tokenizer, asked)?;
    if asked.json {
        output::json(&as_json(&tokenizer, &found))?;
    } else {
        show(&tokenizer, &found)?;
    }
    tell_problems(&found.problems, found.problems.len() as u64);
    Ok(if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Of a folder in Hugging Face's layout, or of a registered base model.
pub(super) async fn tokenizer(config: &Config, model: &str) -> Result<ChatTokenizer> {
    let folder = Path::new(model);
    if folder.is_dir() {
        return ChatTokenizer::from_folder(folder)
            .with_context(|| format!("cannot read the tokenizer in {model}"));
    }
    let backend = Backend::open(config, Absent::Refuse)
        .await
        .with_context(|| format!("'{model}' is no folder, and base models cannot be looked up"))?;
    let found = registered(&backend, model).await;
    backend.close().await;
    found
}

async fn registered(backend: &Backend, model: &str) -> Result<ChatTokenizer> {
    let Backend { store, project, .. } = backend;
    let row = base_models::get(&store.db, project, &model.into()).await;
    let row = row.with_context(|| {
        format!(
            "'{model}' is neither a folder nor a base model; `finetuned models list` shows these"
        )
    })?;
    let folder = tempfile::tempdir().context("cannot make a folder for the tokenizer")?;
    for name in FILES {
        if let Ok((key, _)) = row.blob_key(name) {
            let bytes = store.blobs.get_bytes(&key, MAX_FILE_BYTES).await?;
            std::fs::write(folder.path().join(name), bytes)
                .context("cannot write the tokenizer into a temporary folder")?;
        }
    }
    ChatTokenizer::from_folder(folder.path())
        .with_context(|| format!("cannot read the tokenizer of {model}"))
}

/// What the rows of a method are.
pub(super) fn expected(method: RowMethod) -> Expected {
    match method {
        RowMethod::Supervised => Expected::Supervised,
        RowMethod::Dpo => Format::Preference.into(),
        RowMethod::Kto => Format::Labelled.into(),
    }
}

fn find(config: &Config, tokenizer: &ChatTokenizer, asked: &PreviewRow) -> Result<Previewed> {
    let expected = expected(asked.method);
    let limits = Limits {
        max_line_bytes: config.server.max_line_bytes.as_u64() as usize,
        ..Limits::new(FileRole::Training, expected, asked.max_seq_len.unwrap_or(usize::MAX))
    };
    let mut preview = Preview::new(tokenizer, limits, asked.row);
    let mut file = open(&asked.file)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("cannot read {}", asked.file.display()))?;
        if read == 0 || !preview.push(&buffer[..read]) {
            break;
        }
    }
    preview.finish().with_context(|| match asked.row {
        Some(row) => format!("there is no row {row} in {}", asked.file.display()),
        None => format!("there is nothing to show in {}", asked.file.display()),
    })
}

fn show(tokenizer: &ChatTokenizer, found: &Previewed) -> Result<()> {
    let marks = match std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        true => COLOURS,
        false => BRACKETS,
    };
    let Previewed { number, shape, container, .. } = found;
    output::line(format_args!("row {number}: {shape} in {container}"))?;
    for (index, example) in found.sequences.iter().enumerate() {
        let answer = match (shape.format(), index) {
            (Format::Preference, 0) => "preferred: ",
            (Format::Preference, _) => "non-preferred: ",
            _ => "",
        };
        let cut = match example.truncated {
            true => format!(", cut from {}", example.full_len),
            false => String::new(),
        };
        output::line(format_args!(
            "\n{answer}{} tokens{cut}, {} trained",
            example.input_ids.len(),
            example.targets()
        ))?;
        output::line(marked(tokenizer, example, marks))?;
    }
    Ok(())
}

/// The text of the tokens, with marks around what is trained.
fn marked(tokenizer: &ChatTokenizer, example: &Example, marks: (&str, &str)) -> String {
    let tokens: Vec<_> = example.input_ids.iter().zip(&example.is_target).collect();
    let mut out = String::new();
    for run in tokens.chunk_by(|a, b| a.1 == b.1) {
        let bytes: Vec<u8> = run.iter().flat_map(|(id, _)| tokenizer.token_text(**id)).collect();
        let text = printable(&String::from_utf8_lossy(&bytes));
        match run.first() {
            Some((_, true)) => out.extend([marks.0, &text, marks.1]),
            _ => out.push_str(&text),
        }
    }
    out
}

/// Without what a terminal would obey.
fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

fn as_json(tokenizer: &ChatTokenizer, found: &Previewed) -> serde_json::Value {
    let sequence = |example: &Example| {
        let tokens = example.input_ids.iter().zip(&example.is_target);
        json!({
            "truncated": example.truncated,
            "n_tokens_before_truncation": example.full_len,
            "tokens": tokens.map(|(&id, trained)| json!({
                "id": id, "text": String::from_utf8_lossy(&tokenizer.token_text(id)), "trained": trained,
            })).collect::<Vec<_>>(),
        })
    };
    json!({
        "row": found.number,
        "format": found.shape.as_str(),
        "container": found.container.as_str(),
        "problems": found.problems,
        "sequences": found.sequences.iter().map(sequence).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        assert_eq!(printable("a\n\tä\x1b[2J"), "a\n\tä\\u{1b}[2J");
    }
}
