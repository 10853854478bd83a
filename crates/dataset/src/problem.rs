//! Faults of an uploaded file, as data: a stable code, the line, the place in the row, and a text.
//!
//! A file with a million faults must not fill the memory, so a [`ProblemList`] keeps the first ones
//! and counts the rest.

use std::fmt;

use serde::Serialize;

/// One fault of a data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// One of [`code`]; stable, made for programs.
    pub code: &'static str,
    /// 1-based line of the file; the same number as in "Example N". None: the file as a whole.
    pub line: Option<u64>,
    /// Where in the row, like `messages[1].content` (indexes from 0, as in JSON).
    pub path: Option<String>,
    /// For people, like `Example 3, message 2 …` (numbers from 1), without a prefix.
    pub message: String,
}

impl Problem {
    pub(crate) fn of_file(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, line: None, path: None, message: message.into() }
    }

    pub(crate) fn of_line(code: &'static str, line: u64, message: impl Into<String>) -> Self {
        Self { code, line: Some(line), path: None, message: message.into() }
    }

    pub(crate) fn at(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The codes of problems. Where OpenAI's published preparation notebook has a name, it is used.
pub mod code {
    pub const EMPTY_FILE: &str = "empty_file";
    pub const INVALID_N_EXAMPLES: &str = "invalid_n_examples";
    pub const UNEXPECTED_FORMAT: &str = "unexpected_format";
    pub const UNREADABLE_FILE: &str = "unreadable_file";
    pub const NO_TARGET_TOKENS: &str = "no_target_tokens";

    pub const LINE_TOO_LONG: &str = "line_too_long";
    pub const INVALID_UTF8: &str = "invalid_utf8";
    pub const INVALID_JSON: &str = "invalid_json";
    pub const NESTING_TOO_DEEP: &str = "nesting_too_deep";
    pub const TOO_MANY_VALUES: &str = "too_many_values";
    pub const DUPLICATE_KEY: &str = "duplicate_key";
    pub const NUL_CHARACTER: &str = "nul_character";

    pub const DATA_TYPE: &str = "data_type";
    pub const MISSING_KEY: &str = "missing_key";
    pub const MISSING_MESSAGES_LIST: &str = "missing_messages_list";
    pub const UNRECOGNIZED_KEY: &str = "unrecognized_key";
    pub const INVALID_TOOL: &str = "invalid_tool";

    pub const MESSAGE_MISSING_KEY: &str = "message_missing_key";
    pub const MESSAGE_UNRECOGNIZED_KEY: &str = "message_unrecognized_key";
    pub const UNRECOGNIZED_ROLE: &str = "unrecognized_role";
    pub const MISSING_CONTENT: &str = "missing_content";
    pub const UNSUPPORTED_CONTENT: &str = "unsupported_content";
    pub const INVALID_WEIGHT: &str = "invalid_weight";
    pub const WEIGHT_ON_NON_ASSISTANT: &str = "weight_on_non_assistant";
    pub const INVALID_TOOL_CALL: &str = "invalid_tool_call";
    pub const TOOL_MESSAGE_WITHOUT_CALL: &str = "tool_message_without_call";
    pub const EXAMPLE_MISSING_ASSISTANT_MESSAGE: &str = "example_missing_assistant_message";
    pub const SPECIAL_TOKEN: &str = "special_token";
    /// The model's chat template refuses the row or gives no certain loss mask for it.
    pub const CHAT_TEMPLATE: &str = "chat_template";
    /// The model's tokenizer fails on the text.
    pub const TOKENIZER: &str = "tokenizer";
}

/// The first problems, and how many there were.
#[derive(Debug)]
pub(crate) struct ProblemList {
    pub kept: Vec<Problem>,
    pub total: u64,
    limit: usize,
}

impl ProblemList {
    pub fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), total: 0, limit }
    }

    pub fn push(&mut self, problem: Problem) {
        self.total += 1;
        if self.kept.len() < self.limit {
            self.kept.push(problem);
        }
    }

    pub fn append(&mut self, other: Self) {
        self.total += other.total;
        let room = self.limit.saturating_sub(self.kept.len());
        self.kept.extend(other.kept.into_iter().take(room));
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_first_problems_and_counts_all() {
        let mut all = ProblemList::new(3);
        for line in 1..=2 {
            let mut row = ProblemList::new(2);
            for _ in 0..5 {
                row.push(Problem::of_line(code::DATA_TYPE, line, "x"));
            }
            all.append(row);
        }
        assert_eq!(all.total, 10);
        let lines: Vec<_> = all.kept.iter().map(|p| p.line).collect();
        assert_eq!(lines, [Some(1), Some(1), Some(2)]);
    }
}
