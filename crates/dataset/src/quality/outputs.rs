//! Outputs that were hardly meant to be learned: empty, a refusal, cut off, the same words over and over.

use std::collections::HashMap;

use serde::de::IgnoredAny;

use super::words::{hash_of, pair, words};

/// What is seen in the taught outputs of a row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outputs {
    pub is_empty: bool,
    pub refuses: bool,
    pub repeats: bool,
    /// Whether the last output is a text of sentences.
    pub is_prose: bool,
    /// Such a text that ends with a letter, a digit or a comma.
    pub is_open: bool,
    pub has_code: bool,
    pub form: Form,
    pub words: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Form {
    #[default]
    Text,
    /// JSON, with the hash of the keys of an object.
    Json(Option<u64>),
}

/// Fewer words are no sentence, and may end as they like.
const PROSE_WORDS: u64 = 8;
const FENCE: &str = "```";

impl Outputs {
    pub fn of<'r>(outputs: impl Iterator<Item = &'r str>) -> Self {
        let mut seen = Self::default();
        for output in outputs {
            let output = output.trim();
            seen.is_empty |= output.is_empty();
            seen.refuses |= refuses(output);
            seen.form = form_of(output);
            let hashes: Vec<u64> = words(output).map(|word| word.hash).collect();
            seen.repeats |= seen.form == Form::Text && repeats(&hashes);
            seen.words = hashes.len() as u64;
            seen.has_code = output.contains(FENCE);
            seen.is_prose = seen.words >= PROSE_WORDS && seen.form == Form::Text && !seen.has_code;
            let last = output.chars().next_back();
            let open = |c: char| c.is_alphanumeric() || matches!(c, ',' | '-' | '(' | '–');
            seen.is_open = seen.is_prose && last.is_some_and(open);
        }
        seen
    }
}

/// Whether the output begins by declining. What comes later in it is a quotation more often than not.
fn refuses(output: &str) -> bool {
    /// Characters in which it begins.
    const START: usize = 160;
    const ALONE: [&str; 10] = [
        "as an ai language model",
        "as an ai model",
        "as a language model",
        "as a large language model",
        "as an artificial intelligence",
        "as an ai assistant, i",
        "i cannot fulfill",
        "i can't fulfill",
        "i cannot comply",
        "i can't assist with that",
    ];
    const SORRY: [&str; 5] = ["i'm sorry", "i am sorry", "sorry", "i apologize", "unfortunately"];
    const DECLINE: [&str; 9] = [
        "i can't",
        "i cannot",
        "i can not",
        "i'm unable",
        "i am unable",
        "i'm not able",
        "i am not able",
        "i won't",
        "i will not be able",
    ];
    if !output.starts_with(['I', 'i', 'A', 'a', 'S', 's', 'U', 'u']) {
        return false;
    }
    let start: String = output
        .chars()
        .take(START)
        .map(|c| if c == '’' { '\'' } else { c.to_ascii_lowercase() })
        .collect();
    let sorry = || SORRY.iter().any(|words| start.starts_with(words));
    ALONE.iter().any(|words| start.starts_with(words))
        || sorry() && DECLINE.iter().any(|words| start.contains(words))
        || sorry() && ALONE.iter().any(|words| start.contains(words))
}

/// Whether one sequence of four words makes up half of the text, and comes five times or more.
fn repeats(words: &[u64]) -> bool {
    const LENGTH: usize = 4;
    const TIMES: usize = 5;
    if words.len() < LENGTH * TIMES {
        return false;
    }
    let mut counts: HashMap<u64, usize> = HashMap::new();
    let mut most = 0;
    for sequence in words.windows(LENGTH) {
        let hash = sequence.iter().fold(0, |hash, word| pair(hash, *word));
        let count = counts.entry(hash).or_default();
        *count += 1;
        most = most.max(*count);
    }
    // "very very very": sequences that overlap count once for every word.
    most >= TIMES && most * LENGTH * 2 >= words.len()
}

/// A whole JSON object or list, in a fence or not.
fn form_of(output: &str) -> Form {
    let inner = output
        .strip_prefix(FENCE)
        .and_then(|rest| rest.strip_suffix(FENCE))
        .map_or(output, |rest| rest.strip_prefix("json").unwrap_or(rest).trim());
    if inner.starts_with('[') && serde_json::from_str::<IgnoredAny>(inner).is_ok() {
        return Form::Json(None);
    }
    if !inner.starts_with('{') {
        return Form::Text;
    }
    match serde_json::from_str::<HashMap<String, IgnoredAny>>(inner) {
        // A sum: the order of keys does not matter.
        Ok(fields) => Form::Json(Some(
            fields
                .keys()
                .fold(0, |sum: u64, key| sum.wrapping_add(super::words::mix(hash_of(key)))),
        )),
        Err(_) => Form::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(output: &str) -> Outputs {
        Outputs::of(std::iter::once(output))
    }

    #[test]
    fn refusals_are_known_by_how_they_begin() {
        for text in [
            "I'm sorry, but I can't help with that.",
            "I’m sorry, but I cannot assist you.",
            "As an AI language model, I have no opinions.",
            "Sorry, as an AI language model I have no access.",
            "Unfortunately, I am unable to do so.",
        ] {
            assert!(seen(text).refuses, "{text}");
        }
        for text in [
            "I'm sorry to hear that. Please restart the router.",
            "Sorry for the delay! Your parcel arrives tomorrow.",
            "A model said: I'm sorry, but I can't help with that.",
            "You can't do that here.",
        ] {
            assert!(!seen(text).refuses, "{text}");
        }
    }

    #[test]
    fn the_same_words_over_and_over_are_seen() {
        assert!(seen(&"I like it. ".repeat(20)).repeats);
        assert!(seen(&"very ".repeat(30)).repeats);
        assert!(seen(&format!("It begins well and then {}", "goes on and on ".repeat(9))).repeats);
        let list = "one two three four, five six seven eight; nine ten eleven twelve thirteen \
                    fourteen fifteen sixteen seventeen eighteen nineteen twenty";
        assert!(!seen(list).repeats);
    }

    #[test]
    fn a_text_that_stops_within_a_sentence_is_open() {
        assert!(seen("The first thing to do is to open the").is_open);
        assert!(!seen("The first thing to do is to open it.").is_open);
        assert!(!seen("open the door").is_open, "a label");
        assert!(!seen("Run this now to see all of it there:\n```\nls\n```").is_open);
    }

    #[test]
    fn json_is_compared_by_its_keys() {
        assert_eq!(
            seen("{\"a\": 1, \"b\": {}}").form,
            seen("```json\n{\"b\": 2, \"a\": 3}\n```").form
        );
        assert_ne!(seen("{\"a\": 1}").form, seen("{\"b\": 1}").form);
        assert_eq!(seen("{\"a\": 1").form, Form::Text);
        assert_eq!(seen("[1, 2]").form, Form::Json(None));
    }

    #[test]
    fn one_of_several_outputs_is_enough() {
        let seen = Outputs::of(["  ", "A whole sentence."].into_iter());
        assert!(seen.is_empty && !seen.is_open);
    }
}
