use serde_json::json;

use super::*;

fn parsed(value: Value) -> Grader {
    Grader::parse(&value, "grader").unwrap_or_else(|fault| panic!("{value}: {fault:?}"))
}

/// (code, path) of the first fault.
fn refused(value: Value) -> (&'static str, String) {
    let fault = Grader::parse(&value, "grader").expect_err(&value.to_string());
    assert!(fault.message.contains(fault.path.as_str()) || fault.message.contains("value"));
    (fault.code, fault.path)
}

fn every_type() -> [Value; 6] {
    let check = json!({"type": "string_check", "name": "c", "input": "a", "reference": "b", "operation": "eq"});
    let message = json!({"role": "user", "content": "{{sample.output_text}}"});
    [
        check.clone(),
        json!({"type": "text_similarity", "name": "t", "input": "a", "reference": "b",
               "evaluation_metric": "rouge_l", "pass_threshold": 0.5}),
        json!({"type": "score_model", "name": "s", "model": "m", "input": [message], "range": [1.0, 5.0],
               "sampling_params": {"seed": 1, "top_p": 0.5, "temperature": 0.0, "max_completions_tokens": 9,
                                   "reasoning_effort": "low"}}),
        json!({"type": "label_model", "name": "l", "model": "m",
               "input": [{"role": "system", "type": "message", "content": {"type": "input_text", "text": "t"}}],
               "labels": ["good", "bad"], "passing_labels": ["good"]}),
        json!({"type": "python", "name": "p", "source": "def grade(s, i): return 1", "image_tag": "2025-05-08"}),
        json!({"type": "multi", "name": "m", "graders": {"c": check}, "calculate_output": "c"}),
    ]
}

#[test]
fn every_type_comes_back_as_it_came() {
    for value in every_type() {
        let grader = parsed(value.clone());
        assert_eq!(grader.to_value(), value);
        assert_eq!(grader.check("grader"), Ok(()));
        assert_eq!(parsed(grader.to_value()), grader);
    }
}

#[test]
fn a_definition_is_brought_into_one_form() {
    let grader = parsed(json!({
        "type": "string_check", "input": "a", "reference": "b", "operation": "neq", "name": null, "id": "x-1",
    }));
    let name = grader.name.strip_prefix("grader-").unwrap();
    assert!(name.len() == 12 && name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
    assert_eq!(grader.to_value()["operation"], "ne");
    assert_eq!(grader.to_value().as_object().unwrap().len(), 5);
}

#[test]
fn the_parts_of_a_multi_grader_may_be_a_map_one_grader_or_a_list() {
    let [check, similarity, ..] = every_type();
    let multi = |graders: Value, formula: &str| json!({"type": "multi", "name": "m", "graders": graders, "calculate_output": formula});
    let map = parsed(multi(json!({"x": check, "y": similarity}), "x + y"));
    assert_eq!(map.check("grader"), Ok(()));
    let list = parsed(multi(json!([check, similarity]), "c + t"));
    assert_eq!(list.to_value()["graders"], json!({"c": check, "t": similarity}));
    let single = parsed(multi(check.clone(), "c"));
    assert_eq!(single.to_value()["graders"], check);
    let unnamed =
        json!({"type": "string_check", "input": "a", "reference": "b", "operation": "eq"});
    assert_eq!(parsed(multi(json!({"x": unnamed}), "x")).to_value()["graders"]["x"]["name"], "x");
    let twice = multi(json!([check, check]), "c");
    assert_eq!(refused(twice), ("invalid_value", "grader.graders[1].name".to_owned()));
    for (graders, path) in [
        (json!({}), "grader.graders"),
        (json!([]), "grader.graders"),
        (json!({"x": parsed(multi(check.clone(), "c")).to_value()}), "grader.graders.x.type"),
    ] {
        assert_eq!(refused(multi(graders, "1")), ("invalid_value", path.to_owned()));
    }
}

/// `base` with one field changed, or without it.
fn with(base: &Value, key: &str, value: Value) -> Value {
    let mut changed = base.clone();
    match value {
        Value::Null => drop(changed.as_object_mut().unwrap().shift_remove(key)),
        value => changed[key] = value,
    }
    changed
}

const MISSING: &str = "missing_required_parameter";
const TYPE: &str = "invalid_type";
const VALUE: &str = "invalid_value";
const UNKNOWN: &str = "unknown_parameter";
const LONG: &str = "string_above_max_length";

#[test]
fn faults_name_their_field() {
    let [check, similarity, _, _, python, _] = every_type();
    let long = |length| json!("x".repeat(length));
    assert_eq!(refused(json!([])), (TYPE, "grader".to_owned()));
    for (base, key, value, code) in [
        (&json!({}), "type", Value::Null, MISSING),
        (&check, "type", json!(1), TYPE),
        (&check, "type", json!("nope"), VALUE),
        (&check, "type", json!("endpoint"), VALUE),
        (&check, "input", Value::Null, MISSING),
        (&check, "input", json!(["a"]), TYPE),
        (&check, "name", json!(7), TYPE),
        (&check, "name", long(300), LONG),
        (&check, "operation", json!("like "), VALUE),
        (&check, "pass_threshold", json!(1), UNKNOWN),
        (&check, "extra", json!(1), UNKNOWN),
        (&similarity, "evaluation_metric", json!("rouge_6"), VALUE),
        (&similarity, "pass_threshold", json!("1"), TYPE),
        (&python, "source", json!(" "), VALUE),
        (&python, "source", long(300_000), LONG),
    ] {
        assert_eq!(refused(with(base, key, value)), (code, format!("grader.{key}")));
    }
}

#[test]
fn faults_of_judges_name_their_field() {
    let [_, _, score, label, _, _] = every_type();
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    for (base, key, value, code, place) in [
        (&score, "model", json!(""), VALUE, ""),
        (&score, "input", json!([]), VALUE, ""),
        (&score, "input", json!("hi"), TYPE, ""),
        (&score, "input", json!([{"role": "tool", "content": "x"}]), VALUE, "[0].role"),
        (&score, "input", json!([{"role": "user"}]), MISSING, "[0].content"),
        (&score, "input", user(json!(1)), TYPE, "[0].content"),
        (&score, "input", user(json!([{"type": "input_image"}])), VALUE, "[0].content[0]"),
        (&score, "range", json!([1]), VALUE, ""),
        (&score, "range", json!([1, 1]), VALUE, ""),
        (&score, "range", json!([0, "1"]), TYPE, "[1]"),
        (&score, "sampling_params", json!({"top_p": 2}), VALUE, ".top_p"),
        (&score, "sampling_params", json!({"seed": 1.5}), TYPE, ".seed"),
        (&score, "sampling_params", json!({"n": 1}), UNKNOWN, ".n"),
        (
            &score,
            "sampling_params",
            json!({"max_completions_tokens": 0}),
            VALUE,
            ".max_completions_tokens",
        ),
        (&label, "labels", json!([]), VALUE, ""),
        (&label, "labels", json!([1]), TYPE, "[0]"),
        (&label, "passing_labels", json!(["other"]), VALUE, "[0]"),
    ] {
        assert_eq!(refused(with(base, key, value)), (code, format!("grader.{key}{place}")));
    }
}

#[test]
fn what_can_never_succeed_is_run_to_a_flag_but_not_kept() {
    let [check, _, score, ..] = every_type();
    let mut template = check.clone();
    template["reference"] = json!("{{ other.x }}");
    let mut judge = score;
    judge["input"][0]["content"] = json!("{{ item. }}");
    let formula = |formula: &str| json!({"type": "multi", "graders": {"c": check}, "calculate_output": formula});
    for (value, path) in [
        (template, "grader.reference"),
        (judge, "grader.input[0].content"),
        (formula("c +"), "grader.calculate_output"),
        (formula("d"), "grader.calculate_output"),
    ] {
        let fault = parsed(value).check("grader").unwrap_err();
        assert_eq!((fault.code, fault.path.as_str()), ("invalid_value", path));
    }
}

#[test]
fn jobs_and_evals_take_different_graders() {
    let [check, mut similarity, score, label, python, multi] = every_type();
    for value in [&check, &similarity, &score, &python, &multi] {
        assert!(Grader::parse_for_job(value, "g").is_ok(), "{value}");
    }
    for value in [&check, &similarity, &score, &label, &python] {
        assert!(Grader::parse_for_eval(value, "g").is_ok(), "{value}");
    }
    assert_eq!(Grader::parse_for_job(&label, "g").unwrap_err().path, "g.type");
    assert_eq!(Grader::parse_for_eval(&multi, "g").unwrap_err().path, "g.type");
    similarity.as_object_mut().unwrap().shift_remove("pass_threshold");
    assert_eq!(Grader::parse_for_eval(&similarity, "g").unwrap_err().path, "g.pass_threshold");
}

#[test]
fn a_reward_passes_by_its_threshold() {
    let [check, similarity, score, ..] = every_type().map(parsed);
    assert_eq!((check.passes(1.0), check.passes(0.0)), (Some(true), Some(false)));
    assert_eq!((similarity.passes(0.5), similarity.passes(0.49)), (Some(true), Some(false)));
    assert_eq!(score.passes(5.0), None);
}
