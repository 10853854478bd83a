//! Which training rows are shown in the prompt of the base model: those whose question shares the most words with
//! the row's, which is what somebody would do who did not tune.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::examples::Example;

/// Training rows with the words of their questions.
pub(crate) struct Shots {
    rows: Vec<(Example, HashSet<String>)>,
}

impl Shots {
    pub(crate) fn new(training: Vec<Example>) -> Self {
        let with_words = |example: Example| {
            let words = words(&example.question());
            (example, words)
        };
        Self { rows: training.into_iter().map(with_words).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The `count` likest, the likest last, next to the question.
    pub(crate) fn nearest(&self, to: &Example, count: usize) -> Vec<&Example> {
        let wanted = words(&to.question());
        let mut ranked: Vec<(f64, &Example)> = self
            .rows
            .iter()
            // What stands in the training file too would be answered by copying.
            .filter(|(example, _)| example.messages != to.messages)
            .map(|(example, words)| (overlap(&wanted, words), example))
            .collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.number.cmp(&b.1.number)));
        ranked.truncate(count);
        ranked.into_iter().rev().map(|(_, example)| example).collect()
    }
}

/// The question with the shots as earlier turns, behind its own system messages.
pub(crate) fn with_shots(example: &Example, shots: &[&Example]) -> Vec<Value> {
    let is_system =
        |message: &&Value| message["role"] == "system" || message["role"] == "developer";
    let own = example.messages.iter().take_while(is_system).count();
    let mut messages = example.messages[..own].to_vec();
    for shot in shots {
        messages.extend(shot.messages.iter().filter(|message| !is_system(message)).cloned());
        messages.push(json!({"role": "assistant", "content": shot.expected}));
    }
    messages.extend_from_slice(&example.messages[own..]);
    messages
}

fn words(text: &str) -> HashSet<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// Words of both over words of either.
fn overlap(a: &HashSet<String>, b: &HashSet<String>) -> f64 {
    let both = a.intersection(b).count();
    let either = a.len() + b.len() - both;
    if either == 0 { 0.0 } else { both as f64 / either as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(number: u64, question: &str, expected: &str) -> Example {
        let messages = vec![
            json!({"role": "system", "content": "Be short."}),
            json!({"role": "user", "content": question}),
        ];
        Example { number, messages, tools: Vec::new(), expected: expected.to_owned() }
    }

    #[test]
    fn the_likest_question_stands_next_and_the_same_one_nowhere() {
        let shots = Shots::new(vec![
            example(1, "The weather in Rome", "sun"),
            example(2, "The weather in Oslo today", "snow"),
            example(3, "A poem", "roses"),
        ]);
        let asked = example(9, "the weather in Oslo", "");
        let numbers = |count| {
            shots.nearest(&asked, count).iter().map(|example| example.number).collect::<Vec<_>>()
        };
        assert_eq!((numbers(2), numbers(1)), (vec![1, 2], vec![2]));
        let copy = example(8, "The weather in Rome", "");
        assert_eq!(shots.nearest(&copy, 1)[0].number, 2);
        let messages = with_shots(&asked, &shots.nearest(&asked, 1));
        let roles: Vec<_> =
            messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert_eq!((&messages[2]["content"], &messages[3]), (&json!("snow"), &asked.messages[1]));
    }
}
