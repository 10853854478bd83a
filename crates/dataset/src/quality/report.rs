//! Counts → figures and remarks. The thresholds of what is said about a file stand here.

use super::gather::{Counts, DIVERSITY_SAMPLE, Gathered};
use super::labels::Label;
use super::language::NAMES;
use super::personal::KINDS;
use super::repeats::{Answers, Repeats, RowIndex};
use super::task::{Shares, Task};
use super::{Count, Quality};
use crate::check::FileRole;
use crate::format::Format;
use crate::remark::Remark;
use crate::tally::Tally;

/// What nine of ten rows do is the custom of a file, and the rest are the exceptions to look at.
const CUSTOM: f64 = 0.9;
/// Fewer rows have no custom.
const CUSTOM_ROWS: u64 = 20;
/// Below this share of distinct pairs of words the inputs are much the same sentence.
const LOW_DIVERSITY: f64 = 0.1;
/// Inputs of fewer pairs of words are too short for it.
const DIVERSITY_LEAST: usize = 2_000;

impl Gathered {
    /// Ends the file. `examples`: what sizes are counted in.
    pub(crate) fn report(mut self, role: FileRole, format: Format, examples: u64) -> Quality {
        self.end();
        let Self { index, counts, .. } = self;
        let labels = counts.labels.found().filter(|_| format == Format::Chat);
        let of_outputs = |count: u64| count as f64 / counts.with_output.max(1) as f64;
        let shares = Shares {
            are_labels: labels.is_some(),
            json: of_outputs(counts.json),
            code: of_outputs(counts.code),
        };
        let task = Task::guess(format, shares);
        let labels = labels.filter(|_| task == Task::Classification).unwrap_or_default();
        let repeats = index.repeats(match format {
            Format::Preference => Answers::Pairs,
            Format::Labelled => Answers::Verdicts,
            Format::Text | Format::Reinforcement => Answers::None,
            _ if task == Task::Classification => Answers::Labels,
            _ => Answers::One,
        });
        let mut quality = figures(&counts, task, examples, labels);
        quality.compared_examples = index.compared();
        quality.exact_duplicates = repeats.exact.count;
        quality.near_duplicates = repeats.near.count;
        quality.contradictions = repeats.contradictions.count;
        let size = (role == FileRole::Training).then(|| too_few(&quality, examples)).flatten();
        let consistency = consistency(&counts, task);
        quality.remarks = of_repeats(repeats, format)
            .chain(of_outputs_seen(&counts))
            .chain(size)
            .chain(of_labels(&counts, &quality.labels))
            .chain(consistency)
            .chain(of_personal_data(&counts))
            .chain(low_diversity(&quality))
            .chain(left_out(&index))
            .collect();
        quality.rows = index;
        quality
    }
}

fn figures(counts: &Counts, task: Task, examples: u64, labels: Vec<Label>) -> Quality {
    let sizes = task.sizes();
    let languages = |tallies: &[Tally]| {
        let named = NAMES.iter().zip(tallies).map(|(name, rows)| (*name, rows.count));
        ordered(named)
    };
    let roles = counts.roles;
    let messages = [
        ("system", roles.system),
        ("user", roles.user),
        ("assistant", roles.assistant),
        ("tool", roles.tool),
    ];
    let personal = KINDS.iter().zip(&counts.personal).map(|((code, _), rows)| (*code, rows.count));
    let enough = counts.sampled >= DIVERSITY_LEAST.min(DIVERSITY_SAMPLE);
    Quality {
        task,
        task_reason: task.reason(),
        recommended_examples: sizes,
        size: sizes.rating(examples),
        compared_examples: 0,
        exact_duplicates: 0,
        near_duplicates: 0,
        contradictions: 0,
        input_diversity: enough
            .then(|| counts.distinct.len() as f64 / counts.sampled.max(1) as f64),
        labels,
        input_languages: languages(&counts.languages[0]),
        output_languages: languages(&counts.languages[1]),
        messages: ordered(messages.into_iter()),
        several_turns: counts.several_turns,
        with_instructions: counts.with_instructions.count,
        personal_data: ordered(personal),
        remarks: Vec::new(),
        rows: RowIndex::default(),
    }
}

/// Those that there are, the most first.
fn ordered(counts: impl Iterator<Item = (&'static str, u64)>) -> Vec<Count> {
    let mut counts: Vec<Count> =
        counts.filter(|(_, count)| *count > 0).map(|(name, count)| Count { name, count }).collect();
    counts.sort_by_key(|count| std::cmp::Reverse(count.count));
    counts
}

fn of_repeats(repeats: Repeats, format: Format) -> impl Iterator<Item = Remark> {
    let contradiction = match format {
        Format::Preference => "prefer the answer that another row with the same input rejects",
        Format::Labelled => "judge an answer otherwise than another row with the same input does",
        _ => "have an input, or nearly, that another row answers otherwise",
    };
    [
        Remark::of_rows("contradiction", repeats.contradictions, contradiction),
        Remark::of_rows("exact_duplicate", repeats.exact, "repeat an earlier row whole"),
        Remark::of_rows(
            "near_duplicate",
            repeats.near,
            "have an input that is nearly that of an earlier row",
        ),
    ]
    .into_iter()
    .flatten()
}

fn of_outputs_seen(counts: &Counts) -> impl Iterator<Item = Remark> + use<> {
    let open = is_exception(counts.open.count, counts.prose).then(|| counts.open.clone());
    [
        Remark::of_rows("empty_output", counts.empty.clone(), "have an empty output"),
        Remark::of_rows("refusal", counts.refusals.clone(), "teach a refusal"),
        Remark::of_rows(
            "cut_off",
            open.unwrap_or_default(),
            "have an output that stops within a sentence, where the others end with a mark",
        ),
        Remark::of_rows(
            "repetition",
            counts.repeated.clone(),
            "have an output that says the same words over and over",
        ),
    ]
    .into_iter()
    .flatten()
}

/// Whether so few of a file do what the others do not.
fn is_exception(few: u64, all: u64) -> bool {
    few > 0 && all >= CUSTOM_ROWS && (all - few) as f64 >= CUSTOM * all as f64
}

fn too_few(quality: &Quality, examples: u64) -> Option<Remark> {
    let (task, sizes) = (quality.task, quality.recommended_examples);
    let text = format!(
        "{examples} examples are few for {} ({}): {} are the least, {} are good",
        task.words(),
        task.reason(),
        sizes.minimum,
        sizes.good
    );
    (examples < sizes.minimum).then(|| Remark::of_file("few_examples", text))
}

fn of_labels(counts: &Counts, labels: &[Label]) -> impl Iterator<Item = Remark> + use<> {
    let faults = counts.labels.faults(labels);
    let imbalance = faults.imbalance.map(|(most, least)| {
        let text = format!(
            "{} examples have the label '{}', but only {} have '{}'",
            most.examples, most.label, least.examples, least.label
        );
        Remark::of_file("label_imbalance", text)
    });
    let spelled = "have a label that differs from a commoner one in case, spaces or marks alone";
    [
        imbalance,
        Remark::of_rows("label_spelling", faults.spelled, spelled),
        Remark::of_rows("rare_label", faults.rare, "have a label that hardly any other row has"),
    ]
    .into_iter()
    .flatten()
}

fn consistency(counts: &Counts, task: Task) -> impl Iterator<Item = Remark> + use<> {
    let mut remarks = Vec::new();
    let mut tell = |code, rows: &Tally, text: &str| {
        remarks.extend(Remark::of_rows(code, rows.clone(), text));
    };
    let (with, without) = (&counts.with_instructions, &counts.without_instructions);
    if with.count > 0 && without.count > 0 {
        let (fewer, text) = match with.count < without.count {
            true => (with, "have a system prompt or tools, and the others have none"),
            false => (without, "have no system prompt, and the others have one"),
        };
        tell("mixed_instructions", fewer, text);
    }
    tell("missing_user_message", &counts.without_user, "have no message of a user");
    if is_exception(counts.no_json.count, counts.with_output) {
        tell("not_json", &counts.no_json, "have an output that is no JSON, where the others' is");
    }
    let of_objects = counts.key_sets.values().map(|rows| rows.count).sum();
    if let Some(usual) = counts.key_sets.values().map(|rows| rows.count).max()
        && task == Task::Extraction
        && is_exception(of_objects - usual, of_objects)
    {
        let mut others = Tally::default();
        counts.key_sets.values().filter(|rows| rows.count < usual).for_each(|o| others.extend(o));
        tell("other_keys", &others, "have an output with other keys than nearly all others");
    }
    let mut foreign = Tally::default();
    for tallies in &counts.languages {
        let all: u64 = tallies.iter().map(|rows| rows.count).sum();
        let usual = tallies.iter().map(|rows| rows.count).max().unwrap_or(0);
        if is_exception(all - usual, all) {
            tallies.iter().filter(|rows| rows.count < usual).for_each(|o| foreign.extend(o));
        }
    }
    foreign.lines.dedup();
    foreign.count = foreign.count.min(counts.rows);
    tell("other_language", &foreign, "are in another language than nearly all others");
    remarks.into_iter()
}

fn of_personal_data(counts: &Counts) -> impl Iterator<Item = Remark> + use<'_> {
    let kinds = KINDS.iter().zip(&counts.personal);
    kinds.filter_map(|((code, text), rows)| Remark::of_rows(code, rows.clone(), *text))
}

fn low_diversity(quality: &Quality) -> Option<Remark> {
    let diversity = quality.input_diversity.filter(|diversity| *diversity < LOW_DIVERSITY)?;
    let text = format!(
        "the inputs say much the same: of their pairs of words only {:.0} % are different",
        diversity * 100.0
    );
    Some(Remark::of_file("low_diversity", text))
}

fn left_out(index: &RowIndex) -> Option<Remark> {
    let text = format!(
        "{} examples stand behind the first {} and were not looked at for copies and contradictions",
        index.left_out(),
        index.compared()
    );
    (index.left_out() > 0).then(|| Remark::of_file("not_compared", text))
}
