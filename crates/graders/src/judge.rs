//! What to ask a judge, and how to read its answer.
//!
//! The judge is told to answer with one JSON object `{"steps": […], "result": …}` (without steps where it may not
//! write enough for them), in words and by a schema that the engine holds it to. A number alone and words around the
//! object are read too. What holds no result, because it was cut before, sets the flag, and the reward is 0.

use serde_json::{Value, json};

use crate::definition::{LabelModel, SamplingParams, ScoreModel};
use crate::errors::{Errors, Failure};
use crate::parse::texts_of;
use crate::template::{self, Variables};

/// A question for a model: chat messages, the schema of its answer, and how to sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Question<'a> {
    pub model: &'a str,
    /// `{"role", "content"}`, content a string.
    pub messages: Vec<Value>,
    /// A `response_format` of chat completions.
    pub response_format: Value,
    pub sampling: Option<&'a SamplingParams>,
}

/// The question of a score model.
///
/// # Errors
/// A template's failure.
pub fn score_question<'a>(
    judge: &'a ScoreModel,
    variables: Variables<'_>,
) -> Result<Question<'a>, Errors> {
    let (low, high) = judge.bounds();
    let sampling = judge.sampling_params.as_ref();
    let form = Form::of(sampling);
    let request = form.request("N", &format!("a number from {low} to {high}"));
    Ok(Question {
        model: &judge.model,
        messages: messages(&judge.input, &request, variables)?,
        response_format: form.response_format(json!({"type": "number"})),
        sampling,
    })
}

/// The question of a label model.
///
/// # Errors
/// A template's failure.
pub fn label_question<'a>(
    judge: &'a LabelModel,
    variables: Variables<'_>,
) -> Result<Question<'a>, Errors> {
    let labels: Vec<String> = judge.labels.iter().map(|label| json!(label).to_string()).collect();
    let sampling = judge.sampling_params.as_ref();
    let form = Form::of(sampling);
    let request = form.request("L", &format!("one of {}", labels.join(", ")));
    let label = json!({"type": "string", "enum": judge.labels});
    Ok(Question {
        model: &judge.model,
        messages: messages(&judge.input, &request, variables)?,
        response_format: form.response_format(label),
        sampling,
    })
}

fn messages(
    input: &[Value],
    request: &str,
    variables: Variables<'_>,
) -> Result<Vec<Value>, Errors> {
    let mut messages = Vec::with_capacity(input.len() + 1);
    for message in input {
        let mut content = String::new();
        for text in texts_of(&message["content"]) {
            content.push_str(&template::render(text, variables)?);
        }
        messages.push((message["role"].as_str().unwrap_or("user"), content));
    }
    // Into the last message of the user: every chat template has one, and the last words weigh most.
    match messages.last_mut() {
        Some(("user", content)) => *content = format!("{content}\n\n{request}"),
        _ => messages.push(("user", request.to_owned())),
    }
    let message = |(role, content)| json!({"role": role, "content": content});
    Ok(messages.into_iter().map(message).collect())
}

/// What an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    StepsAndResult,
    Result,
}

/// Tokens in which steps and a result can be written, if they are short.
const ROOM_FOR_STEPS: u32 = 128;
/// A small model may find no end of steps.
const MOST_STEPS: u32 = 4;

impl Form {
    /// Steps only where there is room: a definition that admits few tokens wants a word.
    fn of(sampling: Option<&SamplingParams>) -> Self {
        match sampling.and_then(|sampling| sampling.max_completion_tokens) {
            Some(limit) if limit < ROOM_FOR_STEPS => Self::Result,
            _ => Self::StepsAndResult,
        }
    }

    /// The form in words; `letter` stands for the result, which is `what`.
    fn request(self, letter: &str, what: &str) -> String {
        let steps = match self {
            Self::StepsAndResult => r#""steps": [{"description": "…", "conclusion": "…"}], "#,
            Self::Result => "",
        };
        format!(
            "Answer with one JSON object and nothing else: {{{steps}\"result\": {letter}}} \
             where {letter} is {what}."
        )
    }

    fn response_format(self, result: Value) -> Value {
        let step = json!({
            "type": "object",
            "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
            "required": ["description", "conclusion"],
            "additionalProperties": false,
        });
        let steps = json!({"type": "array", "items": step, "maxItems": MOST_STEPS});
        let (properties, required) = match self {
            Self::StepsAndResult => {
                (json!({"steps": steps, "result": result}), json!(["steps", "result"]))
            }
            Self::Result => (json!({"result": result}), json!(["result"])),
        };
        json!({
            "type": "json_schema",
            "json_schema": {"name": "grade", "strict": true, "schema": {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": false,
            }},
        })
    }
}

/// The score in an answer, clamped to the range.
///
/// # Errors
/// The flag, when the answer holds no number.
pub fn read_score(judge: &ScoreModel, answer: &str) -> Result<f64, Errors> {
    let number = match result_of(answer) {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
        None => answer.trim().parse().ok(),
    };
    let (low, high) = judge.bounds();
    match number.filter(|number: &f64| number.is_finite()) {
        Some(number) => Ok(number.clamp(low, high)),
        None => Err(unread(answer, "a number")),
    }
}

/// The label in an answer.
///
/// # Errors
/// The flag, when the answer holds none of the labels.
pub fn read_label<'a>(judge: &'a LabelModel, answer: &str) -> Result<&'a str, Errors> {
    let result = result_of(answer);
    let text = match &result {
        Some(Value::String(text)) => text.trim(),
        Some(_) => return Err(unread(answer, "one of the labels")),
        None => answer.trim().trim_matches(['"', '.']),
    };
    let exact = judge.labels.iter().find(|label| *label == text);
    let alike = || judge.labels.iter().find(|label| label.to_lowercase() == text.to_lowercase());
    exact.or_else(alike).map(String::as_str).ok_or_else(|| unread(answer, "one of the labels"))
}

/// `result` of the object in an answer, which may stand in a code fence or among words.
fn result_of(answer: &str) -> Option<Value> {
    let whole = serde_json::from_str::<Value>(answer.trim()).ok();
    if let Some(Value::Object(mut object)) = whole {
        return object.remove("result");
    }
    // The first place from which an object can be read; each try ends at the first byte that is no JSON.
    answer.match_indices('{').take(MAX_TRIES).find_map(|(start, _)| {
        let mut values = serde_json::Deserializer::from_str(&answer[start..]).into_iter::<Value>();
        values.next()?.ok()?.as_object_mut()?.remove("result")
    })
}

/// Braces of an answer that are tried.
const MAX_TRIES: usize = 64;

fn unread(answer: &str, wanted: &str) -> Errors {
    let answer = crate::fault::shortened(answer);
    Errors::of(Failure::ModelParse, format!("the judge's answer holds not {wanted}: {answer:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::{Grader, Kind};
    use crate::template::sample_of_text;

    fn score_model(range: Value) -> ScoreModel {
        let value = json!({
            "type": "score_model", "name": "s", "model": "m", "range": range,
            "input": [
                {"role": "developer", "content": "Be strict."},
                {"role": "user", "content": [
                    {"type": "input_text", "text": "Answer: {{sample.output_text}} "},
                    {"type": "output_text", "text": "wanted: {{item.label}}"},
                ]},
            ],
        });
        match Grader::parse(&value, "grader").unwrap().kind {
            Kind::ScoreModel(judge) => judge,
            other => panic!("{other:?}"),
        }
    }

    fn label_model() -> LabelModel {
        let value = json!({
            "type": "label_model", "name": "l", "model": "m", "labels": ["good", "Bad"],
            "passing_labels": ["good"], "input": [{"role": "system", "content": {"type": "input_text", "text": "x"}}],
        });
        match Grader::parse(&value, "grader").unwrap().kind {
            Kind::LabelModel(judge) => judge,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_question_has_the_messages_rendered_and_the_form_of_the_answer() {
        let (item, sample) = (json!({"label": "blue"}), sample_of_text("red"));
        let variables = Variables { item: &item, sample: &sample };
        let judge = score_model(json!([1, 5]));
        let question = score_question(&judge, variables).unwrap();
        assert_eq!(question.messages[0], json!({"role": "developer", "content": "Be strict."}));
        let content = question.messages[1]["content"].as_str().unwrap();
        assert!(content.starts_with("Answer: red wanted: blue\n\n"), "{content}");
        assert!(content.contains("from 1 to 5"), "{content}");
        let judge = label_model();
        let question = label_question(&judge, variables).unwrap();
        let content = question.messages[1]["content"].as_str().unwrap();
        assert!(content.contains(r#"one of "good", "Bad""#), "{content}");
    }

    #[test]
    fn steps_are_asked_for_where_there_is_room() {
        let (item, sample) = (json!({"label": "blue"}), sample_of_text("red"));
        let variables = Variables { item: &item, sample: &sample };
        for (limit, has_steps) in [(None, true), (Some(128), true), (Some(127), false)] {
            let mut judge = score_model(json!([1, 5]));
            judge.sampling_params =
                Some(SamplingParams { max_completion_tokens: limit, ..SamplingParams::default() });
            let question = score_question(&judge, variables).unwrap();
            let content = question.messages[1]["content"].as_str().unwrap();
            assert_eq!(content.contains("steps"), has_steps, "{content}");
            let schema = &question.response_format["json_schema"]["schema"];
            assert_eq!(schema["properties"].get("steps").is_some(), has_steps, "{schema}");
        }
    }

    #[test]
    fn scores_are_read_from_what_models_write_and_clamped() {
        let judge = score_model(json!([0, 1]));
        for (answer, score) in [
            (r#"{"steps": [], "result": 0.5}"#, 0.5),
            (r#"{"result": "0.25"}"#, 0.25),
            ("```json\n{\"result\": 1}\n```", 1.0),
            ("I think {that} this is {\"steps\": [{\"a\": 1}], \"result\": 0.75}. Good.", 0.75),
            (" 0.5\n", 0.5),
            (r#"{"result": 7}"#, 1.0),
            (r#"{"result": -7}"#, 0.0),
        ] {
            assert_eq!(read_score(&judge, answer), Ok(score), "{answer}");
        }
        for answer in [
            "",
            "good",
            r#"{"result": "good"}"#,
            r#"{"result": null}"#,
            "{}",
            "NaN",
            "inf",
            "[1]",
            "{",
        ] {
            let errors = read_score(&judge, answer).unwrap_err();
            assert!(errors.has(Failure::ModelParse), "{answer}");
        }
        assert_eq!(read_score(&score_model(json!([1, 5])), "{\"result\": 0}"), Ok(1.0));
    }

    #[test]
    fn labels_are_read_whatever_their_case() {
        let judge = label_model();
        for (answer, label) in
            [(r#"{"result": "good"}"#, "good"), ("bad.", "Bad"), (r#"{"result": "BAD"}"#, "Bad")]
        {
            assert_eq!(read_label(&judge, answer), Ok(label), "{answer}");
        }
        for answer in ["", "better", r#"{"result": 1}"#, r#"{"result": "better"}"#] {
            assert!(read_label(&judge, answer).is_err(), "{answer}");
        }
    }

    #[test]
    fn a_flood_of_braces_is_read_in_bounded_time() {
        assert!(read_score(&score_model(json!([0, 1])), &"{\"a\":".repeat(200_000)).is_err());
    }
}
