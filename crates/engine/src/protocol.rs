//! The lines between worker and engine: commands read by a thread of their own, replies by one
//! writer.
//!
//! The types are `domain::engine`'s. A line that is no command is bad input, not the end: it is
//! logged, and when it says which run or request it meant, that one is answered as failed. The end
//! of input ends the process at once, whatever it is doing.

use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use domain::engine::{Command, GenerationEvent, GenerationFailure, Reply};
use domain::id::JobId;
use domain::report::RunFailure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::failure::permanent;
use crate::train::Prepared;

/// A chat request with a long history is long; anything beyond this is not a command.
const LONGEST_LINE: u64 = 64 << 20;
/// How long a turn in hand may take to notice that nobody listens any more.
const GRACE: Duration = Duration::from_millis(500);

/// What the scheduler waits for.
#[derive(Debug)]
pub enum Input {
    Command(Command),
    /// A line that is no command, and the answer that it deserves, if it can be given one.
    Garbage {
        reason: String,
        answer: Option<Box<Reply>>,
    },
    /// A run's data is in memory, or the reason why not. `attempt` tells it from a superseded one.
    Prepared {
        job_id: JobId,
        attempt: u64,
        result: Box<Result<Prepared, RunFailure>>,
    },
    /// The worker is gone.
    End,
}

/// Starts the reader thread on standard input.
pub fn read_commands(inputs: Sender<Input>) {
    thread::spawn(move || {
        let mut lines = Lines::new(io::stdin().lock());
        while let Some(input) = lines.next_input() {
            if inputs.send(input).is_err() {
                return;
            }
        }
        // The scheduler ends between two turns. A turn may take seconds, and a device may hang in
        // one: then this thread ends the process. Running libtorch's destructors beside a working
        // thread could hang as well, so it is a kill; checkpoints are renamed into place and cannot
        // be half done.
        let _ = inputs.send(Input::End);
        let (_never, timer) = channel::<()>();
        let _ = timer.recv_timeout(GRACE);
        let _ = kill(Pid::this(), Signal::SIGKILL);
    });
}

/// Commands from lines of bounded length.
struct Lines<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn new(reader: R) -> Self {
        Self { reader, line: Vec::new() }
    }

    /// The next command or bad line; empty lines are passed over. None at the end, or when the pipe
    /// breaks.
    fn next_input(&mut self) -> Option<Input> {
        loop {
            self.line.clear();
            let mut limited = (&mut self.reader).take(LONGEST_LINE);
            if limited.read_until(b'\n', &mut self.line).ok()? == 0 {
                return None;
            }
            if self.line.len() as u64 == LONGEST_LINE && !self.line.ends_with(b"\n") {
                self.reader.skip_until(b'\n').ok()?;
                let reason = format!("a line of more than {LONGEST_LINE} bytes");
                return Some(Input::Garbage { reason, answer: None });
            }
            if !self.line.trim_ascii().is_empty() {
                return Some(parse(&self.line));
            }
        }
    }
}

fn parse(line: &[u8]) -> Input {
    match serde_json::from_slice(line) {
        Ok(command) => Input::Command(command),
        Err(error) => {
            let reason = format!("not a command: {error}");
            let answer = answer_to_garbage(line, &reason).map(Box::new);
            Input::Garbage { reason, answer }
        }
    }
}

/// The answer that ends whatever a malformed command would have begun.
fn answer_to_garbage(line: &[u8], reason: &str) -> Option<Reply> {
    let value: Value = serde_json::from_slice(line).ok()?;
    match value["command"].as_str()? {
        "train" => {
            let job_id = JobId::from(value["plan"]["job_id"].as_str()?);
            Some(Reply::RunFailed { job_id, failure: permanent("invalid_plan", None, reason) })
        }
        "generate" => {
            let id = value["request"]["id"].as_str()?.to_owned();
            let code = "internal_error".to_owned();
            let failure = GenerationFailure { code, message: reason.to_owned() };
            Some(Reply::Generation { id, event: GenerationEvent::Failed { failure } })
        }
        _ => None,
    }
}

/// The one writer of replies.
pub struct Replies {
    out: Box<dyn Write>,
}

impl Replies {
    pub fn new(out: impl Write + 'static) -> Self {
        Self { out: Box::new(out) }
    }

    /// Writes one line and flushes it.
    ///
    /// # Errors
    /// When the worker no longer reads.
    pub fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(text: &str) -> Vec<Input> {
        let mut lines = Lines::new(text.as_bytes());
        std::iter::from_fn(|| lines.next_input()).collect()
    }

    #[test]
    fn garbage_between_commands_loses_no_command() {
        let got = inputs(
            "{\"command\":\"cancel_generate\",\"id\":\"a\"}\nnot json\n\n\
             {\"command\":\"cancel_generate\",\"id\":\"b\"}",
        );
        assert!(
            matches!(
                &got[..],
                [
                    Input::Command(Command::CancelGenerate { id: a }),
                    Input::Garbage { answer: None, .. },
                    Input::Command(Command::CancelGenerate { id: b }),
                ] if a == "a" && b == "b"
            ),
            "{got:?}"
        );
    }

    #[test]
    fn a_malformed_plan_fails_its_run() {
        let got = inputs(r#"{"command":"train","plan":{"job_id":"ftjob-1"}}"#);
        let [Input::Garbage { answer: Some(answer), .. }] = &got[..] else { panic!("{got:?}") };
        let Reply::RunFailed { job_id, failure } = &**answer else { panic!("{answer:?}") };
        assert_eq!((job_id.as_str(), failure.code.as_str()), ("ftjob-1", "invalid_plan"));
        assert!(failure.message.contains("fence"), "{}", failure.message);
    }
}
