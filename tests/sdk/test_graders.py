"""Graders through the SDK: every type, every metric, every flag; hostile programs that must leave the server unharmed."""

import math

import openai
import pytest

from daemon import BASE_MODEL

FLAGS = [
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
]
# As the SDK calls what begins with "model_".
ATTRIBUTES = {flag: f"api_{flag}" if flag.startswith("model_") else flag for flag in FLAGS}


def check(input="{{sample.output_text}}", reference="{{item.label}}", operation="eq", **fields):
    return {"type": "string_check", "name": "check", "input": input, "reference": reference, "operation": operation,
            **fields}


def similarity(metric, **fields):
    return {"type": "text_similarity", "name": "similar", "input": "{{ sample.output_text }}",
            "reference": "{{ item.label }}", "evaluation_metric": metric, **fields}


def judge(**fields):
    return {"type": "score_model", "name": "judge", "model": BASE_MODEL, "range": [1, 5],
            "sampling_params": {"temperature": 0, "max_completions_tokens": 16},
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Rate: {{sample.output_text}}"}]}],
            **fields}


def python(source):
    return {"type": "python", "name": "program", "source": source, "image_tag": "2025-05-08"}


def multi(formula, **graders):
    return {"type": "multi", "name": "both", "graders": graders, "calculate_output": formula}


def run(client, grader, sample="blue", item=None):
    item = {"label": "blue"} if item is None else item
    return client.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, item=item)


def flags(graded):
    return [flag for flag, attribute in ATTRIBUTES.items() if getattr(graded.metadata.errors, attribute)]


def test_string_checks_compare_and_read_templates(client):
    for operation, sample, reward in [
        ("eq", "blue", 1), ("eq", "Blue", 0), ("ne", "red", 1), ("neq", "blue", 0),
        ("like", "so blue", 1), ("like", "so Blue", 0), ("ilike", "SO BLUE", 1), ("ilike", "red", 0),
    ]:
        graded = run(client, check(operation=operation), sample)
        assert (graded.reward, flags(graded)) == (reward, []), (operation, sample)
    nested = check(input="{{ sample.output_json.colours[1].name }}", reference="{{item['two words']}}")
    graded = run(client, nested, '{"colours": [{}, {"name": "blue"}]}', {"two words": "blue"})
    assert graded.reward == 1
    assert graded.metadata.name == "check" and graded.metadata.type == "string_check"
    assert graded.metadata.execution_time >= 0 and graded.metadata.scores == {}
    assert graded.metadata.token_usage is None and graded.metadata.sampled_model_name is None
    assert graded.sub_rewards == {} and graded.api_model_grader_token_usage_per_model == {}


# The values of rapidfuzz, sacrebleu, nltk and rouge-score, as in crates/graders/tests/fixtures/similarity.json.
METRICS = {
    "fuzzy_match": 0.825,
    "bleu": 0.2110534063187263,
    "gleu": 0.3,
    "meteor": 0.5679012345679012,
    "rouge_1": 0.7058823529411765,
    "rouge_2": 0.26666666666666666,
    "rouge_3": 0.15384615384615383,
    "rouge_4": 0.0,
    "rouge_5": 0.0,
    "rouge_l": 0.5882352941176471,
}


def test_every_metric_has_its_librarys_value(client):
    item = {"label": "The quick brown dog jumps on the log."}
    for metric, value in METRICS.items():
        graded = run(client, similarity(metric), "The quick brown fox jumps over the lazy dog", item)
        assert math.isclose(graded.reward, value, abs_tol=1e-9), (metric, graded.reward)
        assert flags(graded) == []
        assert run(client, similarity(metric), item["label"], item).reward == pytest.approx(1, abs=2e-3)
    assert run(client, similarity("rouge_1", pass_threshold=0.9)).metadata.passed is True


def test_a_cosine_compares_the_embeddings_of_a_model(client):
    item = {"label": "The bank raised its interest rates for the third time this year."}
    near = "For the third time this year, the bank has increased its interest rates."
    far = "Our cat sleeps under the kitchen table."
    same, alike, unlike = (run(client, similarity("cosine"), text, item) for text in (item["label"], near, far))
    assert same.reward == pytest.approx(1, abs=1e-6)
    assert 1 > alike.reward > unlike.reward + 0.1 and unlike.reward >= 0
    assert alike.metadata.sampled_model_name == BASE_MODEL and alike.metadata.token_usage > 20
    assert alike.model_grader_token_usage_per_model.keys() == {BASE_MODEL}
    long = run(client, similarity("cosine"), "word " * 20_000, item)
    assert long.reward == 0 and flags(long) == ["truncated_observation_error"]


def test_a_multi_grader_computes_its_formula(client):
    parts = {"same": check(), "near": similarity("fuzzy_match")}
    graded = run(client, multi("min(same, 1) * 0.5 + sqrt(near) ^ 2 / 2", **parts))
    assert graded.reward == 1 and graded.sub_rewards == {"same": 1, "near": 1}
    single = {"type": "multi", "name": "one", "graders": check(), "calculate_output": "-check + 3"}
    assert run(client, single).reward == 2
    listed = {"type": "multi", "name": "list", "graders": [check(), similarity("rouge_l")],
              "calculate_output": "check + similar"}
    assert run(client, listed).reward == 2


def test_a_model_of_ours_judges(client, tuned):
    graded = run(client, judge())
    # What so small a model says is its own affair; that it is held to a number, and what that counts for, is ours. The
    # number may be longer than the answer.
    cut = ["model_grader_exceeded_max_tokens_error", "model_grader_parse_error"]
    assert 1 <= graded.reward <= 5 or sorted(flags(graded)) == cut
    usage = graded.api_model_grader_token_usage_per_model[BASE_MODEL]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] == graded.metadata.token_usage
    assert graded.metadata.sampled_model_name == BASE_MODEL
    # The tuned model would answer whatever it is asked with the words that it learned.
    label = {"type": "label_model", "name": "label", "model": tuned.fine_tuned_model, "labels": ["good", "bad"],
             "passing_labels": ["good"], "input": [{"role": "user", "content": "Good or bad?"}],
             "sampling_params": {"temperature": 0, "max_completions_tokens": 16}}
    graded = run(client, multi("1 + tone", tone=label))
    assert graded.reward in (1, 2) and flags(graded) == []
    for wrong in (judge(model="no-such-model"), multi("a", a=judge(model="no-such-model"))):
        with pytest.raises(openai.BadRequestError) as caught:
            run(client, wrong)
        assert caught.value.code == "model_not_found" and caught.value.param.endswith(".model")


def test_a_judge_that_cannot_read_the_question_is_flagged(client):
    graded = run(client, judge(), "word " * 30_000)
    assert (graded.reward, flags(graded)) == (0, ["model_grader_server_error"])
    assert graded.metadata.errors.api_model_grader_server_error_details


def test_programs_grade_in_a_sandbox(client):
    graded = run(client, python("""
import re

def grade(sample: dict, item: dict) -> float:
    words = re.findall(r"\\w+", sample["output_text"])
    return len(words) / 4 + (0.5 if item["label"] in words else 0.0)
"""), "so blue it is")
    assert (graded.reward, flags(graded)) == (1.5, [])
    graded = run(client, multi("2 * p", p=python("def grade(sample, item): return sample['output_json']['n']")),
                 '{"n": 4}')
    assert (graded.reward, graded.sub_rewards) == (8, {"p": 4})


HOSTILE = {
    "open('/etc/passwd').read()": "PermissionError",
    "open('/proc/%d/environ' % __import__('os').getppid()).read()": "PermissionError",
    "__import__('os').listdir('/')": "PermissionError",
    "__import__('os').fork()": "PermissionError",
    "__import__('os').kill(__import__('os').getppid(), 9)": "PermissionError",
    "__import__('subprocess').run(['/bin/sh', '-c', 'true'])": "PermissionError",
    "__import__('socket').create_connection(('127.0.0.1', 80))": "PermissionError",
    "__import__('ctypes').string_at(0)": "crashed",
    "bytearray(1 << 45)": "MemoryError",
    "[0] * (1 << 40)": "MemoryError",
    "(lambda f: f(f))(lambda f: f(f))": "RecursionError",
    "__import__('os').write(3, b'x' * (1 << 20)) and 1": "",
    "__import__('os')._exit(0)": "without an answer",
    "1 / 0": "ZeroDivisionError",
    "'high'": "returned str",
    "None": "returned NoneType",
    "float('inf')": "returned inf",
}


def test_hostile_programs_are_contained(client, server):
    pid = server.process.pid
    for body, words in HOSTILE.items():
        graded = run(client, python(f"def grade(sample, item): return {body}"))
        assert (graded.reward, flags(graded)) == (0, ["python_grader_runtime_error"]), body
        assert words in graded.metadata.errors.python_grader_runtime_error_details, body
    for source, words in [("def grade(", "SyntaxError"), ("x = 1", "no function grade"), ("import nope", "nope")]:
        graded = run(client, python(source))
        assert flags(graded) == ["python_grader_runtime_error"]
        assert words in graded.metadata.errors.python_grader_runtime_error_details
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.alpha.graders.validate(grader=python(source))
        assert caught.value.param == "grader.source" and words in caught.value.message
    assert run(client, check()).reward == 1
    assert server.process.is_running() and server.process.pid == pid


def test_failures_are_flags_of_an_answer(client):
    for grader, sample, flag in [
        (check(input="{{item.nope}}"), "x", "invalid_variable_error"),
        (check(input="{{other.x}}"), "x", "invalid_variable_error"),
        (check(input="{{sample.output_json.a}}"), "not json", "sample_parse_error"),
        (similarity("fuzzy_match"), "x" * 70_000, "truncated_observation_error"),
        (multi("a + ", a=check()), "x", "formula_parse_error"),
        (multi("0.5 * a)", a=check()), "x", "formula_parse_error"),
        (multi("b", a=check()), "x", "formula_parse_error"),
        (multi("1 / (a - a)", a=check()), "x", "other_error"),
        (multi("a", a=check(input="{{item.nope}}")), "x", "invalid_variable_error"),
    ]:
        graded = run(client, grader, sample)
        assert (graded.reward, flags(graded)) == (0, [flag]), grader


def test_definitions_come_back_in_one_form(client):
    validate = client.fine_tuning.alpha.graders.validate
    for grader in [
        check(), similarity("meteor", pass_threshold=0.5), judge(), python("def grade(s, i): return 1"),
    ]:
        assert validate(grader=grader).grader.to_dict() == grader
    assert validate(grader=multi("a", a=check())).grader.graders["a"] == check()
    nameless = {key: value for key, value in check(operation="neq").items() if key != "name"}
    grader = validate(grader=nameless).grader
    assert grader.operation == "ne"
    assert grader.name.startswith("grader-") and len(grader.name) == len("grader-") + 12


def test_wrong_definitions_are_refused_by_their_field(client):
    for grader, code, param in [
        ({}, "missing_required_parameter", "grader.type"),
        (check(operation="is"), "invalid_value", "grader.operation"),
        (check(input=1), "invalid_type", "grader.input"),
        (check(threshold=1), "unknown_parameter", "grader.threshold"),
        (check(input="{{other.x}}"), "invalid_value", "grader.input"),
        (similarity("rouge_9"), "invalid_value", "grader.evaluation_metric"),
        (judge(range=[1]), "invalid_value", "grader.range"),
        (judge(input=[]), "invalid_value", "grader.input"),
        (multi("a +", a=check()), "invalid_value", "grader.calculate_output"),
        (multi("a", a=multi("b", b=check())), "invalid_value", "grader.graders.a.type"),
        ({"type": "endpoint", "name": "e"}, "invalid_value", "grader.type"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.fine_tuning.alpha.graders.validate(grader=grader)
        assert (caught.value.code, caught.value.param) == (code, param), grader
