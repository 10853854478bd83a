//! The places at which a machine can stand: inside strings, numbers, words, objects, arrays.

use crate::grammar::NodeId;

/// One level of nesting. The last frame of a stack is the innermost; frames below wait for it to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Frame {
    /// A value must begin.
    Value(NodeId),
    /// In one of the texts `lo..hi` of a node, `at` bytes in.
    Literal {
        node: NodeId,
        lo: u32,
        hi: u32,
        at: u32,
    },
    String(StringAt),
    /// `len` bytes long so far.
    Number {
        at: NumberAt,
        integer: bool,
        len: u8,
    },
    /// In `true`, `false` or `null`.
    Word {
        word: Word,
        at: u8,
    },
    /// `seen` is a set of properties, or the place of the next one where they are ordered.
    Object {
        node: NodeId,
        seen: u64,
        value: NodeId,
        at: ObjectAt,
    },
    /// In a key of the object below: properties `lo..hi` begin with its `at` bytes. A free key may become any.
    Key {
        lo: u32,
        hi: u32,
        at: u32,
        text: StringAt,
        free: bool,
    },
    /// `count` only where the node counts.
    Array {
        node: NodeId,
        count: u32,
        at: ArrayAt,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ObjectAt {
    First,
    AfterKey,
    AfterValue,
    AfterComma,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ArrayAt {
    First,
    AfterValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    True,
    False,
    Null,
}

impl Word {
    pub fn text(self) -> &'static [u8] {
        match self {
            Self::True => b"true",
            Self::False => b"false",
            Self::Null => b"null",
        }
    }
}

/// Longest number in bytes, and digits of its exponent: every reader of JSON can hold such numbers, and a
/// model that prints digits without end is ended.
const MOST_NUMBER: u8 = 32;
const MOST_EXPONENT: u8 = 2;

/// Where in a number. Only some of these may be its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum NumberAt {
    Minus,
    Zero,
    Whole,
    Dot,
    Fraction,
    E,
    Sign,
    /// So many digits.
    Exponent(u8),
}

impl NumberAt {
    pub fn begin(byte: u8) -> Option<Self> {
        match byte {
            b'-' => Some(Self::Minus),
            b'0' => Some(Self::Zero),
            b'1'..=b'9' => Some(Self::Whole),
            _ => None,
        }
    }

    /// `len` bytes are written.
    pub fn next(self, byte: u8, integer: bool, len: u8) -> Option<Self> {
        // What must be followed by a digit may not come last.
        if len >= MOST_NUMBER || (len + 3 > MOST_NUMBER && !byte.is_ascii_digit()) {
            return None;
        }
        match (self, byte) {
            (Self::Minus, b'0') => Some(Self::Zero),
            (Self::Minus, b'1'..=b'9') | (Self::Whole, b'0'..=b'9') => Some(Self::Whole),
            (Self::Zero | Self::Whole, b'.') if !integer => Some(Self::Dot),
            (Self::Dot | Self::Fraction, b'0'..=b'9') => Some(Self::Fraction),
            (Self::Zero | Self::Whole | Self::Fraction, b'e' | b'E') if !integer => Some(Self::E),
            (Self::E, b'+' | b'-') => Some(Self::Sign),
            (Self::E | Self::Sign, b'0'..=b'9') => Some(Self::Exponent(1)),
            (Self::Exponent(n), b'0'..=b'9') if n < MOST_EXPONENT => Some(Self::Exponent(n + 1)),
            _ => None,
        }
    }

    pub fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::Exponent(_))
    }
}

/// Where in a string, after its opening quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StringAt {
    /// Between characters.
    Free,
    Backslash,
    /// After `\u` and so many digits.
    Hex(u8),
    /// After `\ud`: what follows must not make half of a surrogate pair.
    HexAfterD,
    /// So many bytes of a character are still to come.
    Tail(u8),
    /// Second bytes whose range is narrower, so that no character is written in two ways or not at all.
    AfterE0,
    AfterEd,
    AfterF0,
    AfterF4,
}

/// What a byte does to a string.
pub(crate) enum StringStep {
    Stays(StringAt),
    Ends,
    Breaks,
}

impl StringAt {
    pub fn next(self, byte: u8) -> StringStep {
        use StringStep::{Breaks, Ends, Stays};
        match (self, byte) {
            (Self::Free, b'"') => Ends,
            (Self::Free, b'\\') => Stays(Self::Backslash),
            (Self::Free, 0x20..=0x7f) => Stays(Self::Free),
            (Self::Free, 0xc2..=0xdf) => Stays(Self::Tail(1)),
            (Self::Free, 0xe0) => Stays(Self::AfterE0),
            (Self::Free, 0xed) => Stays(Self::AfterEd),
            (Self::Free, 0xe1..=0xef) => Stays(Self::Tail(2)),
            (Self::Free, 0xf0) => Stays(Self::AfterF0),
            (Self::Free, 0xf1..=0xf3) => Stays(Self::Tail(3)),
            (Self::Free, 0xf4) => Stays(Self::AfterF4),
            (Self::Backslash, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                Stays(Self::Free)
            }
            (Self::Backslash, b'u') => Stays(Self::Hex(0)),
            (Self::Hex(0), b'd' | b'D') => Stays(Self::HexAfterD),
            (Self::HexAfterD, b'0'..=b'7') => Stays(Self::Hex(2)),
            (Self::Hex(3), byte) if byte.is_ascii_hexdigit() => Stays(Self::Free),
            (Self::Hex(n), byte) if byte.is_ascii_hexdigit() => Stays(Self::Hex(n + 1)),
            (Self::Tail(1), 0x80..=0xbf) => Stays(Self::Free),
            (Self::Tail(n), 0x80..=0xbf) => Stays(Self::Tail(n - 1)),
            (Self::AfterE0, 0xa0..=0xbf) | (Self::AfterEd, 0x80..=0x9f) => Stays(Self::Tail(1)),
            (Self::AfterF0, 0x90..=0xbf) | (Self::AfterF4, 0x80..=0x8f) => Stays(Self::Tail(2)),
            _ => Breaks,
        }
    }
}
