//! Rows of the store → evaluations, runs and output items as the API shows them.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};
use serde_json::Value;
use store::evals::EvalRow;
use store::evals::items::ItemRow;
use store::evals::runs::{RunRow, Tallies};
use time::OffsetDateTime;

use crate::state::AppState;
use crate::wire::eval::{
    CriterionResult, Eval, EvalError, OutputItem, PerModelUsage, ResultCounts, Run, RunProgress,
};

pub(crate) fn eval(row: EvalRow) -> Eval {
    Eval {
        id: row.id.to_string(),
        object: "eval",
        name: row.name,
        created_at: row.created_at.unix_timestamp(),
        data_source_config: row.data_source_config,
        testing_criteria: row.testing_criteria,
        metadata: row.metadata.unwrap_or_default(),
    }
}

/// `criteria` are the evaluation's, `root` is where this server is reached.
pub(crate) fn run(row: RunRow, criteria: &Value, root: &str) -> Run {
    let report_url = format!("{root}/v1/evals/{}/runs/{}", row.eval_id, row.id);
    let Tallies { criteria: counted, usage } = row.tallies;
    let ids = criteria.as_array().into_iter().flatten().map(|criterion| {
        let named = criterion.get("id").or_else(|| criterion.get("name"));
        named.and_then(Value::as_str).unwrap_or_default().to_owned()
    });
    let per_testing_criteria_results = ids
        .enumerate()
        .map(|(i, testing_criteria)| {
            let tally = counted.get(i).copied().unwrap_or_default();
            CriterionResult { testing_criteria, passed: tally.passed, failed: tally.failed }
        })
        .collect();
    let per_model_usage = usage
        .into_iter()
        .map(|(model_name, usage)| PerModelUsage {
            model_name,
            invocation_count: usage.invocations,
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
        })
        .collect();
    let error =
        row.error.map_or((String::new(), String::new()), |error| (error.code, error.message));
    Run {
        id: row.id.to_string(),
        object: "eval.run",
        eval_id: row.eval_id.to_string(),
        status: row.status.as_str(),
        model: row.model,
        name: row.name,
        created_at: row.created_at.unix_timestamp(),
        report_url,
        result_counts: ResultCounts {
            total: row.total,
            errored: row.errored,
            failed: row.failed,
            passed: row.passed,
        },
        per_model_usage,
        per_testing_criteria_results,
        data_source: row.data_source,
        metadata: row.metadata.unwrap_or_default(),
        error: EvalError { code: error.0, message: error.1 },
        finetuned: RunProgress {
            items: row.items,
            finished_at: row.finished_at.map(OffsetDateTime::unix_timestamp),
        },
    }
}

pub(crate) fn item(row: ItemRow, eval: &str, run: &str) -> OutputItem {
    OutputItem {
        id: row.id.to_string(),
        object: "eval.run.output_item",
        run_id: run.to_owned(),
        eval_id: eval.to_owned(),
        created_at: row.created_at.unix_timestamp(),
        status: row.status.as_str(),
        datasource_item_id: row.item,
        datasource_item: row.datasource_item,
        results: row.results,
        sample: row.sample,
    }
}

/// Where the caller reaches this server: as the operator says, or as the caller does.
pub(crate) fn root(state: &AppState, headers: &HeaderMap) -> String {
    if let Some(url) = &state.config.public_url {
        return url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.filter(|host| host.parse::<Authority>().is_ok());
    format!("http://{}", host.unwrap_or(&state.config.listen))
}
