//! Answers and expected answers → figures. Per row, so that contenders can be compared row by row, and of all rows.

use std::collections::HashSet;

use graders::compare::Confusion;
use graders::similarity::{Metric, corpus, similarity};
use serde_json::{Map, Value, json};

/// This share of the expected answers is JSON where the task is to extract.
const CUSTOM: f64 = 0.8;
/// Texts of at most so many words are said exactly, or wrongly.
const SHORT_WORDS: usize = 5;

/// What the expected answers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    /// With its labels, the commonest first.
    Classification(Vec<String>),
    /// JSON.
    Extraction,
    /// Few words.
    Short,
    Text,
}

impl Task {
    pub(crate) fn of(labels: Option<Vec<String>>, expected: &[&str]) -> Self {
        if let Some(labels) = labels {
            return Self::Classification(labels);
        }
        let share = |of: fn(&str) -> bool| {
            expected.iter().filter(|text| of(text)).count() as f64 / expected.len().max(1) as f64
        };
        if share(|text| structure(text).is_some()) >= CUSTOM {
            Self::Extraction
        } else if share(|text| text.split_whitespace().count() <= SHORT_WORDS) >= CUSTOM {
            Self::Short
        } else {
            Self::Text
        }
    }

    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Classification(_) => "classification",
            Self::Extraction => "extraction",
            Self::Short => "short_text",
            Self::Text => "text",
        }
    }

    /// The score that contenders are compared by.
    pub(crate) fn primary(&self) -> &'static str {
        match self {
            Self::Classification(_) => "accuracy",
            Self::Extraction => "json_field_f1",
            Self::Short => "exact_match",
            Self::Text => "rouge_l",
        }
    }
}

/// A score in words, for people.
pub(crate) fn in_words(metric: &str) -> &'static str {
    match metric {
        "accuracy" => "accuracy",
        "json_field_f1" => "of the JSON fields right (F1)",
        "exact_match" => "exact match",
        _ => "ROUGE-L",
    }
}

/// The scores of one answer, from 0 to 1; no answer scores nothing.
pub(crate) fn of_row(task: &Task, expected: &str, answer: Option<&str>) -> Map<String, Value> {
    let same = |answer: &str| f64::from(u8::from(answer.trim() == expected.trim()));
    let alike = |metric, answer: &str| similarity(metric, answer, expected).unwrap_or(0.0);
    let mut scores = Map::new();
    let mut score = |name: &str, of: &dyn Fn(&str) -> f64| {
        scores.insert(name.to_owned(), answer.map_or(0.0, of).into());
    };
    score("exact_match", &same);
    if let Task::Classification(_) = task {
        score("accuracy", &same);
    }
    score("rouge_1", &|answer| alike(Metric::Rouge(1), answer));
    score("rouge_2", &|answer| alike(Metric::Rouge(2), answer));
    score("rouge_l", &|answer| alike(Metric::RougeL, answer));
    if *task == Task::Extraction {
        score("json_valid", &|answer| f64::from(u8::from(structure(answer).is_some())));
        score("json_field_f1", &|answer| fields_f1(answer, expected));
    }
    scores
}

/// Figures of all rows together: the means of the rows' scores, BLEU and chrF, and what labels show. `rows`:
/// (expected, answer).
pub(crate) fn of_all(
    task: &Task,
    rows: &[(&str, Option<&str>)],
    scores: &[Map<String, Value>],
) -> Value {
    let mut metrics = Map::new();
    for name in scores.first().into_iter().flat_map(Map::keys) {
        let sum: f64 = scores.iter().filter_map(|row| row[name.as_str()].as_f64()).sum();
        metrics.insert(name.clone(), (sum / scores.len() as f64).into());
    }
    let pairs = || rows.iter().map(|(expected, answer)| (answer.unwrap_or(""), *expected));
    metrics.insert("bleu".to_owned(), corpus::bleu(pairs()).into());
    metrics.insert("chrf".to_owned(), corpus::chrf(pairs()).into());
    let mut all = json!({"metrics": {}, "labels": [], "confusion": null});
    if let Task::Classification(labels) = task {
        let mut confusion = Confusion::new(labels.clone());
        for (expected, answer) in rows {
            confusion.add(expected.trim(), answer.unwrap_or(""));
        }
        metrics.insert("macro_f1".to_owned(), confusion.macro_f1().into());
        let of_labels = confusion.labels().iter().zip(confusion.of_labels());
        all["labels"] = of_labels
            .map(|(label, of)| {
                json!({"label": label, "precision": of.precision, "recall": of.recall, "f1": of.f1,
                       "support": of.support})
            })
            .collect();
        all["confusion"] = json!({"labels": confusion.labels(), "counts": confusion.counts()});
    }
    all["metrics"] = metrics.into();
    all
}

/// An object or a list; single words and numbers are JSON by chance.
fn structure(text: &str) -> Option<Value> {
    serde_json::from_str(text.trim())
        .ok()
        .filter(|value: &Value| value.is_object() || value.is_array())
}

/// F1 of the values, each with its path, that both have.
fn fields_f1(answer: &str, expected: &str) -> f64 {
    let (Some(answer), Some(expected)) = (structure(answer), structure(expected)) else {
        return 0.0;
    };
    let (answer, expected) = (leaves(&answer), leaves(&expected));
    if answer.is_empty() && expected.is_empty() {
        return 1.0;
    }
    let common = answer.intersection(&expected).count() as f64;
    2.0 * common / (answer.len() + expected.len()) as f64
}

fn leaves(value: &Value) -> HashSet<(String, String)> {
    fn walk(value: &Value, path: &str, found: &mut HashSet<(String, String)>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (key, inner) in fields {
                    let key = key.replace('~', "~0").replace('/', "~1");
                    walk(inner, &format!("{path}/{key}"), found);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for (i, inner) in items.iter().enumerate() {
                    walk(inner, &format!("{path}/{i}"), found);
                }
            }
            leaf => {
                found.insert((path.to_owned(), leaf.to_string()));
            }
        }
    }
    let mut found = HashSet::new();
    walk(value, "", &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_decides_the_score_that_counts() {
        let labels = Some(vec!["a".to_owned()]);
        assert_eq!(Task::of(labels, &["a"]).primary(), "accuracy");
        assert_eq!(Task::of(None, &["{\"a\": 1}"; 5]).primary(), "json_field_f1");
        assert_eq!(Task::of(None, &["Paris", "42", "in the morning"]).primary(), "exact_match");
        let long = "a sentence of rather more than five words";
        assert_eq!(Task::of(None, &[long; 3]).primary(), "rouge_l");
    }

    #[test]
    fn fields_count_by_path_and_value() {
        let f1 =
            |answer: &str| fields_f1(answer, r#"{"name": "Ann", "age": 3, "tags": ["a", "b"]}"#);
        assert_eq!(f1(r#"{"tags":["a","b"],"age":3,"name":"Ann"}"#), 1.0);
        // Two of four are right, and two are wrong.
        assert_eq!(f1(r#"{"name": "Bob", "age": 3, "tags": ["b", "b"]}"#), 0.5);
        assert_eq!((f1("no"), f1("3"), fields_f1("{}", "{}")), (0.0, 0.0, 1.0));
    }

    #[test]
    fn no_answer_scores_nothing_and_counts() {
        let task = Task::Classification(vec!["yes".to_owned(), "no".to_owned()]);
        let rows = [("yes", Some(" yes\n")), ("no", None), ("no", Some("I cannot say"))];
        let scores: Vec<_> = rows.iter().map(|(e, a)| of_row(&task, e, *a)).collect();
        let all = of_all(&task, &rows, &scores);
        let third = all["metrics"]["accuracy"].as_f64().unwrap();
        assert!((third - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(all["confusion"]["counts"], json!([[1, 0, 0], [0, 0, 2]]));
        assert_eq!(all["labels"][0]["f1"], 1.0);
    }
}
