//! The fields of one object: typed reads that answer with the field's fault. Null counts as absent.

use serde_json::{Map, Value};

use crate::fault::Fault;

pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    pub(super) fn of(value: &'a Value, path: &'a str) -> Result<Self, Fault> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(Fault::wrong_type(path.to_owned(), "an object", other)),
        }
    }

    /// The path of a field.
    pub(super) fn at(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    pub(super) fn optional(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn required(&self, key: &str) -> Result<&'a Value, Fault> {
        self.optional(key).ok_or_else(|| Fault::missing(self.at(key)))
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str, Fault> {
        match self.required(key)? {
            Value::String(text) => Ok(text),
            other => Err(Fault::wrong_type(self.at(key), "a string", other)),
        }
    }

    /// A text of at most `maximum` bytes.
    pub(super) fn bounded_text(&self, key: &str, maximum: usize) -> Result<&'a str, Fault> {
        let text = self.text(key)?;
        if text.len() > maximum {
            return Err(Fault::too_long(self.at(key), maximum, text.len()));
        }
        Ok(text)
    }

    pub(super) fn optional_text(
        &self,
        key: &str,
        maximum: usize,
    ) -> Result<Option<&'a str>, Fault> {
        self.optional(key).map(|_| self.bounded_text(key, maximum)).transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, Fault> {
        let number = |value: &Value| {
            value.as_f64().ok_or_else(|| Fault::wrong_type(self.at(key), "a number", value))
        };
        self.optional(key).map(number).transpose()
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>, Fault> {
        let integer = |value: &Value| {
            value.as_i64().ok_or_else(|| Fault::wrong_type(self.at(key), "an integer", value))
        };
        self.optional(key).map(integer).transpose()
    }

    pub(super) fn list(&self, key: &str, maximum: usize) -> Result<&'a [Value], Fault> {
        match self.required(key)? {
            Value::Array(list) if list.len() > maximum => {
                Err(Fault::too_many(self.at(key), maximum, list.len()))
            }
            Value::Array(list) => Ok(list),
            other => Err(Fault::wrong_type(self.at(key), "an array", other)),
        }
    }

    pub(super) fn refuse_others(&self, known: &[&[&str]]) -> Result<(), Fault> {
        match self.map.keys().find(|key| !known.iter().any(|some| some.contains(&key.as_str()))) {
            Some(other) => Err(Fault::unknown(self.at(other))),
            None => Ok(()),
        }
    }
}
