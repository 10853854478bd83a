//! Numbers with a meaning: phones, cards, IBANs, addresses of machines, social security numbers.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::personal::{CARD, IBAN, IP, PHONE, SSN};

/// Digits with what may stand between them, from a text.
pub(crate) struct Run {
    start: usize,
    /// Behind the last digit.
    pub end: usize,
}

impl Run {
    /// The run that begins with the digit at `start`: digits, and single marks or blanks between them.
    pub fn at(bytes: &[u8], start: usize) -> Self {
        let mut end = start + 1;
        loop {
            let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
            // ") " and ")" are one mark.
            let mark = |at: usize| bytes.get(at).is_some_and(|b| b" -./()".contains(b));
            end = match () {
                () if digit(end) => end + 1,
                () if mark(end) && digit(end + 1) => end + 2,
                () if mark(end) && mark(end + 1) && digit(end + 2) => end + 3,
                () => return Self { start, end },
            };
        }
    }

    pub fn kind(&self, bytes: &[u8]) -> Option<u8> {
        let text = &bytes[self.start..self.end];
        let before = self.start.checked_sub(1).map_or(b' ', |at| bytes[at]);
        let after = bytes.get(self.end).copied().unwrap_or(b' ');
        if let Some(iban) = self.start.checked_sub(2).filter(|&at| is_iban(bytes, at)) {
            // Its two letters stand alone.
            let outside = iban.checked_sub(1).map_or(b' ', |at| bytes[at]);
            if !outside.is_ascii_alphanumeric() {
                return Some(IBAN);
            }
        }
        if before.is_ascii_alphabetic()
            || before == b'_'
            || after.is_ascii_alphabetic()
            || after == b'_'
        {
            return None;
        }
        let groups: Vec<&[u8]> =
            text.split(|b| !b.is_ascii_digit()).filter(|group| !group.is_empty()).collect();
        let digits: Vec<u8> =
            text.iter().filter(|b| b.is_ascii_digit()).map(|b| b - b'0').collect();
        let loose = !matches!(before, b'.' | b'-' | b'/' | b'$' | b'#');
        if loose && is_card(text, &digits) {
            Some(CARD)
        } else if loose && is_ssn(text, &groups) {
            Some(SSN)
        } else if loose && is_ipv4(text, &bytes[..self.start]) {
            Some(IP)
        } else if before == b'+' && is_international(text, &digits)
            || loose && before != b'+' && is_american(text, before, &groups)
        {
            Some(PHONE)
        } else {
            None
        }
    }
}

/// Country code and subscriber: 8 to 15 digits in at most six groups.
fn is_international(text: &[u8], digits: &[u8]) -> bool {
    let groups = text.split(|b| !b.is_ascii_digit()).filter(|group| !group.is_empty()).count();
    (9..=15).contains(&digits.len()) && digits[0] != 0 && groups <= 6 && !text.contains(&b'/')
}

/// `(415) 867-5309` and the like: three, three and four digits with marks between. Not 555-01xx, which
/// belongs to fiction.
fn is_american(text: &[u8], before: u8, groups: &[&[u8]]) -> bool {
    let groups = match groups {
        [b"1", rest @ ..] => rest,
        all => all,
    };
    let [area, exchange, line] = groups else { return false };
    let lengths = (area.len(), exchange.len(), line.len()) == (3, 3, 4);
    let marks: Vec<u8> = text.iter().copied().filter(|b| !b.is_ascii_digit()).collect();
    let clear = before == b'(' && marks.starts_with(b")")
        || marks.iter().all(|mark| *mark == b'-')
        || marks.iter().all(|mark| *mark == b'.')
        || marks.starts_with(b" (") && groups.len() == 3;
    let fiction = *exchange == b"555" && line.starts_with(b"01");
    lengths && clear && area[0] >= b'2' && exchange[0] >= b'2' && !fiction
}

/// A number that a card company gives out, with a check sum that holds (Luhn).
fn is_card(text: &[u8], digits: &[u8]) -> bool {
    let known = matches!(
        (digits.len(), digits),
        (15, [3, 4 | 7, ..])
            | (14, [3, 0 | 6 | 8, ..])
            | (13 | 16 | 19, [4, ..])
            | (16, [5, 1..=5, ..] | [2, 2..=7, ..])
            | (16..=19, [6, 0, 1, 1, ..] | [6, 5, ..] | [6, 4, 4..=9, ..] | [6, 2, ..])
    );
    let marks = || text.iter().filter(|b| !b.is_ascii_digit());
    let one_mark = marks().all(|b| matches!(b, b' ' | b'-')) && marks().count() <= 4;
    let groups = text.split(|b| !b.is_ascii_digit());
    let even = groups.rev().skip(1).all(|group| group.len() >= 4);
    let doubled = |(at, digit): (usize, &u8)| match (at % 2, *digit * 2) {
        (0, _) => u32::from(*digit),
        (_, twice) => u32::from(if twice > 9 { twice - 9 } else { twice }),
    };
    let sum: u32 = digits.iter().rev().enumerate().map(doubled).sum();
    known && one_mark && even && sum.is_multiple_of(10)
}

/// `536-90-4399`, of the numbers that are given out.
fn is_ssn(text: &[u8], groups: &[&[u8]]) -> bool {
    let [area, group, serial] = groups else { return false };
    text.len() == 11
        && (area.len(), group.len(), serial.len()) == (3, 2, 4)
        && text[3] == b'-'
        && text[6] == b'-'
        && !matches!(*area, b"000" | b"666")
        && area[0] != b'9'
        && *group != b"00"
        && *serial != b"0000"
}

/// An address that a machine of the internet may have. Not versions, nor 8.8.8.8 and its like.
fn is_ipv4(text: &[u8], before: &[u8]) -> bool {
    let Some(address) =
        std::str::from_utf8(text).ok().and_then(|text| text.parse::<Ipv4Addr>().ok())
    else {
        return false;
    };
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let reserved = a == 0
        || a >= 224
        || shared
        || (a, b, c) == (192, 0, 0)
        || (a, b & 254) == (198, 18)
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation();
    let last_word = before.trim_ascii_end().rsplit(|b| !b.is_ascii_alphabetic()).next();
    let is_version = last_word.is_some_and(|word| {
        ["v", "version", "release", "section"]
            .iter()
            .any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
    });
    !reserved && !is_version && address.octets().iter().any(|part| *part > 9)
}

/// Whether the colon at `at` is the first of an address of the internet.
pub(crate) fn is_ipv6(text: &str, at: usize) -> bool {
    let bytes = text.as_bytes();
    let part = |b: &u8| b.is_ascii_hexdigit() || *b == b':';
    let start = bytes[..at].iter().rposition(|b| !part(b)).map_or(0, |before| before + 1);
    let length = bytes[start..].iter().take_while(|b| part(b)).count();
    let outside = |at: Option<usize>| {
        at.and_then(|at| bytes.get(at)).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
    };
    if bytes[start..at].contains(&b':')
        || !(7..=39).contains(&length)
        || outside(start.checked_sub(1))
        || outside(Some(start + length))
    {
        return false;
    }
    let address = text[start..start + length].trim_end_matches(':').parse::<Ipv6Addr>();
    address.is_ok_and(|address| {
        let [first, second, ..] = address.segments();
        first >> 13 == 1 && (first, second) != (0x2001, 0xdb8)
    })
}

/// Lengths by country.
const IBANS: [(&[u8; 2], usize); 32] = [
    (b"AD", 24),
    (b"AE", 23),
    (b"AT", 20),
    (b"BE", 16),
    (b"BG", 22),
    (b"CH", 21),
    (b"CY", 28),
    (b"CZ", 24),
    (b"DE", 22),
    (b"DK", 18),
    (b"EE", 20),
    (b"ES", 24),
    (b"FI", 18),
    (b"FR", 27),
    (b"GB", 22),
    (b"GR", 27),
    (b"HR", 21),
    (b"HU", 28),
    (b"IE", 22),
    (b"IL", 23),
    (b"IT", 27),
    (b"LT", 20),
    (b"LU", 20),
    (b"LV", 21),
    (b"MT", 31),
    (b"NL", 18),
    (b"NO", 15),
    (b"PL", 28),
    (b"PT", 25),
    (b"RO", 24),
    (b"SE", 24),
    (b"TR", 26),
];

/// Whether an IBAN of its country's length begins at `start`, with a check sum that holds (ISO 7064).
fn is_iban(bytes: &[u8], start: usize) -> bool {
    let rest = &bytes[start..];
    let Some((_, length)) = IBANS.iter().find(|(country, _)| rest.starts_with(*country)) else {
        return false;
    };
    let mut taken = Vec::with_capacity(*length);
    for byte in rest {
        match byte {
            b' ' if taken.len() % 4 == 0 => {}
            b'0'..=b'9' | b'A'..=b'Z' if taken.len() < *length => taken.push(*byte),
            _ => break,
        }
        if taken.len() == *length {
            break;
        }
    }
    if taken.len() != *length {
        return false;
    }
    taken.rotate_left(4);
    let remainder = taken.iter().fold(0u32, |rest, byte| match byte {
        b'0'..=b'9' => (rest * 10 + u32::from(byte - b'0')) % 97,
        letter => (rest * 100 + u32::from(letter - b'A') + 10) % 97,
    });
    remainder == 1
}
