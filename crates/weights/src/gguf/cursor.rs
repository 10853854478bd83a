//! A reader over bytes that cannot leave them: every read is checked, nothing is allocated.

use std::ops::Range;

pub struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.position)
    }

    /// Moves over `length` bytes and says where they are.
    pub fn skip(&mut self, length: usize) -> Result<Range<usize>, String> {
        if length > self.remaining() {
            let (rest, at) = (self.remaining(), self.position);
            return Err(format!("{length} bytes are needed at byte {at} but only {rest} follow"));
        }
        let start = self.position;
        self.position += length;
        Ok(start..self.position)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let range = self.skip(N)?;
        self.bytes[range].first_chunk().copied().ok_or_else(|| "unexpected end".to_owned())
    }

    pub fn u8(&mut self) -> Result<u8, String> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, String> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count that is followed by that many things of at least `least_bytes` each.
    pub fn count(&mut self, what: &str, least_bytes: usize) -> Result<usize, String> {
        let count = self.u64()?;
        let most = self.remaining() / least_bytes;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(format!(
                "it claims {count} {what} at byte {}, more than the rest of the file holds",
                self.position - 8
            )),
        }
    }

    /// Where the bytes of a text are (without its length).
    pub fn text(&mut self) -> Result<Range<usize>, String> {
        let length = self.count("bytes of text", 1)?;
        self.skip(length)
    }

    /// A text of at most `limit` bytes that must be UTF-8: a key or a tensor's name.
    pub fn name(&mut self, limit: usize) -> Result<&'a str, String> {
        let at = self.position;
        let range = self.text()?;
        if range.len() > limit {
            let length = range.len();
            return Err(format!("a name of {length} bytes at byte {at}; the limit is {limit}"));
        }
        std::str::from_utf8(&self.bytes[range])
            .map_err(|_| format!("a name at byte {at} is not UTF-8"))
    }
}
