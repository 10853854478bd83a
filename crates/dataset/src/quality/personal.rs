//! Personal data and secrets in a text, by kind. What was found is never kept, only that it was.
//!
//! The rules are narrow: a number has a phone's form, a check sum that holds, or a range that is given out;
//! names and addresses of people are not looked for.

use super::numbers::{self, Run};
use super::secrets;

/// Kinds, as a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kinds(u8);

pub(crate) const EMAIL: u8 = 0;
pub(crate) const PHONE: u8 = 1;
pub(crate) const CARD: u8 = 2;
pub(crate) const IBAN: u8 = 3;
pub(crate) const IP: u8 = 4;
pub(crate) const SSN: u8 = 5;
pub(crate) const SECRET: u8 = 6;

/// Code and words of each kind, in the order of the numbers above.
pub(crate) const KINDS: [(&str, &str); 7] = [
    ("pii_email", "hold e-mail addresses"),
    ("pii_phone", "hold phone numbers"),
    ("pii_credit_card", "hold numbers of payment cards"),
    ("pii_iban", "hold IBANs"),
    ("pii_ip_address", "hold public IP addresses"),
    ("pii_ssn", "hold US social security numbers"),
    ("pii_secret", "hold API keys, tokens or private keys"),
];

impl Kinds {
    pub fn has(self, kind: u8) -> bool {
        self.0 >> kind & 1 == 1
    }

    fn add(&mut self, kind: Option<u8>) {
        self.0 |= kind.map_or(0, |kind| 1 << kind);
    }

    /// Adds what is in `text`.
    pub fn find(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            match bytes[at] {
                b'@' => self.add(is_email(bytes, at).then_some(EMAIL)),
                b':' if bytes.get(at + 1) == Some(&b':') || before_colon(bytes, at) => {
                    self.add(numbers::is_ipv6(text, at).then_some(IP));
                }
                digit if digit.is_ascii_digit() => {
                    let run = Run::at(bytes, at);
                    self.add(run.kind(bytes));
                    at = run.end;
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        self.add(secrets::is_in(text).then_some(SECRET));
    }
}

/// A hexadecimal digit, as every group of an IPv6 address ends.
fn before_colon(bytes: &[u8], at: usize) -> bool {
    at > 0 && bytes[at - 1].is_ascii_hexdigit()
}

/// Whether an address stands around the `@`. Not those of documentation, of git, or that take no answer.
fn is_email(bytes: &[u8], at: usize) -> bool {
    let local = |b: &u8| b.is_ascii_alphanumeric() || b"._%+-".contains(b);
    let start = bytes[..at].iter().rposition(|b| !local(b)).map_or(0, |before| before + 1);
    let name = &bytes[start..at];
    let host = |b: &u8| b.is_ascii_alphanumeric() || b".-".contains(b);
    let length = bytes[at + 1..].iter().take_while(|b| host(b)).count();
    let domain = bytes[at + 1..at + 1 + length].trim_ascii_end();
    let domain = domain.strip_suffix(b".").unwrap_or(domain).to_ascii_lowercase();
    let named = name.first().is_some_and(u8::is_ascii_alphanumeric)
        && !matches!(name, b"git" | b"noreply" | b"no-reply");
    let labels: Vec<&[u8]> = domain.split(|b| *b == b'.').collect();
    let top = labels.last().copied().unwrap_or_default();
    let whole = labels.len() >= 2 && labels.iter().all(|label| !label.is_empty());
    let second = labels.len().checked_sub(2).map_or(&b""[..], |at| labels[at]);
    let reserved = matches!(top, b"example" | b"test" | b"invalid" | b"localhost" | b"local")
        || second == b"example" && matches!(top, b"com" | b"org" | b"net");
    named && whole && !reserved && top.len() >= 2 && top.iter().all(u8::is_ascii_alphabetic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<u8> {
        let mut kinds = Kinds::default();
        kinds.find(text);
        (0..KINDS.len() as u8).filter(|&kind| kinds.has(kind)).collect()
    }

    #[test]
    fn every_kind_is_found() {
        for (text, kind) in [
            ("Write to jane.doe+x@mail.acme.co.uk.", EMAIL),
            ("<b@c.de>", EMAIL),
            ("call (415) 867-5309 now", PHONE),
            ("415-867-5309", PHONE),
            ("1-415-867-5309", PHONE),
            ("Tel. +49 30 901820", PHONE),
            ("+14158675309", PHONE),
            ("card 4111 1111 1111 1111, thanks", CARD),
            ("5500-0000-0000-0004", CARD),
            ("378282246310005", CARD),
            ("DE89 3704 0044 0532 0130 00", IBAN),
            ("to GB82WEST12345698765432.", IBAN),
            ("from 81.2.69.142 yesterday", IP),
            ("from 2a00:1450:4001:81b::200e to us", IP),
            ("SSN 536-90-4399", SSN),
            ("key sk-proj-abcdefghijklmnopqrstuvwxyz0123456789", SECRET),
            ("AKIAIOSFODNN7EXAMPLF", SECRET),
            ("ghp_0123456789abcdefghijABCDEFGHIJ012345", SECRET),
            ("-----BEGIN RSA PRIVATE KEY-----", SECRET),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P", SECRET),
        ] {
            assert_eq!(kinds(text), [kind], "{text}");
        }
    }

    #[test]
    fn what_only_looks_alike_is_left_alone() {
        for text in [
            "jane@example.com or git@github.com:acme/repo and @decorator.route",
            "7800 Mill Station Rd, Sebastopol, CA 95472-1234",
            "on 2024-01-15 at 12:30:45, 3.14159265358979, 1/2 of 1,234,567,890",
            "order 4111 1111 1111 1112", // the check sum is wrong
            "id 1234567890123456 and 00000000-0000-0000-0000-000000000000",
            "call 415-555-0123",
            "version 10.4.3.2, v1.22.3.14, 192.168.0.1, 8.8.8.8, section 1.2.3.4.5",
            "std::io::Read and a::b, mac 00:1b:44:11:3a:b7, 2001:db8::1",
            "000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567, 12345-67-8901",
            "DE89 3704 0044 0532 0130 01", // the check sum is wrong
            "sk-short, AKIA, eyJhbGciOiJIUzI1NiJ9, ghp_short, task-force-of-some-length-in-words",
        ] {
            assert_eq!(kinds(text), [0u8; 0], "{text}");
        }
    }
}
