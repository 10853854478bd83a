//! Templates: `{{ item.a.b[0] }}` and `{{sample.output_json.x}}` in the strings of a grader.
//!
//! A template reads values and does nothing else: no expressions, no filters, no loops, so there is nothing to
//! execute and nothing to bound but the length. Braces that hold no path (`{{"a": 1}}`) are plain text.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::errors::{Errors, Failure};

/// Bytes of one rendered text.
pub const MAX_RENDERED_BYTES: usize = 1 << 20;
const NAMESPACES: [&str; 2] = ["item", "sample"];

/// What templates read.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    pub item: &'a Value,
    pub sample: &'a Value,
}

/// The variables of a sample of which only the text is known: `output_json` where it parses, no tools.
pub fn sample_of_text(text: &str) -> Value {
    let mut sample = json!({
        "output_text": text,
        "output_tools": [],
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }],
    });
    if let Ok(parsed) = serde_json::from_str::<Value>(text) {
        sample["output_json"] = parsed;
    }
    sample
}

/// The text with every variable put in.
///
/// # Errors
/// The failure's flag, when a variable does not exist or the text grows beyond [`MAX_RENDERED_BYTES`].
pub fn render<'a>(text: &'a str, variables: Variables<'_>) -> Result<Cow<'a, str>, Errors> {
    if !text.contains("{{") {
        return Ok(Cow::Borrowed(text));
    }
    let mut rendered = String::with_capacity(text.len());
    for part in parts(text) {
        match part {
            Part::Text(text) => rendered.push_str(text),
            Part::Path(path) => rendered.push_str(&look_up(path, variables)?),
        }
        if rendered.len() > MAX_RENDERED_BYTES {
            let details =
                format!("a text with its variables is longer than {MAX_RENDERED_BYTES} bytes");
            return Err(Errors::of(Failure::TruncatedObservation, details));
        }
    }
    Ok(Cow::Owned(rendered))
}

/// Why a template can never be rendered, if so.
///
/// # Errors
/// A sentence about the first variable outside the two namespaces, or the first path that cannot be read.
pub fn check(text: &str) -> Result<(), String> {
    for part in parts(text) {
        if let Part::Path(path) = part {
            let (namespace, rest) = split_namespace(path);
            if !NAMESPACES.contains(&namespace) {
                return Err(unknown_namespace(path));
            }
            steps(rest).ok_or_else(|| unreadable(path))?;
        }
    }
    Ok(())
}

enum Part<'a> {
    Text(&'a str),
    /// What stands between the braces, when it begins as a path does.
    Path(&'a str),
}

fn parts(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // From the last opening before the next closing on, so that a stray "{{" does not swallow a variable.
        let found = rest.find("}}").and_then(|close| {
            let open = rest[..close].rfind("{{")?;
            Some((open, close))
        });
        let Some((open, close)) = found else {
            let all = match rest.find("}}") {
                Some(close) => close + 2,
                None => rest.len(),
            };
            let (text, after) = rest.split_at(all);
            rest = after;
            return Some(Part::Text(text));
        };
        if open > 0 {
            let (text, after) = rest.split_at(open);
            rest = after;
            return Some(Part::Text(text));
        }
        let (whole, after) = rest.split_at(close + 2);
        rest = after;
        let inner = whole[2..close].trim();
        Some(if begins_as_path(inner) { Part::Path(inner) } else { Part::Text(whole) })
    })
}

fn begins_as_path(inner: &str) -> bool {
    let (namespace, _) = split_namespace(inner);
    let mut characters = namespace.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn split_namespace(path: &str) -> (&str, &str) {
    path.split_at(path.find(['.', '[']).unwrap_or(path.len()))
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// `.a.b[0]["c"]` → its steps; none when it cannot be read.
fn steps(path: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let key = after[..end].trim();
            if key.is_empty() {
                return None;
            }
            steps.push(Step::Key(key));
            rest = &after[end..];
        } else {
            let (inner, after) = rest.strip_prefix('[')?.split_once(']')?;
            steps.push(match quoted(inner) {
                Some(key) => Step::Key(key),
                None => Step::Index(inner.trim().parse().ok()?),
            });
            rest = after;
        }
    }
    Some(steps)
}

fn quoted(inner: &str) -> Option<&str> {
    let inner = inner.trim();
    ['"', '\''].into_iter().find_map(|quote| inner.strip_prefix(quote)?.strip_suffix(quote))
}

fn look_up(path: &str, variables: Variables<'_>) -> Result<String, Errors> {
    let invalid = |details: String| Errors::of(Failure::InvalidVariable, details);
    let (namespace, rest) = split_namespace(path);
    let mut value = match namespace {
        "item" => variables.item,
        "sample" => variables.sample,
        _ => return Err(invalid(unknown_namespace(path))),
    };
    let steps = steps(rest).ok_or_else(|| invalid(unreadable(path)))?;
    if namespace == "sample"
        && matches!(steps.first(), Some(Step::Key("output_json")))
        && value.get("output_json").is_none_or(Value::is_null)
    {
        let details = format!("'{{{{ {path} }}}}' wants JSON, but the sample is not JSON");
        return Err(Errors::of(Failure::SampleParse, details));
    }
    for step in steps {
        let next = match step {
            Step::Key(key) => value.get(key),
            Step::Index(index) => value.get(index),
        };
        value = next.ok_or_else(|| {
            invalid(format!("'{{{{ {path} }}}}': the {namespace} has no such value"))
        })?;
    }
    Ok(match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

fn unknown_namespace(path: &str) -> String {
    let path = crate::fault::shortened(path);
    format!("'{{{{ {path} }}}}' is no variable: templates read 'item' and 'sample'")
}

fn unreadable(path: &str) -> String {
    let path = crate::fault::shortened(path);
    format!("'{{{{ {path} }}}}' cannot be read: write as in {{{{ item.answers[0].text }}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str) -> Result<String, Errors> {
        let item = json!({
            "label": "blue", "n": 3, "f": 1.5, "yes": true, "none": null, "two words": "w", "ünï": "u",
            "list": [{"a": "first"}, ["deep"]], "a.b": "dotted",
        });
        let sample = sample_of_text(r#"{"x": {"y": [1, 2]}}"#);
        render(text, Variables { item: &item, sample: &sample }).map(Cow::into_owned)
    }

    #[test]
    fn paths_read_items_and_samples() {
        for (template, expected) in [
            ("plain", "plain"),
            ("{{item.label}}", "blue"),
            ("[{{  item.label\n}}]", "[blue]"),
            ("{{item.n}} {{item.f}} {{item.yes}} {{item.none}}", "3 1.5 true null"),
            ("{{item.list[0].a}}{{ item.list[1][0] }}", "firstdeep"),
            ("{{ item.list[0] }}", r#"{"a":"first"}"#),
            ("{{ item.two words }} {{ item.ünï }}", "w u"),
            (r#"{{ item["a.b"] }}{{ item['label'] }}"#, "dottedblue"),
            ("{{ sample.output_json.x.y[1] }}", "2"),
            ("{{ sample.output_tools }}", "[]"),
            ("{{ sample.choices[0].message.role }}", "assistant"),
        ] {
            assert_eq!(rendered(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn braces_without_a_path_are_text() {
        for text in [
            r#"{{"a": 1}}"#,
            "{{}}",
            "{{ }}",
            "{{ 1 }}",
            "{{",
            "}}",
            "{{{{",
            "a }} b {{",
            "{item.label}",
            "{{ some words }}",
            "{{-1}}",
        ] {
            assert_eq!(rendered(text).as_deref(), Ok(text));
            assert_eq!(check(text), Ok(()), "{text}");
        }
        assert_eq!(rendered("{{ {{item.label}}").as_deref(), Ok("{{ blue"));
        assert_eq!(rendered("}} {{item.label}}").as_deref(), Ok("}} blue"));
        assert_eq!(rendered("{{{item.label}}}").as_deref(), Ok("{blue}"));
    }

    #[test]
    fn a_value_is_not_rendered_again() {
        let item = json!({"evil": "{{ item.secret }}", "secret": "s"});
        let variables = Variables { item: &item, sample: &Value::Null };
        assert_eq!(render("{{item.evil}}", variables).unwrap(), "{{ item.secret }}");
    }

    #[test]
    fn what_does_not_exist_sets_the_flag() {
        for template in [
            "{{ item.missing }}",
            "{{ item.list[9] }}",
            "{{ item.label.deeper }}",
            "{{ other.label }}",
            "{{ label }}",
            "{{ item. }}",
            "{{ item.list[ }}",
            "{{ item.list[x] }}",
            "{{ sample.output_json.nope }}",
        ] {
            let errors = rendered(template).unwrap_err();
            assert!(errors.has(Failure::InvalidVariable), "{template}: {errors:?}");
        }
        for template in ["{{ other.label }}", "{{ item. }}", "{{ item.list[ }}", "{{ label }}"] {
            assert!(check(template).is_err(), "{template}");
        }
        assert_eq!(check("{{ item.missing }}"), Ok(()));
    }

    #[test]
    fn a_sample_that_is_no_json_has_a_flag_of_its_own() {
        let sample = sample_of_text("not json");
        let variables = Variables { item: &Value::Null, sample: &sample };
        let errors = render("{{ sample.output_json.a }}", variables).unwrap_err();
        assert!(errors.has(Failure::SampleParse));
    }

    #[test]
    fn the_length_of_a_rendered_text_is_bounded() {
        let item = json!({"long": "x".repeat(MAX_RENDERED_BYTES / 4)});
        let variables = Variables { item: &item, sample: &Value::Null };
        let errors = render(&"{{item.long}}".repeat(8), variables).unwrap_err();
        assert!(errors.has(Failure::TruncatedObservation));
    }

    #[test]
    fn odd_texts_take_linear_time() {
        for odd in ["{{", "}}", "{{ item.x", "{{}}{{", "{ {"] {
            let text = odd.repeat(100_000);
            assert!(
                render(&text, Variables { item: &Value::Null, sample: &Value::Null })
                    .is_ok_and(|rendered| rendered == text)
            );
        }
    }
}
