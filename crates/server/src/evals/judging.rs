//! One row from its reading to its verdict: does it fit the schema, what does the model answer, what do the
//! graders say. Nothing here fails as a call: whatever goes wrong is the verdict "error" of this row alone.

use std::time::Duration;

use graders::Failure;
use serde_json::{Value, json};
use store::Project;
use store::evals::claims::Outcome;
use store::evals::items::Verdict;
use store::evals::runs::ModelUsage;

use super::definition::Criterion;
use super::plan::Asking;
use super::rows::{self, BadRow, Read, Row};
use super::sampling::{self, ItemError};
use super::schema::Schema;
use crate::grading::{self, Graded};
use crate::state::AppState;
use crate::wire::grader::TokenUsage;

/// Tries of a judge that could not be asked.
const JUDGE_ATTEMPTS: u32 = 3;
const JUDGE_PAUSE: Duration = Duration::from_secs(2);

/// What all rows of a run are judged by.
pub(crate) struct Judging<'a> {
    pub state: &'a AppState,
    pub project: &'a Project,
    pub schema: Option<Schema<'a>>,
    pub asking: Option<Asking>,
    pub criteria: Vec<Criterion>,
}

impl Judging<'_> {
    /// The verdict on one row.
    pub(crate) async fn judge(&self, read: Read) -> Outcome {
        let row = match read {
            Ok(row) => row,
            Err(BadRow { item, message }) => {
                return self.error(item, &ItemError::new("invalid_item", message));
            }
        };
        let misfit = self.schema.as_ref().and_then(|schema| rows::misfit(schema, &row));
        let Row { item, sample, .. } = row;
        if let Some(message) = misfit {
            return self.error(item, &ItemError::new("invalid_item", message));
        }
        let sampled = match &self.asking {
            None => Ok(sampling::brought(sample)),
            Some(asking) => match sampling::messages(asking, &item) {
                Ok(messages) => sampling::ask(self.state, self.project, asking, messages).await,
                Err(error) => Err(error),
            },
        };
        let sampled = match sampled {
            Ok(sampled) => sampled,
            Err(error) => return self.error(item, &error),
        };
        let mut usage = sampled.usage;
        let mut shown = sampled.shown;
        let (mut results, mut passed) = (Vec::new(), Vec::new());
        let mut trouble = Vec::new();
        for criterion in &self.criteria {
            let graded = self.grade(criterion, &item, &sampled.sample).await;
            let (result, verdict) = result(criterion, &graded);
            for (model, tokens) in graded.usage {
                usage.push((model, judged(tokens)));
            }
            if verdict.is_none() {
                trouble.push(format!("{}: {}", criterion.grader.name, graded.errors.summary()));
            }
            results.push(result);
            passed.push(verdict);
        }
        let status = match () {
            () if !trouble.is_empty() => Verdict::Error,
            () if passed.iter().all(|passed| *passed == Some(true)) => Verdict::Pass,
            () => Verdict::Fail,
        };
        if !trouble.is_empty() {
            shown["error"] = json!({"code": "grader_error", "message": trouble.join("; ")});
        }
        let results = Value::Array(results);
        Outcome { status, datasource_item: item, results, sample: shown, passed, usage }
    }

    async fn grade(&self, criterion: &Criterion, item: &Value, sample: &Value) -> Graded {
        for attempt in 1.. {
            let graded =
                grading::grade(self.state, self.project, &criterion.grader, item, sample).await;
            // One that was too slow once would be so again.
            let is_passing = graded.errors.has(Failure::ModelServer)
                && !graded.errors.has(Failure::UnresponsiveReward);
            if attempt == JUDGE_ATTEMPTS || !is_passing {
                return graded;
            }
            tokio::time::sleep(JUDGE_PAUSE).await;
        }
        unreachable!("the loop above has no end")
    }

    /// The verdict on a row that was never graded.
    fn error(&self, item: Value, error: &ItemError) -> Outcome {
        Outcome {
            status: Verdict::Error,
            datasource_item: item,
            results: json!([]),
            sample: sampling::shown_sample(self.asking.as_ref(), Some(error)),
            passed: vec![None; self.criteria.len()],
            usage: Vec::new(),
        }
    }
}

/// What one grader said, as it is shown; and whether the row passed it, if it could say.
fn result(criterion: &Criterion, graded: &Graded) -> (Value, Option<bool>) {
    let failed = graded.errors.any();
    let passed = !failed && graded.passed.unwrap_or(graded.reward >= threshold(criterion));
    let mut result = json!({
        "name": criterion.id,
        "type": format!("{}-grader", graded.kind.replace('_', "-")),
        "score": graded.reward,
        "passed": passed,
        "sample": graded.sample,
    });
    if failed {
        result["error"] = json!({"code": "grader_error", "message": graded.errors.summary()});
    }
    (result, (!failed).then_some(passed))
}

/// What a judge has used for one answer.
fn judged(tokens: TokenUsage) -> ModelUsage {
    ModelUsage {
        invocations: 1,
        prompt_tokens: tokens.prompt_tokens,
        completion_tokens: tokens.completion_tokens,
        cached_tokens: tokens.cached_tokens,
    }
}

/// From where on a score passes when the definition does not say: the middle of its range.
fn threshold(criterion: &Criterion) -> f64 {
    match &criterion.grader.kind {
        graders::Kind::ScoreModel(judge) => {
            let (least, most) = judge.bounds();
            f64::midpoint(least, most)
        }
        _ => 0.5,
    }
}
