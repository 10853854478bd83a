//! How texts become words: as sacrebleu's tokenizer "13a" does it, and as rouge-score does it.

/// Words and signs by the rules of "13a", which mteval-v13a.pl made common.
pub(super) fn split_13a(text: &str) -> Vec<String> {
    let mut text = text.trim_end_matches(is_space).replace("<skipped>", "");
    text = text.replace("-\n", "").replace('\n', " ");
    if text.contains('&') {
        for (entity, sign) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            text = text.replace(entity, sign);
        }
    }
    let spaced: Vec<char> = format!(" {text} ").chars().flat_map(stand_alone).flatten().collect();
    // Each rule looks at two characters and goes on behind both when it holds.
    let is_stop = |c: char| c == '.' || c == ',';
    let is_digit = |c: char| c.is_ascii_digit();
    let after_other = pairs(&spaced, |a, b| !is_digit(a) && is_stop(b), |a, b| [a, ' ', b, ' ']);
    let before_other =
        pairs(&after_other, |a, b| is_stop(a) && !is_digit(b), |a, b| [' ', a, ' ', b]);
    let dashes = pairs(&before_other, |a, b| is_digit(a) && b == '-', |a, b| [a, ' ', b, ' ']);
    words(&dashes)
}

/// Signs that always stand alone.
fn stand_alone(c: char) -> [Option<char>; 3] {
    match c {
        '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/' => {
            [Some(' '), Some(c), Some(' ')]
        }
        _ => [None, Some(c), None],
    }
}

fn pairs(
    text: &[char],
    holds: impl Fn(char, char) -> bool,
    spaced: impl Fn(char, char) -> [char; 4],
) -> Vec<char> {
    let mut result = Vec::with_capacity(text.len() * 2);
    let mut i = 0;
    while i < text.len() {
        match text.get(i + 1) {
            Some(next) if holds(text[i], *next) => {
                result.extend(spaced(text[i], *next));
                i += 2;
            }
            _ => {
                result.push(text[i]);
                i += 1;
            }
        }
    }
    result
}

fn words(text: &[char]) -> Vec<String> {
    let words = text.split(|c| is_space(*c)).filter(|word| !word.is_empty());
    words.map(|word| word.iter().collect()).collect()
}

/// As Python's `str.split` has it, which counts four separators that Unicode does not.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Runs of a-z and 0-9 in the lower-cased text, as rouge-score has them without its stemmer.
pub(super) fn split_alphanumeric(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let words = lower.split(|c| !is_word(c)).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// The same number for the same word, over both texts.
pub(super) fn numbered(a: &[String], b: &[String]) -> (Vec<u32>, Vec<u32>) {
    let mut numbers = std::collections::HashMap::new();
    let mut number = |word: &String| {
        let next = numbers.len() as u32;
        *numbers.entry(word.clone()).or_insert(next)
    };
    let a = a.iter().map(&mut number).collect();
    (a, b.iter().map(number).collect())
}
