//! Graders over HTTP: definitions checked, samples graded, judges asked through a scripted worker.

mod common;

use std::time::Duration;

use common::worker::Worker;
use common::{MODEL, TestServer, error_of};
use domain::engine::{AnswerForm, FinishReason, GenerationEvent, Prompt};
use domain::internal::InferenceTask;
use reqwest::Method;
use serde_json::{Value, json};

const VALIDATE: &str = "/v1/fine_tuning/alpha/graders/validate";
const RUN: &str = "/v1/fine_tuning/alpha/graders/run";

fn string_check() -> Value {
    json!({"type": "string_check", "name": "same", "operation": "eq",
           "input": "{{sample.output_text}}", "reference": "{{item.label}}"})
}

fn score_model() -> Value {
    json!({"type": "score_model", "name": "judge", "model": MODEL, "range": [0, 10], "pass_threshold": 5,
           "sampling_params": {"temperature": 0, "seed": 3, "max_completions_tokens": 40},
           "input": [{"role": "user", "content": "Rate {{sample.output_text}} against {{item.label}}."}]})
}

async fn run(server: &TestServer, grader: &Value, sample: &str) -> Value {
    let body = json!({"grader": grader, "model_sample": sample, "item": {"label": "blue"}});
    let (status, graded) = server.post(RUN, &body).await;
    assert_eq!(status, 200, "{graded}");
    graded
}

/// Takes the next question of a judge and answers it.
async fn judge(server: &TestServer, answer: &str, reason: FinishReason) -> InferenceTask {
    let events = [
        GenerationEvent::Started { prompt_tokens: 30 },
        GenerationEvent::Delta { index: 0, text: answer.to_owned(), logprobs: Vec::new() },
        GenerationEvent::Finished { index: 0, reason },
        GenerationEvent::Done { prompt_tokens: 30, completion_tokens: 12 },
    ];
    tell(server, |_| events.to_vec()).await
}

/// Takes the next question and tells these events of it.
async fn tell(
    server: &TestServer,
    events: impl Fn(&Prompt) -> Vec<GenerationEvent>,
) -> InferenceTask {
    let models = [MODEL.to_owned(), format!("{MODEL}@auto")];
    let next = json!({"worker_id": "w", "base_models": models, "wait_seconds": 20});
    let worker = Worker::of(server);
    let task = worker.request(Method::POST, "/inference/next").json(&next).send().await.unwrap();
    let task: InferenceTask = task.json().await.unwrap();
    let events = events(&task.question.prompt);
    let lines: Vec<String> =
        events.iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
    let path = format!("/inference/{}/events", task.id);
    let sent = worker.request(Method::POST, &path).body(lines.concat()).send().await.unwrap();
    assert_eq!(sent.status(), 204);
    task
}

/// The flags that are set.
fn flags(graded: &Value) -> Vec<&str> {
    let errors = graded["metadata"]["errors"].as_object().unwrap();
    errors.iter().filter(|(_, value)| **value == true).map(|(key, _)| key.as_str()).collect()
}

#[tokio::test]
async fn a_graded_sample_has_the_services_shape() {
    let server = TestServer::start().await.with_model().await;
    let mut graded = run(&server, &string_check(), "blue").await;
    assert!(graded["metadata"]["execution_time"].take().is_f64());
    let flags = [
        "formula_parse_error",
        "sample_parse_error",
        "truncated_observation_error",
        "unresponsive_reward_error",
        "invalid_variable_error",
        "other_error",
        "python_grader_server_error",
        "python_grader_runtime_error",
        "model_grader_server_error",
        "model_grader_refusal_error",
        "model_grader_parse_error",
        "model_grader_exceeded_max_tokens_error",
    ];
    let details = [
        "formula_parse_error_details",
        "sample_parse_error_details",
        "invalid_variable_error_details",
        "other_error_details",
        "python_grader_server_error_type",
        "python_grader_server_error_details",
        "python_grader_runtime_error_details",
        "model_grader_server_error_details",
        "model_grader_refusal_error_details",
        "model_grader_parse_error_details",
    ];
    let errors: serde_json::Map<String, Value> = flags
        .iter()
        .map(|flag| ((*flag).to_owned(), json!(false)))
        .chain(details.iter().map(|key| ((*key).to_owned(), Value::Null)))
        .collect();
    let expected = json!({
        "reward": 1.0,
        "metadata": {
            "name": "same", "type": "string_check", "errors": errors, "execution_time": null, "scores": {},
            "token_usage": null, "sampled_model_name": null, "passed": true, "sample": null,
        },
        "sub_rewards": {},
        "model_grader_token_usage_per_model": {},
    });
    assert_eq!(graded, expected);
}

#[tokio::test]
async fn a_cosine_is_that_of_two_embeddings_and_their_tokens_are_counted() {
    let server = TestServer::start().await;
    let grader = json!({"type": "text_similarity", "name": "near", "evaluation_metric": "cosine",
                        "input": "{{sample.output_text}}", "reference": "{{item.label}}"});
    let (status, refused) = server.post(VALIDATE, &json!({ "grader": grader })).await;
    let (_, param, message) = error_of(&refused);
    assert_eq!((status.as_u16(), param), (400, json!("grader.evaluation_metric")), "{message}");
    assert!(message.contains("no base model"), "{message}");
    let server = server.with_model().await;
    let embedded = |prompt: &Prompt| {
        let embedding = match prompt {
            Prompt::Embed { text } if text == "navy" => vec![0.6, 0.8],
            Prompt::Embed { text } if text == "blue" => vec![1.0, 0.0],
            // Of the fourteen ordinary texts, one is "blue".
            Prompt::Embed { .. } => vec![0.0, 0.0],
            other => panic!("{other:?}"),
        };
        vec![
            GenerationEvent::Started { prompt_tokens: 3 },
            GenerationEvent::Embedded { embedding },
            GenerationEvent::Done { prompt_tokens: 3, completion_tokens: 0 },
        ]
    };
    let graded = tokio::select! {
        graded = run(&server, &grader, "navy") => graded,
        () = async { loop { tell(&server, embedded).await; } } => unreachable!(),
    };
    // What ordinary texts have in common is taken away.
    let (x, y) = (0.6 - 1.0 / 14.0, 0.8);
    let expected = x / f64::hypot(x, y);
    assert!((graded["reward"].as_f64().unwrap() - expected).abs() < 1e-6, "{graded}");
    assert_eq!(graded["metadata"]["token_usage"], 6);
    assert_eq!(graded["metadata"]["sampled_model_name"], MODEL);
}

#[tokio::test]
async fn definitions_are_given_back_in_one_form_or_refused_with_their_field() {
    let server = TestServer::start().await.with_model().await;
    let mut nameless = string_check();
    nameless.as_object_mut().unwrap().shift_remove("name");
    nameless["operation"] = json!("neq");
    let (status, body) = server.post(VALIDATE, &json!({ "grader": nameless })).await;
    assert_eq!(status, 200, "{body}");
    assert!(body["grader"]["name"].as_str().unwrap().starts_with("grader-"));
    assert_eq!(body["grader"]["operation"], "ne");
    let with = |mut grader: Value, key: &str, value: Value| {
        grader[key] = value;
        grader
    };
    let multi = |formula: &str| json!({"type": "multi", "name": "m", "graders": {"a": string_check()}, "calculate_output": formula});
    for (path, grader, code, param) in [
        (VALIDATE, json!({}), "missing_required_parameter", "grader.type"),
        (VALIDATE, json!("x"), "invalid_type", "grader"),
        (
            VALIDATE,
            with(string_check(), "operation", json!("is")),
            "invalid_value",
            "grader.operation",
        ),
        (
            VALIDATE,
            with(string_check(), "input", json!("{{nope.x}}")),
            "invalid_value",
            "grader.input",
        ),
        (VALIDATE, with(string_check(), "extra", json!(1)), "unknown_parameter", "grader.extra"),
        (
            VALIDATE,
            with(score_model(), "model", json!("no-such")),
            "model_not_found",
            "grader.model",
        ),
        (RUN, with(score_model(), "model", json!("no-such")), "model_not_found", "grader.model"),
        (VALIDATE, multi("a +"), "invalid_value", "grader.calculate_output"),
        (
            RUN,
            json!({"type": "multi", "graders": {"a": multi("a")}, "calculate_output": "a"}),
            "invalid_value",
            "grader.graders.a.type",
        ),
        (
            VALIDATE,
            json!({"type": "python", "source": "def grade(s, i): return 1"}),
            "invalid_value",
            "grader.source",
        ),
    ] {
        let mut body = json!({ "grader": grader });
        if path == RUN {
            body["model_sample"] = json!("x");
        }
        let (status, answer) = server.post(path, &body).await;
        assert_eq!(status, 400, "{body} {answer}");
        let (found, at, _) = error_of(&answer);
        assert_eq!((found, at), (json!(code), json!(param)), "{answer}");
    }
    for (body, param) in [
        (json!({"grader": string_check()}), "model_sample"),
        (json!({"grader": string_check(), "model_sample": 1}), "model_sample"),
        (json!({"grader": string_check(), "model_sample": "x", "item": [1]}), "item"),
        (json!({"grader": string_check(), "model_sample": "x", "other": 1}), "other"),
    ] {
        let (status, answer) = server.post(RUN, &body).await;
        assert_eq!((status.as_u16(), error_of(&answer).1), (400, json!(param)), "{answer}");
    }
}

#[tokio::test]
async fn what_goes_wrong_while_grading_is_a_flag_and_no_reward() {
    let server =
        TestServer::with(|config| config.max_json_bytes = bytesize::ByteSize::mib(4)).await;
    let check = |input: &str| json!({"type": "string_check", "input": input, "reference": "", "operation": "like"});
    let similarity = json!({"type": "text_similarity", "input": "{{sample.output_text}}", "reference": "x",
                            "evaluation_metric": "rouge_l"});
    let multi = |formula: &str| {
        let parts = json!({"yes": check("x"), "no": check("{{item.nope}}")});
        json!({"type": "multi", "graders": parts, "calculate_output": formula})
    };
    let python = json!({"type": "python", "source": "def grade(s, i): return 1"});
    let long = "x".repeat(70_000);
    for (grader, sample, flag) in [
        (check("{{item.nope}}"), "x", "invalid_variable_error"),
        (check("{{sample.output_json.a}}"), "x", "sample_parse_error"),
        (check(&"{{sample.output_text}}".repeat(20)), long.as_str(), "truncated_observation_error"),
        (similarity, long.as_str(), "truncated_observation_error"),
        (multi("yes +"), "x", "formula_parse_error"),
        (multi("maybe"), "x", "formula_parse_error"),
        (multi("yes"), "x", "invalid_variable_error"),
        (python, "x", "python_grader_server_error"),
    ] {
        let graded = run(&server, &grader, sample).await;
        assert_eq!((flags(&graded), &graded["reward"]), (vec![flag], &json!(0.0)), "{graded}");
    }
    let division =
        json!({"type": "multi", "graders": {"a": check("x")}, "calculate_output": "1 / (a - a)"});
    let graded = run(&server, &division, "x").await;
    assert_eq!((flags(&graded), &graded["reward"]), (vec!["other_error"], &json!(0.0)));
    assert_eq!(graded["sub_rewards"], json!({"a": 1.0}));
}

#[tokio::test]
async fn judges_are_asked_and_their_answers_read() {
    let server = TestServer::start().await.with_model().await;
    let usage = json!({MODEL: {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42, "cached_tokens": 0}});
    for (answer, reason, reward, passed, set) in [
        (r#"{"steps": [], "result": 7.5}"#, FinishReason::Stop, 7.5, true, &[][..]),
        (r#"Well: {"steps": [], "result": 2}"#, FinishReason::Stop, 2.0, false, &[]),
        ("99", FinishReason::Stop, 10.0, true, &[]),
        ("very good", FinishReason::Stop, 0.0, false, &["model_grader_parse_error"]),
        (
            r#"{"steps": ["#,
            FinishReason::Length,
            0.0,
            false,
            &["model_grader_exceeded_max_tokens_error", "model_grader_parse_error"],
        ),
    ] {
        let grader = score_model();
        let (graded, task) =
            tokio::join!(run(&server, &grader, "navy"), judge(&server, answer, reason));
        let mut found = flags(&graded);
        found.sort_unstable();
        assert_eq!(found, set, "{answer}");
        assert_eq!(graded["reward"], json!(reward), "{answer}");
        let metadata = &graded["metadata"];
        assert_eq!((&metadata["passed"], &metadata["token_usage"]), (&json!(passed), &json!(42)));
        assert_eq!(metadata["sampled_model_name"], MODEL);
        assert_eq!(metadata["sample"]["output"][0]["content"], answer);
        assert_eq!(graded["model_grader_token_usage_per_model"], usage);
        let Prompt::Chat { messages, .. } = &task.question.prompt else { panic!("no chat") };
        let question = messages[0]["content"].as_str().unwrap();
        assert!(question.starts_with("Rate navy against blue.\n\n"), "{question}");
        assert_eq!(
            (task.question.sampling.temperature, task.question.sampling.seed),
            (0.0, Some(3))
        );
        assert_eq!(task.question.sampling.max_tokens, Some(40));
        let AnswerForm::Schema { schema, strict: true } = &task.question.form else {
            panic!("{:?}", task.question.form)
        };
        assert_eq!(schema["properties"], json!({"result": {"type": "number"}}));
    }
}

#[tokio::test]
async fn a_multi_grader_counts_with_labels_and_scores() {
    let server = TestServer::start().await.with_model().await;
    let label = json!({"type": "label_model", "name": "l", "model": MODEL, "labels": ["good", "bad"],
        "passing_labels": ["good"], "input": [{"role": "system", "content": "Good or bad?"}]});
    let grader = json!({"type": "multi", "name": "m", "calculate_output": "0.25 * same + 0.5 * max(tone, 0)",
        "graders": {"same": string_check(), "tone": label}});
    let answer = r#"{"steps": [], "result": "good"}"#;
    let (graded, _) =
        tokio::join!(run(&server, &grader, "blue"), judge(&server, answer, FinishReason::Stop));
    assert_eq!((&graded["reward"], flags(&graded)), (&json!(0.75), vec![]), "{graded}");
    assert_eq!(graded["sub_rewards"], json!({"same": 1.0, "tone": 1.0}));
    assert_eq!(graded["metadata"]["token_usage"], 42);
}

#[tokio::test]
async fn a_judge_that_does_not_answer_is_given_up() {
    let shorten = |config: &mut server::Config| {
        config.graders.judge_timeout = Duration::from_millis(50);
    };
    let server = TestServer::with(shorten).await.with_model().await;
    let graded = run(&server, &score_model(), "navy").await;
    assert_eq!(flags(&graded), ["unresponsive_reward_error", "model_grader_server_error"]);
    assert_eq!((&graded["reward"], &graded["metadata"]["passed"]), (&json!(0.0), &json!(false)));
}
