//! Results on standard output: a plain table, and times that a person reads.

use std::fmt;
use std::io::{self, Write as _};

use time::OffsetDateTime;

/// Writes a line. A reader that has gone away (`… | head`) is no error; a full disk is one.
pub fn line(text: impl fmt::Display) -> io::Result<()> {
    self::text(format_args!("{text}\n"))
}

/// Writes text as it is.
pub fn text(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes a value as indented JSON.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string_pretty(value)?)?)
}

/// Columns as wide as their widest cell.
pub struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub fn new(titles: [&str; N]) -> Self {
        Self { rows: vec![titles.map(str::to_owned)] }
    }

    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..N).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `2026-11-23 09:05` (UTC).
pub fn minute(time: OffsetDateTime) -> String {
    format!("{} {:02}:{:02}", time.date(), time.hour(), time.minute())
}

/// `134.5 M`: a count of parameters.
pub fn millions(count: u64) -> String {
    format!("{:.1} M", count as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["ID", "NAME"]);
        table.row(["key_1".into(), "ä".into()]);
        table.row(["k".into(), String::new()]);
        assert_eq!(table.to_string(), "ID     NAME\nkey_1  ä\nk\n");
    }

    #[test]
    fn times_are_cut_at_the_minute() {
        let time = OffsetDateTime::from_unix_timestamp(0).unwrap();
        assert_eq!(minute(time), "1970-01-01 00:00");
    }
}
