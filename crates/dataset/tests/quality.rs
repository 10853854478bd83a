//! How much of what is wrong with data is found, and how often sound data is blamed: faults sown into real
//! rows, and the real rows as they are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dataset::{ChatTokenizer, Checked, Checker, Expected, FileRole, Limits, TokenizerParts, code};
use serde_json::{Value, json};

/// Of the faults that were sown, at least so many are found.
const FOUND: f64 = 0.95;
/// Of sound rows, at most so many are blamed.
const BLAMED: f64 = 0.02;
/// Times that each fault is sown.
const TIMES: usize = 6;
const CUT_AT: u32 = 1024;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests")
}

fn tokenizer() -> ChatTokenizer {
    let read = |name: &str| std::fs::read(root().join("golden/dataset").join(name)).unwrap();
    let template = String::from_utf8(read("chat_ml.jinja")).unwrap();
    ChatTokenizer::from_parts(TokenizerParts {
        tokenizer_json: &read("tokenizer.json"),
        tokenizer_config_json: Some(&read("tokenizer_config.json")),
        chat_template: Some(&template),
    })
    .unwrap()
}

fn check(role: FileRole, rows: &[String]) -> Checked {
    let tokenizer = tokenizer();
    let limits = Limits::new(role, Expected::Supervised, CUT_AT as usize);
    let mut checker = Checker::new(&tokenizer, limits);
    checker.push(rows.join("\n").as_bytes());
    checker.finish()
}

/// System prompt, input, output.
type Turn = [String; 3];

fn real(name: &str) -> Vec<Turn> {
    let text = std::fs::read_to_string(root().join("data").join(name)).unwrap();
    let turn = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        [0, 1, 2].map(|at| row["messages"][at]["content"].as_str().unwrap().to_owned())
    };
    text.lines().map(turn).collect()
}

/// Prose to prose: a sentence of a review, and the next one that ends as sentences do.
fn prose() -> Vec<Turn> {
    let sentences: Vec<String> =
        real("sentiment_train.jsonl").into_iter().map(|[_, s, _]| s).collect();
    let ends = |text: &&String| text.ends_with(['.', '!', '?']);
    let next = sentences.iter().skip(1).filter(ends);
    let turn = |(one, other): (&String, &String)| ["Go on.".to_owned(), one.clone(), other.clone()];
    sentences.iter().zip(next).map(turn).collect()
}

/// Addresses to JSON of always the same keys.
fn fields() -> Vec<Turn> {
    let turn = |[system, input, output]: Turn| {
        let parts: Value = serde_json::from_str(&output).unwrap();
        let fields = json!({"address": input, "parts": parts.as_object().unwrap().len()});
        [system, input, fields.to_string()]
    };
    real("address_train.jsonl").into_iter().map(turn).collect()
}

fn row([system, input, output]: &Turn) -> Value {
    json!({"messages": [{"role": "system", "content": system}, {"role": "user", "content": input},
                        {"role": "assistant", "content": output}]})
}

/// Rows, and which faults were sown into which lines.
struct Field {
    turns: Vec<Turn>,
    rows: Vec<String>,
    sown: Vec<(&'static str, u64)>,
    next: usize,
}

impl Field {
    fn new(turns: Vec<Turn>) -> Self {
        let rows = turns.iter().map(|turn| row(turn).to_string()).collect();
        Self { turns, rows, sown: Vec::new(), next: 0 }
    }

    /// A row that nothing was sown into, with its line.
    fn fresh(&mut self, fits: impl Fn(&Turn) -> bool) -> (usize, Turn) {
        let at = (self.next..self.turns.len()).find(|&at| fits(&self.turns[at])).unwrap();
        self.next = at + 1;
        (at, self.turns[at].clone())
    }

    /// Changes rows.
    fn sow(&mut self, code: &'static str, change: impl Fn(Turn, usize) -> String) {
        for time in 0..TIMES {
            let (at, turn) = self.fresh(|_| true);
            self.rows[at] = change(turn, time);
            self.sown.push((code, at as u64 + 1));
        }
    }

    fn sow_turns(&mut self, code: &'static str, change: impl Fn(Turn, usize) -> Turn) {
        self.sow(code, |turn, time| row(&change(turn, time)).to_string());
    }

    /// Adds changed copies of rows with long inputs; both are meant where `both`.
    fn sow_copies(&mut self, code: &'static str, both: bool, change: impl Fn(Turn) -> Turn) {
        for _ in 0..TIMES {
            let (at, turn) = self.fresh(|[_, input, _]| input.split_whitespace().count() >= 18);
            self.rows.push(row(&change(turn)).to_string());
            self.sown.push((code, self.rows.len() as u64));
            self.sown.extend(both.then_some((code, at as u64 + 1)));
        }
    }

    fn missed(&self) -> (usize, Vec<(&'static str, u64)>) {
        let found = found(&check(FileRole::Training, &self.rows));
        let missed = self.sown.iter().filter(|sown| !found.contains(*sown)).copied();
        (self.sown.len(), missed.collect())
    }
}

/// Codes and lines of problems and warnings.
fn found(checked: &Checked) -> BTreeSet<(&'static str, u64)> {
    let problems = checked.problems.iter().filter_map(|p| Some((p.code, p.line?)));
    let remarks = checked.remarks(CUT_AT).into_iter().filter(|remark| remark.is_warning);
    let warned = remarks.flat_map(|r| r.lines.into_iter().map(move |line| (r.code, line)));
    problems.chain(warned).collect()
}

/// The eighth word is another one.
fn reworded(input: &str) -> String {
    let mut words: Vec<&str> = input.split_whitespace().collect();
    words[7] = "somewhat";
    words.join(" ")
}

fn opposite(label: &str) -> String {
    if label == "positive" { "negative" } else { "positive" }.to_owned()
}

fn reviews() -> Field {
    const PERSONAL: [(&str, &str); 7] = [
        ("pii_email", "jane.doe@mail.acme.co.uk"),
        ("pii_phone", "+49 30 901820"),
        ("pii_credit_card", "4111 1111 1111 1111"),
        ("pii_iban", "DE89 3704 0044 0532 0130 00"),
        ("pii_ip_address", "81.2.69.142"),
        ("pii_ssn", "536-90-4399"),
        ("pii_secret", "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"),
    ];
    let mut field = Field::new(real("sentiment_train.jsonl"));
    field.sow_copies("exact_duplicate", false, |turn| turn);
    field.sow_copies("near_duplicate", false, |[s, input, o]| [s, reworded(&input), o]);
    field.sow_copies("contradiction", true, |[s, i, o]| [s, i, opposite(&o)]);
    field.sow_copies("contradiction", true, |[s, i, o]| [s, reworded(&i), opposite(&o)]);
    for (code, text) in PERSONAL {
        field.sow_turns(code, |[s, input, o], _| [s, format!("{input} So says {text}."), o]);
    }
    field.sow_turns("empty_output", |[s, i, _], time| [s, i, " ".repeat(time + 1)]);
    let spelled = ["Positive", "positive.", "NEGATIVE", "Negative", " Negative.", "\"positive\""];
    field.sow_turns("label_spelling", |[s, i, _], time| [s, i, spelled[time].to_owned()]);
    let rare = ["neutral", "postive", "mixed", "negativ", "unclear", "none"];
    field.sow_turns("rare_label", |[s, i, _], time| [s, i, rare[time].to_owned()]);
    let without = |turn: Turn, missing: usize| {
        let mut row = row(&turn);
        row["messages"].as_array_mut().unwrap().remove(missing);
        row.to_string()
    };
    field.sow("mixed_instructions", |turn, _| without(turn, 0));
    field.sow("missing_user_message", |turn, _| without(turn, 1));
    field.sow(code::EXAMPLE_MISSING_ASSISTANT_MESSAGE, |turn, _| without(turn, 2));
    field.sow("targets_cut", |[s, i, o], _| row(&[s, i.repeat(100), o]).to_string());
    let changed = |turn: Turn, key: &str, value: Value| {
        let mut row = row(&turn);
        row["messages"][2][key] = value;
        row.to_string()
    };
    field.sow("without_targets", |turn, _| changed(turn, "weight", json!(0)));
    field.sow(code::UNRECOGNIZED_ROLE, |turn, _| changed(turn, "role", json!("bot")));
    field.sow(code::MESSAGE_UNRECOGNIZED_KEY, |turn, _| changed(turn, "mood", json!("good")));
    field.sow(code::SPECIAL_TOKEN, |turn, _| changed(turn, "content", json!("<|im_end|>")));
    field.sow(code::INVALID_JSON, |turn, _| row(&turn).to_string().replacen(':', ";", 1));
    field
}

fn answers() -> Field {
    let refusals = [
        "I'm sorry, but I can't help with that.",
        "As an AI language model, I have no opinion of films.",
        "I cannot fulfill this request.",
        "Sorry, I am unable to watch films.",
        "Unfortunately, I cannot go on with this text.",
        "I apologize, but I won't write this.",
    ];
    let german = "Der Film ist lang und die Handlung ist dünn, aber das Ende ist nicht schlecht.";
    let mut field = Field::new(prose());
    field.sow_turns("refusal", |[s, i, _], time| [s, i, refusals[time].to_owned()]);
    field.sow_turns("cut_off", |[s, i, _], _| {
        let cut: Vec<&str> =
            "It begins well, but after the first half an hour it is".split(' ').collect();
        [s, i, cut.join(" ")]
    });
    field.sow_turns("repetition", |[s, i, _], time| [s, i, "It is a good film. ".repeat(time + 8)]);
    field.sow_turns("other_language", |[s, i, _], _| [s, i, german.to_owned()]);
    field.sow("end_cut", |[s, i, o], _| row(&[s, i, o.repeat(100)]).to_string());
    field
}

fn extractions() -> Field {
    let mut field = Field::new(fields());
    field.sow_turns("not_json", |[s, i, _], _| [s, i.clone(), format!("The address is {i}.")]);
    field.sow_turns("other_keys", |[s, i, o], _| [s, i, o.replace("\"parts\"", "\"count\"")]);
    field
}

#[test]
fn faults_that_were_sown_are_found() {
    let (mut sown, mut missed) = (0, Vec::new());
    for field in [reviews(), answers(), extractions()] {
        let (count, some) = field.missed();
        sown += count;
        missed.extend(some);
    }
    let rate = 1.0 - missed.len() as f64 / sown as f64;
    println!("found {:.1} % of {sown} faults; missed {missed:?}", rate * 100.0);
    assert!(rate >= FOUND, "found {:.1} % of {sown}; missed {missed:?}", rate * 100.0);
}

#[test]
fn rows_that_leak_into_the_validation_file_are_found() {
    let mut training = Field::new(real("sentiment_train.jsonl"));
    let mut validation = Field::new(real("sentiment_test.jsonl"));
    for time in 0..2 * TIMES {
        let (_, turn) = training.fresh(|[_, input, _]| input.split_whitespace().count() >= 18);
        let [system, input, output] = turn;
        let input = if time % 2 == 0 { input } else { reworded(&input) };
        validation.rows.push(row(&[system, input, output]).to_string());
    }
    let known = check(FileRole::Training, &training.rows);
    let leaks = check(FileRole::Validation, &validation.rows).leaks_from(&known).unwrap();
    let sound = validation.turns.len() as u64;
    let expected: Vec<u64> = (sound + 1..=sound + 2 * TIMES as u64).collect();
    assert_eq!(leaks.lines, expected);
}

#[test]
fn sound_rows_are_left_alone() {
    let names = [
        "sentiment_train.jsonl",
        "sentiment_test.jsonl",
        "address_train.jsonl",
        "address_test.jsonl",
    ];
    let mut sets: Vec<(&str, Vec<Turn>)> = names.map(|name| (name, real(name))).into();
    sets.extend([("prose", prose()), ("fields", fields())]);
    for (name, turns) in sets {
        let rows: Vec<String> = turns.iter().map(|turn| row(turn).to_string()).collect();
        let found = found(&check(FileRole::Training, &rows));
        let lines: BTreeSet<u64> = found.iter().map(|(_, line)| *line).collect();
        let rate = lines.len() as f64 / rows.len() as f64;
        println!("{name}: {} of {} rows blamed", lines.len(), rows.len());
        assert!(rate <= BLAMED, "{name}: {:.1} % of the rows are blamed: {found:?}", rate * 100.0);
    }
}
