//! Where configuration comes from, later layers over earlier ones: built-in defaults,
//! `/etc/finetuned/config.toml`, the file of `--config`, environment variables, flags.
//!
//! Every value remembers its source, so that a wrong one is blamed on the right file or variable.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use figment::error::{Actual, Kind};
use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;

/// The operator's file that is read when it exists.
pub const SYSTEM_FILE: &str = "/etc/finetuned/config.toml";
const PREFIX: &str = "FINETUNED_";
/// To recognise a variable that lacks the second underscore.
const SECTIONS: [&str; 9] =
    ["server", "database", "storage", "worker", "lease", "training", "costs", "up", "log"];
/// All places that are read. Plain data, so that tests need not touch the process's own environment.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Read when it exists.
    pub system_file: Option<PathBuf>,
    /// Must exist.
    pub file: Option<PathBuf>,
    /// Variables of the environment, ours and others'.
    pub environment: Vec<(String, String)>,
    /// Flags: what the user typed, the key that it stands for, its value.
    pub flags: Vec<Flag>,
}

/// A command-line flag that sets a key.
#[derive(Debug, Clone)]
pub struct Flag {
    /// As typed: `--listen`.
    pub name: String,
    /// As in the file: `server.listen`.
    pub key: String,
    pub value: String,
}

/// One value with a source of its own.
struct Single {
    source: String,
    key: String,
    value: Value,
}

impl Provider for Single {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone()).interpolater(|_, keys| keys.join("."))
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        let mut value = self.value.clone();
        for part in self.key.rsplit('.') {
            value = Value::from(Dict::from([(part.to_owned(), value)]));
        }
        let dict = value.into_dict().unwrap_or_default();
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

impl Sources {
    /// Merges all layers over `defaults`, which is TOML text.
    pub fn merge(&self, defaults: &str) -> Result<Figment> {
        let built_in = TomlText { source: "built-in defaults".into(), text: defaults.to_owned() };
        let mut figment = Figment::from(built_in);
        if let Some(path) = self.system_file.as_deref().filter(|path| path.exists()) {
            figment = figment.merge(toml_file(path)?);
        }
        if let Some(path) = &self.file {
            figment = figment.merge(toml_file(path)?);
        }
        let mut variables: Vec<&(String, String)> =
            self.environment.iter().filter(|(name, _)| is_ours(name)).collect();
        variables.sort();
        for (name, value) in variables {
            figment = figment.merge(variable(name, value)?);
        }
        for Flag { name, key, value } in &self.flags {
            figment = figment.merge(Single {
                source: format!("flag {name}"),
                key: key.clone(),
                value: parse_text(key, value),
            });
        }
        Ok(figment)
    }
}

fn toml_file(path: &Path) -> Result<impl Provider> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    let provider = TomlText { source: format!("file {}", path.display()), text };
    provider.data().map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    Ok(provider)
}

struct TomlText {
    source: String,
    text: String,
}

impl Provider for TomlText {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone()).interpolater(|_, keys| keys.join("."))
    }

    fn data(&self) -> figment::error::Result<Map<Profile, Dict>> {
        Toml::string(&self.text).data()
    }
}

/// A variable that sets a key, or was meant to. `FINETUNED_API_KEY` and the like are none.
fn is_ours(name: &str) -> bool {
    let Some(key) = name.strip_prefix(PREFIX) else { return false };
    key.contains("__") || SECTIONS.iter().any(|section| is_in_section(key, section))
}

fn is_in_section(key: &str, section: &str) -> bool {
    let Some((head, tail)) = key.split_at_checked(section.len()) else { return false };
    head.eq_ignore_ascii_case(section) && tail.starts_with('_')
}

/// `FINETUNED_SERVER__LISTEN=…` sets `server.listen`. With `_FILE` at the end, the value is the content
/// of the named file, as container platforms hand out secrets.
fn variable(name: &str, value: &str) -> Result<Single> {
    let key = name[PREFIX.len()..].to_ascii_lowercase();
    if !key.contains("__") {
        bail!(
            "environment variable {name} is no configuration key: write FINETUNED_SECTION__KEY, with \
             two underscores between section and key"
        );
    }
    let key = key.replace("__", ".");
    let source = format!("environment variable {name}");
    if let Some(key) = key.strip_suffix("_file") {
        let text = std::fs::read_to_string(value)
            .with_context(|| format!("cannot read the file '{value}' of {source}"))?;
        let value = Value::from(text.trim_end_matches(['\r', '\n']).to_owned());
        return Ok(Single { source, key: key.to_owned(), value });
    }
    let value = parse_text(&key, value);
    Ok(Single { source, key, value })
}

/// Lists and tables in TOML's notation; everything else stays text and becomes a number or a truth value
/// where the key asks for one. (A token made of digits must stay text.)
fn parse_text(key: &str, text: &str) -> Value {
    if text.trim_start().starts_with(['[', '{']) {
        return text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {});
    }
    // Learning rates are written as 1e-4, which figment does not take for a number.
    match text.parse::<f64>() {
        Ok(number) if key.starts_with("training.") && text.contains(['e', 'E']) => {
            Value::from(number)
        }
        _ => Value::from(text.to_owned()),
    }
}

/// Reads the merged layers into `T`, or says what is wrong, in which place of which source.
pub fn extract<T: DeserializeOwned>(figment: &Figment) -> Result<T> {
    figment.extract_lossy().map_err(|errors| {
        let mut text = String::new();
        for error in errors {
            let _ = writeln!(text, "{}", describe(figment, &error));
        }
        anyhow::anyhow!("{}", text.trim_end().to_owned())
    })
}

fn describe(figment: &Figment, error: &Error) -> String {
    let mut path = error.path.clone();
    let fault = match &error.kind {
        Kind::UnknownField(field, expected) => {
            if path.last() != Some(field) {
                path.push(field.clone());
            }
            let known = expected.join(", ");
            format!("unknown key '{}' (known here: {known})", path.join("."))
        }
        // The wrong value itself is not repeated: it may be a secret in the wrong place.
        Kind::InvalidType(actual, expected) => {
            format!("'{}' must be {expected}, not {}", path.join("."), kind_of(actual))
        }
        kind => format!("'{}': {kind}", path.join(".")),
    };
    let source = figment
        .find_metadata(&path.join("."))
        .or(error.metadata.as_ref())
        .map_or_else(|| "unknown source".into(), |metadata| metadata.name.to_string());
    format!("{source}: {fault}")
}

fn kind_of(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) => "text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "that",
    }
}
