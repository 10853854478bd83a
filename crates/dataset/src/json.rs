//! A strict JSON reader for one row: what `serde_json` reads, plus reports of duplicate keys and
//! NUL characters, with limits on nesting and on the number of values.
//!
//! Why not `serde_json::Value` itself: it silently keeps the last of two equal keys, and one line
//! of `[[],[],…` would become a hundred times its size in memory.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::problem::{Problem, ProblemList, code};

/// Deepest nesting of arrays and objects that a row may have.
pub(crate) const MAX_DEPTH: usize = 64;
/// Most values (objects, arrays, strings, numbers, …) that a row may have.
const MAX_VALUES: usize = 200_000;

/// Reads one row. Faults go to `problems`; None when there is no value to go on with.
pub(crate) fn read(line: u64, text: &str, problems: &mut ProblemList) -> Option<Value> {
    let mut reader = Reader { line, path: Vec::new(), values: 0, stopped: None, problems };
    let mut source = serde_json::Deserializer::from_str(text);
    let outcome = reader.value(&mut source).and_then(|value| source.end().map(|()| value));
    let stopped = reader.stopped.take();
    match outcome {
        Ok(value) => Some(value),
        Err(_) if stopped.is_some() => {
            problems.push(stopped?);
            None
        }
        Err(error) => {
            problems.push(Problem::of_line(code::INVALID_JSON, line, syntax(line, text, &error)));
            None
        }
    }
}

fn syntax(line: u64, text: &str, error: &serde_json::Error) -> String {
    let whole = error.to_string();
    // serde_json's own "at line 1 column 7" would only confuse: mostly a row is one line.
    let what = whole.split(" at line ").next().unwrap_or(&whole);
    let place = match text.contains('\n') {
        true => format!("line {} of it, column {}", error.line(), error.column()),
        false => format!("column {}", error.column()),
    };
    format!("Example {line} is not valid JSON: {what} ({place})")
}

enum Step {
    Key(String),
    Index(usize),
}

struct Reader<'p> {
    line: u64,
    path: Vec<Step>,
    values: usize,
    /// Why the reading was given up, when it was not for the syntax.
    stopped: Option<Problem>,
    problems: &'p mut ProblemList,
}

impl Reader<'_> {
    fn value<'de, D: Deserializer<'de>>(&mut self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(ValueVisitor(self))
    }

    fn place(&self) -> String {
        let mut out = String::new();
        for step in &self.path {
            match step {
                Step::Index(index) => out.push_str(&format!("[{index}]")),
                Step::Key(key) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    // Keys come from the file: no control characters and no novels in a message.
                    out.extend(key.chars().filter(|c| !c.is_control()).take(64));
                }
            }
        }
        out
    }

    fn report(&mut self, code: &'static str, what: &str) {
        let path = self.place();
        let message = format!("Example {} {what} at '{path}'", self.line);
        self.problems.push(Problem::of_line(code, self.line, message).at(path));
    }

    fn count<E: de::Error>(&mut self) -> Result<(), E> {
        self.values += 1;
        if self.values > MAX_VALUES {
            let message = format!("Example {} has more than {MAX_VALUES} values", self.line);
            self.stopped = Some(Problem::of_line(code::TOO_MANY_VALUES, self.line, message));
            return Err(E::custom("too many values"));
        }
        Ok(())
    }

    fn enter<E: de::Error>(&mut self, step: Step) -> Result<(), E> {
        if self.path.len() >= MAX_DEPTH {
            let message = format!("Example {} is nested deeper than {MAX_DEPTH} levels", self.line);
            let path = self.place();
            self.stopped =
                Some(Problem::of_line(code::NESTING_TOO_DEEP, self.line, message).at(path));
            return Err(E::custom("too deep"));
        }
        self.path.push(step);
        Ok(())
    }

    fn string(&mut self, text: String) -> Value {
        if text.contains('\0') {
            self.report(code::NUL_CHARACTER, "contains a NUL character");
        }
        Value::String(text)
    }
}

impl<'de> DeserializeSeed<'de> for &mut Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        self.value(source)
    }
}

struct ValueVisitor<'r, 'p>(&'r mut Reader<'p>);

impl<'de> Visitor<'de> for ValueVisitor<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.0.count()?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.0.count()?;
        Ok(Value::from(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.0.count()?;
        Ok(Value::from(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.0.count()?;
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        Ok(Value::Number(number))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.0.count()?;
        Ok(Value::Null)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        self.0.count()?;
        Ok(self.0.string(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let reader = self.0;
        reader.count()?;
        let mut list = Vec::new();
        loop {
            reader.enter(Step::Index(list.len()))?;
            let item = items.next_element_seed(&mut *reader)?;
            reader.path.pop();
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let reader = self.0;
        reader.count()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            reader.enter(Step::Key(key.clone()))?;
            if key.contains('\0') {
                reader.report(code::NUL_CHARACTER, "contains a NUL character in a key");
            }
            if map.contains_key(&key) {
                reader.report(code::DUPLICATE_KEY, "contains the same key twice");
            }
            let value = entries.next_value_seed(&mut *reader)?;
            reader.path.pop();
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> (Option<Value>, Vec<(&'static str, Option<String>)>) {
        let mut list = ProblemList::new(100);
        let value = read(7, text, &mut list);
        (value, list.kept.into_iter().map(|p| (p.code, p.path)).collect())
    }

    #[test]
    fn reads_what_serde_json_reads() {
        let text = r#"{"a":[1,-2,3.5,true,null,"x\u00e9\ud83d\ude00"],"b":{"c":{}},"d":1e-3}"#;
        let (value, problems) = faults(text);
        assert_eq!(value, Some(serde_json::from_str(text).unwrap()));
        assert_eq!(problems, []);
    }

    #[test]
    fn reports_every_duplicate_and_every_nul_with_its_place() {
        let (value, problems) = faults(r#"{"m":[{"r":1,"r":2}],"m":"a\u0000b"}"#);
        assert!(value.is_some());
        let expected = [
            (code::DUPLICATE_KEY, Some("m[0].r".to_owned())),
            (code::DUPLICATE_KEY, Some("m".to_owned())),
            (code::NUL_CHARACTER, Some("m".to_owned())),
        ];
        assert_eq!(problems, expected);
    }

    #[test]
    fn nesting_stops_at_the_limit_however_deep_the_row_is() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(faults(&nested(MAX_DEPTH)).1, []);
        for depth in [MAX_DEPTH + 1, 10_000, 1_000_000] {
            let (value, problems) = faults(&nested(depth));
            assert_eq!(value, None);
            assert_eq!(problems[0].0, code::NESTING_TOO_DEEP, "{depth}");
        }
    }

    #[test]
    fn a_row_of_very_many_values_is_refused_before_it_fills_the_memory() {
        let text = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert_eq!(faults(&text).1[0].0, code::TOO_MANY_VALUES);
    }

    #[test]
    fn names_the_column_of_a_syntax_error() {
        let cases = [
            r#"{"a":1"#,
            r#"{"a":1}}"#,
            r#"{'a':1}"#,
            r#"{"a":1e400}"#,
            r#"{"a":"\ud800"}"#,
            "{\"a\":\"\0\"}",
            "NaN",
            "",
        ];
        for text in cases {
            let mut list = ProblemList::new(10);
            assert_eq!(read(7, text, &mut list), None, "{text}");
            assert_eq!(list.kept[0].code, code::INVALID_JSON, "{text}");
            let message = &list.kept[0].message;
            assert!(message.starts_with("Example 7 is not valid JSON: "), "{message}");
            assert!(message.contains("(column ") && !message.contains("line 1"), "{message}");
        }
    }
}
