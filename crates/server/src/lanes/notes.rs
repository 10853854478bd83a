//! What a user should know about files that are good: each note is an event with its lines, and the
//! figures are shown with the job.

use dataset::{Checked, FileRole, Format, Shape, Stats};
use domain::report::Level;
use serde_json::{Value, json};
use store::queue::Note;

/// Row numbers that a note's text spells out; its data lists as many as [`Stats`] holds.
const LINES_SHOWN: usize = 20;
/// Row numbers that the figures of a job list.
const LINES_OF_FIGURES: usize = 100;

/// The field of a request that a file comes from.
pub(crate) fn field(role: FileRole) -> &'static str {
    match role {
        FileRole::Training => "training_file",
        FileRole::Validation => "validation_file",
    }
}

/// Notes about a file whose examples are cut, or split, at `cut_at` tokens.
pub(crate) fn notes(role: FileRole, checked: &Checked, cut_at: u32) -> Vec<Note> {
    let Checked { format, stats, .. } = checked;
    let format = *format;
    let file = match role {
        FileRole::Training => "Training",
        FileRole::Validation => "Validation",
    };
    let mut notes = Vec::new();
    if let Some(how) = read_as(checked.shape) {
        let message = format!("{file} file: its rows are {}, {how}", checked.shape);
        let data = json!({
            "file": field(role), "finding": "format", "format": checked.shape.as_str(),
        });
        notes.push(Note { level: Level::Info, message, data });
    }
    let mut tell = |level, finding: &str, count: u64, lines: Option<&[u64]>, text: String| {
        if count == 0 {
            return;
        }
        let places = lines.map(|lines| format!(": {}", self::lines(lines, count)));
        let message = format!(
            "{file} file: {count} of {} examples {text}{}",
            stats.n_examples,
            places.unwrap_or_default()
        );
        let mut data = json!({
            "file": field(role), "finding": finding, "n_examples": count, "max_seq_len": cut_at,
        });
        if let Some(lines) = lines {
            data["lines"] = json!(lines);
        }
        notes.push(Note { level, message, data });
    };
    let cut = format!("are longer than {cut_at} tokens and are cut at the end");
    tell(Level::Warn, "truncated", stats.n_truncated, Some(&stats.truncated_lines), cut);
    let lost = match format {
        Format::Preference => "lose a whole answer to that and are left out",
        _ => "lose every token to train on to that and teach nothing",
    };
    let lines = Some(stats.lines_targets_cut.as_slice());
    tell(Level::Warn, "targets_cut", stats.n_targets_cut, lines, lost.to_owned());
    let split = format!(
        "are longer than {cut_at} tokens and are split, without loss: the file has {} sequences",
        stats.n_sequences
    );
    tell(Level::Info, "split", stats.n_split, Some(&stats.split_lines), split);
    let (none, lines) = (stats.n_without_targets, &stats.lines_without_targets);
    let text = "have no token to train on".to_owned();
    tell(Level::Warn, "without_targets", none, Some(lines), text);
    let (equal, lines) = (stats.n_equal_pairs, &stats.lines_of_equal_pairs);
    let text = "have two equal answers, which teach nothing".to_owned();
    tell(Level::Warn, "equal_answers", equal, Some(lines), text);
    let one_sided = stats.n_undesirable == 0 || stats.n_undesirable == stats.n_examples;
    if format == Format::Labelled && one_sided {
        let which = if stats.n_undesirable == 0 { "good" } else { "bad" };
        let text = format!(
            "are labelled as {which} ones; 'kto' learns from the difference to the others."
        );
        tell(Level::Warn, "one_label", stats.n_examples, None, text);
    }
    let text = "say 'preferred_completion' and 'non_preferred_completion', which were read as \
                'preferred_output' and 'non_preferred_output'. OpenAI's service does not take the \
                older names.";
    tell(Level::Warn, "old_keys", stats.n_old_keys, None, text.to_owned());
    notes
}

/// What became of rows that are not in OpenAI's shape, nor in one of ours.
fn read_as(shape: Shape) -> Option<&'static str> {
    match shape {
        Shape::Messages
        | Shape::Chat
        | Shape::Preference
        | Shape::Labelled
        | Shape::Text
        | Shape::Reinforcement => None,
        Shape::Anthropic | Shape::Alpaca | Shape::ShareGpt => {
            Some("which were read as conversations.")
        }
        Shape::PromptCompletion => Some(
            "of which each was read as one message of the user and the assistant's answer to it.",
        ),
        Shape::ChosenRejected => Some("which were read as preferred and non-preferred outputs."),
    }
}

/// `lines 1, 5, 9 and 4 more`.
fn lines(numbers: &[u64], total: u64) -> String {
    let shown: Vec<String> = numbers.iter().take(LINES_SHOWN).map(u64::to_string).collect();
    let more = total - shown.len() as u64;
    let word = if total == 1 { "line" } else { "lines" };
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{word} {}{rest}", shown.join(", "))
}

/// The figures shown with the job.
pub(crate) fn figures(shape: Shape, stats: &Stats) -> Value {
    let first = |lines: &[u64]| json!(&lines[..lines.len().min(LINES_OF_FIGURES)]);
    json!({
        "format": shape.as_str(),
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
        "n_without_targets": stats.n_without_targets,
        "lines_without_targets": first(&stats.lines_without_targets),
        "lengths": stats.lengths,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(shape: Shape, stats: Stats) -> Checked {
        Checked { problems: Vec::new(), total_problems: 0, format: shape.format(), shape, stats }
    }

    #[test]
    fn it_is_told_how_rows_of_another_shape_were_read() {
        let file = checked(Shape::PromptCompletion, Stats::default());
        let [note] = &notes(FileRole::Training, &file, 512)[..] else { panic!() };
        assert_eq!(
            note.message,
            "Training file: its rows are prompt/completion pairs, of which each was read as one \
             message of the user and the assistant's answer to it."
        );
        assert_eq!(note.data["format"], "prompt_completion");
    }

    #[test]
    fn truncated_rows_are_named_and_counted() {
        let stats = Stats {
            n_examples: 100,
            n_truncated: 25,
            truncated_lines: (1..=25).collect(),
            n_targets_cut: 1,
            lines_targets_cut: vec![7],
            ..Stats::default()
        };
        let notes = notes(FileRole::Training, &checked(Shape::Chat, stats), 512);
        let [cut, lost] = notes.as_slice() else { panic!("{notes:?}") };
        let text = &cut.message;
        assert!(text.starts_with("Training file: 25 of 100 examples are longer than 512 tokens"));
        assert!(text.ends_with("lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20 and 5 more"), "{text}");
        assert_eq!(cut.data["lines"].as_array().unwrap().len(), 25);
        assert!(lost.message.ends_with("teach nothing: line 7"), "{}", lost.message);
        let place = json!({"file": "training_file", "finding": "targets_cut", "n_examples": 1,
                           "max_seq_len": 512, "lines": [7]});
        assert_eq!(lost.data, place);
    }

    #[test]
    fn a_file_without_remarks_has_no_notes() {
        let stats = Stats { n_examples: 10, n_undesirable: 5, ..Stats::default() };
        let good = checked(Shape::Labelled, stats.clone());
        assert_eq!(notes(FileRole::Validation, &good, 512), []);
        let bad = checked(Shape::Labelled, Stats { n_undesirable: 10, ..stats });
        let [one] = &notes(FileRole::Validation, &bad, 512)[..] else { panic!() };
        assert!(one.message.contains("10 of 10 examples are labelled as bad ones"));
    }
}
