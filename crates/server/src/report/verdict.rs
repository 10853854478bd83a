//! What the figures of a report say, in one sentence with its numbers.

use super::content::{Comparison, Score};
use super::measures::in_words;

/// Below it, a difference is taken for more than chance.
const SIGNIFICANT: f64 = 0.05;

/// Of a report with rows.
pub(crate) fn verdict(
    metric: &str,
    rows: usize,
    scores: &[Score],
    comparisons: &[Comparison],
) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let words = in_words(metric);
    let named = scores.iter().map(|score| {
        let shots = score.shots;
        match score.role.as_str() {
            "base" => format!("the base model {}", percent(score.value)),
            "few_shot" => {
                format!(
                    "the base model with {shots} examples in its prompt {}",
                    percent(score.value)
                )
            }
            _ => format!("the tuned model {}", percent(score.value)),
        }
    });
    let named: Vec<String> = named.collect();
    let compared = comparisons.iter().map(|comparison| {
        let found = &comparison.bootstrap;
        let other = match comparison.than.as_str() {
            "base" => "the base model",
            _ => "the base model with examples",
        };
        let points = format!(
            "{:+.1} points, 95 % interval {:+.1} to {:+.1}, {}",
            100.0 * found.difference,
            100.0 * found.low,
            100.0 * found.high,
            in_letters(found.p)
        );
        let says = match (found.p < SIGNIFICANT, found.difference > 0.0) {
            (true, true) => format!("is better than {other}"),
            (true, false) => format!("is worse than {other}"),
            (false, _) => format!("cannot be told from {other}"),
        };
        format!("{says} ({points})")
    });
    let compared: Vec<String> = compared.collect();
    format!(
        "On {rows} held-out rows ({words}): {}. The tuned model {}.",
        named.join(", "),
        compared.join(" and ")
    )
}

fn in_letters(p: f64) -> String {
    if p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {p:.3}") }
}

#[cfg(test)]
mod tests {
    use graders::compare::Bootstrap;

    use super::super::Role;
    use super::*;

    #[test]
    fn the_sentence_has_the_numbers() {
        let score = |role, value, shots| Score { role, value, shots };
        let scores =
            [score(Role::Tuned, 0.84, 0), score(Role::Base, 0.1, 0), score(Role::FewShot, 0.82, 4)];
        let compared = |than, difference, p| Comparison {
            than,
            bootstrap: Bootstrap { difference, low: difference - 0.1, high: difference + 0.1, p },
        };
        let comparisons = [compared(Role::Base, 0.74, 0.0002), compared(Role::FewShot, 0.02, 0.7)];
        assert_eq!(
            verdict("accuracy", 50, &scores, &comparisons),
            "On 50 held-out rows (accuracy): the tuned model 84.0 %, the base model 10.0 %, the base model \
             with 4 examples in its prompt 82.0 %. The tuned model is better than the base model (+74.0 \
             points, 95 % interval +64.0 to +84.0, p < 0.001) and cannot be told from the base model with \
             examples (+2.0 points, 95 % interval -8.0 to +12.0, p = 0.700)."
        );
    }
}
