//! What a user should know about files that are good: each note is an event with its lines, and the
//! figures are shown with the job.

use dataset::{Checked, FileRole, Remark};
use domain::report::Level;
use serde_json::{Value, json};
use store::queue::Note;

/// Row numbers that the figures of a job list.
const LINES_OF_FIGURES: usize = 100;

/// The field of a request that a file comes from.
pub(crate) fn field(role: FileRole) -> &'static str {
    match role {
        FileRole::Training => "training_file",
        FileRole::Validation => "validation_file",
    }
}

/// Notes about a file whose examples are cut, or split, at `cut_at` tokens. `training`: what a validation
/// file is compared with.
pub(crate) fn notes(
    role: FileRole,
    checked: &Checked,
    training: Option<&Checked>,
    cut_at: u32,
) -> Vec<Note> {
    let leaks = training.and_then(|training| checked.leaks_from(training));
    let remarks = leaks.into_iter().chain(checked.remarks(cut_at));
    remarks.map(|remark| note(role, checked, &remark, cut_at)).collect()
}

fn note(role: FileRole, checked: &Checked, remark: &Remark, cut_at: u32) -> Note {
    let file = match role {
        FileRole::Training => "Training",
        FileRole::Validation => "Validation",
    };
    let mut data = json!({
        "file": field(role), "format": checked.shape.as_str(),
        "container": checked.container.as_str(), "finding": remark.code,
        "n_examples": remark.count, "max_seq_len": cut_at,
    });
    if !remark.lines.is_empty() {
        data["lines"] = json!(remark.lines);
    }
    Note {
        level: if remark.is_warning { Level::Warn } else { Level::Info },
        message: format!("{file} file: {}", remark.message(checked.stats.n_examples)),
        data,
    }
}

/// The figures shown with the job.
pub(crate) fn figures(checked: &Checked) -> Value {
    let stats = &checked.stats;
    let first = |lines: &[u64]| json!(&lines[..lines.len().min(LINES_OF_FIGURES)]);
    json!({
        "format": checked.shape.as_str(),
        "container": checked.container.as_str(),
        "n_examples": stats.n_examples,
        "n_sequences": stats.n_sequences,
        "tokens": stats.tokens,
        "tokens_after_truncation": stats.tokens_after_truncation,
        "target_tokens": stats.target_tokens,
        "max_tokens": stats.max_tokens,
        "n_truncated": stats.n_truncated,
        "truncated_lines": first(&stats.truncated_lines),
        "n_targets_cut": stats.n_targets_cut,
        "lines_targets_cut": first(&stats.lines_targets_cut),
        "n_split": stats.n_split,
        "split_lines": first(&stats.split_lines),
        "n_ends_cut": stats.n_ends_cut,
        "lines_ends_cut": first(&stats.lines_ends_cut),
        "n_without_targets": stats.n_without_targets,
        "lines_without_targets": first(&stats.lines_without_targets),
        "lengths": stats.lengths,
    })
}
