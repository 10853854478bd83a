//! The little JSON that xtask reads: `cargo metadata` and lines of our own programs.
//!
//! A reader, not a validator: it accepts what those two write, and fails on anything it cannot follow.

use std::collections::BTreeMap;

use crate::Result;

#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    pub fn parse(text: &str) -> Result<Self> {
        let mut reader = Reader { rest: text };
        let value = reader.value()?;
        reader.skip_space();
        if reader.rest.is_empty() { Ok(value) } else { Err(reader.unexpected()) }
    }

    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Self::Object(members) => members.get(key),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list; none for anything else.
    pub fn items(&self) -> &[Json] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn value(&mut self) -> Result<Json> {
        self.skip_space();
        match self.rest.as_bytes().first() {
            Some(b'{') => self.object(),
            Some(b'[') => self.list(),
            Some(b'"') => Ok(Json::Text(self.text()?)),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            Some(_) => self.number(),
            None => Err("unexpected end of JSON".into()),
        }
    }

    fn object(&mut self) -> Result<Json> {
        self.take('{');
        let mut members = BTreeMap::new();
        while !self.take('}') {
            if !members.is_empty() {
                self.expect(',')?;
            }
            self.skip_space();
            let key = self.text()?;
            self.expect(':')?;
            members.insert(key, self.value()?);
        }
        Ok(Json::Object(members))
    }

    fn list(&mut self) -> Result<Json> {
        self.take('[');
        let mut items = Vec::new();
        while !self.take(']') {
            if !items.is_empty() {
                self.expect(',')?;
            }
            items.push(self.value()?);
        }
        Ok(Json::List(items))
    }

    fn text(&mut self) -> Result<String> {
        self.expect('"')?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => match chars.next().map(|(_, escaped)| escaped) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some('b') => text.push('\u{8}'),
                    Some('f') => text.push('\u{c}'),
                    Some('u') => {
                        let digits: String = chars.by_ref().take(4).map(|(_, d)| d).collect();
                        let code = u32::from_str_radix(&digits, 16)?;
                        // Half of a surrogate pair: no path or name that we read has one.
                        text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    Some(other) => text.push(other),
                    None => break,
                },
                other => text.push(other),
            }
        }
        Err("unexpected end of JSON inside a string".into())
    }

    fn number(&mut self) -> Result<Json> {
        let digits = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
        let end = self.rest.find(|c| !digits(c)).unwrap_or(self.rest.len());
        let number = self.rest[..end].parse().map_err(|_| self.unexpected())?;
        self.rest = &self.rest[end..];
        Ok(Json::Number(number))
    }

    fn word(&mut self, word: &str, value: Json) -> Result<Json> {
        self.rest = self.rest.strip_prefix(word).ok_or_else(|| self.unexpected())?;
        Ok(value)
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, c: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result {
        if self.take(c) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn unexpected(&self) -> Box<dyn std::error::Error> {
        let start: String = self.rest.chars().take(20).collect();
        format!("unexpected JSON near `{start}`").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nested_values_and_escapes() {
        let json =
            Json::parse(r#" {"a":[1,-2.5e1,{"b":"x\"\u00e9\n"}],"c":null,"d":true,"e":{}} "#)
                .unwrap();
        let list = json.get("a").unwrap().items();
        assert_eq!(list[1], Json::Number(-25.0));
        assert_eq!(list[2].get("b").and_then(Json::as_str), Some("x\"é\n"));
        assert_eq!(json.get("c"), Some(&Json::Null));
    }

    #[test]
    fn refuses_what_it_cannot_follow() {
        for bad in ["", "{", "[1 2]", "{\"a\" 1}", "\"open", "nul", "1 x"] {
            assert!(Json::parse(bad).is_err(), "{bad}");
        }
    }
}
