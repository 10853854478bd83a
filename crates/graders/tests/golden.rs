//! The metrics against the libraries that they follow; `tests/golden/graders_fixture.py` made the values.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use graders::Metric;
use graders::similarity::{MAX_CHARACTERS, corpus, similarity};
use serde_json::Value;

const TOLERANCE: f64 = 1e-9;

#[test]
fn every_metric_computes_what_its_library_computes() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/similarity.json")).unwrap();
    let mut worst: BTreeMap<&str, f64> = BTreeMap::new();
    for case in &cases {
        let text = |key: &str| case[key].as_str().unwrap();
        for metric in Metric::ALL {
            let wanted = case["scores"][metric.as_str()].as_f64().unwrap();
            let found = similarity(metric, text("input"), text("reference")).unwrap();
            let difference = (found - wanted).abs();
            assert!(difference <= TOLERANCE, "{metric:?} {case}: {found}, wanted {wanted}");
            let largest = worst.entry(metric.as_str()).or_default();
            *largest = largest.max(difference);
        }
    }
    println!("{} pairs; largest differences: {worst:?}", cases.len());
}

#[test]
fn many_answers_together_score_as_sacrebleu_has_them() {
    let corpora: Vec<Value> = serde_json::from_str(include_str!("fixtures/corpus.json")).unwrap();
    for corpus in &corpora {
        let pairs: Vec<(String, String)> = serde_json::from_value(corpus["pairs"].clone()).unwrap();
        let both = || pairs.iter().map(|(answer, reference)| (answer.as_str(), reference.as_str()));
        for (name, found) in [("bleu", corpus::bleu(both())), ("chrf", corpus::chrf(both()))] {
            let wanted = corpus[name].as_f64().unwrap();
            assert!(
                (found - wanted).abs() <= TOLERANCE,
                "{name}: {found}, wanted {wanted}: {pairs:?}"
            );
        }
    }
}

#[test]
fn texts_beyond_the_limit_are_not_compared() {
    let (within, beyond) = ("é".repeat(MAX_CHARACTERS), "é".repeat(MAX_CHARACTERS + 1));
    for metric in Metric::ALL {
        assert!(similarity(metric, "a", &within).is_some());
        assert_eq!(similarity(metric, "a", &beyond), None);
        assert_eq!(similarity(metric, &beyond, "a"), None);
    }
}

/// No assertion on the time itself: the measure is that this ends, and its figures are printed.
#[test]
fn the_longest_texts_are_compared_in_bounded_time_and_memory() {
    let fill = |unit: &dyn Fn(usize) -> String| {
        let mut text: String = (0..).map(unit).take(MAX_CHARACTERS).collect();
        text.truncate(text.char_indices().nth(MAX_CHARACTERS).map_or(text.len(), |(end, _)| end));
        text
    };
    let repeated = fill(&|i| ["ab ", "ba ", "a.b,c "][i % 3].to_owned());
    let distinct = fill(&|i| format!("{i} "));
    let characters =
        fill(&|i| char::from_u32(0x4e00 + (i as u32 * 7) % 20_000).unwrap().to_string());
    for metric in Metric::ALL {
        let started = Instant::now();
        for (a, b) in [(&repeated, &distinct), (&distinct, &distinct), (&characters, &characters)] {
            let found = similarity(metric, a, b).unwrap();
            assert!((0.0..=1.0 + TOLERANCE).contains(&found), "{metric:?}: {found}");
        }
        let took: Duration = started.elapsed() / 3;
        println!("{:<12} {took:?}", metric.as_str());
    }
}
