//! The language of a text: by its script, and in Latin script by the most common small words of seven
//! languages.
//!
//! A text that is too short for that has no language here, which is better than a wrong one: the only use
//! is to name the few rows that are in another language than all the others. No table of letter sequences,
//! as libraries have it: those guess for three words, too.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::words::{hash_of, words};

/// Index into [`NAMES`].
pub(crate) type Language = u8;

pub(crate) const NAMES: [&str; 16] = [
    "en",
    "de",
    "fr",
    "es",
    "it",
    "pt",
    "nl",
    "zh",
    "ja",
    "ko",
    "cyrillic",
    "greek",
    "arabic",
    "hebrew",
    "devanagari",
    "thai",
];

const SMALL_WORDS: [&str; 7] = [
    "the and of to a is in that it for was with as on are this you be have not from but they his at",
    "der die das und ist nicht ein eine zu den mit von sich auf für dem des im auch es wird sie ich",
    "le la les et est des un une du en que qui dans pour pas sur au par ce il elle je vous avec",
    "el la los las y es en que un una de por con para del se no su al lo como más pero está",
    "il la di che è e un una per non con del sono della i le si da dei nel gli anche più ma",
    "o a os as e é de que um uma do da em para com não por se mais no na dos ao como você",
    "de het een en van is dat niet in op te zijn met voor die er maar ook aan je wordt hij als naar",
];

/// Characters that are looked at.
const LOOKED_AT: usize = 600;
/// Small words that a text must have of its language, and more of than of any other.
const LEAST: u32 = 3;
const LEAD: u32 = 2;

/// By word, a bit for each language that has it.
static BITS: LazyLock<HashMap<u64, u8>> = LazyLock::new(|| {
    let mut bits = HashMap::new();
    for (language, words) in SMALL_WORDS.iter().enumerate() {
        for word in words.split(' ') {
            *bits.entry(hash_of(word)).or_default() |= 1 << language;
        }
    }
    bits
});

pub(crate) fn language_of(text: &str) -> Option<Language> {
    let end = text.char_indices().nth(LOOKED_AT).map_or(text.len(), |(at, _)| at);
    let text = &text[..end];
    if let Some(language) = by_script(text) {
        return Some(language);
    }
    let mut counts = [0u32; SMALL_WORDS.len()];
    for word in words(text) {
        let bits = BITS.get(&word.hash).copied().unwrap_or(0);
        for (language, count) in counts.iter_mut().enumerate() {
            *count += u32::from(bits >> language & 1);
        }
    }
    let best = (0..counts.len()).max_by_key(|&language| counts[language])?;
    let others = (0..counts.len()).filter(|&language| language != best);
    let second = others.map(|language| counts[language]).max().unwrap_or(0);
    (counts[best] >= LEAST && counts[best] >= second + LEAD).then_some(best as Language)
}

/// A script that most letters of a text are of, other than Latin.
fn by_script(text: &str) -> Option<Language> {
    if text.is_ascii() {
        return None;
    }
    const FIRST: usize = SMALL_WORDS.len();
    let (mut letters, mut counts) = (0u32, [0u32; NAMES.len() - FIRST]);
    for c in text.chars().filter(|c| c.is_alphabetic()) {
        letters += 1;
        let script = match u32::from(c) {
            0x3400..=0x4dbf | 0x4e00..=0x9fff => 0,
            0x3040..=0x30ff => 1,
            0x1100..=0x11ff | 0xac00..=0xd7af => 2,
            0x0400..=0x052f => 3,
            0x0370..=0x03ff => 4,
            0x0600..=0x06ff => 5,
            0x0590..=0x05ff => 6,
            0x0900..=0x097f => 7,
            0x0e00..=0x0e7f => 8,
            _ => continue,
        };
        counts[script] += 1;
    }
    // Japanese has Chinese characters between its own.
    if counts[1] > 0 {
        counts[1] += std::mem::take(&mut counts[0]);
    }
    let best = (0..counts.len()).max_by_key(|&script| counts[script])?;
    (counts[best] >= 4 && counts[best] * 2 > letters).then_some((FIRST + best) as Language)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_language_and_short_ones_none() {
        for (text, language) in [
            ("The cat was on the table and it is not from here.", Some("en")),
            ("Die Katze ist auf dem Tisch und sie wird nicht gehen.", Some("de")),
            ("Le chat est sur la table et il ne veut pas descendre pour manger.", Some("fr")),
            ("El gato está en la mesa y no quiere bajar por la comida.", Some("es")),
            ("Il gatto è sul tavolo e non vuole scendere per mangiare con gli altri.", Some("it")),
            ("O gato está na mesa e não quer descer para comer com os outros.", Some("pt")),
            ("De kat zit op de tafel en wil er niet van af, maar dat is voor hem.", Some("nl")),
            ("Кошка сидит на столе.", Some("cyrillic")),
            ("猫坐在桌子上。", Some("zh")),
            ("猫がテーブルの上にいます。", Some("ja")),
            ("고양이가 탁자 위에 있다.", Some("ko")),
            ("positive", None),
            ("Charming and witty.", None),
            ("3110 West 12th Street Sioux Falls, South Dakota", None),
        ] {
            assert_eq!(
                language_of(text).map(|found| NAMES[usize::from(found)]),
                language,
                "{text}"
            );
        }
    }
}
