//! Problems and remarks of a file in one list, as programs and people are shown them, and the rows that
//! they are about.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::check::{Checked, FileRole};
use crate::container::{Container, Row};
use crate::remedy::remedy;

/// A fault, or something that should be looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// `error` or `warning`.
    pub severity: &'static str,
    pub code: &'static str,
    /// `training_file` or `validation_file`.
    pub file: &'static str,
    /// 1-based; of a warning the first of its lines.
    pub line: Option<u64>,
    /// Within the row.
    pub path: Option<String>,
    pub message: String,
    pub remedy: Option<&'static str>,
    /// Of a warning about rows: the first 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<Vec<u64>>,
}

impl Checked {
    /// Problems in the order of lines, at most as many as are kept, then warnings. `training`: what a
    /// validation file is compared with. Examples are cut at `cut_at` tokens.
    pub fn listed(&self, role: FileRole, training: Option<&Self>, cut_at: u32) -> Vec<Listed> {
        let file = role.field();
        let problems = self.problems.iter().map(|problem| Listed {
            severity: "error",
            code: problem.code,
            file,
            line: problem.line,
            path: problem.path.clone(),
            message: problem.message.clone(),
            remedy: remedy(problem.code),
            lines: None,
        });
        let leaks = training.and_then(|training| self.leaks_from(training));
        let remarks = leaks.into_iter().chain(self.remarks(cut_at));
        let warnings = remarks.filter(|remark| remark.is_warning).map(|remark| Listed {
            severity: "warning",
            code: remark.code,
            file,
            line: remark.lines.first().copied(),
            path: None,
            message: format!("{role} file: {}", remark.message(self.stats.n_examples)),
            remedy: remedy(remark.code),
            lines: Some(remark.lines).filter(|lines| !lines.is_empty()),
        });
        problems.chain(warnings).collect()
    }
}

/// Copies the rows that something is said about out of a file, as JSON lines with what is wrong.
pub struct BadLines {
    container: Container,
    codes: BTreeMap<u64, Vec<&'static str>>,
}

/// One row of a copy.
#[derive(Serialize)]
struct BadLine<'l> {
    line: u64,
    problems: &'l [&'static str],
    /// The text of the row's JSON; what is no UTF-8 is replaced. None: it is too long, or not to be had.
    row: Option<&'l str>,
}

impl BadLines {
    /// `listed`: of this file.
    pub fn new(listed: &[Listed], max_line_bytes: usize) -> Self {
        let mut codes: BTreeMap<u64, Vec<&'static str>> = BTreeMap::new();
        for entry in listed {
            for line in entry.lines.as_deref().unwrap_or(entry.line.as_slice()) {
                let of_line = codes.entry(*line).or_default();
                if !of_line.contains(&entry.code) {
                    of_line.push(entry.code);
                }
            }
        }
        Self { container: Container::new(max_line_bytes), codes }
    }

    /// Takes the next bytes of the file and appends what is wanted of them.
    pub fn push(&mut self, chunk: &[u8], copy: &mut Vec<u8>) {
        let codes = &self.codes;
        self.container.push(chunk, &mut |row| copy_row(codes, row, copy));
    }

    /// Ends the file.
    pub fn finish(mut self, copy: &mut Vec<u8>) {
        let codes = &self.codes;
        self.container.finish(&mut |row| copy_row(codes, row, copy));
    }
}

fn copy_row(codes: &BTreeMap<u64, Vec<&'static str>>, row: Row<'_>, copy: &mut Vec<u8>) {
    let (number, bytes) = match row {
        Row::Whole { number, bytes, .. } => (number, Some(bytes)),
        Row::TooLong { number } => (number, None),
        Row::Faulty(problem) => (problem.line.unwrap_or_default(), None),
    };
    let Some(problems) = codes.get(&number) else { return };
    let row = bytes.map(String::from_utf8_lossy);
    let row = BadLine { line: number, problems, row: row.as_deref() };
    serde_json::to_writer(&mut *copy, &row).expect("numbers and texts have JSON");
    copy.push(b'\n');
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::check::{Checker, Limits};
    use crate::format::Expected;
    use crate::testing;

    #[test]
    fn rows_that_something_is_said_about_are_copied_with_what_it_is() {
        let row = |text: &str| {
            json!({"messages": [{"role": "user", "content": text},
                                {"role": "assistant", "content": "yes"}]})
        };
        let file = format!("{}\n\nnonsense\n{}\n{}", row("a b"), row("c d"), row("a b"));
        let tokenizer = testing::chat_ml();
        let limits = Limits::new(FileRole::Validation, Expected::Supervised, 512);
        let mut checker = Checker::new(&tokenizer, limits);
        checker.push(file.as_bytes());
        let listed = checker.finish().listed(FileRole::Validation, None, 512);
        let codes: Vec<_> = listed.iter().map(|entry| (entry.code, entry.line)).collect();
        assert_eq!(codes, [("invalid_json", Some(3)), ("exact_duplicate", Some(5))]);
        assert!(listed.iter().all(|entry| entry.remedy.is_some()));

        let (mut bad, mut copy) = (BadLines::new(&listed, 1000), Vec::new());
        file.as_bytes().chunks(7).for_each(|chunk| bad.push(chunk, &mut copy));
        bad.finish(&mut copy);
        let copy = String::from_utf8(copy).unwrap();
        let rows: Vec<Value> =
            copy.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            rows,
            [
                json!({"line": 3, "problems": ["invalid_json"], "row": "nonsense"}),
                json!({"line": 5, "problems": ["exact_duplicate"], "row": row("a b").to_string()}),
            ]
        );
    }
}
