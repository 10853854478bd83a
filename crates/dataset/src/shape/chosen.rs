//! Preference pairs as `chosen` and `rejected`: two texts with their `prompt`, or two lists of messages, with
//! `prompt` or with the beginning that they share inside.

use serde_json::{Map, Value};

use super::turns::Turns;
use crate::message::MessageList;
use crate::preference::Pair;
use crate::problem::{ProblemList, code};
use crate::row::{Conversation, Source, is_assistant};

const CHOSEN: MessageList = MessageList { path: "chosen", noun: "chosen message" };
const REJECTED: MessageList = MessageList { path: "rejected", noun: "rejected message" };
/// `question` is what some data sets call the prompt.
const PROMPTS: [&str; 2] = ["prompt", "question"];

pub(super) fn read(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<Pair> {
    let mut input = Turns::new(line, problems);
    input.check_keys(&row, &["prompt", "question", "chosen", "rejected", "system", "tools"], "");
    input.take_system(&mut row);
    input.take_tools(&mut row);
    let prompt = PROMPTS.into_iter().find_map(|key| row.remove(key).map(|value| (key, value)));
    let answers = [CHOSEN, REJECTED].map(|list| (list, row.remove(list.path)));
    let shared = shared(&answers);
    match prompt {
        Some((key, Value::String(text))) if shared > 0 => {
            let mut begin = list_of(&answers[0].1).iter().take(shared);
            let text = Value::String(text);
            if !begin.any(|message| message.get("content") == Some(&text)) {
                let what = "is not in the beginning that 'chosen' and 'rejected' share";
                input.fault(code::DATA_TYPE, key, what);
            }
        }
        Some((key, value)) => input.take_text_or_messages(key, "user", Some(value)),
        None if shared == 0 => {
            let what =
                "is missing, and 'chosen' and 'rejected' do not begin with the same messages";
            input.fault(code::MISSING_KEY, "prompt", what);
        }
        None => {}
    }
    let calls = input.calls.clone();
    let (before, places, tools) = input.into_parts();
    let mut conversations = Vec::new();
    for (list, answer) in answers {
        let mut turns = Turns::new(line, problems);
        turns.calls.clone_from(&calls);
        turns.take_text_or_messages(list.path, "assistant", answer);
        turns.check_answer(list, shared);
        let (messages, own, _) = turns.into_parts();
        let answer_start = before.len() + shared;
        let messages = [before.as_slice(), &messages].concat();
        let trained = messages.iter().enumerate();
        let trained = trained.map(|(at, m)| at >= answer_start && is_assistant(m)).collect();
        let source = Source::Own { answer_start, places: [places.as_slice(), &own].concat() };
        conversations.push(Conversation::new(line, messages, tools.clone(), trained, source));
    }
    if !problems.is_empty() {
        return None;
    }
    let conversations = conversations.try_into().ok()?;
    Some(Pair { conversations, old_keys: false })
}

fn list_of(answer: &Option<Value>) -> &[Value] {
    answer.as_ref().and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// How many messages both lists begin with, when they begin with what is no answer.
fn shared(answers: &[(MessageList, Option<Value>); 2]) -> usize {
    let (chosen, rejected) = (list_of(&answers[0].1), list_of(&answers[1].1));
    if chosen.first().is_none_or(is_assistant) {
        return 0;
    }
    let equal = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
    // Two equal answers share everything; the answer is still the last message of each.
    equal.min(chosen.len() - 1).min(rejected.len().saturating_sub(1))
}
