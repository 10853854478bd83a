//! One row of a file as a model is trained on it: its tokens, and which of them are targets.
//!
//! The row goes the way of [`load`](crate::load), so that what is shown is what is trained, or is refused.

use crate::check::{Checker, Limits};
use crate::container::{ContainerKind, Row};
use crate::mask::Example;
use crate::problem::Problem;
use crate::shape::Shape;
use crate::tokenizer::ChatTokenizer;

/// Looks for a row in a file that is pushed in chunks of any size.
pub struct Preview<'t> {
    checker: Checker<'t>,
    /// None: the first.
    wanted: Option<u64>,
    found: Option<u64>,
    /// The first number behind the wanted one.
    next: Option<u64>,
}

/// A row that was found.
#[derive(Debug, Clone)]
pub struct Previewed {
    /// As problems name the row.
    pub number: u64,
    pub shape: Shape,
    pub container: ContainerKind,
    /// Empty where the row has a fault. One of most rows; two of a pair, the preferred answer first; the
    /// pieces of a text that is longer than a sequence may be.
    pub sequences: Vec<Example>,
    pub problems: Vec<Problem>,
}

/// Why there is nothing to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSuchRow {
    #[error("the file has no rows")]
    Empty,
    #[error("no row begins there; the next one is {next}")]
    Between { next: u64 },
    #[error("the file ends before it")]
    Behind,
}

impl<'t> Preview<'t> {
    /// `number` is the row's as in problems: of JSON lines and CSV the line on which it begins, of an array its
    /// place, from 1. None: the first row. Of `limits` counts what concerns one row.
    pub fn new(tokenizer: &'t ChatTokenizer, limits: Limits, number: Option<u64>) -> Self {
        let limits = Limits { quality: false, ..limits };
        let mut checker = Checker::new(tokenizer, limits);
        checker.rows.examples = Some(Vec::new());
        Self { checker, wanted: number, found: None, next: None }
    }

    /// Takes the next bytes of the file; whether more are needed.
    pub fn push(&mut self, chunk: &[u8]) -> bool {
        let Self { checker: Checker { container, rows }, wanted, found, next } = self;
        container.push(chunk, &mut |row| {
            if is_it(&row, *wanted, found, next) {
                rows.row(row);
            }
        });
        self.found.is_none() && self.next.is_none()
    }

    /// Ends the file, or the search.
    pub fn finish(mut self) -> Result<Previewed, NoSuchRow> {
        let Self { checker: Checker { container, rows }, wanted, found, next } = &mut self;
        if found.is_none() && next.is_none() {
            container.finish(&mut |row| {
                if is_it(&row, *wanted, found, next) {
                    rows.row(row);
                }
            });
        }
        rows.flush();
        let number = match (self.found, self.next, self.wanted) {
            (Some(number), ..) => number,
            (None, Some(next), _) => return Err(NoSuchRow::Between { next }),
            (None, None, Some(_)) => return Err(NoSuchRow::Behind),
            (None, None, None) => return Err(NoSuchRow::Empty),
        };
        Ok(Previewed {
            number,
            shape: self.checker.rows.found.unwrap_or(self.checker.rows.shape()),
            container: self.checker.container.kind(),
            sequences: self.checker.rows.examples.take().unwrap_or_default(),
            problems: self.checker.rows.problems.kept,
        })
    }
}

/// Whether a row is the wanted one; notes its number, or that of the first one behind it.
fn is_it(
    row: &Row<'_>,
    wanted: Option<u64>,
    found: &mut Option<u64>,
    next: &mut Option<u64>,
) -> bool {
    let number = match row {
        Row::Whole { bytes, .. } if bytes.trim_ascii().is_empty() => return false,
        Row::Whole { number, .. } | Row::TooLong { number } => Some(*number),
        Row::Faulty(problem) => problem.line,
    };
    let Some(number) = number.filter(|_| found.is_none() && next.is_none()) else { return false };
    match wanted {
        Some(wanted) if number < wanted => return false,
        Some(wanted) if number > wanted => *next = Some(number),
        _ => *found = Some(number),
    }
    *found == Some(number)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde_json::{Value, json};

    use super::*;
    use crate::check::{FileRole, load};
    use crate::format::{Expected, Format};
    use crate::problem::code;
    use crate::testing;

    fn limits(expected: impl Into<Expected>, max_seq_len: usize) -> Limits {
        Limits::new(FileRole::Training, expected, max_seq_len)
    }

    fn look(file: &str, limits: Limits, number: Option<u64>) -> Result<Previewed, NoSuchRow> {
        let tokenizer = testing::chat_ml();
        let mut preview = Preview::new(&tokenizer, limits, number);
        let _ = file.as_bytes().chunks(10).all(|chunk| preview.push(chunk));
        preview.finish()
    }

    fn row(question: &str, weight: u8) -> Value {
        json!({"messages": [
            {"role": "user", "content": question}, {"role": "assistant", "content": "one"},
            {"role": "user", "content": "and?"}, {"role": "assistant", "content": "two", "weight": weight},
        ]})
    }

    #[test]
    fn every_row_is_shown_as_it_is_trained() {
        let pair =
            |i: u8| json!({"prompt": format!("q {i}"), "chosen": "good", "rejected": "bad one"});
        let text =
            |i: u8| json!({"text": format!("{i} The quick brown fox jumps over the lazy dog.")});
        type Make<'m> = &'m dyn Fn(u8) -> Value;
        let files: [(Expected, Make); 3] = [
            (Expected::Supervised, &|i| row(&format!("Question {i}?"), i % 2)),
            (Format::Preference.into(), &pair),
            (Expected::Supervised, &text),
        ];
        let tokenizer = testing::chat_ml();
        for (expected, make) in files {
            // The last is cut in the middle of an answer, or into pieces.
            for max_seq_len in [1000, 30, 12] {
                let rows: String = (0..4).map(|i| format!("{}\n\n", make(i))).collect();
                let mut file = tempfile::NamedTempFile::new().unwrap();
                file.write_all(rows.as_bytes()).unwrap();
                let trained = load(file.path(), expected, &tokenizer, max_seq_len);
                let shown = (0..4).flat_map(|i| {
                    look(&rows, limits(expected, max_seq_len), Some(2 * i + 1)).unwrap().sequences
                });
                let shown: Vec<Example> = shown.collect();
                match trained {
                    Ok(trained) => assert_eq!(shown, trained.examples),
                    Err(problems) => assert_eq!(problems[0].code, code::NO_TARGET_TOKENS),
                }
                assert!(shown.len() >= 4);
            }
        }
    }

    #[test]
    fn rows_are_found_by_the_numbers_that_problems_have() {
        let file = format!("\n{}\n\n{}\n", row("a", 1), row("b", 0));
        let limits = limits(Expected::Supervised, 512);
        let number = |wanted| look(&file, limits, wanted).map(|previewed| previewed.number);
        assert_eq!(number(None), Ok(2));
        assert_eq!(number(Some(4)), Ok(4));
        assert_eq!(number(Some(3)), Err(NoSuchRow::Between { next: 4 }));
        assert_eq!(number(Some(5)), Err(NoSuchRow::Behind));
        assert_eq!(look("\n", limits, None).unwrap_err(), NoSuchRow::Empty);
        let table = look("prompt,completion\n\"a\nb\",c\nd,e\n", limits, Some(4)).unwrap();
        assert_eq!((table.container, table.shape), (ContainerKind::Csv, Shape::PromptCompletion));
        let array = json!([row("a", 1), row("b", 0)]).to_string();
        assert_eq!(look(&array, limits, Some(2)).unwrap().number, 2);
    }

    #[test]
    fn a_row_that_would_be_refused_is_shown_with_its_faults() {
        let file = format!("{}\n{{\"messages\":[]}}\nnonsense\n", row("a", 1));
        for (number, code) in [(2, code::MISSING_MESSAGES_LIST), (3, code::INVALID_JSON)] {
            let found = look(&file, limits(Expected::Supervised, 512), Some(number)).unwrap();
            assert_eq!(found.problems[0].code, code);
            assert!(found.sequences.is_empty());
        }
        let found = look(&file, limits(Format::Preference, 512), None).unwrap();
        assert_eq!((found.problems[0].code, found.shape), (code::UNEXPECTED_FORMAT, Shape::Chat));
    }
}
