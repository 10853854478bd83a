//! What templates expect from Python: methods of strings and dicts, and transformers' two
//! functions.

use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;
use time::OffsetDateTime;
use time::format_description::parse_strftime_borrowed;

/// The cause of an error that the template itself raised.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Raised(pub String);

pub(crate) fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

/// The time as UTC: the same text on every machine, whatever its time zone.
pub(crate) fn strftime_now(state: &State<'_, '_>, format: &str) -> Result<String, Error> {
    let fail = |what: String| Error::new(ErrorKind::InvalidOperation, what);
    let seconds = state.lookup(super::NOW).and_then(|now| now.as_i64()).unwrap_or(0);
    let items = parse_strftime_borrowed(format)
        .map_err(|error| fail(format!("strftime_now: format '{format}': {error}")))?;
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|error| fail(error.to_string()))?
        .format(&items)
        .map_err(|error| fail(format!("strftime_now: {error}")))
}

/// Methods that MiniJinja's own Python compatibility lacks, then that.
pub(crate) fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        // A method reads the whole string, which would otherwise be free and could be repeated.
        state.consume_fuel(text.len() as u64 / 64)?;
        if let Some(result) = string_method(text, method, args)? {
            return Ok(result);
        }
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let parts = |a: &str, b: &str, c: &str| Some(Value::from_iter([a, b, c]));
    Ok(match (method, args) {
        ("partition", [separator]) => {
            let separator = string(separator)?;
            match text.split_once(separator) {
                Some((before, after)) => parts(before, separator, after),
                None => parts(text, "", ""),
            }
        }
        ("rpartition", [separator]) => {
            let separator = string(separator)?;
            match text.rsplit_once(separator) {
                Some((before, after)) => parts(before, separator, after),
                None => parts("", "", text),
            }
        }
        ("removeprefix", [prefix]) => {
            Some(Value::from(text.strip_prefix(string(prefix)?).unwrap_or(text)))
        }
        ("removesuffix", [suffix]) => {
            Some(Value::from(text.strip_suffix(string(suffix)?).unwrap_or(text)))
        }
        ("rsplit", [separator, limit]) => {
            let limit = usize::try_from(limit.clone())?.saturating_add(1);
            let mut pieces: Vec<&str> = text.rsplitn(limit, string(separator)?).collect();
            pieces.reverse();
            Some(Value::from_iter(pieces))
        }
        _ => None,
    })
}

fn string(value: &Value) -> Result<&str, Error> {
    let wrong = || Error::new(ErrorKind::InvalidOperation, "argument must be a string");
    value.as_str().filter(|text| !text.is_empty()).ok_or_else(wrong)
}
