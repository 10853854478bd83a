//! One row of OpenAI's supervised chat format: checked key by key, all faults and not only the
//! first.
//!
//! What a row means to a model (its chat template, its special tokens, its length) is not looked at
//! here.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::message::{MessageList, check_message, name_of_type};
use crate::problem::{Problem, ProblemList, code};

pub(crate) const ROW_KEYS: [&str; 4] = ["messages", "tools", "parallel_tool_calls", "functions"];

/// One checked row.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    line: u64,
    messages: Vec<Value>,
    tools: Vec<Value>,
    trained: Vec<bool>,
    source: Source,
}

/// Where the messages of a conversation stand in its row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// In `messages`.
    Chat,
    /// In `input.messages`, and from `start` on in the list of the answer.
    Answer { start: usize, list: MessageList },
    /// In another shape: the path of each. An answer that is compared with another begins at
    /// `answer_start`.
    Own { answer_start: usize, places: Vec<String> },
}

impl Conversation {
    /// The 1-based line that the row came from.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// OpenAI's message objects: as in the file, or what another shape says in them.
    pub fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// Tool definitions; the deprecated `functions` are given as tools.
    pub fn tools(&self) -> &[Value] {
        &self.tools
    }

    /// For each message, whether its tokens are targets: an assistant's message without `weight:
    /// 0`.
    pub fn trained(&self) -> &[bool] {
        &self.trained
    }

    /// An input with one of the answers to it, which alone is trained.
    pub(crate) fn with_answer(
        line: u64,
        (input, tools): (&[Value], &[Value]),
        (list, answer): (MessageList, &[Value]),
    ) -> Self {
        Self {
            line,
            messages: [input, answer].concat(),
            tools: tools.to_vec(),
            trained: input.iter().map(|_| false).chain(answer.iter().map(is_assistant)).collect(),
            source: Source::Answer { start: input.len(), list },
        }
    }

    /// `messages` and `tools` must be good ones of OpenAI's.
    pub(crate) fn new(
        line: u64,
        messages: Vec<Value>,
        tools: Vec<Value>,
        trained: Vec<bool>,
        source: Source,
    ) -> Self {
        Self { line, messages, tools, trained, source }
    }

    /// Where message `index` stands in the row, as a path and in words.
    pub(crate) fn place(&self, index: usize) -> (String, String) {
        match &self.source {
            Source::Chat => MessageList::CHAT.place(index),
            Source::Answer { start, .. } if index < *start => MessageList::INPUT.place(index),
            Source::Answer { start, list } => list.place(index - start),
            Source::Own { places, .. } => {
                let place = places.get(index).cloned().unwrap_or_default();
                (place.clone(), place)
            }
        }
    }

    /// The same of a field of that message.
    pub(crate) fn place_of_field(&self, index: usize, key: &str) -> (String, String) {
        let (path, words) = self.place(index);
        match self.source {
            // The field has another name there, or none.
            Source::Own { .. } => (path, words),
            _ => (format!("{path}.{key}"), format!("{words}, key '{key}'")),
        }
    }

    /// Whether the row counts its messages as [`messages`](Self::messages) does.
    pub(crate) fn is_openais(&self) -> bool {
        self.source == Source::Chat
    }

    /// Where a compared answer begins among the messages; 0 without one.
    pub(crate) fn answer_start(&self) -> usize {
        match self.source {
            Source::Chat => 0,
            Source::Answer { start, .. } | Source::Own { answer_start: start, .. } => start,
        }
    }

    /// The path of the tools in the row.
    pub(crate) fn tools_path(&self) -> &'static str {
        if matches!(self.source, Source::Answer { .. }) { "input.tools" } else { "tools" }
    }

    /// Checks one row of a file. `text` is the row's JSON.
    pub fn parse(line: u64, text: &str) -> Result<Self, Vec<Problem>> {
        let mut problems = ProblemList::new(usize::MAX);
        let row = read_object(line, text, &mut problems);
        row.and_then(|row| read_row(line, row, &mut problems)).ok_or(problems.kept)
    }
}

/// Reads a row's JSON.
pub(crate) fn read_object(
    line: u64,
    text: &str,
    problems: &mut ProblemList,
) -> Option<Map<String, Value>> {
    match crate::json::read(line, text, problems)? {
        Value::Object(row) => Some(row),
        other => {
            let message =
                format!("Example {line} is {}, but must be a JSON object", name_of_type(&other));
            problems.push(Problem::of_line(code::DATA_TYPE, line, message));
            None
        }
    }
}

/// Checks one row; none when it has a fault.
pub(crate) fn read_row(
    line: u64,
    mut row: Map<String, Value>,
    problems: &mut ProblemList,
) -> Option<Conversation> {
    if !row.contains_key("messages") {
        let message = format!("Example {line} is missing key 'messages'.");
        problems.push(
            Problem::of_line(code::MISSING_MESSAGES_LIST, line, message).at("messages".to_owned()),
        );
        return None;
    }
    check_keys(line, &row, &ROW_KEYS, "", problems);
    let tools = take_tools(line, &mut row, "", problems);
    let (messages, trained) = take_messages(line, &mut row, problems);
    let whole = problems.is_empty();
    whole.then_some(Conversation { line, messages, tools, trained, source: Source::Chat })
}

/// Refuses keys that have no meaning. `within` is the object's own path with its dot, or empty.
pub(crate) fn check_keys(
    line: u64,
    row: &Map<String, Value>,
    known: &[&str],
    within: &str,
    problems: &mut ProblemList,
) {
    for key in row.keys().filter(|key| !known.contains(&key.as_str())) {
        let key = format!("{within}{}", short(key));
        let message = format!("Example {line} contains an extra \"{key}\".");
        problems.push(Problem::of_line(code::UNRECOGNIZED_KEY, line, message).at(key));
    }
    if let Some(value) = row.get("parallel_tool_calls")
        && !value.is_boolean()
    {
        let found = name_of_type(value);
        let key = format!("{within}parallel_tool_calls");
        let message = format!("Example {line} key '{key}' is {found}, but must be a boolean");
        problems.push(Problem::of_line(code::DATA_TYPE, line, message).at(key));
    }
}

fn take_messages(
    line: u64,
    row: &mut Map<String, Value>,
    problems: &mut ProblemList,
) -> (Vec<Value>, Vec<bool>) {
    let messages = match row.remove("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        Some(Value::Array(_)) => {
            let message = format!("Example {line} has no message: 'messages' is an empty list");
            problems
                .push(Problem::of_line(code::MISSING_MESSAGES_LIST, line, message).at("messages"));
            return Default::default();
        }
        other => {
            let found = other.as_ref().map_or("missing", name_of_type);
            let message = format!("Example {line} key 'messages' is {found}, but must be a list");
            problems.push(Problem::of_line(code::DATA_TYPE, line, message).at("messages"));
            return Default::default();
        }
    };
    let mut calls = HashSet::new();
    for (index, message) in messages.iter().enumerate() {
        check_message(line, MessageList::CHAT, index, message, &mut calls, problems);
    }
    if !messages.iter().any(is_assistant) {
        let message = format!("Example {line} has no assistant message");
        let problem = Problem::of_line(code::EXAMPLE_MISSING_ASSISTANT_MESSAGE, line, message);
        problems.push(problem.at("messages"));
    }
    let weight = |message: &Value| message.get("weight").and_then(Value::as_i64).unwrap_or(1);
    let trained = messages.iter().map(|m| is_assistant(m) && weight(m) != 0).collect();
    (messages, trained)
}

pub(crate) fn is_assistant(message: &Value) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

/// Takes the tools out of an object; `within` as in [`check_keys`].
pub(crate) fn take_tools(
    line: u64,
    row: &mut Map<String, Value>,
    within: &str,
    problems: &mut ProblemList,
) -> Vec<Value> {
    let mut tools = Vec::new();
    for (key, tool) in list_of(line, "tools", row, within, problems).into_iter().enumerate() {
        let named = tool.get("type").and_then(Value::as_str) == Some("function")
            && tool.pointer("/function/name").is_some_and(Value::is_string);
        if !named {
            let message = format!(
                "Example {line}, tool {} is not of the form \
                 {{\"type\":\"function\",\"function\":{{\"name\":…}}}}",
                key + 1
            );
            let problem = Problem::of_line(code::INVALID_TOOL, line, message);
            problems.push(problem.at(format!("{within}tools[{key}]")));
        }
        tools.push(tool);
    }
    for (key, function) in list_of(line, "functions", row, within, problems).into_iter().enumerate()
    {
        if !function.get("name").is_some_and(Value::is_string) {
            let message = format!("Example {line}, function {} has no name", key + 1);
            let problem = Problem::of_line(code::INVALID_TOOL, line, message);
            problems.push(problem.at(format!("{within}functions[{key}]")));
        }
        tools.push(serde_json::json!({"type": "function", "function": function}));
    }
    tools
}

fn list_of(
    line: u64,
    key: &str,
    row: &mut Map<String, Value>,
    within: &str,
    problems: &mut ProblemList,
) -> Vec<Value> {
    match row.remove(key) {
        None => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(other) => {
            let found = name_of_type(&other);
            let key = format!("{within}{key}");
            let message = format!("Example {line} key '{key}' is {found}, but must be a list");
            problems.push(Problem::of_line(code::DATA_TYPE, line, message).at(key));
            Vec::new()
        }
    }
}

/// Text from the file for use inside a message: printable and short.
pub(crate) fn short(text: &str) -> String {
    let mut out: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
    if text.chars().nth(64).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<(&'static str, String, String)> {
        let problems = Conversation::parse(3, text).err().unwrap_or_default();
        let place = |p: &Problem| p.path.clone().unwrap_or_default();
        problems.iter().map(|p| (p.code, place(p), p.message.clone())).collect()
    }

    fn codes(text: &str) -> Vec<(&'static str, String)> {
        faults(text).into_iter().map(|(code, path, _)| (code, path)).collect()
    }

    fn one(text: &str) -> (&'static str, String) {
        let all = codes(text);
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }

    const ASSISTANT: &str = r#"{"role":"assistant","content":"a"}"#;

    fn with(message: &str) -> String {
        format!(r#"{{"messages":[{message},{ASSISTANT}]}}"#)
    }

    #[test]
    fn accepts_a_plain_row_and_trains_on_every_assistant_message_of_weight_one() {
        let row = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},
            {"role":"assistant","content":"a","weight":0},{"role":"user","content":"v"},
            {"role":"assistant","content":"b","weight":1},{"role":"assistant","content":"c"}],
            "parallel_tool_calls":false}"#;
        let row = Conversation::parse(1, row).unwrap();
        assert_eq!(row.trained(), [false, false, false, false, true, true]);
    }

    #[test]
    fn accepts_tools_and_deprecated_functions() {
        let row = r#"{"messages":[{"role":"user","content":"u"},
            {"role":"assistant","tool_calls":[{"id":"c1","type":"function",
             "function":{"name":"f","arguments":"{}"}}]},
            {"role":"tool","tool_call_id":"c1","content":"r"},
            {"role":"assistant","content":null,"function_call":{"name":"g","arguments":"{}"}},
            {"role":"function","name":"g","content":"r"},
            {"role":"assistant","content":[{"type":"text","text":"done"}]}],
            "tools":[{"type":"function","function":{"name":"f"}}],"functions":[{"name":"g"}]}"#;
        let row = Conversation::parse(1, row).unwrap();
        let names: Vec<_> = row.tools().iter().map(|t| t.pointer("/function/name")).collect();
        assert_eq!(names, [Some(&Value::from("f")), Some(&Value::from("g"))]);
    }

    #[test]
    fn uses_the_known_texts() {
        let missing = faults(r#"{"prompt":"p"}"#);
        assert_eq!(missing[0].2, "Example 3 is missing key 'messages'.");
        let role = faults(&with(r#"{"content":"x"}"#));
        assert_eq!(role[0].2, "Example 3, message 1 Discriminator 'role' is missing in value");
        let extra = faults(&format!(r#"{{"messages":[{ASSISTANT}],"weight":1}}"#));
        assert_eq!(extra[0].2, "Example 3 contains an extra \"weight\".");
    }

    #[test]
    fn reports_all_faults_of_a_row() {
        let row = r#"{"messages":[{"role":"bot","content":"x"},{"role":"user"},
            {"role":"user","content":"x","weight":1,"mood":"good"},7],"extra":1,"tools":{}}"#;
        let expected = [
            (code::UNRECOGNIZED_KEY, "extra"),
            (code::DATA_TYPE, "tools"),
            (code::UNRECOGNIZED_ROLE, "messages[0].role"),
            (code::MISSING_CONTENT, "messages[1].content"),
            (code::WEIGHT_ON_NON_ASSISTANT, "messages[2].weight"),
            (code::MESSAGE_UNRECOGNIZED_KEY, "messages[2].mood"),
            (code::DATA_TYPE, "messages[3]"),
            (code::EXAMPLE_MISSING_ASSISTANT_MESSAGE, "messages"),
        ];
        let mut found = codes(row);
        let mut expected: Vec<_> = expected.iter().map(|(c, p)| (*c, (*p).to_owned())).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn weight_must_be_the_integer_zero_or_one() {
        for weight in ["2", "-1", "0.5", "1.0", "true", "\"1\"", "null"] {
            let row = format!(
                r#"{{"messages":[{{"role":"assistant","content":"a","weight":{weight}}}]}}"#
            );
            assert_eq!(one(&row), (code::INVALID_WEIGHT, "messages[0].weight".to_owned()));
        }
    }

    #[test]
    fn an_assistant_message_needs_something_to_say() {
        for message in [
            r#"{"role":"assistant"}"#,
            r#"{"role":"assistant","content":null}"#,
            r#"{"role":"assistant","content":""}"#,
            r#"{"role":"assistant","content":[]}"#,
        ] {
            let row = format!(r#"{{"messages":[{message}]}}"#);
            assert_eq!(one(&row).0, code::MISSING_CONTENT, "{message}");
        }
    }

    #[test]
    fn a_tool_message_must_answer_an_earlier_call() {
        let call = r#"{"role":"assistant","tool_calls":[{"id":"c1","type":"function",
            "function":{"name":"f","arguments":"{}"}}]}"#;
        let tool = r#"{"role":"tool","tool_call_id":"c1","content":"r"}"#;
        assert_eq!(codes(&format!(r#"{{"messages":[{call},{tool}]}}"#)), []);
        let early = format!(r#"{{"messages":[{tool},{call}]}}"#);
        assert_eq!(
            one(&early),
            (code::TOOL_MESSAGE_WITHOUT_CALL, "messages[0].tool_call_id".to_owned())
        );
        let bare = with(r#"{"role":"tool","content":"r"}"#);
        assert_eq!(
            one(&bare),
            (code::TOOL_MESSAGE_WITHOUT_CALL, "messages[0].tool_call_id".to_owned())
        );
    }

    #[test]
    fn a_bad_tool_call_is_named() {
        let call = r#"{"role":"assistant","tool_calls":[{"id":"c1","type":"function",
            "function":{"name":"f","arguments":{}}}]}"#;
        let row = format!(r#"{{"messages":[{call}]}}"#);
        assert_eq!(one(&row), (code::INVALID_TOOL_CALL, "messages[0].tool_calls[0]".to_owned()));
    }

    #[test]
    fn images_and_audio_are_refused_by_name() {
        let row = with(
            r#"{"role":"user","content":[{"type":"text","text":"x"},
                {"type":"image_url","image_url":{"url":"u"}}]}"#,
        );
        let (code, path) = one(&row);
        assert_eq!((code, path.as_str()), (code::UNSUPPORTED_CONTENT, "messages[0].content[1]"));
    }

    #[test]
    fn values_of_the_wrong_type_do_not_panic() {
        for row in [
            "1",
            "[]",
            "null",
            r#"{"messages":1}"#,
            r#"{"messages":{}}"#,
            r#"{"messages":[[]]}"#,
            r#"{"messages":[{"role":1}]}"#,
            r#"{"messages":[{"role":"user","content":1}]}"#,
            r#"{"messages":[{"role":"assistant","tool_calls":1}]}"#,
            r#"{"messages":[{"role":"assistant","tool_calls":[1]}]}"#,
            r#"{"messages":[{"role":"assistant","content":[1]}]}"#,
            r#"{"messages":[{"role":"assistant","content":"a","name":1}]}"#,
            r#"{"messages":[{"role":"assistant","content":"a"}],"tools":[1]}"#,
            r#"{"messages":[{"role":"assistant","content":"a"}],"functions":[1]}"#,
            r#"{"messages":[{"role":"assistant","content":"a"}],"parallel_tool_calls":1}"#,
        ] {
            assert_ne!(faults(row).len(), 0, "{row}");
        }
    }
}
