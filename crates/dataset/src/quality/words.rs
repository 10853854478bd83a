//! Words of a text as hashes: letters and digits in lower case, whatever stands between them. A character
//! of Chinese or Japanese is a word of its own.

/// One word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Word {
    pub hash: u64,
    /// Whether a digit is in it.
    pub has_digit: bool,
}

const START: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// The hash of a word that is in lower case.
pub(crate) fn hash_of(word: &str) -> u64 {
    word.bytes().fold(START, step)
}

fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(PRIME)
}

/// Words in their order.
pub(crate) fn words(text: &str) -> impl Iterator<Item = Word> {
    Words { rest: text.chars() }
}

struct Words<'t> {
    rest: std::str::Chars<'t>,
}

impl Iterator for Words<'_> {
    type Item = Word;

    fn next(&mut self) -> Option<Word> {
        let mut word: Option<Word> = None;
        loop {
            let before = self.rest.clone();
            let Some(c) = self.rest.next() else { return word };
            if !c.is_alphanumeric() {
                if word.is_some() {
                    return word;
                }
                continue;
            }
            let alone = stands_alone(c);
            if alone && word.is_some() {
                self.rest = before;
                return word;
            }
            let word = word.get_or_insert(Word { hash: START, has_digit: false });
            word.has_digit |= c.is_numeric();
            if c.is_ascii() {
                word.hash = step(word.hash, c.to_ascii_lowercase() as u8);
            } else {
                let mut buffer = [0; 4];
                for lower in c.to_lowercase() {
                    let bytes = lower.encode_utf8(&mut buffer).bytes();
                    word.hash = bytes.fold(word.hash, step);
                }
            }
            if alone {
                return Some(*word);
            }
        }
    }
}

fn stands_alone(c: char) -> bool {
    matches!(u32::from(c), 0x3040..=0x30ff | 0x3400..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

/// Two hashes as one; the order counts.
pub(crate) fn pair(first: u64, second: u64) -> u64 {
    mix(first.rotate_left(23) ^ second)
}

/// SplitMix64's last steps: every bit of the result depends on every bit of `x`.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(text: &str) -> Vec<u64> {
        words(text).map(|word| word.hash).collect()
    }

    #[test]
    fn case_and_what_stands_between_do_not_count() {
        let expected: Vec<u64> = ["it", "s", "élan", "42nd"].map(hash_of).to_vec();
        assert_eq!(hashes("It's ÉLAN --- 42nd!"), expected);
        let digits: Vec<bool> = words("a 4b").map(|word| word.has_digit).collect();
        assert_eq!(digits, [false, true]);
    }

    #[test]
    fn characters_that_need_no_space_are_words() {
        assert_eq!(hashes("ab漢字cd"), ["ab", "漢", "字", "cd"].map(hash_of));
    }
}
