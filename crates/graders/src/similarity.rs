//! `text_similarity`: how alike two texts are, from 0 to 1.
//!
//! Each metric computes what a named library computes, to 1e-9: `tests/golden/graders_fixture.py` has the exact
//! calls. The texts are bounded, so that the slowest metric, which compares every word with every other, takes a
//! fraction of a second.

mod bleu;
pub mod corpus;
mod gleu;
mod meteor;
mod ngrams;
mod porter;
mod rouge;
mod subsequence;
mod tokens;

/// Characters of either text.
pub const MAX_CHARACTERS: usize = 1 << 16;

/// What `evaluation_metric` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Computed here, from the texts alone.
    Text(Metric),
    /// The cosine of the texts' embeddings, which a model makes.
    Cosine,
}

impl Measure {
    /// Every word that there is.
    pub fn words() -> Vec<&'static str> {
        let mut words: Vec<_> = Metric::ALL.into_iter().map(Metric::as_str).collect();
        words.push(Self::Cosine.as_str());
        words
    }

    pub fn from_word(word: &str) -> Option<Self> {
        if word == Self::Cosine.as_str() {
            return Some(Self::Cosine);
        }
        Metric::from_word(word).map(Self::Text)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text(metric) => metric.as_str(),
            Self::Cosine => "cosine",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    FuzzyMatch,
    Bleu,
    Gleu,
    Meteor,
    /// With the length of its n-grams, 1 to 5.
    Rouge(usize),
    RougeL,
}

impl Metric {
    pub const ALL: [Self; 10] = [
        Self::FuzzyMatch,
        Self::Bleu,
        Self::Gleu,
        Self::Meteor,
        Self::Rouge(1),
        Self::Rouge(2),
        Self::Rouge(3),
        Self::Rouge(4),
        Self::Rouge(5),
        Self::RougeL,
    ];

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.as_str() == word)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::FuzzyMatch => "fuzzy_match",
            Self::Bleu => "bleu",
            Self::Gleu => "gleu",
            Self::Meteor => "meteor",
            Self::Rouge(1) => "rouge_1",
            Self::Rouge(2) => "rouge_2",
            Self::Rouge(3) => "rouge_3",
            Self::Rouge(4) => "rouge_4",
            Self::Rouge(_) => "rouge_5",
            Self::RougeL => "rouge_l",
        }
    }
}

/// The cosine of two directions, from 0 to 1: what points apart is not alike at all.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let lengths = (product(a, a) * product(b, b)).sqrt();
    if lengths > 0.0 { (product(a, b) / lengths).clamp(0.0, 1.0) } else { 0.0 }
}

/// How alike `input` is to `reference`; none when one of them is longer than [`MAX_CHARACTERS`].
pub fn similarity(metric: Metric, input: &str, reference: &str) -> Option<f64> {
    let is_long =
        |text: &str| text.len() > MAX_CHARACTERS && text.chars().nth(MAX_CHARACTERS).is_some();
    if is_long(input) || is_long(reference) {
        return None;
    }
    Some(match metric {
        Metric::FuzzyMatch => fuzzy_match(input, reference),
        Metric::Bleu => bleu::score(input, reference),
        Metric::Gleu => gleu::score(input, reference),
        Metric::Meteor => meteor::score(input, reference),
        Metric::Rouge(n) => rouge::of_ngrams(n, input, reference),
        Metric::RougeL => rouge::of_subsequence(input, reference),
    })
}

/// rapidfuzz's `fuzz.ratio` / 100: the characters outside the longest common subsequence, of both texts,
/// against all.
fn fuzzy_match(input: &str, reference: &str) -> f64 {
    let characters = |text: &str| text.chars().map(u32::from).collect::<Vec<u32>>();
    let (input, reference) = (characters(input), characters(reference));
    let all = input.len() + reference.len();
    if all == 0 {
        return 1.0;
    }
    let common = subsequence::longest_common(&input, &reference);
    1.0 - (all - 2 * common) as f64 / all as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_measures_are_the_same_list() {
        for word in Measure::words() {
            assert_eq!(Measure::from_word(word).unwrap().as_str(), word);
        }
        assert_eq!((Measure::words().len(), Measure::from_word("rouge_9")), (11, None));
    }

    #[test]
    fn a_cosine_tells_directions_whatever_their_length() {
        assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 1.0]), 0.0);
        assert_eq!(cosine(&[1.0, 0.0], &[-1.0, 0.0]), 0.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }
}
