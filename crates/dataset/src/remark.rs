//! What should be known about rows that have no fault: some are cut, some say the same, some hold personal
//! data. A remark never makes a file a bad one.

use std::fmt::Write as _;

use crate::check::Checked;
use crate::container::ContainerKind;
use crate::format::Format;
use crate::shape::Shape;
use crate::stats::Stats;
use crate::tally::Tally;

/// Line numbers that a message spells out.
const LINES_SHOWN: usize = 20;

/// Something to know about a file, or about some of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Stable, made for programs; [`remedy`](crate::remedy) has advice.
    pub code: &'static str,
    /// Whether it should be looked at; the others only tell what was done.
    pub is_warning: bool,
    /// Rows; 0 where the file as a whole is meant.
    pub count: u64,
    /// The first 1000 of those rows; empty where naming them would not help.
    pub lines: Vec<u64>,
    /// What the rows do, like `hold phone numbers`, or a sentence about the file.
    pub text: String,
}

impl Remark {
    /// None without any row.
    pub(crate) fn of_rows(
        code: &'static str,
        rows: Tally,
        text: impl Into<String>,
    ) -> Option<Self> {
        let Tally { count, lines } = rows;
        (count > 0).then(|| Self { code, is_warning: true, count, lines, text: text.into() })
    }

    pub(crate) fn of_file(code: &'static str, text: String) -> Self {
        Self { code, is_warning: true, count: 0, lines: Vec::new(), text }
    }

    /// For people, like `3 of 100 examples hold phone numbers: lines 4, 8, 15`.
    pub fn message(&self, examples: u64) -> String {
        if self.count == 0 {
            return self.text.clone();
        }
        let mut message = format!("{} of {examples} examples {}", self.count, self.text);
        if !self.lines.is_empty() {
            let shown = self.lines.iter().take(LINES_SHOWN).map(u64::to_string);
            let shown: Vec<String> = shown.collect();
            let word = if self.count == 1 { "line" } else { "lines" };
            let _ = write!(message, ": {word} {}", shown.join(", "));
            let more = self.count - shown.len() as u64;
            if more > 0 {
                let _ = write!(message, " and {more} more");
            }
        }
        message
    }
}

impl Checked {
    /// All that should be known about the file, whose examples are cut, or split, at `cut_at` tokens.
    pub fn remarks(&self, cut_at: u32) -> Vec<Remark> {
        let mut remarks = Vec::from_iter(of_shape(self.shape, self.container));
        remarks.extend(of_stats(&self.stats, self.format, cut_at));
        remarks.extend(self.quality.iter().flat_map(|quality| quality.remarks.clone()));
        remarks
    }

    /// Rows of this validation file that are, or nearly are, in the training file.
    pub fn leaks_from(&self, training: &Self) -> Option<Remark> {
        let (known, ours) = (training.quality.as_ref()?, self.quality.as_ref()?);
        let text = "have an input that is in the training file too, or nearly";
        Remark::of_rows("leaked", known.rows.shared_with(&ours.rows), text)
    }
}

/// What became of rows that are not as OpenAI has them, nor in one of our shapes.
fn of_shape(shape: Shape, container: ContainerKind) -> Option<Remark> {
    let how = match shape {
        Shape::Messages
        | Shape::Chat
        | Shape::Preference
        | Shape::Labelled
        | Shape::Text
        | Shape::Reinforcement => "",
        Shape::Anthropic | Shape::Alpaca | Shape::ShareGpt => ", which were read as conversations",
        Shape::PromptCompletion => {
            ", of which each was read as one message of the user and the assistant's answer to it"
        }
        Shape::ChosenRejected => ", which were read as preferred and non-preferred outputs",
    };
    let within = match container {
        ContainerKind::Lines if how.is_empty() => return None,
        ContainerKind::Lines => String::new(),
        _ => format!(" in {container}"),
    };
    let remark = Remark::of_file("format", format!("its rows are {shape}{within}{how}."));
    Some(Remark { is_warning: false, ..remark })
}

/// Of lengths, and of answers without use.
fn of_stats(stats: &Stats, format: Format, cut_at: u32) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let mut tell = |code, is_warning, count, lines: &[u64], text: String| {
        if count > 0 {
            remarks.push(Remark { code, is_warning, count, lines: lines.to_vec(), text });
        }
    };
    let cut = format!("are longer than {cut_at} tokens and are cut at the end");
    tell("truncated", true, stats.n_truncated, &stats.truncated_lines, cut);
    let lost = match format {
        Format::Preference => "lose a whole answer to that and are left out",
        _ => "lose every token to train on to that and teach nothing",
    };
    tell("targets_cut", true, stats.n_targets_cut, &stats.lines_targets_cut, lost.to_owned());
    let open = "lose the end of an answer to that, with the token that ends a turn: they teach to go \
                on and on";
    tell("end_cut", true, stats.n_ends_cut, &stats.lines_ends_cut, open.to_owned());
    let split = format!(
        "are longer than {cut_at} tokens and are split, without loss: the file has {} sequences",
        stats.n_sequences
    );
    tell("split", false, stats.n_split, &stats.split_lines, split);
    let none = "have no token to train on".to_owned();
    tell("without_targets", true, stats.n_without_targets, &stats.lines_without_targets, none);
    let equal = "have two equal answers, which teach nothing".to_owned();
    tell("equal_answers", true, stats.n_equal_pairs, &stats.lines_of_equal_pairs, equal);
    let one_sided = stats.n_undesirable == 0 || stats.n_undesirable == stats.n_examples;
    if format == Format::Labelled && one_sided {
        let which = if stats.n_undesirable == 0 { "good" } else { "bad" };
        let text = format!(
            "are labelled as {which} ones; 'kto' learns from the difference to the others."
        );
        tell("one_label", true, stats.n_examples, &[], text);
    }
    let text = "say 'preferred_completion' and 'non_preferred_completion', which were read as \
                'preferred_output' and 'non_preferred_output'. OpenAI's service does not take the \
                older names.";
    tell("old_keys", true, stats.n_old_keys, &[], text.to_owned());
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_named_and_counted() {
        let stats = Stats {
            n_examples: 100,
            n_truncated: 25,
            truncated_lines: (1..=25).collect(),
            n_targets_cut: 1,
            lines_targets_cut: vec![7],
            ..Stats::default()
        };
        let remarks = of_stats(&stats, Format::Chat, 512);
        let [cut, lost] = remarks.as_slice() else { panic!("{remarks:?}") };
        let text = cut.message(100);
        assert!(text.starts_with("25 of 100 examples are longer than 512 tokens"), "{text}");
        assert!(text.ends_with("16, 17, 18, 19, 20 and 5 more"), "{text}");
        assert_eq!(cut.lines.len(), 25);
        assert!(lost.message(100).ends_with("teach nothing: line 7"), "{}", lost.message(100));
    }

    #[test]
    fn it_is_told_how_rows_of_another_shape_were_read() {
        let remark = of_shape(Shape::PromptCompletion, ContainerKind::Lines).unwrap();
        assert!(!remark.is_warning);
        assert_eq!(
            remark.message(12),
            "its rows are prompt/completion pairs, of which each was read as one message of the \
             user and the assistant's answer to it."
        );
        let table = of_shape(Shape::Text, ContainerKind::Csv).unwrap();
        assert_eq!(table.message(12), "its rows are plain text in CSV.");
        assert_eq!(of_shape(Shape::Text, ContainerKind::Lines), None);
    }

    #[test]
    fn good_rows_have_no_remarks() {
        let stats = Stats { n_examples: 10, n_undesirable: 5, ..Stats::default() };
        assert_eq!(of_stats(&stats, Format::Labelled, 512), []);
        let bad = of_stats(&Stats { n_undesirable: 10, ..stats }, Format::Labelled, 512);
        assert!(bad[0].message(10).starts_with("10 of 10 examples are labelled as bad ones"));
    }
}
