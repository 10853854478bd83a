//! One line per long step: a spinner with seconds and megabytes on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a log that is not a terminal hears that a step still runs.
const QUIET_INTERVAL: Duration = Duration::from_secs(20);
const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];

/// The line of one step. Nothing is printed after it is finished.
#[derive(Debug)]
pub struct Progress {
    title: String,
    started: Instant,
    last_shown: Instant,
    frame: usize,
    is_terminal: bool,
}

impl Progress {
    pub fn start(title: &str) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        if !is_terminal {
            eprintln!("  {title} ...");
        }
        let now = Instant::now();
        Self { title: title.to_owned(), started: now, last_shown: now, frame: 0, is_terminal }
    }

    /// Shows that the step still runs; `detail` says how far it is.
    pub fn tick(&mut self, detail: &str) {
        let seconds = self.started.elapsed().as_secs();
        if self.is_terminal {
            self.frame = (self.frame + 1) % FRAMES.len();
            let frame = FRAMES[self.frame];
            eprint!("\r\x1b[2K{frame} {}  {seconds} s  {detail}", self.title);
            // A lost progress line harms nobody.
            let _ = std::io::stderr().flush();
        } else if self.last_shown.elapsed() >= QUIET_INTERVAL {
            self.last_shown = Instant::now();
            eprintln!("  {} ... {seconds} s  {detail}", self.title);
        }
    }

    pub fn succeed(self) {
        self.finish('✓');
    }

    pub fn fail(self) {
        self.finish('✗');
    }

    fn finish(self, mark: char) {
        let seconds = self.started.elapsed().as_secs_f64();
        let clear = if self.is_terminal { "\r\x1b[2K" } else { "" };
        eprintln!("{clear}{mark} {} ({seconds:.0} s)", self.title);
    }
}
