//! Tokens of a training row, and which of them are targets.
//!
//! Targets are the tokens of each trained assistant message and its end-of-turn token: not the
//! header of the turn (`<|im_start|>assistant\n`), not what stands between turns. A token that
//! holds both a piece of the header and a piece of the answer is a target.
//!
//! Templates do not say where the answers are, so they are found in the rendered text: a header
//! that has a special token in it can come from the template alone (rows that spell special tokens
//! are refused), so its k-th occurrence begins the k-th assistant message. Where a template has no
//! such header, the rendering of the messages before it (with generation prompt) must be a
//! beginning of the whole text. What stands between the header and the end of the turn must then
//! end with the message's own text. Where one of this fails, the row is an error: a wrong mask
//! trains silently.

use minijinja::Value as TemplateValue;
use serde_json::json;

use crate::encode::Encoded;
use crate::error::TemplateError;
use crate::row::{Conversation, is_assistant};
use crate::tokenizer::{ChatTokenizer, Prepared};

/// The tokens of one row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    pub input_ids: Vec<u32>,
    /// `is_target[i]`: token i is predicted (from the ones before it) and counted. Never the first.
    pub is_target: Vec<bool>,
    /// Whether tokens were cut off at the end.
    pub truncated: bool,
    /// Tokens before truncation.
    pub full_len: usize,
}

impl Example {
    /// Number of target tokens.
    pub fn targets(&self) -> usize {
        self.is_target.iter().filter(|&&target| target).count()
    }
}

/// What the template writes before an assistant's answer, if it has a special token in it.
#[derive(Debug, Default)]
pub(crate) struct Header(Option<String>);

/// Most bytes to render for one row while looking for its answers: thousands of turns in one row
/// would otherwise cost their square.
const MAX_RENDERED: usize = 64 << 20;

const PROBE_QUESTION: &str = "qjx";
const PROBE_ANSWER: &str = "vkz";

impl ChatTokenizer {
    /// Turns a checked row into at most `max_tokens` tokens with their loss mask.
    pub fn encode_example(
        &self,
        conversation: &Conversation,
        max_tokens: usize,
    ) -> Result<Example, TemplateError> {
        self.refuse_special_tokens(conversation)?;
        let messages = conversation.messages();
        let prepared = self.prepare(messages, conversation.tools())?;
        let text = self.render_prepared(&prepared, messages.len(), false)?;
        let Encoded { mut ids, offsets } = self.encode(&text)?;
        let mut is_target = vec![false; ids.len()];
        let starts = self.answer_starts(&text, conversation, &prepared)?;
        let mut from = 0;
        for (index, start) in starts {
            while offsets.get(from).is_some_and(|offset| offset.1 as usize <= start) {
                from += 1;
            }
            let end = (from..ids.len()).find(|&at| self.stop_ids().contains(&ids[at]));
            let end = end.ok_or(TemplateError::NoEndOfTurn { message: index + 1 })?;
            let answer = text.get(start..offsets[end].0 as usize).unwrap_or_default();
            if !says(answer, &prepared.messages[index]) {
                return Err(TemplateError::ContentChanged { message: index + 1 });
            }
            is_target[from..=end].fill(true);
        }
        if let Some(first) = is_target.first_mut() {
            *first = false;
        }
        let full_len = ids.len();
        let kept = full_len.min(max_tokens);
        ids.truncate(kept);
        ids.shrink_to_fit();
        is_target.truncate(kept);
        is_target.shrink_to_fit();
        Ok(Example { input_ids: ids, is_target, truncated: kept < full_len, full_len })
    }

    fn refuse_special_tokens(&self, conversation: &Conversation) -> Result<(), TemplateError> {
        for (index, message) in conversation.messages().iter().enumerate() {
            if let Some(token) = self.control.find_in(message) {
                let token = token.to_owned();
                return Err(TemplateError::SpecialToken { message: index + 1, token });
            }
        }
        match conversation.tools().iter().find_map(|tool| self.control.find_in(tool)) {
            Some(token) => {
                Err(TemplateError::Render(format!("a tool contains the special token {token}")))
            }
            None => Ok(()),
        }
    }

    /// For each trained message: its index, and where its answer begins in `text` (bytes).
    fn answer_starts(
        &self,
        text: &str,
        conversation: &Conversation,
        prepared: &Prepared,
    ) -> Result<Vec<(usize, usize)>, TemplateError> {
        let messages = conversation.messages();
        let trained = || (0..messages.len()).filter(|&index| conversation.trained()[index]);
        if let Some(header) = &self.header.0 {
            let ends = || text.match_indices(header.as_str()).map(|(at, _)| at + header.len());
            let assistants = || messages.iter().enumerate().filter(|(_, m)| is_assistant(m));
            if ends().count() == assistants().count() {
                let all = assistants().map(|(index, _)| index).zip(ends());
                return Ok(all.filter(|&(index, _)| conversation.trained()[index]).collect());
            }
        }
        let mut starts = Vec::new();
        let mut rendered = 0;
        for index in trained() {
            let before = self.render_prepared(prepared, index, true)?;
            rendered += before.len();
            if rendered > MAX_RENDERED {
                return Err(TemplateError::TooExpensive);
            }
            if !text.starts_with(&before) {
                return Err(TemplateError::HeaderNotFound { message: index + 1 });
            }
            starts.push((index, before.len()));
        }
        Ok(starts)
    }

    /// Learns the header and the end-of-turn token from one small conversation.
    pub(crate) fn learn_from_probe(&mut self) {
        let question = json!({"role": "user", "content": PROBE_QUESTION});
        let answer = json!({"role": "assistant", "content": PROBE_ANSWER});
        let Ok(prepared) = self.prepare(&[question, answer], &[]) else { return };
        let render = |count, generate| self.render_prepared(&prepared, count, generate).ok();
        let header = render(1, false).zip(render(1, true)).and_then(|(asked, prompt)| {
            let header = prompt.strip_prefix(asked.as_str())?;
            self.control.find(header).map(|_| header.to_owned())
        });
        let stop = render(2, false).and_then(|whole| {
            let end = whole.rfind(PROBE_ANSWER)? + PROBE_ANSWER.len();
            let encoded = self.encode(&whole).ok()?;
            let after = encoded.ids.iter().zip(&encoded.offsets);
            let mut after =
                after.skip_while(|(_, offset)| (offset.0 as usize) < end).map(|(id, _)| *id);
            after.find(|id| self.special_ids.binary_search(id).is_ok())
        });
        self.header = Header(header);
        self.add_stop_id(stop);
    }
}

/// Whether the rendered answer is what the message says.
fn says(answer: &str, message: &TemplateValue) -> bool {
    let calls = message.get_attr("tool_calls").ok().filter(|calls| !calls.is_undefined());
    let content = message.get_attr("content").ok();
    let content = content.as_ref().and_then(|content| content.as_str()).unwrap_or_default().trim();
    let Some(calls) = calls else { return answer.trim_end().ends_with(content) };
    let called = |call: TemplateValue| {
        let name = call.get_attr("function").and_then(|function| function.get_attr("name"));
        name.ok().and_then(|name| Some(answer.contains(name.as_str()?))).unwrap_or(false)
    };
    answer.contains(content) && calls.try_iter().is_ok_and(|mut calls| calls.all(called))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::testing;

    fn spans(tokenizer: &ChatTokenizer, row: Value) -> Result<Vec<String>, TemplateError> {
        let conversation = Conversation::parse(1, &row.to_string()).unwrap();
        let example = tokenizer.encode_example(&conversation, 10_000)?;
        let mut spans: Vec<String> = Vec::new();
        let mut open = false;
        for (id, target) in example.input_ids.iter().zip(&example.is_target) {
            if *target {
                if !open {
                    spans.push(String::new());
                }
                let text = tokenizer.tokenizer.decode(&[*id], false).unwrap();
                spans.last_mut().unwrap().push_str(&text);
            }
            open = *target;
        }
        Ok(spans)
    }

    fn turns(turns: &[(&str, &str)]) -> Value {
        let turns = turns.iter().map(|(role, text)| json!({"role": role, "content": text}));
        json!({"messages": turns.collect::<Vec<_>>()})
    }

    #[test]
    fn targets_are_answers_with_their_end_of_turn() {
        let row =
            turns(&[("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two")]);
        let spans = spans(&testing::chat_ml(), row).unwrap();
        assert_eq!(spans, ["one<|im_end|>", "two<|im_end|>"]);
    }

    #[test]
    fn weight_zero_is_masked() {
        let mut row =
            turns(&[("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two")]);
        row["messages"][1]["weight"] = json!(0);
        assert_eq!(spans(&testing::chat_ml(), row.clone()).unwrap(), ["two<|im_end|>"]);
        row["messages"][3]["weight"] = json!(0);
        assert_eq!(spans(&testing::chat_ml(), row).unwrap(), [""; 0]);
    }

    #[test]
    fn a_conversation_may_begin_with_the_assistant() {
        let row = turns(&[("assistant", "hello"), ("user", "q"), ("assistant", "two")]);
        let spans = spans(&testing::chat_ml(), row).unwrap();
        assert_eq!(spans, ["hello<|im_end|>", "two<|im_end|>"]);
    }

    #[test]
    fn answers_that_spell_the_header_in_plain_words_do_not_confuse() {
        let row = turns(&[("user", "assistant\n"), ("assistant", "assistant\nassistant\n")]);
        let spans = spans(&testing::chat_ml(), row).unwrap();
        assert_eq!(spans, ["assistant\nassistant\n<|im_end|>"]);
    }

    #[test]
    fn a_row_that_spells_a_special_token_is_refused() {
        let row = turns(&[("user", "q<|im_end|>"), ("assistant", "one")]);
        let error = spans(&testing::chat_ml(), row).unwrap_err();
        let token = "<|im_end|>".to_owned();
        assert_eq!(error, TemplateError::SpecialToken { message: 1, token });
    }

    #[test]
    fn a_template_without_header_tokens_uses_the_rendering_of_what_came_before() {
        let tokenizer = testing::with_template(
            "{% for m in messages %}{% if m.role == 'user' %}[Q]{{ m.content }}[/Q]{% else %}\
             {{ m.content }}<|im_end|>{% endif %}{% endfor %}",
        );
        let row =
            turns(&[("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two")]);
        assert_eq!(spans(&tokenizer, row).unwrap(), ["one<|im_end|>", "two<|im_end|>"]);
    }

    #[test]
    fn a_template_that_rewrites_what_came_before_is_an_error() {
        let tokenizer = testing::with_template(
            "{% for m in messages %}{% if m.role == 'user' %}[{{ messages | length }}]\
             {{ m.content }}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
        );
        let row =
            turns(&[("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two")]);
        let error = spans(&tokenizer, row).unwrap_err();
        assert_eq!(error, TemplateError::HeaderNotFound { message: 2 });
    }

    #[test]
    fn a_template_that_drops_part_of_an_answer_is_an_error() {
        let tokenizer = testing::with_template(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('/')[-1] }}\
             <|im_end|>\n{% endfor %}\
             {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        );
        let kept = turns(&[("user", "q"), ("assistant", "one")]);
        assert_eq!(spans(&tokenizer, kept).unwrap(), ["one<|im_end|>"]);
        let dropped = turns(&[("user", "q"), ("assistant", "one/two")]);
        let error = spans(&tokenizer, dropped).unwrap_err();
        assert_eq!(error, TemplateError::ContentChanged { message: 2 });
    }

    #[test]
    fn a_template_that_drops_one_of_two_calls_is_an_error() {
        let tokenizer = testing::with_template(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
             {% if m.tool_calls %}{{ m.tool_calls[0] | tojson }}{% endif %}<|im_end|>\n\
             {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        );
        let call = |name: &str| json!({"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}});
        let row = json!({"messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls": [call("weather"), call("clock")]}]});
        let error = spans(&tokenizer, row).unwrap_err();
        assert_eq!(error, TemplateError::ContentChanged { message: 2 });
    }

    #[test]
    fn truncation_cuts_the_end_and_says_so() {
        let tokenizer = testing::chat_ml();
        let row = turns(&[("user", "q"), ("assistant", "one two three four")]);
        let row = Conversation::parse(1, &row.to_string()).unwrap();
        let whole = tokenizer.encode_example(&row, usize::MAX).unwrap();
        assert!(!whole.truncated);
        let n = whole.input_ids.len();
        let cut = tokenizer.encode_example(&row, n - 3).unwrap();
        assert_eq!(cut.input_ids, whole.input_ids[..n - 3]);
        assert_eq!(cut.is_target, whole.is_target[..n - 3]);
        assert_eq!((cut.truncated, cut.full_len), (true, n));
    }
}
