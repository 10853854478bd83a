//! The rows of a run, one after the other: out of the request, streamed from a file with one row in memory, or kept
//! chat completions, some at a time.

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};
use serde_json::{Value, json};
use store::completions::{self, CompletionRow};
use store::files;
use time::OffsetDateTime;

use super::plan::{Source, Stored};
use super::sampling;
use super::schema::Schema;
use crate::state::AppState;

/// The longest row: several of them are in hand at once.
const MAX_ROW_BYTES: usize = 1 << 20;
/// Faults that one row's message names.
const MAX_FAULTS: usize = 3;
/// Kept completions that are in memory at once, each with up to `server.max_json_bytes` of messages.
const COMPLETIONS_AT_ONCE: u32 = 16;

/// One row of a data source.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub item: Value,
    /// What the row brings along as the model's answer.
    pub sample: Option<Value>,
    /// Where it stands, for messages: `line 5`.
    pub place: String,
}

/// A line that is no row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BadRow {
    /// What could be read of it.
    pub item: Value,
    pub message: String,
}

pub(crate) type Read = Result<Row, BadRow>;

/// All rows of a run that was created at `created`; an error is passing trouble with the storage, or its
/// `NotFound`.
pub(crate) async fn open(
    state: &AppState,
    project: &store::Project,
    source: Source,
    created: OffsetDateTime,
) -> store::Result<BoxStream<'static, store::Result<Read>>> {
    match source {
        Source::Content(rows) => {
            let numbered = rows.into_iter().enumerate();
            let read = numbered.map(|(i, value)| Ok(row(value, &format!("content[{i}]"))));
            Ok(stream::iter(read).boxed())
        }
        Source::File(id) => {
            let file = files::of_run(&state.store.db, project, &id).await?;
            let reader = files::read(&state.store, &file, None).await?;
            Ok(lines(reader.stream).boxed())
        }
        Source::Stored(mut wanted) => {
            // What is kept while the run goes on is not in it, so all its looks see the same.
            let before = wanted.filter.created_before.map_or(created, |time| time.min(created));
            wanted.filter.created_before = Some(before);
            let limit = wanted.limit.unwrap_or(usize::MAX);
            Ok(kept(state.store.db.clone(), project.clone(), wanted).take(limit).boxed())
        }
    }
}

/// Kept completions as rows, the newest first.
fn kept(
    db: store::Db,
    project: store::Project,
    wanted: Stored,
) -> impl Stream<Item = store::Result<Read>> + Send {
    let pages = stream::try_unfold(None, move |last: Option<String>| {
        let (db, project, filter) = (db.clone(), project.clone(), wanted.filter.clone());
        async move {
            let before = last.as_deref();
            let page =
                completions::matching(&db, &project, &filter, before, COMPLETIONS_AT_ONCE).await?;
            let Some(last) = page.last().map(|row| row.id.clone()) else {
                return Ok::<_, store::Error>(None);
            };
            let rows = page.into_iter().map(|row| Ok(Ok(kept_row(row))));
            Ok(Some((stream::iter(rows), Some(last))))
        }
    });
    pages.try_flatten()
}

/// What was asked is the item's `input`, what was answered the sample.
fn kept_row(row: CompletionRow) -> Row {
    let CompletionRow { id, metadata, request, completion, .. } = row;
    let input = request.get("messages").cloned().unwrap_or_else(|| json!([]));
    let model = completion.get("model").cloned().unwrap_or_default();
    let choices = completion.get("choices").cloned().unwrap_or_else(|| json!([]));
    let item = json!({"input": input, "model": model, "metadata": metadata});
    Row { item, sample: Some(sampling::sample(&model, choices)), place: id }
}

/// A value as a row; `place` names it in messages.
pub(crate) fn row(value: Value, place: &str) -> Read {
    let bad = |item: Value, why: &str| Err(BadRow { item, message: format!("{place}: {why}") });
    let Value::Object(mut fields) = value else {
        return bad(empty(), r#"a row is an object with 'item', as in {"item": {…}}"#);
    };
    let sample = fields.shift_remove("sample").filter(|sample| !sample.is_null());
    match fields.shift_remove("item") {
        Some(item @ Value::Object(_)) if sample.as_ref().is_none_or(Value::is_object) => {
            Ok(Row { item, sample, place: place.to_owned() })
        }
        Some(item @ Value::Object(_)) => bad(item, "'sample' must be an object"),
        Some(_) => bad(empty(), "'item' must be an object"),
        None => bad(empty(), r#"lacks 'item'; a row looks like {"item": {…}}"#),
    }
}

/// What speaks against a row's item, in one sentence.
pub(crate) fn misfit(schema: &Schema<'_>, row: &Row) -> Option<String> {
    let faults = schema.faults(&row.item, "item", MAX_FAULTS);
    (!faults.is_empty()).then(|| format!("{}: {}", row.place, faults.join("; ")))
}

fn empty() -> Value {
    Value::Object(serde_json::Map::new())
}

/// Reading JSONL: what has arrived and was not handed out yet.
struct Lines<S> {
    chunks: S,
    buffer: BytesMut,
    /// Bytes of the buffer that hold no line end.
    searched: usize,
    number: u64,
    has_ended: bool,
    /// In the rest of a line that is too long.
    skipping: bool,
}

fn lines<S>(chunks: S) -> impl Stream<Item = store::Result<Read>> + Send
where
    S: Stream<Item = store::Result<Bytes>> + Send + Unpin,
{
    let lines = Lines {
        chunks,
        buffer: BytesMut::new(),
        searched: 0,
        number: 0,
        has_ended: false,
        skipping: false,
    };
    stream::try_unfold(lines, async |mut lines| Ok(lines.next().await?.map(|read| (read, lines))))
}

impl<S: Stream<Item = store::Result<Bytes>> + Send + Unpin> Lines<S> {
    async fn next(&mut self) -> store::Result<Option<Read>> {
        loop {
            let newline = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
            if let Some(at) = newline {
                let line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                self.number += 1;
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                match self.read(&line) {
                    None => continue,
                    some => return Ok(some),
                }
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_ROW_BYTES {
                self.buffer.clear();
                self.searched = 0;
                if !std::mem::replace(&mut self.skipping, true) {
                    return Ok(Some(Err(too_long(self.number + 1))));
                }
            }
            if self.has_ended {
                return Ok(None);
            }
            match self.chunks.try_next().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => {
                    self.has_ended = true;
                    if !self.buffer.is_empty() {
                        // A last line may lack its end.
                        self.buffer.extend_from_slice(b"\n");
                    }
                }
            }
        }
    }

    /// None for an empty line.
    fn read(&self, line: &[u8]) -> Option<Read> {
        let line = match self.number {
            1 => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line),
            _ => line,
        };
        let line = line.trim_ascii();
        if line.is_empty() {
            return None;
        }
        if line.len() > MAX_ROW_BYTES {
            return Some(Err(too_long(self.number)));
        }
        let place = format!("line {}", self.number);
        Some(match serde_json::from_slice(line) {
            Ok(value) => row(value, &place),
            Err(error) => {
                Err(BadRow { item: empty(), message: format!("{place}: not JSON: {error}") })
            }
        })
    }
}

fn too_long(number: u64) -> BadRow {
    let message = format!("line {number}: longer than {MAX_ROW_BYTES} bytes");
    BadRow { item: empty(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn read(file: &[u8], chunk: usize) -> Vec<Read> {
        let chunks: Vec<store::Result<Bytes>> =
            file.chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        lines(stream::iter(chunks)).try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn rows_are_read_from_chunks_of_any_size() {
        let file = b"\xef\xbb\xbf{\"item\":{\"a\":1}}\r\n\n{\"item\":{\"a\":2},\"sample\":{\"output_text\":\"x\"}}";
        for chunk in [1, 2, 7, 1000] {
            let rows = read(file, chunk).await;
            let row = |item: Value, sample: Option<Value>, place: &str| {
                Ok(Row { item, sample, place: place.to_owned() })
            };
            let expected = [
                row(json!({"a": 1}), None, "line 1"),
                row(json!({"a": 2}), Some(json!({"output_text": "x"})), "line 3"),
            ];
            assert_eq!(rows, expected, "{chunk}");
        }
    }

    #[tokio::test]
    async fn a_bad_line_is_named_and_the_next_is_read() {
        let mut file = b"{\"item\": 5}\n{oops\n[]\n{\"items\":{}}\n{\"item\":{\"long\":\"".to_vec();
        file.extend(std::iter::repeat_n(b'x', 3 * MAX_ROW_BYTES));
        file.extend(b"\"}}\n{\"item\":{}}\n");
        let rows = read(&file, 10_000).await;
        let message = |i: usize| rows[i].as_ref().unwrap_err().message.as_str();
        assert_eq!(message(0), "line 1: 'item' must be an object");
        assert!(message(1).starts_with("line 2: not JSON"));
        assert!(message(2).starts_with("line 3: a row is an object"));
        assert!(message(3).starts_with("line 4: lacks 'item'"));
        assert!(message(4).starts_with("line 5: longer than"));
        assert_eq!(rows[5].as_ref().unwrap().place, "line 6");
        assert_eq!(rows.len(), 6);
    }
}
