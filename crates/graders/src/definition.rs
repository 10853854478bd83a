//! What a grader is, once its definition has been read, and its definition again in one form.

use serde_json::{Map, Value, json};

use crate::similarity::Measure;

/// One grader.
#[derive(Debug, Clone, PartialEq)]
pub struct Grader {
    pub name: String,
    /// From which score on a sample passes. Only `text_similarity`, `score_model` and `python` have one.
    pub pass_threshold: Option<f64>,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    StringCheck(StringCheck),
    TextSimilarity(TextSimilarity),
    ScoreModel(ScoreModel),
    LabelModel(LabelModel),
    Python(Python),
    Multi(Multi),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StringCheck {
    pub input: String,
    pub reference: String,
    pub operation: Operation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Eq,
    Ne,
    /// The input contains the reference.
    Like,
    /// The same, whatever the case.
    Ilike,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Like => "like",
            Self::Ilike => "ilike",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSimilarity {
    pub input: String,
    pub reference: String,
    pub metric: Measure,
}

/// A model that answers with a number.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreModel {
    pub model: String,
    /// Messages as they came, checked.
    pub input: Vec<Value>,
    /// None: 0 to 1.
    pub range: Option<(f64, f64)>,
    pub sampling_params: Option<SamplingParams>,
}

impl ScoreModel {
    pub fn bounds(&self) -> (f64, f64) {
        self.range.unwrap_or((0.0, 1.0))
    }
}

/// A model that answers with one of some labels.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelModel {
    pub model: String,
    /// Messages as they came, checked.
    pub input: Vec<Value>,
    pub labels: Vec<String>,
    pub passing_labels: Vec<String>,
    pub sampling_params: Option<SamplingParams>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingParams {
    pub seed: Option<i64>,
    pub top_p: Option<f64>,
    pub temperature: Option<f64>,
    /// OpenAI spells its key `max_completions_tokens`.
    pub max_completion_tokens: Option<u32>,
    pub reasoning_effort: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    pub source: String,
    pub image_tag: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Multi {
    /// By the names that the formula knows them by, in the definition's order.
    pub graders: Vec<(String, Grader)>,
    /// The definition held one grader in the place of the map, as the SDK's types have it; it goes back so.
    pub is_single: bool,
    pub calculate_output: String,
}

impl Grader {
    /// The word of `type`.
    pub fn type_word(&self) -> &'static str {
        match self.kind {
            Kind::StringCheck(_) => "string_check",
            Kind::TextSimilarity(_) => "text_similarity",
            Kind::ScoreModel(_) => "score_model",
            Kind::LabelModel(_) => "label_model",
            Kind::Python(_) => "python",
            Kind::Multi(_) => "multi",
        }
    }

    /// Whether a reward passes; none when nothing in the definition says so.
    pub fn passes(&self, reward: f64) -> Option<bool> {
        match &self.kind {
            Kind::StringCheck(_) | Kind::LabelModel(_) => Some(reward >= 1.0),
            _ => self.pass_threshold.map(|threshold| reward >= threshold),
        }
    }

    /// The names of all models that it asks.
    pub fn models(&self) -> Vec<&str> {
        match &self.kind {
            Kind::ScoreModel(judge) => vec![&judge.model],
            Kind::LabelModel(judge) => vec![&judge.model],
            Kind::Multi(multi) => multi.graders.iter().flat_map(|(_, g)| g.models()).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it runs Python, itself or in a part.
    pub fn runs_python(&self) -> bool {
        match &self.kind {
            Kind::Python(_) => true,
            Kind::Multi(multi) => multi.graders.iter().any(|(_, grader)| grader.runs_python()),
            _ => false,
        }
    }

    /// The definition in one form: the name filled in, words spelt one way, nothing null.
    pub fn to_value(&self) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| {
            object.insert(key.to_owned(), value);
        };
        put("type", self.type_word().into());
        put("name", self.name.clone().into());
        match &self.kind {
            Kind::StringCheck(check) => {
                put("input", check.input.clone().into());
                put("reference", check.reference.clone().into());
                put("operation", check.operation.as_str().into());
            }
            Kind::TextSimilarity(similarity) => {
                put("input", similarity.input.clone().into());
                put("reference", similarity.reference.clone().into());
                put("evaluation_metric", similarity.metric.as_str().into());
            }
            Kind::ScoreModel(judge) => {
                put("model", judge.model.clone().into());
                put("input", judge.input.clone().into());
                if let Some((low, high)) = judge.range {
                    put("range", json!([low, high]));
                }
                if let Some(sampling) = &judge.sampling_params {
                    put("sampling_params", sampling.to_value());
                }
            }
            Kind::LabelModel(judge) => {
                put("model", judge.model.clone().into());
                put("input", judge.input.clone().into());
                put("labels", judge.labels.clone().into());
                put("passing_labels", judge.passing_labels.clone().into());
                if let Some(sampling) = &judge.sampling_params {
                    put("sampling_params", sampling.to_value());
                }
            }
            Kind::Python(python) => {
                put("source", python.source.clone().into());
                if let Some(tag) = &python.image_tag {
                    put("image_tag", tag.clone().into());
                }
            }
            Kind::Multi(multi) => {
                put("graders", multi.graders_value());
                put("calculate_output", multi.calculate_output.clone().into());
            }
        }
        if let Some(threshold) = self.pass_threshold {
            put("pass_threshold", threshold.into());
        }
        Value::Object(object)
    }
}

impl Multi {
    fn graders_value(&self) -> Value {
        if self.is_single
            && let [(_, grader)] = self.graders.as_slice()
        {
            return grader.to_value();
        }
        let entries = self.graders.iter().map(|(key, grader)| (key.clone(), grader.to_value()));
        Value::Object(entries.collect())
    }
}

impl SamplingParams {
    fn to_value(&self) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), value);
            }
        };
        put("seed", self.seed.map(Value::from));
        put("top_p", self.top_p.map(Value::from));
        put("temperature", self.temperature.map(Value::from));
        put("max_completions_tokens", self.max_completion_tokens.map(Value::from));
        put("reasoning_effort", self.reasoning_effort.clone().map(Value::from));
        Value::Object(object)
    }
}
