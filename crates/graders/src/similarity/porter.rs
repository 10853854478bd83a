//! Porter's stemmer with nltk's extensions, which METEOR compares words by.
//!
//! M. F. Porter, "An algorithm for suffix stripping", 1980. Where nltk's default differs from the paper, a comment
//! says so.

/// Irregular forms (nltk's).
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// Suffix, what takes its place.
type Rules = [(&'static str, &'static str)];

const STEP_2: &Rules = &[
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    // nltk's.
    ("fulli", "ful"),
];
const STEP_3: &Rules = &[
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];
const STEP_4: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
    "ism", "ate", "iti", "ous", "ive", "ize",
];

/// The stem of a lower-cased word.
pub(super) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == word) {
        return (*stem).to_owned();
    }
    let letters: Vec<char> = word.chars().collect();
    if letters.len() <= 2 {
        return word.to_owned();
    }
    let mut word = Word(letters);
    word.plural();
    word.participle();
    word.final_y();
    word.step_2();
    word.step_3();
    word.step_4();
    word.final_e();
    word.final_double_l();
    word.0.into_iter().collect()
}

struct Word(Vec<char>);

impl Word {
    /// Step 1a.
    fn plural(&mut self) {
        // nltk's: "dies" → "die", but "flies" → "fli".
        if self.0.len() == 4 && self.ends_with("ies") {
            self.0.pop();
        } else if self.ends_with("sses") || self.ends_with("ies") {
            self.shorten(2);
        } else if self.ends_with("s") && !self.ends_with("ss") {
            self.0.pop();
        }
    }

    /// Step 1b.
    fn participle(&mut self) {
        if self.ends_with("ied") {
            // nltk's: "died" → "die", but "spied" → "spi".
            self.shorten(if self.0.len() == 4 { 1 } else { 2 });
            return;
        }
        if self.ends_with("eed") {
            if measure(self.without("eed")) > 0 {
                self.0.pop();
            }
            return;
        }
        let suffix = ["ed", "ing"]
            .into_iter()
            .find(|suffix| self.ends_with(suffix) && has_vowel(self.without(suffix)));
        let Some(suffix) = suffix else { return };
        self.shorten(suffix.len());
        if self.ends_with("at") || self.ends_with("bl") || self.ends_with("iz") {
            self.0.push('e');
        } else if ends_with_double_consonant(&self.0) {
            if !matches!(self.0.last(), Some('l' | 's' | 'z')) {
                self.0.pop();
            }
        } else if measure(&self.0) == 1 && ends_with_short_syllable(&self.0) {
            self.0.push('e');
        }
    }

    /// Step 1c, by nltk's condition: after a consonant that is not the first letter.
    fn final_y(&mut self) {
        let stem = self.0.len().saturating_sub(1);
        if self.ends_with("y") && stem > 1 && is_consonant(&self.0, stem - 1) {
            self.0[stem] = 'i';
        }
    }

    fn step_2(&mut self) {
        // nltk's: "alli" first, and then once more.
        while self.ends_with("alli") && measure(self.without("alli")) > 0 {
            self.shorten(2);
        }
        if self.apply(STEP_2) {
            return;
        }
        // nltk's: the "l" counts as part of the stem, for short ones such as "geo".
        if self.ends_with("logi") && measure(self.without("ogi")) > 0 {
            self.0.pop();
        }
    }

    fn step_3(&mut self) {
        self.apply(STEP_3);
    }

    /// Replaces the first suffix that is there, if a stem with a syllable remains. Whether one was there.
    fn apply(&mut self, rules: &Rules) -> bool {
        let Some((suffix, other)) = rules.iter().find(|(suffix, _)| self.ends_with(suffix)) else {
            return false;
        };
        if measure(self.without(suffix)) > 0 {
            self.shorten(suffix.len());
            self.0.extend(other.chars());
        }
        true
    }

    fn step_4(&mut self) {
        let Some(suffix) = STEP_4.into_iter().find(|suffix| self.ends_with(suffix)) else {
            return;
        };
        let stem = self.without(suffix);
        let fits = suffix != "ion" || matches!(stem.last(), Some('s' | 't'));
        if measure(stem) > 1 && fits {
            self.shorten(suffix.len());
        }
    }

    /// Step 5a.
    fn final_e(&mut self) {
        if self.ends_with("e") {
            let stem = self.without("e");
            let syllables = measure(stem);
            if syllables > 1 || (syllables == 1 && !ends_with_short_syllable(stem)) {
                self.0.pop();
            }
        }
    }

    /// Step 5b.
    fn final_double_l(&mut self) {
        if self.ends_with("ll") && measure(self.without("l")) > 1 {
            self.0.pop();
        }
    }

    fn ends_with(&self, suffix: &str) -> bool {
        // All suffixes are ASCII.
        self.0.len() >= suffix.len()
            && suffix.chars().eq(self.0[self.0.len() - suffix.len()..].iter().copied())
    }

    fn without(&self, suffix: &str) -> &[char] {
        &self.0[..self.0.len().saturating_sub(suffix.len())]
    }

    fn shorten(&mut self, letters: usize) {
        self.0.truncate(self.0.len().saturating_sub(letters));
    }
}

/// Consonant or vowel, letter by letter: a "y" is what the letter before it is not, and a consonant at the start.
fn consonants(word: &[char]) -> impl Iterator<Item = bool> {
    let mut previous = None;
    word.iter().map(move |letter| {
        let is_consonant = match letter {
            'a' | 'e' | 'i' | 'o' | 'u' => false,
            'y' => previous.is_none_or(|consonant: bool| !consonant),
            _ => true,
        };
        previous = Some(is_consonant);
        is_consonant
    })
}

fn is_consonant(word: &[char], place: usize) -> bool {
    consonants(&word[..=place]).last().unwrap_or(false)
}

/// How often a consonant follows a vowel: about the number of syllables.
fn measure(stem: &[char]) -> usize {
    let mut previous = true;
    let mut count = 0;
    for is_consonant in consonants(stem) {
        count += usize::from(is_consonant && !previous);
        previous = is_consonant;
    }
    count
}

fn has_vowel(stem: &[char]) -> bool {
    consonants(stem).any(|is_consonant| !is_consonant)
}

fn ends_with_double_consonant(word: &[char]) -> bool {
    matches!(word, [.., a, b] if a == b) && is_consonant(word, word.len() - 1)
}

/// Consonant, vowel, consonant that is not w, x or y; or (nltk's) a whole word of vowel and consonant.
fn ends_with_short_syllable(word: &[char]) -> bool {
    let kinds: Vec<bool> = consonants(word).collect();
    match kinds.as_slice() {
        [false, true] => true,
        [.., true, false, true] => !matches!(word.last(), Some('w' | 'x' | 'y')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    #[test]
    fn stems_are_those_of_nltk() {
        let stems = include_str!("../../tests/fixtures/stems.json");
        let stems: BTreeMap<String, String> = serde_json::from_str::<serde_json::Value>(stems)
            .unwrap()
            .as_object()
            .unwrap()
            .iter()
            .map(|(word, stem)| (word.clone(), stem.as_str().unwrap().to_owned()))
            .collect();
        for (word, stem) in &stems {
            assert_eq!(super::stem(word), *stem, "{word}");
        }
    }
}
