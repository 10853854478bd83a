//! The faults of a request, all of them: creation answers with the first, validation lists every one.
//!
//! Checks push what they find and go on with a harmless value, so that one fault hides no other.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use crate::error::{ApiError, ApiResult};
use crate::extract::json::{self, explain};

/// Faults that are looked for in the shape of one body: each costs a pass over it.
const MOST_SHAPE_FAULTS: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<ApiError>);

impl Faults {
    pub(crate) fn push(&mut self, fault: ApiError) {
        self.0.push(fault);
    }

    pub(crate) fn invalid(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.push(ApiError::invalid_value(path, message));
    }

    /// The value, or its fault and none.
    pub(crate) fn take<T>(&mut self, result: ApiResult<T>) -> Option<T> {
        result.map_err(|fault| self.push(fault)).ok()
    }

    /// [`Self::take`], but trouble of the server's own is no fault of the request's and comes back.
    pub(crate) fn take_or_fail<T>(&mut self, result: ApiResult<T>) -> ApiResult<Option<T>> {
        match result {
            Err(trouble @ (ApiError::Unavailable { .. } | ApiError::Internal(_))) => Err(trouble),
            other => Ok(self.take(other)),
        }
    }

    pub(crate) fn check(
        &mut self,
        is_right: bool,
        path: &str,
        wanted: &str,
        got: impl std::fmt::Display,
    ) {
        if !is_right {
            let message =
                format!("Invalid '{path}': expected a value {wanted}, but got {got} instead.");
            self.invalid(path, message);
        }
    }

    /// A decimal above `least`, and at most `most`.
    pub(crate) fn check_decimal(&mut self, value: f64, path: &str, least: f64, most: Option<f64>) {
        let (code, side, sign, bound) = match most {
            _ if value.is_nan() || value <= least => {
                ("decimal_below_min_value", "below minimum", '>', least)
            }
            Some(most) if value > most => ("decimal_above_max_value", "above maximum", '≤', most),
            _ => return,
        };
        let sign = if sign == '≤' { "<=".to_owned() } else { sign.to_string() };
        let message = format!(
            "Invalid '{path}': decimal {side} value. Expected a value {sign} {bound}, but got {value} \
             instead."
        );
        self.push(ApiError::Parameter { code: Some(code), param: path.to_owned(), message });
    }

    /// Whether the field itself, or something in it, is faulty.
    pub(crate) fn blame(&self, field: &str) -> bool {
        self.0.iter().any(|fault| {
            let param = fault.param().unwrap_or_default();
            param
                .strip_prefix(field)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first fault, if there is one.
    pub(crate) fn into_result(self) -> ApiResult<()> {
        self.0.into_iter().next().map_or(Ok(()), Err)
    }

    pub(crate) fn into_vec(self) -> Vec<ApiError> {
        self.0
    }

    /// Reads a body's shape. What has the wrong shape is a fault, and is read as if it were not there; None
    /// when nothing can be read at all.
    pub(crate) fn read<T: DeserializeOwned>(&mut self, mut body: Value) -> Option<T> {
        let mut removed: Vec<Vec<String>> = Vec::new();
        for _ in 0..MOST_SHAPE_FAULTS {
            let error = match serde_path_to_error::deserialize::<_, T>(&body) {
                Ok(read) => return Some(read),
                Err(error) => error,
            };
            let mut place: Vec<String> = error
                .path()
                .iter()
                .map_while(|segment| match segment {
                    Segment::Map { key } => Some(key.clone()),
                    // An array is taken out whole.
                    _ => None,
                })
                .collect();
            let path = error.path().to_string();
            let words = error.inner().to_string();
            let missing = json::field_of(&words, "missing field ");
            let unknown = json::field_of(&words, "unknown field ");
            if let Some(field) = missing {
                place.push(field.to_owned());
                if !removed.contains(&place) {
                    self.push(explain(&path, &words));
                }
                // Every required field is a text.
                put(&mut body, &place)?;
                continue;
            }
            self.push(explain(&path, &words));
            if let Some(field) = unknown
                && place.last().map(String::as_str) != Some(field)
            {
                place.push(field.to_owned());
            }
            remove(&mut body, &place)?;
            removed.push(place);
        }
        None
    }
}

/// The object that holds the last field of `place`, and that field's name.
fn holder<'v>(
    body: &'v mut Value,
    place: &[String],
) -> Option<(&'v mut serde_json::Map<String, Value>, String)> {
    let (last, parents) = place.split_last()?;
    let mut object = body.as_object_mut()?;
    for parent in parents {
        object = object.get_mut(parent)?.as_object_mut()?;
    }
    Some((object, last.clone()))
}

fn put(body: &mut Value, place: &[String]) -> Option<()> {
    let (object, field) = holder(body, place)?;
    object.insert(field, Value::String(String::new())).is_none().then_some(())
}

fn remove(body: &mut Value, place: &[String]) -> Option<()> {
    let (object, field) = holder(body, place)?;
    object.remove(&field).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::job::CreateJob;
    use serde_json::json;

    fn params(body: Value) -> (Option<CreateJob>, Vec<String>) {
        let mut faults = Faults::default();
        let read = faults.read(body);
        let params = faults.into_vec();
        (read, params.iter().map(|fault| fault.param().unwrap_or_default().to_owned()).collect())
    }

    #[test]
    fn every_fault_of_a_body_s_shape_is_found_and_the_rest_is_read() {
        let (read, found) = params(json!({
            "model": 5, "colour": "red", "seed": "seven", "suffix": "kept",
            "metadata": {"a": 1, "b": "two"},
            "finetuned": {"lora": {"rank": "high", "alpha": 4, "rnk": 8}, "schedule": "step"},
            "method": {},
        }));
        let mut found: Vec<&str> = found.iter().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [
                "colour",
                "finetuned.lora.rank",
                "finetuned.lora.rnk",
                "finetuned.schedule",
                "metadata.a",
                "method.type",
                "model",
                "seed",
                "training_file",
            ]
        );
        let read = read.unwrap();
        assert_eq!(read.suffix.as_deref(), Some("kept"));
        assert_eq!(read.metadata.unwrap().len(), 1);
        assert_eq!(read.finetuned.unwrap().lora.unwrap().alpha, Some(4.0));
    }

    #[test]
    fn what_is_no_object_is_one_fault() {
        let (read, found) = params(json!({"model": "m", "training_file": "f", "finetuned": 3}));
        assert!(read.is_some());
        assert_eq!(found, ["finetuned"]);
    }

    #[test]
    fn a_field_is_blamed_for_what_is_in_it() {
        let mut faults = Faults::default();
        faults.invalid("method.type", "x");
        faults.invalid("integrations[0].type", "x");
        assert!(faults.blame("method") && faults.blame("method.type"));
        assert!(faults.blame("integrations"));
        assert!(!faults.blame("meth") && !faults.blame("method.t"));
    }
}
