//! Rows of columns, written as the JSON objects that their columns' names make of them.

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::problem::{Problem, code};
use crate::shape::Shape;

/// Columns that no format knows are refused by name, row for row; so many are no table of examples.
pub(super) const MAX_COLUMNS: usize = 256;

/// The columns of a table whose names show what its rows are.
#[derive(Debug)]
pub(super) struct Columns(Vec<Column>);

#[derive(Debug)]
struct Column {
    /// Empty: not looked at, as the numbers that pandas writes before its rows.
    name: String,
    /// Its cells hold the JSON of a value, and not a text.
    is_json: bool,
}

impl Columns {
    /// None where the names show no shape.
    pub fn of(names: Vec<String>) -> Option<Self> {
        let row: Map<String, Value> =
            names.iter().map(|name| (name.clone(), Value::Null)).collect();
        let shape = Shape::of(&row).filter(|_| names.len() <= MAX_COLUMNS)?;
        let column = |name: String| Column { is_json: shape.holds_json(&name), name };
        Some(Self(names.into_iter().map(column).collect()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The JSON object of a row of texts. Where a cell must hold JSON, an empty one is left out.
    pub fn object<'c>(
        &self,
        number: u64,
        cells: impl Iterator<Item = &'c [u8]>,
    ) -> Result<Vec<u8>, Problem> {
        let mut out = vec![b'{'];
        for (column, cell) in self.0.iter().zip(cells).filter(|(column, _)| !column.name.is_empty())
        {
            let text = std::str::from_utf8(cell).map_err(|error| {
                let byte = cell.get(error.valid_up_to()).copied().unwrap_or_default();
                let what = format!("is not valid UTF-8: byte 0x{byte:02X}");
                column.fault(code::INVALID_UTF8, number, &what)
            })?;
            if column.is_json && text.trim().is_empty() {
                continue;
            }
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend(Value::from(column.name.as_str()).to_string().into_bytes());
            out.push(b':');
            match column.is_json {
                true => out.extend(column.json(number, text)?),
                false => out.extend(Value::from(text).to_string().into_bytes()),
            }
        }
        out.push(b'}');
        Ok(out)
    }
}

impl Column {
    /// The JSON that a cell holds.
    fn json(&self, number: u64, text: &str) -> Result<Vec<u8>, Problem> {
        // As Python writes them into tables.
        match text.trim() {
            "True" | "TRUE" => return Ok(b"true".to_vec()),
            "False" | "FALSE" => return Ok(b"false".to_vec()),
            _ => {}
        }
        match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => Ok(text.into()),
            Err(error) => {
                let python = text.contains("'role'") || text.contains("'content'");
                let hint = match python {
                    true => "; it looks like Python's own notation, write it with json.dumps",
                    false => "",
                };
                let error = error.to_string();
                let what = error.split(" at line ").next().unwrap_or(&error);
                let what = format!("must hold JSON, and does not: {what}{hint}");
                Err(self.fault(code::INVALID_JSON, number, &what))
            }
        }
    }

    fn fault(&self, code: &'static str, number: u64, what: &str) -> Problem {
        let message = format!("Example {number} column '{}' {what}", self.name);
        Problem::of_line(code, number, message).at(self.name.as_str())
    }
}
