//! JSON → [`Grader`], or the first fault with its path.
//!
//! [`Grader::parse`] takes whatever can be run, if only to a flag; [`Grader::check`] takes what can succeed.
//! Missing names are filled in, nulls count as absent, and `multi.graders` may be a map, one grader or a list.

mod fields;
mod judges;

pub(crate) use judges::texts_of;

use serde_json::Value;

use crate::definition::{Grader, Kind, Multi, Operation, Python, StringCheck, TextSimilarity};
use crate::fault::Fault;
use crate::similarity::Measure;
use crate::{formula, template};
use fields::Fields;

const TYPES: [&str; 6] =
    ["string_check", "text_similarity", "score_model", "label_model", "python", "multi"];
const OPERATIONS: [Operation; 4] =
    [Operation::Eq, Operation::Ne, Operation::Like, Operation::Ilike];
const MAX_NAME_LENGTH: usize = 256;
/// Bytes of one template.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// OpenAI's limit on the source of a Python grader.
const MAX_SOURCE_BYTES: usize = 256 << 10;
const MAX_PARTS: usize = 64;
/// Random characters of a name that was not given.
const RANDOM_LENGTH: usize = 12;

impl Grader {
    /// Reads a definition that stands at `path` of a request.
    ///
    /// # Errors
    /// The first field that is missing, unknown, of the wrong type or out of range.
    pub fn parse(value: &Value, path: &str) -> Result<Self, Fault> {
        parse(value, path, Place::Top)
    }

    /// Refuses what can be read but never succeed: templates outside `item` and `sample`, formulas that
    /// cannot be read or name no grader.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self, path: &str) -> Result<(), Fault> {
        let templates = |texts: &[(&str, &String)]| {
            texts.iter().try_for_each(|(field, text)| {
                template::check(text).map_err(|why| Fault::invalid(format!("{path}.{field}"), why))
            })
        };
        match &self.kind {
            Kind::StringCheck(check) => {
                templates(&[("input", &check.input), ("reference", &check.reference)])
            }
            Kind::TextSimilarity(similarity) => {
                templates(&[("input", &similarity.input), ("reference", &similarity.reference)])
            }
            Kind::ScoreModel(judge) => judges::check_templates(&judge.input, path),
            Kind::LabelModel(judge) => judges::check_templates(&judge.input, path),
            Kind::Python(_) => Ok(()),
            Kind::Multi(multi) => {
                for (key, grader) in &multi.graders {
                    grader.check(&format!("{path}.graders.{key}"))?;
                }
                let names: Vec<&str> = multi.graders.iter().map(|(key, _)| key.as_str()).collect();
                formula::Formula::parse(&multi.calculate_output, &names)
                    .map(drop)
                    .map_err(|why| Fault::invalid(format!("{path}.calculate_output"), why))
            }
        }
    }

    /// A grader of a reinforcement job: everything that [`Self::check`] refuses, and what such jobs do not take.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse_for_job(value: &Value, path: &str) -> Result<Self, Fault> {
        let grader = Self::parse(value, path)?;
        if matches!(grader.kind, Kind::LabelModel(_)) {
            let why = "a job cannot be graded by 'label_model' alone; put it into a 'multi' grader, or use \
                       'score_model'.";
            return Err(Fault::invalid(format!("{path}.type"), why));
        }
        grader.check(path)?;
        Ok(grader)
    }

    /// A testing criterion of an eval: everything that [`Self::check`] refuses, and what evals do not take.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse_for_eval(value: &Value, path: &str) -> Result<Self, Fault> {
        let grader = Self::parse(value, path)?;
        match grader.kind {
            Kind::Multi(_) => {
                let supported: Vec<&str> = TYPES.into_iter().filter(|t| *t != "multi").collect();
                return Err(Fault::unsupported(format!("{path}.type"), "multi", &supported));
            }
            Kind::TextSimilarity(_) if grader.pass_threshold.is_none() => {
                return Err(Fault::missing(format!("{path}.pass_threshold")));
            }
            _ => {}
        }
        grader.check(path)?;
        Ok(grader)
    }
}

/// Where a grader stands.
#[derive(Clone, Copy)]
enum Place<'a> {
    Top,
    /// In a multi grader, under this key.
    Part(&'a str),
    /// In a multi grader's list, or alone in it.
    Keyless,
}

fn parse(value: &Value, path: &str, place: Place<'_>) -> Result<Grader, Fault> {
    let fields = Fields::of(value, path)?;
    let word = fields.text("type")?;
    let supported: &[&str] = if matches!(place, Place::Top) { &TYPES } else { &TYPES[..5] };
    if !supported.contains(&word) {
        return Err(wrong_type_word(&fields, word, supported));
    }
    let name = name(&fields, place)?;
    let (kind, has_threshold, known): (_, _, &[&str]) = match word {
        "string_check" => (string_check(&fields)?, false, &["input", "reference", "operation"]),
        "text_similarity" => {
            (text_similarity(&fields)?, true, &["input", "reference", "evaluation_metric"])
        }
        "score_model" => {
            (judges::score_model(&fields)?, true, &["model", "input", "range", "sampling_params"])
        }
        "label_model" => (
            judges::label_model(&fields)?,
            false,
            &["model", "input", "labels", "passing_labels", "sampling_params"],
        ),
        "python" => (python(&fields)?, true, &["source", "image_tag"]),
        _ => (multi(&fields)?, false, &["graders", "calculate_output"]),
    };
    let pass_threshold = if has_threshold { fields.number("pass_threshold")? } else { None };
    // Definitions that come back from another server's evals carry an id.
    let common: &[&str] = &["type", "name", "id"];
    let threshold: &[&str] = if has_threshold { &["pass_threshold"] } else { &[] };
    fields.refuse_others(&[common, threshold, known])?;
    Ok(Grader { name, pass_threshold, kind })
}

fn wrong_type_word(fields: &Fields<'_>, word: &str, supported: &[&str]) -> Fault {
    let path = fields.at("type");
    match word {
        "multi" => Fault::invalid(path, "a 'multi' grader cannot stand in another one."),
        "endpoint" => Fault::invalid(
            path,
            "this server has no 'endpoint' graders; use 'python', or 'score_model' with a model of yours.",
        ),
        other => Fault::unsupported(path, other, supported),
    }
}

fn name(fields: &Fields<'_>, place: Place<'_>) -> Result<String, Fault> {
    if let Some(name) = fields.optional_text("name", MAX_NAME_LENGTH)?.filter(|n| !n.is_empty()) {
        return Ok(name.to_owned());
    }
    Ok(match place {
        Place::Part(key) => key.to_owned(),
        Place::Top | Place::Keyless => {
            let random = uuid::Uuid::new_v4().simple().to_string();
            format!("grader-{}", &random[..RANDOM_LENGTH])
        }
    })
}

fn string_check(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let input = fields.bounded_text("input", MAX_TEMPLATE_BYTES)?.to_owned();
    let reference = fields.bounded_text("reference", MAX_TEMPLATE_BYTES)?.to_owned();
    let word = fields.text("operation")?;
    // The guide writes `neq` once.
    let word = if word == "neq" { "ne" } else { word };
    let operation = OPERATIONS.into_iter().find(|o| o.as_str() == word).ok_or_else(|| {
        Fault::unsupported(fields.at("operation"), word, &OPERATIONS.map(Operation::as_str))
    })?;
    Ok(Kind::StringCheck(StringCheck { input, reference, operation }))
}

fn text_similarity(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let input = fields.bounded_text("input", MAX_TEMPLATE_BYTES)?.to_owned();
    let reference = fields.bounded_text("reference", MAX_TEMPLATE_BYTES)?.to_owned();
    let word = fields.text("evaluation_metric")?;
    let path = fields.at("evaluation_metric");
    let metric = Measure::from_word(word)
        .ok_or_else(|| Fault::unsupported(path, word, &Measure::words()))?;
    Ok(Kind::TextSimilarity(TextSimilarity { input, reference, metric }))
}

fn python(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let source = fields.bounded_text("source", MAX_SOURCE_BYTES)?;
    if source.trim().is_empty() {
        return Err(Fault::invalid(fields.at("source"), "the program is empty."));
    }
    let image_tag = fields.optional_text("image_tag", MAX_NAME_LENGTH)?.map(str::to_owned);
    Ok(Kind::Python(Python { source: source.to_owned(), image_tag }))
}

fn multi(fields: &Fields<'_>) -> Result<Kind, Fault> {
    let path = fields.at("graders");
    let value = fields.required("graders")?;
    let mut graders: Vec<(String, Grader)> = Vec::new();
    let is_single = value.get("type").is_some_and(Value::is_string);
    match value {
        Value::Object(_) if is_single => {
            let grader = parse(value, &path, Place::Keyless)?;
            graders.push((grader.name.clone(), grader));
        }
        Value::Object(map) => {
            for (key, part) in map {
                let grader = parse(part, &format!("{path}.{key}"), Place::Part(key))?;
                graders.push((key.clone(), grader));
            }
        }
        Value::Array(list) => {
            for (i, part) in list.iter().enumerate() {
                let path = format!("{path}[{i}]");
                let grader = parse(part, &path, Place::Keyless)?;
                if graders.iter().any(|(key, _)| *key == grader.name) {
                    let why = format!("two graders have the name '{}'.", grader.name);
                    return Err(Fault::invalid(format!("{path}.name"), why));
                }
                graders.push((grader.name.clone(), grader));
            }
        }
        other => return Err(Fault::wrong_type(path, "an object", other)),
    }
    if graders.is_empty() {
        return Err(Fault::invalid(path, "there is no grader in it."));
    }
    if graders.len() > MAX_PARTS {
        return Err(Fault::too_many(path, MAX_PARTS, graders.len()));
    }
    let calculate_output = fields.bounded_text("calculate_output", formula::MAX_BYTES)?.to_owned();
    Ok(Kind::Multi(Multi { graders, is_single, calculate_output }))
}

#[cfg(test)]
mod tests;
