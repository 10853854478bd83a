//! How a model writes calls of functions, learned from its chat template; and our own way for models whose
//! template knows none.
//!
//! A probe is rendered: what stands around the probe's call is what stands around every call. Templates that
//! drop calls, or refuse them, get them in the content of messages, in the form that most models use (JSON
//! between `<tool_call>` tags), in training rows and prompts alike. Reading calls in answers is the
//! engine's business.

use serde_json::{Map, Value, json};

use crate::chat::spaced_json;
use crate::tokenizer::ChatTokenizer;

const QUESTION: &str = "qjx";
const FUNCTION: &str = "qjxvkz";
const ARGUMENT: &str = "vkzqjx";
/// What some templates demand of a call's id.
const SHORT_ID: &str = "a1b2c3d4e";
const USUAL_ID: &str = "call_0123456789abcdef";

/// How an answer writes calls, each as a JSON object with `name` and the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallForm {
    /// What comes before a call; empty where a call is the whole answer.
    pub open: String,
    /// The same as the template writes it, with white space.
    pub lead: String,
    /// What comes after a call; may be empty.
    pub close: String,
    /// The special token that `open` is, if it is one: it is no text.
    pub open_token: Option<u32>,
    /// The key of the arguments.
    pub arguments_key: String,
    /// Calls stand in a list after `open`.
    pub list: bool,
}

impl Default for CallForm {
    fn default() -> Self {
        Self {
            open: "<tool_call>".to_owned(),
            lead: "<tool_call>\n".to_owned(),
            close: "</tool_call>".to_owned(),
            open_token: None,
            arguments_key: "arguments".to_owned(),
            list: false,
        }
    }
}

/// Who writes calls into a conversation.
#[derive(Debug, Default)]
pub(crate) enum Calls {
    /// The template; the form in which it does, where that is JSON.
    Template { form: Option<CallForm>, short_ids: bool },
    /// We, into the content.
    #[default]
    Content,
}

impl ChatTokenizer {
    /// How this model's answers write calls; none where they do it in a way that is not read.
    pub fn call_form(&self) -> Option<CallForm> {
        match &self.calls {
            Calls::Template { form, .. } => form.clone(),
            Calls::Content => Some(CallForm::default()),
        }
    }

    /// Whether conversations with these need our own form.
    pub(crate) fn writes_calls(&self, messages: &[Value], tools: &[Value]) -> bool {
        matches!(self.calls, Calls::Content)
            && (!tools.is_empty()
                || messages
                    .iter()
                    .any(|message| !calls_of(message).is_empty() || is_result(message)))
    }

    pub(crate) fn needs_short_ids(&self) -> bool {
        matches!(self.calls, Calls::Template { short_ids: true, .. })
    }

    pub(crate) fn learn_calls(&mut self) {
        for (id, short_ids) in [(USUAL_ID, false), (SHORT_ID, true)] {
            self.calls = Calls::Template { form: None, short_ids: false };
            if let Some(answer) = self.probe_call(id) {
                let form = self.form_of(&answer);
                self.calls = Calls::Template { form, short_ids };
                return;
            }
        }
        self.calls = Calls::Content;
    }

    /// What the template makes of an answer that is a call; none where it drops the call.
    fn probe_call(&self, id: &str) -> Option<String> {
        let parameters = json!({"type": "object", "properties": {ARGUMENT: {"type": "integer"}}});
        let tool = json!({"type": "function", "function":
            {"name": FUNCTION, "description": QUESTION, "parameters": parameters}});
        let call = json!({"id": id, "type": "function", "function":
            {"name": FUNCTION, "arguments": json!({ARGUMENT: 17}).to_string()}});
        let question = json!({"role": "user", "content": QUESTION});
        let answer = json!({"role": "assistant", "content": "", "tool_calls": [call]});
        let prepared = self.prepare(&[question, answer], &[tool]).ok()?;
        let asked = self.render_prepared(&prepared, 1, true).ok()?;
        let whole = self.render_prepared(&prepared, 2, false).ok()?;
        let answer = whole.strip_prefix(asked.as_str()).or_else(|| {
            let after = whole.rfind(QUESTION)? + QUESTION.len();
            Some(&whole[after..])
        })?;
        (answer.contains(FUNCTION) && answer.contains(ARGUMENT)).then(|| answer.to_owned())
    }

    fn form_of(&self, answer: &str) -> Option<CallForm> {
        let starts = answer.match_indices('{').map(|(at, _)| at);
        let (start, end, call) = starts.into_iter().find_map(|start| {
            let mut values = serde_json::Deserializer::from_str(&answer[start..]).into_iter();
            let value: Value = values.next()?.ok()?;
            let named = value.get("name").and_then(Value::as_str) == Some(FUNCTION);
            named.then(|| (start, start + values.byte_offset(), value))
        })?;
        let holds = |value: &Value| value.to_string().contains(ARGUMENT);
        let (arguments_key, _) =
            call.as_object()?.iter().find(|(key, value)| *key != "name" && holds(value))?;
        let lead = &answer[..start];
        let trimmed = lead.trim();
        let (open, list) = match trimmed.strip_suffix('[') {
            Some(open) => (open.trim_end(), true),
            None => (trimmed, false),
        };
        let rest = &answer[end..];
        let rest = self.control.find(rest).map_or(rest, |token| {
            let at = rest.find(token).unwrap_or(rest.len());
            let is_stop =
                self.tokenizer.token_to_id(token).is_some_and(|id| self.stop_ids().contains(&id));
            if is_stop {
                &rest[..at]
            } else {
                rest.split(self.stop_text().as_str()).next().unwrap_or(rest)
            }
        });
        let close = rest.trim().trim_start_matches(']').trim();
        let id = self
            .tokenizer
            .token_to_id(open)
            .filter(|id| self.special_ids.binary_search(id).is_ok());
        Some(CallForm {
            open: open.to_owned(),
            lead: lead.trim_start().to_owned(),
            close: close.to_owned(),
            open_token: id,
            arguments_key: arguments_key.clone(),
            list,
        })
    }

    /// The text of the token that ends a turn.
    fn stop_text(&self) -> String {
        let first = self.stop_ids().first().and_then(|id| self.tokenizer.id_to_token(*id));
        first.unwrap_or_else(|| "\u{0}".to_owned())
    }
}

fn calls_of(message: &Value) -> &[Value] {
    message.get("tool_calls").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_result(message: &Value) -> bool {
    message.get("role").and_then(Value::as_str) == Some("tool")
}

/// Messages whose calls, results and tools stand in their content. As many as before, in the same order.
pub(crate) fn in_content(messages: &mut [Value], tools: &[Value]) {
    for message in messages.iter_mut() {
        let calls = calls_of(message).to_vec();
        let Some(fields) = message.as_object_mut() else { continue };
        if !calls.is_empty() {
            let texts: Vec<String> = calls.iter().map(call_text).collect();
            let said = fields.get("content").and_then(Value::as_str).unwrap_or_default();
            let lines =
                [said, texts.join("\n").as_str()].join(if said.is_empty() { "" } else { "\n" });
            fields.remove("tool_calls");
            fields.insert("content".to_owned(), lines.into());
        } else if fields.get("role").and_then(Value::as_str) == Some("tool") {
            let result = fields.get("content").and_then(Value::as_str).unwrap_or_default();
            let content = format!("<tool_response>\n{result}\n</tool_response>");
            fields.retain(|key, _| key != "tool_call_id" && key != "name");
            fields.insert("role".to_owned(), "user".into());
            fields.insert("content".to_owned(), content.into());
        }
    }
    if tools.is_empty() {
        return;
    }
    let has_role =
        |message: &Value, role: &str| message.get("role").and_then(Value::as_str) == Some(role);
    let role =
        if messages.first().is_some_and(|m| has_role(m, "system")) { "system" } else { "user" };
    let first = messages.iter_mut().find(|message| has_role(message, role));
    let Some(Value::Object(fields)) = first else { return };
    let is_system = fields.get("role").and_then(Value::as_str) == Some("system");
    let content = fields.get("content").and_then(Value::as_str).unwrap_or_default();
    let tools = describe(tools);
    let content =
        if is_system { format!("{content}\n\n{tools}") } else { format!("{tools}\n\n{content}") };
    fields.insert("content".to_owned(), content.into());
}

fn call_text(call: &Value) -> String {
    let function = call.get("function").unwrap_or(call);
    let mut fields = Map::new();
    for key in ["name", "arguments"] {
        fields.insert(key.to_owned(), function.get(key).cloned().unwrap_or_default());
    }
    format!("<tool_call>\n{}\n</tool_call>", spaced_json(&Value::Object(fields)))
}

fn describe(tools: &[Value]) -> String {
    let lines: Vec<String> = tools.iter().map(spaced_json).collect();
    format!(
        "These functions can be called, one JSON object per line:\n<tools>\n{}\n</tools>\n\
         A call is a JSON object with the name and the arguments, between tags:\n\
         <tool_call>\n{{\"name\": \"…\", \"arguments\": {{…}}}}\n</tool_call>",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const HERMES: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
        {% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \"arguments\": \
        {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    const BARE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}\
        {\"name\": \"{{ m.tool_calls[0].function.name }}\", \"parameters\": \
        {{ m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    const LIST: &str = "{% for m in messages %}{% if m.role == 'user' %}[Q]{{ m.content }}[/Q]\
        {% elif m.tool_calls %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}\
        {{ raise_exception('ids of nine characters') }}{% endif %}{% endfor %}[CALLS] [\
        {% for c in m.tool_calls %}{\"name\": \"{{ c.function.name }}\", \"arguments\": \
        {{ c.function.arguments | tojson }}}{% endfor %}]<|im_end|>{% else %}{{ m.content }}<|im_end|>\
        {% endif %}{% endfor %}";
    const DEAF: &str = "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    #[test]
    fn the_form_of_calls_is_learned_from_the_template() {
        let form = |template| testing::with_template(template).call_form().unwrap();
        assert_eq!(form(HERMES), CallForm::default());
        assert_eq!(form(DEAF), CallForm::default());
        let bare = CallForm {
            open: String::new(),
            lead: String::new(),
            close: String::new(),
            open_token: None,
            arguments_key: "parameters".to_owned(),
            list: false,
        };
        assert_eq!(form(BARE), bare);
        let list = form(LIST);
        assert_eq!(
            (list.open.as_str(), list.lead.as_str(), list.list),
            ("[CALLS]", "[CALLS] [", true)
        );
        assert_eq!(list.close, "");
    }

    fn conversation() -> (Vec<Value>, Vec<Value>) {
        let call = json!({"id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\":\"Ulm\"}"}});
        let messages = vec![
            json!({"role": "user", "content": "How is it in Ulm?"}),
            json!({"role": "assistant", "content": null, "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "call_1", "content": "sunny"}),
            json!({"role": "assistant", "content": "Sunny."}),
        ];
        let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {}}});
        (messages, vec![tool])
    }

    #[test]
    fn templates_that_know_no_calls_get_them_in_the_content() {
        let (messages, tools) = conversation();
        let text = testing::with_template(DEAF).render(&messages, &tools, true).unwrap();
        let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\"}}\n</tool_call>";
        assert!(text.contains(&format!("<|im_start|>assistant\n{call}<|im_end|>")), "{text}");
        assert!(
            text.contains("<|im_start|>user\n<tool_response>\nsunny\n</tool_response>"),
            "{text}"
        );
        assert!(text.contains("<tools>\n{\"type\": \"function\""), "{text}");
        assert!(text.contains("</tool_call>\n\nHow is it in Ulm?<|im_end|>"), "{text}");
    }

    #[test]
    fn ids_are_shortened_where_the_template_demands_it() {
        let (messages, tools) = conversation();
        let text = testing::with_template(LIST).render(&messages[..2], &tools, false).unwrap();
        assert!(
            text.ends_with(
                "[CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\"}}]<|im_end|>"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_training_row_of_calls_has_them_as_targets() {
        let (messages, tools) = conversation();
        let row = json!({"messages": messages, "tools": tools}).to_string();
        let row = crate::Conversation::parse(1, &row).unwrap();
        for template in [HERMES, DEAF] {
            let tokenizer = testing::with_template(template);
            let example = tokenizer.encode_example(&row, 10_000).unwrap();
            let targets: Vec<u32> = example
                .input_ids
                .iter()
                .zip(&example.is_target)
                .filter(|(_, target)| **target)
                .map(|(id, _)| *id)
                .collect();
            let text = tokenizer.decode(&targets);
            assert_eq!(
                text,
                "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\"}}\n</tool_call>Sunny."
            );
        }
    }
}
