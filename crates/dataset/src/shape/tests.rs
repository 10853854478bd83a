use serde_json::{Value, json};

use super::*;
use crate::problem::code;
use crate::testing;

/// What was read, and the codes and paths of faults.
fn read(row: &Value) -> (Option<Shape>, Vec<Conversation>, Vec<(&'static str, String)>) {
    let mut problems = ProblemList::new(usize::MAX);
    let row = row.as_object().unwrap();
    let shape = Shape::of(row);
    let read = shape.unwrap_or(Shape::Messages).read(1, row.clone(), &mut problems);
    let faults = problems.kept.into_iter().map(|p| (p.code, p.path.unwrap_or_default())).collect();
    (shape, read.conversations, faults)
}

fn good(row: &Value, shape: Shape) -> Vec<Conversation> {
    let (found, conversations, faults) = read(row);
    assert_eq!((found, faults), (Some(shape), Vec::new()), "{row}");
    conversations
}

fn says(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

fn turn(from: &str, value: &str) -> Value {
    json!({"from": from, "value": value})
}

/// Every way to write one conversation.
fn same_conversations() -> Vec<(Shape, Value)> {
    let turns = json!([says("user", "q"), says("assistant", "a")]);
    let blocks = json!([
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
    ]);
    vec![
        (Shape::Chat, json!({"messages": [says("system", "s"), turns[0], turns[1]]})),
        (Shape::Anthropic, json!({"system": "s", "messages": turns})),
        (
            Shape::Anthropic,
            json!({"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
                   "messages": blocks}),
        ),
        (Shape::Alpaca, json!({"system": "s", "instruction": "q", "input": "", "output": "a"})),
        (Shape::Alpaca, json!({"id": 7, "system": "s", "instruction": "q", "output": "a"})),
        (
            Shape::ShareGpt,
            json!({"conversations": [turn("system", "s"), turn("human", "q"), turn("gpt", "a")]}),
        ),
        (
            Shape::ShareGpt,
            json!({"system": "s", "conversations": [turn("user", "q"), turn("assistant", "a")]}),
        ),
        (Shape::PromptCompletion, json!({"system": "s", "prompt": "q", "completion": "a"})),
        (Shape::PromptCompletion, json!({"system": "s", "question": "q", "answer": "a"})),
        (Shape::PromptCompletion, json!({"system": "s", "input": "q", "output": "a"})),
        (
            Shape::PromptCompletion,
            json!({"prompt": [says("system", "s"), says("user", "q")],
                   "completion": [says("assistant", "a")]}),
        ),
    ]
}

#[test]
fn a_conversation_has_the_same_tokens_and_mask_in_every_shape() {
    let tokenizer = testing::chat_ml();
    let mut first = None;
    for (shape, row) in same_conversations() {
        let [conversation] = &good(&row, shape)[..] else { panic!("{row}") };
        let example = tokenizer.encode_example(conversation, 1000).unwrap();
        assert_ne!(example.targets(), 0);
        assert_eq!(&example, first.get_or_insert_with(|| example.clone()), "{row}");
    }
}

#[test]
fn calls_and_results_have_the_same_tokens_and_mask_in_every_shape() {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let function = json!({"name": "weather", "description": "d", "parameters": parameters});
    let call = |id: &str, city: &str| {
        json!({"id": id, "type": "function",
               "function": {"name": "weather", "arguments": json!({"city": city}).to_string()}})
    };
    let used = |id: &str, city: &str| json!({"type": "tool_use", "id": id, "name": "weather", "input": {"city": city}});
    let result =
        |id: &str, text: Value| json!({"type": "tool_result", "tool_use_id": id, "content": text});
    let openais = json!({
        "messages": [
            says("user", "q"),
            {"role": "assistant", "tool_calls": [call("call_1", "Ulm"), call("call_2", "Bonn")]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
            {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
            says("user", "and?"),
            says("assistant", "a"),
        ],
        "tools": [{"type": "function", "function": function}],
    });
    let anthropics = json!({
        "messages": [
            says("user", "q"),
            {"role": "assistant", "content": [used("call_1", "Ulm"), used("call_2", "Bonn")]},
            {"role": "user", "content": [
                result("call_1", json!("sun")),
                result("call_2", json!([{"type": "text", "text": "rain"}])),
                {"type": "text", "text": "and?"},
            ]},
            says("assistant", "a"),
        ],
        "tools": [{"name": "weather", "description": "d", "input_schema": parameters}],
    });
    let calls = json!([{"name": "weather", "arguments": {"city": "Ulm"}},
                       {"name": "weather", "arguments": {"city": "Bonn"}}]);
    let sharegpt = json!({
        "conversations": [
            turn("human", "q"), turn("function_call", &calls.to_string()),
            turn("observation", "sun"), turn("tool", "rain"), turn("human", "and?"),
            turn("gpt", "a"),
        ],
        "tools": json!([function]).to_string(),
    });
    let tokenizer = testing::chat_ml();
    let [first] = &good(&openais, Shape::Chat)[..] else { panic!() };
    let expected = tokenizer.encode_example(first, 1000).unwrap();
    for (shape, row) in [(Shape::Anthropic, anthropics), (Shape::ShareGpt, sharegpt)] {
        let [conversation] = &good(&row, shape)[..] else { panic!() };
        assert_eq!(conversation.messages(), first.messages());
        assert_eq!(conversation.tools(), first.tools());
        assert_eq!(tokenizer.encode_example(conversation, 1000).unwrap(), expected);
    }
}

#[test]
fn a_pair_has_the_same_conversations_in_every_shape() {
    let (question, good_one, bad_one) =
        (says("user", "q"), says("assistant", "good"), says("assistant", "bad"));
    let expected =
        [vec![question.clone(), good_one.clone()], vec![question.clone(), bad_one.clone()]];
    for (shape, row) in [
        (
            Shape::Preference,
            json!({"input": {"messages": [question]}, "preferred_output": [good_one],
                   "non_preferred_output": [bad_one]}),
        ),
        (Shape::ChosenRejected, json!({"prompt": "q", "chosen": "good", "rejected": "bad"})),
        (
            Shape::ChosenRejected,
            json!({"prompt": [question], "chosen": [good_one], "rejected": [bad_one]}),
        ),
        (
            Shape::ChosenRejected,
            json!({"chosen": [question, good_one], "rejected": [question, bad_one]}),
        ),
        (
            Shape::ChosenRejected,
            json!({"prompt": "q", "chosen": [question, good_one], "rejected": [question, bad_one],
                   "score_chosen": 5, "score_rejected": 1}),
        ),
    ] {
        let conversations = good(&row, shape);
        for (conversation, messages) in conversations.iter().zip(&expected) {
            assert_eq!(conversation.messages(), messages, "{row}");
            assert_eq!(conversation.trained(), [false, true]);
            assert_eq!(conversation.answer_start(), 1);
        }
        assert_eq!(conversations.len(), 2);
    }
    let equal = json!({"chosen": [question, good_one], "rejected": [question, good_one]});
    assert_eq!(good(&equal, Shape::ChosenRejected)[1].trained(), [false, true]);
}

#[test]
fn only_what_shows_a_shape_decides_about_messages() {
    let turns = || json!([says("user", "q"), says("assistant", "a")]);
    let of = |row: Value| Shape::of(row.as_object().unwrap());
    assert_eq!(of(json!({"messages": turns()})), Some(Shape::Messages));
    assert_eq!(of(json!({"messages": turns(), "system": "s"})), Some(Shape::Anthropic));
    let weighted = json!({"role": "assistant", "content": "a", "weight": 0});
    assert_eq!(of(json!({"messages": [says("user", "q"), weighted]})), Some(Shape::Chat));
    assert_eq!(
        of(json!({"messages": turns(), "tools": [{"name": "f", "input_schema": {}}]})),
        Some(Shape::Anthropic)
    );
    let parts = json!([{"type": "text", "text": "q"}]);
    assert_eq!(
        of(json!({"messages": [{"role": "user", "content": parts}, turns()[1]]})),
        Some(Shape::Messages)
    );
    let image = json!([{"type": "image_url", "image_url": {"url": "u"}}]);
    assert_eq!(
        of(json!({"messages": [{"role": "user", "content": image}]})),
        Some(Shape::Messages)
    );
    assert_eq!(
        of(json!({"messages": [says("user", "q")], "reference_answer": 4})),
        Some(Shape::Reinforcement)
    );
    assert_eq!(of(json!({"x": 1})), None);
}

#[test]
fn a_prompt_of_messages_is_not_trained() {
    let row = json!({"prompt": [says("user", "q"), says("assistant", "b"), says("user", "c")],
                     "completion": [says("assistant", "a")]});
    let [conversation] = &good(&row, Shape::PromptCompletion)[..] else { panic!() };
    assert_eq!(conversation.trained(), [false, false, false, true]);
    assert_eq!(conversation.messages()[1]["weight"], 0);
}

#[test]
fn a_turn_of_weight_zero_is_not_trained() {
    let masked = json!({"from": "gpt", "value": "b", "weight": 0});
    let row = json!({"conversations": [turn("human", "q"), masked, turn("gpt", "a")]});
    let [conversation] = &good(&row, Shape::ShareGpt)[..] else { panic!() };
    assert_eq!(conversation.trained(), [false, false, true]);
}

#[test]
fn a_history_stands_before_the_instruction() {
    let row = json!({"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]]});
    let [conversation] = &good(&row, Shape::Alpaca)[..] else { panic!() };
    let texts: Vec<_> = conversation.messages().iter().map(|m| m["content"].clone()).collect();
    assert_eq!(texts, ["q", "a", "i\nx", "o"]);
    assert_eq!(conversation.place(1).0, "history[0][1]");
}

#[test]
fn an_item_of_reinforcement_ends_with_the_user() {
    let row = json!({"messages": [says("developer", "d"), says("user", "q")], "answer": "42"});
    let [conversation] = &good(&row, Shape::Reinforcement)[..] else { panic!() };
    assert_eq!(conversation.trained(), [false, false]);
    let mut problems = ProblemList::new(9);
    for messages in [json!([says("system", "s"), says("user", "q")]), json!([]), json!(1)] {
        let row = json!({ "messages": messages });
        let row = row.as_object().unwrap().clone();
        assert!(Shape::Reinforcement.read(1, row, &mut problems).conversations.is_empty());
    }
    let paths: Vec<_> = problems.kept.iter().filter_map(|p| p.path.as_deref()).collect();
    assert_eq!(paths, ["messages[0].role", "messages", "messages"]);
}

/// Each row has one fault, with this code at this place.
fn assert_faults(cases: &[(Value, &str, &str)]) {
    for (row, code, path) in cases {
        let (_, conversations, faults) = read(row);
        assert!(conversations.is_empty(), "{row}");
        assert_eq!(faults, [(*code, (*path).to_owned())], "{row}");
    }
}

#[test]
fn faults_of_anthropics_rows_are_named_with_their_places() {
    let asked = says("user", "q");
    assert_faults(&[
        (
            json!({"system": 1, "messages": [asked, says("assistant", "a")]}),
            code::DATA_TYPE,
            "system",
        ),
        (
            json!({"system": [{"type": "image"}], "messages": [asked, says("assistant", "a")]}),
            code::UNSUPPORTED_CONTENT,
            "system[0]",
        ),
        (json!({"system": "s", "messages": []}), code::MISSING_MESSAGES_LIST, "messages"),
        (json!({"system": "s", "messages": {}}), code::DATA_TYPE, "messages"),
        (
            json!({"system": "s", "messages": [asked]}),
            code::EXAMPLE_MISSING_ASSISTANT_MESSAGE,
            "messages",
        ),
        (json!({"system": "s", "messages": [asked, 1]}), code::DATA_TYPE, "messages[1]"),
        (
            json!({"system": "s", "messages": [says("system", "x"), says("assistant", "a")]}),
            code::UNRECOGNIZED_ROLE,
            "messages[0].role",
        ),
        (
            json!({"system": "s", "messages": [says("bot", "x")]}),
            code::UNRECOGNIZED_ROLE,
            "messages[0].role",
        ),
        (
            json!({"system": "s", "messages": [asked, says("assistant", "a")], "model": "m"}),
            code::UNRECOGNIZED_KEY,
            "model",
        ),
        (
            json!({"system": "s", "messages": [asked, {"role": "assistant", "content": "a", "weight": 1}]}),
            code::UNRECOGNIZED_KEY,
            "messages[1].weight",
        ),
        (
            json!({"system": "s", "messages": [asked, says("assistant", "a")], "tools": [{"input_schema": {}}]}),
            code::INVALID_TOOL,
            "tools[0]",
        ),
    ]);
}

#[test]
fn faults_of_anthropics_blocks_are_named_with_their_places() {
    let asked = says("user", "q");
    let user = |blocks: Value| json!({"system": "s", "messages": [{"role": "user", "content": blocks}, says("assistant", "a")]});
    let assistant = |blocks: Value| json!({"system": "s", "messages": [asked, {"role": "assistant", "content": blocks}]});
    let used = json!({"type": "tool_use", "id": "t", "name": "f", "input": {}});
    let text = json!({"type": "text", "text": "x"});
    assert_faults(&[
        (
            user(json!([{"type": "image", "source": {}}])),
            code::UNSUPPORTED_CONTENT,
            "messages[0].content[0]",
        ),
        (
            user(json!([text, {"type": "document"}])),
            code::UNSUPPORTED_CONTENT,
            "messages[0].content[1]",
        ),
        (
            user(json!([{"type": "tool_result", "tool_use_id": "t"}])),
            code::TOOL_MESSAGE_WITHOUT_CALL,
            "messages[0].content[0].tool_use_id",
        ),
        (user(json!([{"text": "x"}])), code::DATA_TYPE, "messages[0].content[0]"),
        (user(json!([])), code::MISSING_CONTENT, "messages[0].content"),
        (user(json!("")), code::MISSING_CONTENT, "messages[0].content"),
        (user(json!(1)), code::DATA_TYPE, "messages[0].content"),
        (
            assistant(json!([{"type": "thinking", "thinking": "x"}])),
            code::UNSUPPORTED_CONTENT,
            "messages[1].content[0]",
        ),
        (assistant(json!([used, text])), code::UNSUPPORTED_CONTENT, "messages[1].content[1]"),
        (
            assistant(json!([{"type": "tool_use", "id": "t", "name": "f", "input": "x"}])),
            code::INVALID_TOOL_CALL,
            "messages[1].content[0]",
        ),
    ]);
}

#[test]
fn faults_of_alpacas_rows_are_named_with_their_places() {
    assert_faults(&[
        (json!({"instruction": "", "output": "a"}), code::MISSING_CONTENT, "instruction"),
        (json!({"instruction": "q", "output": 1}), code::DATA_TYPE, "output"),
        (json!({"instruction": "q", "output": "a", "input": 1}), code::DATA_TYPE, "input"),
        (json!({"instruction": "q", "output": "a", "history": "x"}), code::DATA_TYPE, "history"),
        (
            json!({"instruction": "q", "output": "a", "history": [["x"]]}),
            code::DATA_TYPE,
            "history[0]",
        ),
        (json!({"instruction": "q", "output": "a", "mood": "x"}), code::UNRECOGNIZED_KEY, "mood"),
    ]);
}

#[test]
fn faults_of_sharegpts_rows_are_named_with_their_places() {
    let sharegpt = |turns: Value| json!({ "conversations": turns });
    assert_faults(&[
        (sharegpt(json!([])), code::MISSING_MESSAGES_LIST, "conversations"),
        (sharegpt(json!("x")), code::DATA_TYPE, "conversations"),
        (
            sharegpt(json!([turn("human", "q")])),
            code::EXAMPLE_MISSING_ASSISTANT_MESSAGE,
            "conversations",
        ),
        (
            sharegpt(json!([turn("human", "q"), turn("gpt", "")])),
            code::MISSING_CONTENT,
            "conversations[1].value",
        ),
        (
            sharegpt(json!([turn("bot", "q"), turn("gpt", "a")])),
            code::UNRECOGNIZED_ROLE,
            "conversations[0].from",
        ),
        (
            sharegpt(json!([{"value": "q"}, turn("gpt", "a")])),
            code::MISSING_KEY,
            "conversations[0].from",
        ),
        (
            sharegpt(json!([turn("observation", "q"), turn("gpt", "a")])),
            code::TOOL_MESSAGE_WITHOUT_CALL,
            "conversations[0]",
        ),
        (
            sharegpt(json!([turn("human", "q"), turn("function_call", "f(x)")])),
            code::INVALID_TOOL_CALL,
            "conversations[1].value",
        ),
        (
            sharegpt(json!([{"from": "human", "value": "q", "weight": 1}, turn("gpt", "a")])),
            code::WEIGHT_ON_NON_ASSISTANT,
            "conversations[0].weight",
        ),
        (
            sharegpt(json!([turn("human", "q"), {"from": "gpt", "value": "a", "weight": 2}])),
            code::INVALID_WEIGHT,
            "conversations[1].weight",
        ),
        (json!({"conversations": [turn("gpt", "a")], "tools": "x"}), code::DATA_TYPE, "tools"),
    ]);
}

#[test]
fn faults_of_prompts_and_completions_are_named_with_their_places() {
    assert_faults(&[
        (json!({"prompt": "q", "completion": ""}), code::MISSING_CONTENT, "completion"),
        (json!({"prompt": 1, "completion": "a"}), code::DATA_TYPE, "prompt"),
        (json!({"question": "", "answer": "a"}), code::MISSING_CONTENT, "question"),
        (json!({"prompt": "q", "completion": "a", "weight": 1}), code::UNRECOGNIZED_KEY, "weight"),
        (
            json!({"prompt": [says("bot", "q")], "completion": "a"}),
            code::UNRECOGNIZED_ROLE,
            "prompt[0].role",
        ),
    ]);
}

#[test]
fn faults_of_chosen_and_rejected_are_named_with_their_places() {
    let asked = says("user", "q");
    assert_faults(&[
        (json!({"chosen": "a", "rejected": "b"}), code::MISSING_KEY, "prompt"),
        (json!({"prompt": "q", "chosen": "", "rejected": "b"}), code::MISSING_CONTENT, "chosen"),
        (json!({"prompt": "q", "chosen": "a", "rejected": 1}), code::DATA_TYPE, "rejected"),
        (
            json!({"prompt": [asked], "chosen": [says("assistant", "a"), asked], "rejected": "b"}),
            code::UNRECOGNIZED_ROLE,
            "chosen[1].role",
        ),
        (
            json!({"prompt": "x", "chosen": [asked, says("assistant", "a")],
                "rejected": [asked, says("assistant", "b")]}),
            code::DATA_TYPE,
            "prompt",
        ),
        (
            json!({"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "weight": 1}], "rejected": "b"}),
            code::MESSAGE_UNRECOGNIZED_KEY,
            "chosen[0].weight",
        ),
    ]);
}

#[test]
fn what_is_read_of_another_shape_is_a_good_row_of_openais() {
    for (shape, row) in same_conversations() {
        for conversation in good(&row, shape) {
            let row = json!({"messages": conversation.messages()}).to_string();
            let again = Conversation::parse(1, &row).unwrap();
            assert_eq!(again.messages(), conversation.messages());
            assert_eq!(again.trained(), conversation.trained());
        }
    }
}

#[test]
fn a_special_token_is_named_by_its_place() {
    let row = json!({"conversations": [turn("human", "x <|im_end|>"), turn("gpt", "a")]});
    let mut checker = crate::Checker::new(
        Box::leak(Box::new(testing::chat_ml())),
        crate::Limits::new(crate::FileRole::Validation, Format::Chat, 100),
    );
    checker.push(row.to_string().as_bytes());
    let problem = &checker.finish().problems[0];
    assert_eq!(
        (problem.code, problem.path.as_deref()),
        (code::SPECIAL_TOKEN, Some("conversations[0].value"))
    );
}
