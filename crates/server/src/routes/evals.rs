//! Evaluations, their runs and output items. A run is canceled by two paths: OpenAI's description has one, its
//! clients use the other.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde_json::json;
use store::evals::items::{self, Verdict};
use store::evals::runs::{self, NewRun, RunStatus};
use store::evals::{self, OrderBy};
use store::idempotency::{self, Created};
use store::{Order, PageQuery, Project};

use crate::convert::{self, OrNotFound};
use crate::error::{ApiError, ApiResult};
use crate::evals::definition::{self, item_schema};
use crate::evals::plan::{Plan, Source};
use crate::evals::rows;
use crate::evals::schema::Schema;
use crate::evals::show;
use crate::extract::{Caller, Id, Ids, Json as Body, JsonObject, Page, Segments, from_value};
use crate::grading;
use crate::inference::ask;
use crate::repeats;
use crate::request::check_metadata;
use crate::state::AppState;
use crate::wire::eval::{
    CreateEval, CreateRun, DeletedEval, DeletedRun, Eval, OutputItem, Run, UpdateEval,
};
use crate::wire::list::List;
use crate::wire::query::{OrderParam, PageParams};

const SIZES: (u32, u32) = (20, 100);
/// Rows of a request whose faults one refusal names.
const MAX_FAULTY_ROWS: usize = 10;

fn no_eval(id: &str) -> ApiError {
    ApiError::NoSuch { what: "Eval", param: "eval_id", id: id.to_owned() }
}

fn no_run(id: &str) -> ApiError {
    ApiError::NoSuch { what: "Eval run", param: "run_id", id: id.to_owned() }
}

/// A page, the oldest first unless asked otherwise.
fn query(page: &Page) -> PageQuery {
    PageQuery {
        after: page.after.clone(),
        limit: page.limit(SIZES.0, SIZES.1),
        order: page.order_or(Order::Oldest),
    }
}

/// Create an evaluation: graders over a data source.
#[utoipa::path(post, path = "/evals", tag = "Evals", operation_id = "createEval",
    request_body = CreateEval,
    params(("Idempotency-Key" = Option<String>, Header)),
    responses((status = 201, body = Eval)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    headers: HeaderMap,
    JsonObject(body): JsonObject,
) -> ApiResult<(StatusCode, Json<Eval>)> {
    let once = repeats::once(&headers, Created::Eval, &body)?;
    let new = definition::new_eval(from_value(body)?)?;
    let row = evals::create(&state.store.db, &project, new, Some(once)).await?;
    Ok((StatusCode::CREATED, Json(show::eval(row))))
}

/// List evaluations, the oldest first.
#[utoipa::path(get, path = "/evals", tag = "Evals", operation_id = "listEvals",
    params(PageParams, OrderParam, ("order_by" = Option<String>, Query,
        description = "`created_at` or `updated_at`.")),
    responses((status = 200, body = List<Eval>)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(project): Caller,
    page: Page,
) -> ApiResult<Json<List<Eval>>> {
    let by = match page.order_by.as_deref() {
        None | Some("created_at") => OrderBy::Created,
        Some("updated_at") => OrderBy::Updated,
        Some(other) => {
            let supported = ["created_at", "updated_at"];
            return Err(ApiError::unsupported_value("order_by", other, &supported));
        }
    };
    let rows = evals::list(&state.store.db, &project, by, &query(&page)).await?;
    Ok(Json(convert::list(rows, show::eval)))
}

/// One evaluation.
#[utoipa::path(get, path = "/evals/{eval_id}", tag = "Evals", operation_id = "getEval",
    params(("eval_id" = String, Path)),
    responses((status = 200, body = Eval)))]
pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<Eval>> {
    let row = evals::get(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| no_eval(&id))?;
    Ok(Json(show::eval(row)))
}

/// Change an evaluation's name or metadata.
#[utoipa::path(post, path = "/evals/{eval_id}", tag = "Evals", operation_id = "updateEval",
    params(("eval_id" = String, Path)), request_body = UpdateEval,
    responses((status = 200, body = Eval)))]
pub(crate) async fn update(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    Body(body): Body<UpdateEval>,
) -> ApiResult<Json<Eval>> {
    let change = definition::change(body)?;
    let row = evals::update(&state.store.db, &project, &id.as_str().into(), &change)
        .await
        .or_not_found(|| no_eval(&id))?;
    Ok(Json(show::eval(row)))
}

/// Delete an evaluation with all its runs.
#[utoipa::path(delete, path = "/evals/{eval_id}", tag = "Evals", operation_id = "deleteEval",
    params(("eval_id" = String, Path)),
    responses((status = 200, body = DeletedEval)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
) -> ApiResult<Json<DeletedEval>> {
    evals::delete(&state.store.db, &project, &id.as_str().into())
        .await
        .or_not_found(|| no_eval(&id))?;
    Ok(Json(DeletedEval { object: "eval.deleted", deleted: true, eval_id: id }))
}

/// Start a run: rows are read, a model is asked if the data source names one, and the graders judge.
#[utoipa::path(post, path = "/evals/{eval_id}/runs", tag = "Evals",
    operation_id = "createEvalRun",
    params(("eval_id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    request_body = CreateRun,
    responses((status = 201, body = Run)))]
pub(crate) async fn create_run(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    headers: HeaderMap,
    JsonObject(body): JsonObject,
) -> ApiResult<(StatusCode, Json<Run>)> {
    let eval_id = id.as_str().into();
    let db = &state.store.db;
    let eval = evals::get(db, &project, &eval_id).await.or_not_found(|| no_eval(&id))?;
    let show = |row| {
        let run = show::run(row, &eval.testing_criteria, &show::root(&state, &headers));
        (StatusCode::CREATED, Json(run))
    };
    let asked = json!({"eval_id": id, "run": body});
    let once = repeats::once(&headers, Created::EvalRun, &asked)?;
    // The first answer counts, also when a file or a model that it names is gone by now.
    if let Some(first) = idempotency::earlier(db, &project, &once).await? {
        return Ok(show(runs::get(db, &project, &eval_id, &first.into()).await?));
    }
    let body: CreateRun = from_value(body)?;
    check_metadata(body.metadata.as_ref())?;
    let plan = Plan::parse(&body.data_source)?;
    if let Some(name) = &body.name {
        definition::check_name(name)?;
    }
    check_models(&state, &project, &plan, &eval.testing_criteria).await?;
    check_rows(&plan, &eval.data_source_config)?;
    let new = NewRun {
        name: body.name.unwrap_or_else(|| plan.model().to_owned()),
        model: plan.model().to_owned(),
        source_file: plan.file().cloned(),
        data_source: body.data_source,
        metadata: body.metadata,
    };
    let file = new.source_file.clone();
    let row = runs::create(db, &project, &eval_id, new, Some(once)).await;
    let row = row.map_err(|error| match error {
        store::Error::NotFound("file") => ApiError::ReferencedFileNotFound {
            param: "data_source.source.id",
            id: file.map(|file| file.to_string()).unwrap_or_default(),
        },
        store::Error::NotFound(_) => no_eval(&id),
        other => other.into(),
    })?;
    state.wake.evals.notify_one();
    Ok(show(row))
}

/// Whether every model that the run asks is there: better now than once per row.
async fn check_models(
    state: &AppState,
    project: &Project,
    plan: &Plan,
    criteria: &serde_json::Value,
) -> ApiResult<()> {
    if let Some(asking) = &plan.asking {
        ask::model(state, project, &asking.model).await?;
    }
    for (i, criterion) in definition::criteria(criteria)?.iter().enumerate() {
        let path = format!("testing_criteria[{i}]");
        grading::check_models(state, project, &criterion.grader, &path).await?;
    }
    Ok(())
}

/// Rows that came with the request must be rows and fit the schema; those of a file are judged when they are
/// read.
fn check_rows(plan: &Plan, config: &serde_json::Value) -> ApiResult<()> {
    const PATH: &str = "data_source.source.content";
    let Source::Content(rows) = &plan.source else { return Ok(()) };
    let schema =
        item_schema(config).map(|schema| Schema::new(schema, "item_schema")).transpose()?;
    let faults = rows.iter().enumerate().filter_map(|(i, value)| {
        let place = format!("{PATH}[{i}]");
        match rows::row(value.clone(), &place) {
            Err(bad) => Some((place, bad.message)),
            Ok(row) => {
                let misfit = rows::misfit(schema.as_ref()?, &row)?;
                Some((format!("{place}.item"), misfit))
            }
        }
    });
    let faults: Vec<(String, String)> = faults.take(MAX_FAULTY_ROWS).collect();
    let Some((first, _)) = faults.first() else { return Ok(()) };
    let texts: Vec<&str> = faults.iter().map(|(_, text)| text.as_str()).collect();
    let message = format!("Rows do not fit the eval's data source: {}", texts.join("; "));
    Err(ApiError::invalid_value(first.clone(), message))
}

/// List the runs of an evaluation, the oldest first.
#[utoipa::path(get, path = "/evals/{eval_id}/runs", tag = "Evals", operation_id = "getEvalRuns",
    params(("eval_id" = String, Path), PageParams, OrderParam, ("status" = Option<String>, Query,
        description = "`queued`, `in_progress`, `completed`, `canceled` or `failed`.")),
    responses((status = 200, body = List<Run>)))]
pub(crate) async fn list_runs(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    headers: HeaderMap,
    page: Page,
) -> ApiResult<Json<List<Run>>> {
    let status = match page.status.as_deref() {
        None => None,
        Some(word) => {
            let found = RunStatus::ALL.into_iter().find(|status| status.as_str() == word);
            let words = RunStatus::ALL.map(RunStatus::as_str);
            Some(found.ok_or_else(|| ApiError::unsupported_value("status", word, &words))?)
        }
    };
    let (db, eval_id) = (&state.store.db, id.as_str().into());
    let eval = evals::get(db, &project, &eval_id).await.or_not_found(|| no_eval(&id))?;
    let rows = runs::list(db, &project, &eval_id, status, &query(&page))
        .await
        .or_not_found(|| no_eval(&id))?;
    let root = show::root(&state, &headers);
    Ok(Json(convert::list(rows, |row| show::run(row, &eval.testing_criteria, &root))))
}

/// One run.
#[utoipa::path(get, path = "/evals/{eval_id}/runs/{run_id}", tag = "Evals",
    operation_id = "getEvalRun",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = Run)))]
pub(crate) async fn retrieve_run(
    State(state): State<AppState>,
    Caller(project): Caller,
    Ids(eval_id, run_id): Ids,
    headers: HeaderMap,
) -> ApiResult<Json<Run>> {
    let (db, id) = (&state.store.db, eval_id.as_str().into());
    let eval = evals::get(db, &project, &id).await.or_not_found(|| no_eval(&eval_id))?;
    let row = runs::get(db, &project, &id, &run_id.as_str().into())
        .await
        .or_not_found(|| no_run(&run_id))?;
    Ok(Json(show::run(row, &eval.testing_criteria, &show::root(&state, &headers))))
}

/// Cancel a run, at once.
#[utoipa::path(post, path = "/evals/{eval_id}/runs/{run_id}", tag = "Evals",
    operation_id = "cancelEvalRun",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = Run)))]
pub(crate) async fn cancel_run(
    state: State<AppState>,
    caller: Caller,
    ids: Ids,
    headers: HeaderMap,
) -> ApiResult<Json<Run>> {
    cancel(state, caller, ids, headers).await
}

/// Cancel a run, at once; the path that OpenAI's clients use.
#[utoipa::path(post, path = "/evals/{eval_id}/runs/{run_id}/cancel", tag = "Evals",
    operation_id = "cancelEvalRunByPath",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = Run)))]
pub(crate) async fn cancel(
    State(state): State<AppState>,
    Caller(project): Caller,
    Ids(eval_id, run_id): Ids,
    headers: HeaderMap,
) -> ApiResult<Json<Run>> {
    let (db, id) = (&state.store.db, eval_id.as_str().into());
    let eval = evals::get(db, &project, &id).await.or_not_found(|| no_eval(&eval_id))?;
    let row = runs::cancel(db, &project, &id, &run_id.as_str().into())
        .await
        .or_not_found(|| no_run(&run_id))?;
    Ok(Json(show::run(row, &eval.testing_criteria, &show::root(&state, &headers))))
}

/// Delete a run with its output items. One that goes on is ended.
#[utoipa::path(delete, path = "/evals/{eval_id}/runs/{run_id}", tag = "Evals",
    operation_id = "deleteEvalRun",
    params(("eval_id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = DeletedRun)))]
pub(crate) async fn delete_run(
    State(state): State<AppState>,
    Caller(project): Caller,
    Ids(eval_id, run_id): Ids,
) -> ApiResult<Json<DeletedRun>> {
    let (eval, run) = (eval_id.as_str().into(), run_id.as_str().into());
    runs::delete(&state.store.db, &project, &eval, &run).await.or_not_found(|| no_run(&run_id))?;
    Ok(Json(DeletedRun { object: "eval.run.deleted", deleted: true, run_id }))
}

/// List a run's output items, in the order of the rows. `status` is `pass`, `fail` or, beyond OpenAI's, `error`.
#[utoipa::path(get, path = "/evals/{eval_id}/runs/{run_id}/output_items", tag = "Evals",
    operation_id = "getEvalRunOutputItems",
    params(("eval_id" = String, Path), ("run_id" = String, Path),
        PageParams, OrderParam, ("status" = Option<String>, Query,
        description = "`pass`, `fail`, `failed` or `error`.")),
    responses((status = 200, body = List<OutputItem>)))]
pub(crate) async fn list_items(
    State(state): State<AppState>,
    Caller(project): Caller,
    Ids(eval_id, run_id): Ids,
    page: Page,
) -> ApiResult<Json<List<OutputItem>>> {
    let status = match page.status.as_deref() {
        None => None,
        Some("pass") => Some(Verdict::Pass),
        // OpenAI's description has both words.
        Some("fail" | "failed") => Some(Verdict::Fail),
        Some("error") => Some(Verdict::Error),
        Some(other) => {
            return Err(ApiError::unsupported_value("status", other, &["fail", "pass", "error"]));
        }
    };
    let (eval, run) = (eval_id.as_str().into(), run_id.as_str().into());
    let rows = items::list(&state.store.db, &project, (&eval, &run), status, &query(&page))
        .await
        .or_not_found(|| no_run(&run_id))?;
    Ok(Json(convert::list(rows, |row| show::item(row, &eval_id, &run_id))))
}

/// One output item.
#[utoipa::path(get, path = "/evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}",
    tag = "Evals", operation_id = "getEvalRunOutputItem",
    params(("eval_id" = String, Path), ("run_id" = String, Path),
        ("output_item_id" = String, Path)),
    responses((status = 200, body = OutputItem)))]
pub(crate) async fn retrieve_item(
    State(state): State<AppState>,
    Caller(project): Caller,
    Segments(ids): Segments<3>,
) -> ApiResult<Json<OutputItem>> {
    let [eval_id, run_id, item_id] = ids;
    let (eval, run) = (eval_id.as_str().into(), run_id.as_str().into());
    let row = items::get(&state.store.db, &project, (&eval, &run), &item_id.as_str().into())
        .await
        .map_err(|error| match error {
            store::Error::NotFound("output item") => ApiError::NoSuch {
                what: "Output item",
                param: "output_item_id",
                id: item_id.clone(),
            },
            store::Error::NotFound(_) => no_run(&run_id),
            other => other.into(),
        })?;
    Ok(Json(show::item(row, &eval_id, &run_id)))
}
