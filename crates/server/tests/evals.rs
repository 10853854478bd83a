//! Evaluations over the API: definitions, runs with rows of both kinds, sampling by a scripted worker, canceling,
//! and a run that outlives its server.

mod common;

use std::sync::Mutex;

use common::worker::Worker;
use common::{MODEL, Part, TestServer, error_of, text, until};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use reqwest::Method;
use serde_json::{Value, json};
use store::completions::{self, NewCompletion};

fn check(name: &str) -> Value {
    json!({"type": "string_check", "name": name, "input": "{{ sample.output_text }}",
           "reference": "{{ item.label }}", "operation": "eq"})
}

fn definition(criteria: Value) -> Value {
    json!({
        "name": "colours",
        "data_source_config": {"type": "custom", "include_sample_schema": true, "item_schema": {
            "type": "object", "properties": {"q": {"type": "string"}, "label": {"type": "string"}},
            "required": ["label"],
        }},
        "testing_criteria": criteria,
    })
}

async fn create_eval(server: &TestServer, criteria: Value) -> String {
    let (status, eval) = server.post("/v1/evals", &definition(criteria)).await;
    assert_eq!(status, 201, "{eval}");
    eval["id"].as_str().unwrap().to_owned()
}

fn content(rows: Value) -> Value {
    json!({"type": "file_content", "content": rows})
}

/// Rows whose question is `text` and whose label is `label`.
fn asked(rows: usize) -> Value {
    (0..rows).map(|i| json!({"item": {"q": format!("say {i}"), "label": format!("{i}")}})).collect()
}

/// A run that asks the model each row's question.
fn asking(source: Value) -> Value {
    json!({"data_source": {"type": "completions", "model": MODEL, "source": source,
        "input_messages": {"type": "template", "template": [
            {"type": "message", "role": "developer", "content": {"type": "input_text", "text": "Obey."}},
            {"role": "user", "content": "{{ item.q }}"},
        ]},
        "sampling_params": {"temperature": 0, "max_completions_tokens": 9},
    }})
}

async fn start_run(server: &TestServer, eval: &str, body: &Value) -> String {
    let (status, run) = server.post(&format!("/v1/evals/{eval}/runs"), body).await;
    assert_eq!(status, 201, "{run}");
    assert_eq!(run["error"], json!({"code": "", "message": ""}));
    run["id"].as_str().unwrap().to_owned()
}

async fn run_when(server: &TestServer, eval: &str, run: &str, status: &str) -> Value {
    let path = format!("/v1/evals/{eval}/runs/{run}");
    until(&format!("{run} is {status}"), async || {
        let (_, body) = server.get(&path).await;
        (body["status"] == status).then_some(body)
    })
    .await
}

async fn items(server: &TestServer, eval: &str, run: &str, query: &str) -> Vec<Value> {
    let path = format!("/v1/evals/{eval}/runs/{run}/output_items?{query}");
    let (status, list) = server.get(&path).await;
    assert_eq!(status, 200, "{list}");
    list["data"].as_array().unwrap().clone()
}

/// The next chat request of the server.
async fn take(server: &TestServer) -> Value {
    let models = [MODEL.to_owned(), format!("{MODEL}@auto")];
    let next = json!({"worker_id": "w", "base_models": models, "wait_seconds": 20});
    let request = Worker::of(server).request(Method::POST, "/inference/next").json(&next);
    request.send().await.unwrap().json().await.unwrap()
}

/// Answers one chat request with a text, or with a failure where the text begins with `!`.
async fn reply(server: &TestServer, task: &Value, text: &str) {
    let events = match text.strip_prefix('!') {
        Some(code) => {
            vec![json!({"event": "failed", "failure": {"code": code, "message": "It cannot be."}})]
        }
        None => vec![
            json!({"event": "started", "prompt_tokens": 7}),
            json!({"event": "delta", "index": 0, "text": text}),
            json!({"event": "finished", "index": 0, "reason": "stop"}),
            json!({"event": "done", "prompt_tokens": 7, "completion_tokens": 2}),
        ],
    };
    let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
    let id = task["id"].as_str().unwrap();
    let path = format!("/inference/{id}/events");
    Worker::of(server).request(Method::POST, &path).body(lines).send().await.unwrap();
}

/// What the last message says.
fn question(task: &Value) -> &str {
    let last =
        task["question"]["prompt"]["messages"].as_array().and_then(|messages| messages.last());
    last.and_then(|message| message["content"].as_str()).unwrap_or_default()
}

/// Runs `test` beside a worker that answers everything.
async fn answered<T>(
    server: &TestServer,
    answer: impl Fn(&Value) -> String,
    test: impl Future<Output = T>,
) -> T {
    let serving = async {
        loop {
            let task = take(server).await;
            reply(server, &task, &answer(&task)).await;
        }
    };
    tokio::select! {
        outcome = test => outcome,
        () = serving => unreachable!("the worker serves for ever"),
    }
}

/// "say 5" → "5".
fn obey(task: &Value) -> String {
    question(task).trim_start_matches("say ").to_owned()
}

#[tokio::test]
async fn an_evaluation_is_created_listed_changed_and_deleted() {
    let server = TestServer::start().await;
    let (status, eval) = server.post("/v1/evals", &definition(json!([check("same")]))).await;
    assert_eq!(status, 201, "{eval}");
    let id = eval["id"].as_str().unwrap();
    assert!(id.starts_with("eval_"));
    assert_eq!(
        (&eval["object"], &eval["name"], &eval["metadata"]),
        (&json!("eval"), &json!("colours"), &json!({}))
    );
    assert_eq!(eval["data_source_config"]["schema"]["required"], json!(["item", "sample"]));
    assert_eq!(eval["testing_criteria"][0]["reference"], "{{ item.label }}");
    assert_eq!(server.get(&format!("/v1/evals/{id}")).await, (status_of(200), eval.clone()));

    // An evaluation that was retrieved elsewhere is taken as it is.
    let (status, again) = server.post("/v1/evals", &eval).await;
    assert_eq!(status, 201, "{again}");
    assert_eq!(again["data_source_config"], eval["data_source_config"]);
    assert_eq!(again["testing_criteria"], eval["testing_criteria"]);

    let change = json!({"name": "other", "metadata": {"k": "v"}});
    let (status, changed) = server.post(&format!("/v1/evals/{id}"), &change).await;
    assert_eq!(
        (status.as_u16(), &changed["name"], &changed["metadata"]["k"]),
        (200, &json!("other"), &json!("v"))
    );
    let ids = async |query: &str| {
        let (_, list) = server.get(&format!("/v1/evals?{query}")).await;
        let data = list["data"].as_array().unwrap().iter();
        (data.map(|eval| eval["id"].clone()).collect::<Vec<_>>(), list["has_more"].clone())
    };
    let (first, second) = (eval["id"].clone(), again["id"].clone());
    assert_eq!(ids("limit=1").await, (vec![first.clone()], json!(true)));
    assert_eq!(ids(&format!("after={id}")).await, (vec![second.clone()], json!(false)));
    assert_eq!(ids("order=desc").await.0, [second.clone(), first.clone()]);
    assert_eq!(ids("order=desc&order_by=updated_at").await.0, [first, second]);

    let (status, deleted) = server.delete(&format!("/v1/evals/{id}")).await;
    assert_eq!(status, 200);
    assert_eq!(deleted, json!({"object": "eval.deleted", "deleted": true, "eval_id": id}));
    for (method, path) in [
        (Method::GET, format!("/v1/evals/{id}")),
        (Method::DELETE, format!("/v1/evals/{id}")),
        (Method::GET, format!("/v1/evals/{id}/runs")),
        (Method::GET, format!("/v1/evals/{id}/runs/evalrun_x")),
        (Method::POST, format!("/v1/evals/{id}/runs/evalrun_x/cancel")),
        (Method::GET, format!("/v1/evals/{id}/runs/evalrun_x/output_items")),
        (Method::GET, format!("/v1/evals/{id}/runs/evalrun_x/output_items/outputitem_x")),
    ] {
        let (status, body) =
            common::body(server.request(method, &path).send().await.unwrap()).await;
        assert_eq!(status, 404, "{path}");
        assert!(error_of(&body).2.contains("not found"), "{body}");
    }
}

fn status_of(code: u16) -> reqwest::StatusCode {
    reqwest::StatusCode::from_u16(code).unwrap()
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_named_by_path() {
    let server = TestServer::start().await.with_model().await;
    let eval = create_eval(&server, json!([check("same")])).await;
    let runs = format!("/v1/evals/{eval}/runs");
    let judge = json!([{"type": "label_model", "name": "j", "model": "gpt-4o", "labels": ["a"], "passing_labels": ["a"],
                        "input": [{"role": "user", "content": "{{ item.q }}"}]}]);
    // A definition is taken with a judge that is not here; a run is not.
    let judged = create_eval(&server, judge).await;
    let with = |source: Value| json!({"data_source": {"type": "jsonl", "source": source}});
    let good = content(asked(1));
    let unknown_model = |mut body: Value| {
        body["data_source"]["model"] = json!("gpt-4o");
        body
    };
    for (path, body, status, param) in [
        ("/v1/evals", json!({"testing_criteria": []}), 400, json!("data_source_config")),
        (
            "/v1/evals",
            definition(json!([{"type": "vibes"}])),
            400,
            json!("testing_criteria[0].type"),
        ),
        (
            "/v1/evals",
            json!({"data_source_config": {}, "testing_criteria": [], "x": 1}),
            400,
            json!("x"),
        ),
        (runs.as_str(), json!({}), 400, json!("data_source")),
        (
            &runs,
            with(json!({"type": "file_id", "id": "file-x"})),
            404,
            json!("data_source.source.id"),
        ),
        (
            &runs,
            with(content(json!([{"item": {"label": 5}}]))),
            400,
            json!("data_source.source.content[0].item"),
        ),
        (
            &runs,
            with(content(json!([{"item": {"label": "a"}}, 7]))),
            400,
            json!("data_source.source.content[1]"),
        ),
        (&runs, unknown_model(asking(good.clone())), 404, Value::Null),
        (
            &format!("/v1/evals/{judged}/runs"),
            with(good.clone()),
            400,
            json!("testing_criteria[0].model"),
        ),
        (
            &runs,
            json!({"data_source": {"type": "jsonl", "source": good}, "metadata": {"k": 1}}),
            400,
            json!("metadata.k"),
        ),
    ] {
        let (found, answer) = server.post(path, &body).await;
        assert_eq!((found.as_u16(), error_of(&answer).1), (status, param), "{body}: {answer}");
    }
    for query in ["status=cancelled", "order=up", "limit=-1"] {
        let (status, _) = server.get(&format!("{runs}?{query}")).await;
        assert_eq!(status, 400, "{query}");
    }
    let (status, _) = server.get("/v1/evals?order_by=name").await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn rows_with_their_samples_are_graded() {
    let server = TestServer::start().await;
    let similar = json!({"type": "text_similarity", "name": "close", "input": "{{sample.output_text}}",
        "reference": "{{item.label}}", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.5});
    let eval = create_eval(&server, json!([check("same"), similar])).await;
    let rows = json!([
        {"item": {"label": "blue"}, "sample": {"output_text": "blue"}},
        {"item": {"label": "blue"}, "sample": {"output_text": "blues"}},
        {"item": {"label": "blue"}, "sample": {"output_text": "zzz"}},
        {"item": {"label": "blue"}},
    ]);
    let body = json!({"name": "mine", "metadata": {"k": "v"},
                      "data_source": {"type": "jsonl", "source": content(rows)}});
    let run = start_run(&server, &eval, &body).await;
    let done = run_when(&server, &eval, &run, "completed").await;
    assert_eq!(done["result_counts"], json!({"total": 4, "errored": 1, "failed": 2, "passed": 1}));
    let criteria = done["per_testing_criteria_results"].as_array().unwrap();
    assert!(criteria[0]["testing_criteria"].as_str().unwrap().starts_with("same-"));
    let counts: Vec<_> = criteria.iter().map(|c| (&c["passed"], &c["failed"])).collect();
    assert_eq!(counts, [(&json!(1), &json!(2)), (&json!(2), &json!(1))]);
    assert_eq!(
        (&done["name"], &done["model"], &done["metadata"]["k"]),
        (&json!("mine"), &json!(""), &json!("v"))
    );
    assert_eq!(done["data_source"], body["data_source"]);
    assert_eq!(done["per_model_usage"], json!([]));
    assert_eq!(done["report_url"], format!("{}/v1/evals/{eval}/runs/{run}", server.base));
    assert_eq!(done["finetuned"]["items"], 4);

    let all = items(&server, &eval, &run, "").await;
    let verdicts: Vec<&str> = all.iter().map(|item| item["status"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["pass", "fail", "fail", "error"]);
    assert_eq!(all[1]["results"][0]["type"], "string-check-grader");
    assert_eq!(
        (&all[1]["results"][0]["passed"], &all[1]["results"][1]["passed"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(all[1]["sample"]["output"], json!([{"role": "assistant", "content": "blues"}]));
    assert_eq!(all[3]["sample"]["error"]["code"], "grader_error");
    assert_eq!(
        (&all[2]["datasource_item_id"], &all[2]["datasource_item"]),
        (&json!(2), &json!({"label": "blue"}))
    );
    let failed = items(&server, &eval, &run, "status=fail&order=desc&limit=1").await;
    assert_eq!(failed, [all[2].clone()]);
    let path =
        format!("/v1/evals/{eval}/runs/{run}/output_items/{}", all[0]["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.1, all[0]);

    let path = format!("/v1/evals/{eval}/runs/{run}");
    let (status, refused) = server.post_empty(&format!("{path}/cancel")).await;
    assert_eq!(status, 400, "{refused}");
    let (_, deleted) = server.delete(&path).await;
    assert_eq!(deleted, json!({"object": "eval.run.deleted", "deleted": true, "run_id": run}));
    assert_eq!(server.get(&path).await.0, 404);
}

#[tokio::test]
async fn bad_rows_of_a_file_are_reported_and_end_no_run() {
    let server = TestServer::start().await;
    let eval = create_eval(&server, json!([check("same")])).await;
    let upload = async |content: &[u8]| {
        let parts = [
            text("purpose", "evals"),
            Part { name: "file", filename: Some("rows.jsonl"), content },
        ];
        let (status, file) = server.post_form(&parts).await;
        assert_eq!((status.as_u16(), &file["purpose"]), (200, &json!("user_data")), "{file}");
        file["id"].as_str().unwrap().to_owned()
    };
    let of_file = |id: &str| json!({"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": id}}});
    let file = upload(
        b"{\"item\":{\"label\":\"a\"},\"sample\":{\"output_text\":\"a\"}}\n{oops\n{\"item\":{\"label\":5}}\n\n{\"label\":1}",
    )
    .await;
    let run = start_run(&server, &eval, &of_file(&file)).await;
    let done = run_when(&server, &eval, &run, "completed").await;
    assert_eq!(done["result_counts"], json!({"total": 4, "errored": 3, "failed": 0, "passed": 1}));
    let errors = items(&server, &eval, &run, "status=error").await;
    let message = |i: usize| errors[i]["sample"]["error"]["message"].as_str().unwrap();
    assert!(message(0).starts_with("line 2: not JSON"), "{}", message(0));
    assert!(message(1).contains("label: expected string, got an integer"), "{}", message(1));
    assert!(message(2).starts_with("line 5: lacks 'item'"), "{}", message(2));
    assert_eq!(errors[1]["datasource_item"], json!({"label": 5}));

    let useless = upload(b"label,text\nblue,x\n").await;
    let run = start_run(&server, &eval, &of_file(&useless)).await;
    let failed = run_when(&server, &eval, &run, "failed").await;
    assert_eq!(failed["error"]["code"], "invalid_data_source");
    assert!(failed["error"]["message"].as_str().unwrap().contains("line 1: not JSON"));
}

#[tokio::test]
async fn a_model_is_asked_for_every_row() {
    let server = TestServer::with(|config| config.eval_items_at_once = 3).await.with_model().await;
    let judge = json!({"type": "label_model", "name": "judge", "model": MODEL, "labels": ["good", "bad"],
        "passing_labels": ["good"], "input": [{"role": "user", "content": "judge {{ sample.output_text }}"}]});
    let eval = create_eval(&server, json!([check("same"), judge])).await;
    let seen = Mutex::new(Vec::new());
    let answer = |task: &Value| {
        let question = question(task);
        if question.contains("judge") {
            return json!({"steps": [], "result": "good"}).to_string();
        }
        seen.lock().unwrap().push(task.clone());
        if question == "say 2" { "!invalid_messages".to_owned() } else { obey(task) }
    };
    let body = asking(content(asked(5)));
    let (run, done) = answered(&server, answer, async {
        let run = start_run(&server, &eval, &body).await;
        let done = run_when(&server, &eval, &run, "completed").await;
        (run, done)
    })
    .await;
    assert_eq!(done["result_counts"], json!({"total": 5, "errored": 1, "failed": 0, "passed": 4}));
    assert_eq!((&done["model"], &done["name"]), (&json!(MODEL), &json!(MODEL)));
    let usage = &done["per_model_usage"][0];
    assert_eq!((&usage["model_name"], &usage["invocation_count"]), (&json!(MODEL), &json!(8)));
    assert_eq!((&usage["prompt_tokens"], &usage["total_tokens"]), (&json!(56), &json!(72)));
    let first = seen.lock().unwrap()[0].clone();
    assert_eq!(
        first["question"]["prompt"]["messages"][0],
        json!({"role": "system", "content": "Obey."})
    );
    assert_eq!(
        (&first["question"]["sampling"]["max_tokens"], &first["question"]["sampling"]["seed"]),
        (&json!(9), &json!(42))
    );

    let all = items(&server, &eval, &run, "").await;
    let order: Vec<u64> =
        all.iter().map(|item| item["datasource_item_id"].as_u64().unwrap()).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    let sample = &all[1]["sample"];
    assert_eq!(sample["input"][1], json!({"role": "user", "content": "say 1"}));
    assert_eq!(sample["output"], json!([{"role": "assistant", "content": "1"}]));
    assert_eq!((&sample["finish_reason"], &sample["model"]), (&json!("stop"), &json!(MODEL)));
    assert_eq!(sample["usage"]["total_tokens"], 9);
    assert_eq!(
        (&sample["temperature"], &sample["max_completion_tokens"]),
        (&json!(0.0), &json!(9))
    );
    assert!(all[1]["results"][1]["sample"].is_object(), "{}", all[1]);
    assert_eq!((&all[2]["status"], &all[2]["results"]), (&json!("error"), &json!([])));
    assert!(all[2]["sample"]["error"]["message"].as_str().unwrap().contains("It cannot be."));
}

#[tokio::test]
async fn messages_may_come_from_the_row() {
    let server = TestServer::start().await.with_model().await;
    let eval = create_eval(&server, json!([check("same")])).await;
    let rows = json!([
        {"item": {"label": "x", "input": [{"role": "developer", "content": "Obey."},
                                          {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "say x"}]}]}},
        {"item": {"label": "y", "input": "say y"}},
        {"item": {"label": "z"}},
    ]);
    let body = json!({"data_source": {"type": "responses", "model": MODEL, "source": content(rows),
        "input_messages": {"type": "item_reference", "item_reference": "item.input"}}});
    let done = answered(&server, obey, async {
        let run = start_run(&server, &eval, &body).await;
        run_when(&server, &eval, &run, "completed").await
    })
    .await;
    assert_eq!(done["result_counts"], json!({"total": 3, "errored": 1, "failed": 0, "passed": 2}));
}

/// Keeps a completion: the question is "say TEXT", the answer as given.
async fn keep(server: &TestServer, id: &str, text: &str, answer: &str, topic: &str) {
    let message = json!({"role": "assistant", "content": answer});
    let new = NewCompletion {
        id: id.to_owned(),
        model: MODEL.to_owned(),
        metadata: [("topic".to_owned(), topic.to_owned())].into(),
        request: json!({"messages": [{"role": "user", "content": format!("say {text}")}]}),
        completion: json!({"id": id, "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}),
    };
    completions::insert(&server.data.store.db, &server.data.project, &new).await.unwrap();
}

#[tokio::test]
async fn kept_completions_are_judged_as_they_were_answered_or_anew() {
    let server = TestServer::start().await.with_model().await;
    // More than are read at once.
    for i in 10..50 {
        let answer = if i % 2 == 0 { "even" } else { "odd" };
        keep(&server, &format!("chatcmpl-{i}"), &i.to_string(), answer, "numbers").await;
    }
    keep(&server, "chatcmpl-60", "60", "even", "other").await;
    let grader = json!({"type": "string_check", "name": "even", "input": "{{ sample.output_text }}",
                        "reference": "even", "operation": "eq"});
    let definition = json!({"data_source_config": {"type": "stored_completions"},
                            "testing_criteria": [grader]});
    let (status, eval) = server.post("/v1/evals", &definition).await;
    assert_eq!(status, 201, "{eval}");
    let eval = eval["id"].as_str().unwrap();
    let source = |more: Value| {
        let mut source =
            json!({"type": "stored_completions", "metadata": {"topic": "numbers"}, "model": MODEL});
        source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"type": "completions", "source": source})
    };
    let judged = async |data: Value| {
        let run = start_run(&server, eval, &json!({"data_source": data})).await;
        let done = run_when(&server, eval, &run, "completed").await;
        (done["result_counts"].clone(), items(&server, eval, &run, "limit=100").await)
    };

    let (counts, all) = judged(source(json!({}))).await;
    assert_eq!(counts, json!({"total": 40, "errored": 0, "failed": 20, "passed": 20}));
    assert_eq!(all[0]["datasource_item"]["input"][0]["content"], "say 49", "the newest first");
    assert_eq!(all[0]["datasource_item"]["metadata"], json!({"topic": "numbers"}));
    assert_eq!(all[39]["datasource_item"]["input"][0]["content"], "say 10");
    assert_eq!(all[39]["sample"]["output"][0]["content"], "even");

    let (counts, two) = judged(source(json!({"limit": 2, "created_after": 0}))).await;
    assert_eq!((counts["total"].clone(), two.len()), (json!(2), 2));

    let mut data = source(json!({"limit": 3}));
    data["model"] = json!(MODEL);
    data["input_messages"] = json!({"type": "item_reference", "item_reference": "item.input"});
    let say = |task: &Value| if question(task) == "say 48" { "even" } else { "?" }.to_owned();
    let (counts, asked) = answered(&server, say, judged(data)).await;
    assert_eq!(counts, json!({"total": 3, "errored": 0, "failed": 2, "passed": 1}));
    assert_eq!(asked[2]["datasource_item"]["input"][0]["content"], "say 47");

    // Nothing of that kind: the run says so.
    let run =
        start_run(&server, eval, &json!({"data_source": source(json!({"created_before": 1000}))}))
            .await;
    let failed = run_when(&server, eval, &run, "failed").await;
    assert_eq!(failed["error"]["code"], "invalid_data_source");
}

#[tokio::test]
async fn no_more_rows_are_asked_at_once_than_allowed() {
    let server = TestServer::with(|config| config.eval_items_at_once = 2).await.with_model().await;
    let eval = create_eval(&server, json!([check("same")])).await;
    let run = start_run(&server, &eval, &asking(content(asked(6)))).await;
    let mut held = vec![take(&server).await, take(&server).await];
    // A third is not to be had while these two wait.
    let next = json!({"worker_id": "w", "base_models": [format!("{MODEL}@auto"), MODEL], "wait_seconds": 0});
    let none = Worker::of(&server).request(Method::POST, "/inference/next").json(&next);
    assert_eq!(none.send().await.unwrap().status(), 204);
    // The second is answered first: others go on, and the rows are still recorded in their order.
    let second = held.remove(1);
    reply(&server, &second, &obey(&second)).await;
    for _ in 0..2 {
        let task = take(&server).await;
        reply(&server, &task, &obey(&task)).await;
    }
    reply(&server, &held[0], &obey(&held[0])).await;
    let done = answered(&server, obey, run_when(&server, &eval, &run, "completed")).await;
    assert_eq!(done["result_counts"]["passed"], 6);
}

#[tokio::test]
async fn a_canceled_run_stops_and_frees_its_server() {
    let server = TestServer::with(|config| config.eval_runs = 1).await.with_model().await;
    let eval = create_eval(&server, json!([check("same")])).await;
    let rows = json!([{"item": {"label": "a"}, "sample": {"output_text": "a"}}]);
    for path in ["", "/cancel"] {
        let run = start_run(&server, &eval, &asking(content(asked(3)))).await;
        run_when(&server, &eval, &run, "in_progress").await;
        let cancel = format!("/v1/evals/{eval}/runs/{run}{path}");
        let (status, canceled) = server.post_empty(&cancel).await;
        assert_eq!((status.as_u16(), &canceled["status"]), (200, &json!("canceled")));
        assert_eq!(server.post_empty(&cancel).await.0, 200, "once more is harmless");
        // The only lane takes the next run, so it has let go of the canceled one.
        let body = json!({"data_source": {"type": "jsonl", "source": content(rows.clone())}});
        let next = start_run(&server, &eval, &body).await;
        run_when(&server, &eval, &next, "completed").await;
        assert!(items(&server, &eval, &run, "").await.is_empty());
    }
    let (_, list) = server.get(&format!("/v1/evals/{eval}/runs?status=canceled&order=desc")).await;
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    // A run that is deleted while it goes on frees its server too.
    let run = start_run(&server, &eval, &asking(content(asked(1)))).await;
    run_when(&server, &eval, &run, "in_progress").await;
    assert_eq!(server.delete(&format!("/v1/evals/{eval}/runs/{run}")).await.0, 200);
    let body = json!({"data_source": {"type": "jsonl", "source": content(rows)}});
    let next = start_run(&server, &eval, &body).await;
    run_when(&server, &eval, &next, "completed").await;
}

#[tokio::test]
async fn a_run_outlives_its_server_and_records_every_row_once() {
    let mut server =
        TestServer::with(|config| config.eval_items_at_once = 2).await.with_model().await;
    let eval = create_eval(&server, json!([check("same")])).await;
    let run = start_run(&server, &eval, &asking(content(asked(6)))).await;
    for _ in 0..2 {
        let task = take(&server).await;
        reply(&server, &task, &obey(&task)).await;
    }
    until("two rows are recorded", async || {
        (items(&server, &eval, &run, "").await.len() == 2).then_some(())
    })
    .await;
    // As a kill would: nothing is given back, and the claim runs out.
    let served = server.served.take().unwrap();
    served.abort();
    assert!(served.await.is_err());
    server.data.sql("update eval_runs set claim_until = clock_timestamp()").await.unwrap();

    server.serve_again().await;
    let done = answered(&server, obey, run_when(&server, &eval, &run, "completed")).await;
    assert_eq!(done["result_counts"], json!({"total": 6, "errored": 0, "failed": 0, "passed": 6}));
    let all = items(&server, &eval, &run, "").await;
    let order: Vec<u64> =
        all.iter().map(|item| item["datasource_item_id"].as_u64().unwrap()).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn evaluations_of_another_project_are_not_there() {
    let server = TestServer::start().await;
    let eval = create_eval(&server, json!([check("same")])).await;
    server
        .data
        .sql(
            "insert into projects (id, organization_id, name) values ('proj_b', 'org-default', 'b');
             update evals set project_id = 'proj_b'",
        )
        .await
        .unwrap();
    for path in [format!("/v1/evals/{eval}"), format!("/v1/evals/{eval}/runs")] {
        assert_eq!(server.get(&path).await.0, 404, "{path}");
    }
    let (_, list) = server.get("/v1/evals").await;
    assert_eq!(list["data"], json!([]));
}

#[tokio::test]
async fn many_rows_of_a_file_are_judged() {
    let server = TestServer::start().await;
    let eval = create_eval(&server, json!([check("same")])).await;
    let row = |i: usize| json!({"item": {"label": "a"}, "sample": {"output_text": if i.is_multiple_of(2) { "a" } else { "b" }}});
    let file: String = (0..500).map(|i| format!("{}\n", row(i))).collect();
    let file = server.upload(file.as_bytes()).await;
    let body = json!({"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": file}}});
    let mut runs = FuturesUnordered::new();
    for _ in 0..3 {
        let run = start_run(&server, &eval, &body).await;
        let (server, eval) = (&server, &eval);
        runs.push(async move { run_when(server, eval, &run, "completed").await });
    }
    while let Some(done) = runs.next().await {
        assert_eq!(
            done["result_counts"],
            json!({"total": 500, "errored": 0, "failed": 250, "passed": 250})
        );
    }
}
