//! `finetuned config print`: the effective configuration as TOML, with the source of every value.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use figment::Figment;
use figment::value::{Dict, Value};

/// What in a key's name marks its value as a secret. `token` is one as a whole word only: `tokens` are counted.
const SECRET_WORDS: [&str; 3] = ["secret", "password", "access_key"];
const REDACTED: &str = "[redacted]";

/// The merged layers as TOML text. With `redact`, secrets and the passwords inside URLs are hidden.
pub fn render(figment: &Figment, redact: bool) -> Result<String> {
    let merged: Dict = figment.extract().context("cannot read the configuration")?;
    let mut text = String::new();
    table(figment, &merged, "", redact, &mut text)?;
    Ok(text)
}

fn table(
    figment: &Figment,
    dict: &Dict,
    path: &str,
    redact: bool,
    text: &mut String,
) -> Result<()> {
    let full = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    for (key, value) in dict.iter().filter(|(_, value)| value.as_dict().is_none()) {
        let shown = if redact { redacted(key, value) } else { value.clone() };
        let source = figment
            .find_metadata(&full(key))
            .map_or("unknown source", |metadata| metadata.name.as_ref());
        writeln!(text, "{key} = {}  # {source}", inline(&shown)?)?;
    }
    for (key, value) in dict {
        if let Some(inner) = value.as_dict() {
            let separator = if text.is_empty() { "" } else { "\n" };
            writeln!(text, "{separator}[{}]", full(key))?;
            table(figment, inner, &full(key), redact, text)?;
        }
    }
    Ok(())
}

/// A value on one line. JSON's texts, numbers and lists are TOML's as well, its objects are not.
fn inline(value: &Value) -> Result<String> {
    if let Some(items) = value.as_array() {
        let items: Result<Vec<String>> = items.iter().map(inline).collect();
        return Ok(format!("[{}]", items?.join(", ")));
    }
    let Some(dict) = value.as_dict() else { return Ok(serde_json::to_string(value)?) };
    let entry = |(key, value): (&String, &Value)| Ok(format!("{key} = {}", inline(value)?));
    let entries: Result<Vec<String>> = dict.iter().map(entry).collect();
    Ok(format!("{{ {} }}", entries?.join(", ")))
}

fn redacted(key: &str, value: &Value) -> Value {
    if is_secret(key) {
        return Value::from(REDACTED);
    }
    match value.as_str() {
        Some(text) => Value::from(without_password(text)),
        None => value.clone(),
    }
}

fn is_secret(key: &str) -> bool {
    key.split('_').any(|word| word == "token") || SECRET_WORDS.iter().any(|word| key.contains(word))
}

/// `postgres://user:password@host/db` → `postgres://user:[redacted]@host/db`, and `password=…` in its
/// query likewise.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) if user.contains(':') => {
            let name = user.split(':').next().unwrap_or_default();
            format!("{name}:{REDACTED}@{host}")
        }
        _ => authority.to_owned(),
    };
    let tail = match tail.find("password=") {
        Some(start) => {
            let value = start + "password=".len();
            let end = tail[value..].find('&').map_or(tail.len(), |length| value + length);
            format!("{}{REDACTED}{}", &tail[..value], &tail[end..])
        }
        None => tail.to_owned(),
    };
    format!("{scheme}://{authority}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_keys_and_counts_of_tokens_are_none() {
        assert!(
            ["token", "worker_token", "secret_access_key", "access_key_id"]
                .into_iter()
                .all(is_secret)
        );
        assert!(!["tokens_per_minute", "micro_batch_tokens", "url"].into_iter().any(is_secret));
    }

    #[test]
    fn tables_in_lists_stay_toml() {
        let list: Value = "[{ a = 1, b = \"x\" }, { a = 2 }]".parse().unwrap();
        let text = inline(&list).unwrap();
        assert_eq!(text, r#"[{ a = 1, b = "x" }, { a = 2 }]"#);
        assert_eq!(
            format!("{:?}", text.parse::<Value>().unwrap()).len(),
            format!("{list:?}").len()
        );
    }

    #[test]
    fn passwords_inside_urls_are_hidden_and_the_rest_is_kept() {
        for (url, shown) in [
            (
                "postgres://u:p:w@h:5432/db?sslmode=require",
                "postgres://u:[redacted]@h:5432/db?sslmode=require",
            ),
            ("postgres://h/db?password=x&user=u", "postgres://h/db?password=[redacted]&user=u"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("s3://bucket/prefix", "s3://bucket/prefix"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
