//! What can go wrong while grading. A failure is data: it sets a flag and a sentence, and the reward is 0.

use serde_json::{Map, Value};

/// The flags of one graded sample, and the words to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Errors {
    failures: Vec<(Failure, String)>,
    /// The class of a fault of the sandbox itself.
    python_server_error_type: Option<String>,
}

/// One kind of failure; OpenAI's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The formula cannot be read, or names what does not exist.
    FormulaParse,
    /// A variable wants the sample as JSON, and it is none.
    SampleParse,
    /// A text is longer than a grader reads.
    TruncatedObservation,
    /// The reward did not come in time.
    UnresponsiveReward,
    /// A template names what the item or the sample does not have.
    InvalidVariable,
    Other,
    /// The sandbox could not be used.
    PythonServer,
    /// The program failed, was stopped, or gave no number.
    PythonRuntime,
    /// The judge could not be asked.
    ModelServer,
    ModelRefusal,
    /// The judge's answer holds no result.
    ModelParse,
    /// The judge's answer was cut.
    ModelExceededMaxTokens,
}

/// Each failure with the name of its flag, and of its details where the API has some.
const NAMES: [(Failure, &str, Option<&str>); 12] = {
    use Failure as F;
    [
        (F::FormulaParse, "formula_parse_error", Some("formula_parse_error_details")),
        (F::SampleParse, "sample_parse_error", Some("sample_parse_error_details")),
        (F::TruncatedObservation, "truncated_observation_error", None),
        (F::UnresponsiveReward, "unresponsive_reward_error", None),
        (F::InvalidVariable, "invalid_variable_error", Some("invalid_variable_error_details")),
        (F::Other, "other_error", Some("other_error_details")),
        (F::PythonServer, "python_grader_server_error", None),
        (
            F::PythonRuntime,
            "python_grader_runtime_error",
            Some("python_grader_runtime_error_details"),
        ),
        (F::ModelServer, "model_grader_server_error", Some("model_grader_server_error_details")),
        (F::ModelRefusal, "model_grader_refusal_error", Some("model_grader_refusal_error_details")),
        (F::ModelParse, "model_grader_parse_error", Some("model_grader_parse_error_details")),
        (F::ModelExceededMaxTokens, "model_grader_exceeded_max_tokens_error", None),
    ]
};

impl Errors {
    pub fn of(failure: Failure, details: impl Into<String>) -> Self {
        Self { failures: vec![(failure, details.into())], python_server_error_type: None }
    }

    /// A fault of the sandbox itself, by its class.
    pub fn of_python_server(class: &str, details: impl Into<String>) -> Self {
        Self {
            python_server_error_type: Some(class.to_owned()),
            ..Self::of(Failure::PythonServer, details)
        }
    }

    #[must_use]
    pub fn and(mut self, failure: Failure, details: impl Into<String>) -> Self {
        self.failures.push((failure, details.into()));
        self
    }

    /// Takes over the flags of a part, whose key is put before its words.
    pub fn include(&mut self, key: &str, part: &Self) {
        let words = |(failure, text): &(Failure, String)| (*failure, format!("{key}: {text}"));
        self.failures.extend(part.failures.iter().map(words));
        if self.python_server_error_type.is_none() {
            self.python_server_error_type.clone_from(&part.python_server_error_type);
        }
    }

    pub fn any(&self) -> bool {
        !self.failures.is_empty()
    }

    pub fn has(&self, failure: Failure) -> bool {
        self.failures.iter().any(|(found, _)| *found == failure)
    }

    /// All words, for logs and for errors of one row.
    pub fn summary(&self) -> String {
        let texts: Vec<&str> = self.failures.iter().map(|(_, text)| text.as_str()).collect();
        texts.join("; ")
    }

    /// The object `metadata.errors` of a graded sample: every flag, and the details, null where there are none.
    pub fn to_value(&self) -> Map<String, Value> {
        let mut object = Map::new();
        for (failure, flag, details) in NAMES {
            object.insert(flag.to_owned(), self.has(failure).into());
            if let Some(details) = details {
                object.insert(details.to_owned(), self.details(failure).into());
            }
        }
        let class = self.python_server_error_type.clone();
        object.insert("python_grader_server_error_type".to_owned(), class.into());
        object.insert(
            "python_grader_server_error_details".to_owned(),
            self.details(Failure::PythonServer).into(),
        );
        object
    }

    fn details(&self, failure: Failure) -> Option<String> {
        let texts: Vec<&str> = self
            .failures
            .iter()
            .filter(|(found, _)| *found == failure)
            .map(|(_, text)| text.as_str())
            .collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}
