//! Calls of functions in an answer's text, read while it comes.
//!
//! Text before a call is passed on, except what may be the beginning of one. Of a call its name is told as
//! soon as it is known, then its arguments piece by piece, as the model wrote them. What turns out to be no
//! call is text after all.

use dataset::CallForm;

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Text(String),
    Call { call: u32, name: String },
    Arguments { call: u32, text: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Nothing but white space yet, where a call has no other mark than to be the answer.
    Start,
    Text,
    Call,
    /// After a call: perhaps its closing mark, or the next one.
    Between,
}

/// Reads one answer.
#[derive(Debug)]
pub struct CallReader {
    form: CallForm,
    /// The functions that exist.
    names: Vec<String>,
    at: At,
    /// Not yet passed on; in a call, all of its text.
    held: String,
    in_list: bool,
    /// Calls that are complete.
    calls: u32,
    /// The name of the call in hand was told.
    is_named: bool,
    /// Bytes of its arguments that were passed on.
    sent: usize,
    has_entered: bool,
}

impl CallReader {
    pub fn new(form: CallForm, names: Vec<String>) -> Self {
        let at = if form.open.is_empty() { At::Start } else { At::Text };
        Self {
            form,
            names,
            at,
            held: String::new(),
            in_list: false,
            calls: 0,
            is_named: false,
            sent: 0,
            has_entered: false,
        }
    }

    /// Calls so far, a begun one included.
    pub fn calls(&self) -> u32 {
        self.calls + u32::from(self.is_named)
    }

    /// Calls that are complete.
    pub fn complete_calls(&self) -> u32 {
        self.calls
    }

    /// Bytes that are not passed on.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The text after the mark of a call that has just begun; once for each.
    pub fn entered(&mut self) -> Option<&str> {
        std::mem::take(&mut self.has_entered).then_some(self.held.as_str())
    }

    /// The mark of a call came, not as text.
    pub fn open(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        if matches!(self.at, At::Text | At::Between | At::Start) {
            let before = std::mem::take(&mut self.held);
            if self.at == At::Text && !before.trim().is_empty() {
                said.push(Said::Text(before.trim_end().to_owned()));
            }
            self.enter();
        }
        said
    }

    fn enter(&mut self) {
        (self.at, self.is_named, self.sent, self.has_entered) = (At::Call, false, 0, true);
        self.in_list = false;
    }

    pub fn push(&mut self, piece: &str) -> Vec<Said> {
        self.held.push_str(piece);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        said
    }

    /// The answer is over.
    pub fn finish(&mut self) -> Vec<Said> {
        let held = std::mem::take(&mut self.held);
        let text = match self.at {
            At::Call if self.is_named => String::new(),
            At::Call => format!("{}{held}", self.form.open),
            At::Between if self.form.close.starts_with(held.trim()) => String::new(),
            At::Between | At::Start | At::Text => held,
        };
        let is_nothing = if self.calls > 0 { text.trim().is_empty() } else { text.is_empty() };
        if is_nothing { Vec::new() } else { vec![Said::Text(text)] }
    }

    /// One step through the held text; false when more text is needed.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        match self.at {
            At::Start => match self.held.trim_start().chars().next() {
                None => false,
                Some('{') => {
                    (self.at, self.is_named, self.sent) = (At::Call, false, 0);
                    true
                }
                Some('[') if self.form.list => {
                    (self.at, self.is_named, self.sent) = (At::Call, false, 0);
                    true
                }
                Some(_) => {
                    self.at = At::Text;
                    true
                }
            },
            At::Text => self.text(said),
            At::Call => self.call(said),
            At::Between => self.between(),
        }
    }

    fn text(&mut self, said: &mut Vec<Said>) -> bool {
        let open = self.form.open.as_str();
        if open.is_empty() || self.form.open_token.is_some() {
            let text = std::mem::take(&mut self.held);
            say(said, text);
            return false;
        }
        if let Some(at) = self.held.find(open) {
            let after = self.held.split_off(at + open.len());
            let before = std::mem::replace(&mut self.held, after);
            say(said, before[..at].trim_end().to_owned());
            self.enter();
            return true;
        }
        let longest = self.held.len().min(open.len() - 1);
        let begun = (1..=longest)
            .rev()
            .filter(|&n| open.is_char_boundary(n))
            .find(|&n| self.held.ends_with(&open[..n]));
        // White space before a call belongs to the call.
        let kept = self.held[..self.held.len() - begun.unwrap_or(0)].trim_end().len();
        let tail = self.held.split_off(kept);
        let text = std::mem::replace(&mut self.held, tail);
        say(said, text);
        false
    }

    fn call(&mut self, said: &mut Vec<Said>) -> bool {
        if self.form.list && !self.in_list {
            let Some(first) = self.held.trim_start().chars().next() else { return false };
            if first == '[' {
                let at = self.held.find('[').map_or(0, |at| at + 1);
                self.held.drain(..at);
            }
            self.in_list = true;
        }
        let start = self.held.len() - self.held.trim_start().len();
        let body = &self.held[start..];
        if body.is_empty() {
            return false;
        }
        let Some(scan) = Scan::of(body, &self.form.arguments_key) else {
            return self.no_call(said);
        };
        let is_known = |name: &String| !self.form.open.is_empty() || self.names.contains(name);
        let name = scan.name.clone();
        if name.as_ref().is_some_and(|name| !is_known(name)) && !self.is_named {
            return self.no_call(said);
        }
        let arguments = scan.arguments.map(|(from, upto)| body[from..upto].to_owned());
        let is_object = arguments.as_deref().is_some_and(|text| text.starts_with('{'));
        let end = scan.end.map(|end| start + end);
        let call = self.calls;
        if !self.is_named && (is_object || end.is_some()) {
            let Some(name) = name else {
                return if end.is_some() { self.no_call(said) } else { false };
            };
            said.push(Said::Call { call, name });
            self.is_named = true;
        }
        if self.is_named && (is_object || end.is_some()) {
            let whole = match arguments {
                Some(text) if is_object => text,
                // Some models write the arguments as a text of JSON.
                Some(text) => serde_json::from_str::<String>(&text).unwrap_or(text),
                None => "{}".to_owned(),
            };
            if whole.len() > self.sent {
                said.push(Said::Arguments { call, text: whole[self.sent..].to_owned() });
                self.sent = whole.len();
            }
        }
        let Some(end) = end else { return false };
        self.held.drain(..end);
        self.calls += 1;
        (self.is_named, self.sent, self.at) = (false, 0, At::Between);
        true
    }

    /// What looked like a call is text, or, once its name is told, lost.
    fn no_call(&mut self, said: &mut Vec<Said>) -> bool {
        if self.is_named {
            return false;
        }
        let held = std::mem::take(&mut self.held);
        said.push(Said::Text(format!("{}{held}", self.form.open)));
        self.at = At::Text;
        false
    }

    fn between(&mut self) -> bool {
        let rest = self.held.trim_start();
        let Some(first) = rest.chars().next() else { return false };
        let skip = self.held.len() - rest.len();
        let close = self.form.close.as_str();
        let (take, at) = match first {
            ',' if self.in_list => (1, At::Call),
            ']' if self.in_list => (1, At::Between),
            ';' if self.form.open.is_empty() => (1, At::Between),
            '{' if self.form.open.is_empty() => (0, At::Call),
            _ if !close.is_empty() && rest.starts_with(close) => (close.len(), At::Text),
            _ if !close.is_empty() && close.starts_with(rest) => return false,
            _ => (0, At::Text),
        };
        if first == ']' {
            self.in_list = false;
        }
        self.held.drain(..skip + take);
        self.at = at;
        true
    }
}

fn say(said: &mut Vec<Said>, text: String) {
    if !text.is_empty() {
        said.push(Said::Text(text));
    }
}

/// What is known of a JSON object of which perhaps only a beginning is there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Scan {
    name: Option<String>,
    /// Where the arguments' value begins, and how far it is there.
    arguments: Option<(usize, usize)>,
    /// Behind the closing bracket.
    end: Option<usize>,
}

impl Scan {
    /// None when the text is no beginning of an object.
    fn of(text: &str, arguments_key: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.first() != Some(&b'{') {
            return None;
        }
        let mut scan = Self::default();
        let mut at = 1;
        loop {
            at += blank(&bytes[at..], b",");
            match bytes.get(at) {
                None => return Some(scan),
                Some(b'}') => {
                    scan.end = Some(at + 1);
                    return Some(scan);
                }
                Some(b'"') => {}
                Some(_) => return None,
            }
            let Some(key_end) = value_end(bytes, at) else { return Some(scan) };
            let key: String = serde_json::from_str(&text[at..key_end]).ok()?;
            at = key_end + blank(&bytes[key_end..], b"");
            match bytes.get(at) {
                None => return Some(scan),
                Some(b':') => at += 1,
                Some(_) => return None,
            }
            at += blank(&bytes[at..], b"");
            if at == bytes.len() {
                return Some(scan);
            }
            let end = value_end(bytes, at);
            if key == arguments_key {
                scan.arguments = Some((at, end.unwrap_or(bytes.len())));
            }
            let Some(end) = end else { return Some(scan) };
            if key == "name" {
                scan.name = Some(serde_json::from_str(&text[at..end]).ok()?);
            }
            at = end;
        }
    }
}

/// White space, and these.
fn blank(bytes: &[u8], also: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_whitespace() || also.contains(b)).count()
}

/// Behind the value that begins at `start`; none when it may go on.
fn value_end(bytes: &[u8], start: usize) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, &byte) in bytes.iter().enumerate().skip(start) {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    in_string = false;
                    if depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(open: &str, close: &str, list: bool) -> CallForm {
        CallForm {
            open: open.to_owned(),
            lead: open.to_owned(),
            close: close.to_owned(),
            list,
            ..CallForm::default()
        }
    }

    /// Content, and calls with their arguments, of a text that comes in pieces of so many characters.
    fn read(form: CallForm, text: &str, size: usize) -> (String, Vec<(String, String)>) {
        let mut reader = CallReader::new(form, vec!["f".to_owned(), "g".to_owned()]);
        let characters: Vec<char> = text.chars().collect();
        let mut said: Vec<Said> = characters
            .chunks(size)
            .flat_map(|piece| reader.push(&piece.iter().collect::<String>()))
            .collect();
        said.extend(reader.finish());
        let (mut content, mut calls) = (String::new(), Vec::new());
        for said in said {
            match said {
                Said::Text(text) => content.push_str(&text),
                Said::Call { call, name } => {
                    assert_eq!(call as usize, calls.len());
                    calls.push((name, String::new()));
                }
                Said::Arguments { call, text } => calls[call as usize].1.push_str(&text),
            }
        }
        (content, calls)
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn calls_are_read_however_the_text_is_cut() {
        let hermes = || form("<tool_call>", "</tool_call>", false);
        let bare = || form("", "", false);
        let list = || form("[CALLS]", "", true);
        let arguments = r#"{"a": "}\"", "b": [1, {}]}"#;
        let one = format!(r#"{{"name": "f", "arguments": {arguments}}}"#);
        let swapped = r#"{"arguments": {"x": 1}, "name": "g"}"#;
        for (form, text, content, calls) in [
            (
                hermes(),
                format!("Let me see.\n<tool_call>\n{one}\n</tool_call>\n"),
                "Let me see.",
                vec![call("f", arguments)],
            ),
            (
                hermes(),
                format!("<tool_call>{one}</tool_call>\n<tool_call>{swapped}</tool_call>"),
                "",
                vec![call("f", arguments), call("g", r#"{"x": 1}"#)],
            ),
            (hermes(), "a < b <tool> c".to_owned(), "a < b <tool> c", vec![]),
            (
                hermes(),
                "<tool_call>no JSON</tool_call>".to_owned(),
                "<tool_call>no JSON</tool_call>",
                vec![],
            ),
            (
                hermes(),
                r#"<tool_call>{"name": "f"}</tool_call>"#.to_owned(),
                "",
                vec![call("f", "{}")],
            ),
            (
                hermes(),
                r#"<tool_call>{"name": "f", "arguments": "{\"x\": 1}"}"#.to_owned(),
                "",
                vec![call("f", r#"{"x": 1}"#)],
            ),
            (bare(), one.clone(), "", vec![call("f", arguments)]),
            (bare(), format!("{one}; {one}"), "", vec![call("f", arguments), call("f", arguments)]),
            (
                bare(),
                r#"{"name": "nobody", "arguments": {}}"#.to_owned(),
                r#"{"name": "nobody", "arguments": {}}"#,
                vec![],
            ),
            (bare(), r#"{"colour": "red"}"#.to_owned(), r#"{"colour": "red"}"#, vec![]),
            (bare(), "Plain words {".to_owned(), "Plain words {", vec![]),
            (
                list(),
                format!("[CALLS] [{one}, {swapped}]"),
                "",
                vec![call("f", arguments), call("g", r#"{"x": 1}"#)],
            ),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                let (got, got_calls) = read(form.clone(), &text, size);
                assert_eq!((got.as_str(), got_calls), (content, calls.clone()), "{text} by {size}");
            }
        }
    }

    #[test]
    fn arguments_come_while_they_are_written() {
        let mut reader = CallReader::new(CallForm::default(), Vec::new());
        assert_eq!(reader.push("<tool_call>\n{\"name\": \"f\", \"arg"), []);
        assert!(reader.entered().is_some() && reader.entered().is_none());
        let said = reader.push("uments\": {\"city\": \"U");
        let arguments = Said::Arguments { call: 0, text: "{\"city\": \"U".to_owned() };
        assert_eq!(said, [Said::Call { call: 0, name: "f".to_owned() }, arguments]);
        let rest = Said::Arguments { call: 0, text: "lm\"}".to_owned() };
        assert_eq!(reader.push("lm\"}}"), [rest]);
        assert_eq!((reader.calls(), reader.complete_calls()), (1, 1));
        assert_eq!(reader.push("\n</tool_"), []);
        assert_eq!(reader.push("call>"), []);
        assert_eq!(reader.finish(), []);
    }

    #[test]
    fn a_mark_that_is_no_text_opens_a_call() {
        let form = CallForm { open_token: Some(7), ..form("[CALLS]", "", true) };
        let mut reader = CallReader::new(form, Vec::new());
        assert_eq!(reader.push("Well. "), [Said::Text("Well. ".to_owned())]);
        assert_eq!(reader.open(), []);
        let said = reader.push("[{\"name\": \"f\", \"arguments\": {}}]");
        assert_eq!(said.len(), 2);
        assert_eq!(reader.finish(), []);
    }
}
