//! Stop strings in a stream of text pieces.
//!
//! Text that may be the beginning of a stop string is held back until the next piece decides, so
//! that no part of a stop string is ever sent. Stop tokens are the caller's business.

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    /// Text that is safe to send; may be empty.
    Text(String),
    /// A stop string was completed: the last text before it, and the answer's end.
    Stopped(String),
}

/// Watches one answer's text.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Empty stop strings stop nothing.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        // The earliest match wins, whichever stop string it belongs to.
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return Passed::Stopped(std::mem::take(&mut self.held));
        }
        let tail = self.held.split_off(self.held.len() - self.undecided());
        Passed::Text(std::mem::replace(&mut self.held, tail))
    }

    /// The answer ended by itself: what was held back is ordinary text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that are the beginning of some stop string.
    fn undecided(&self) -> usize {
        let longest = |stop: &String| {
            let limit = self.held.len().min(stop.len() - 1);
            (1..=limit)
                .rev()
                .filter(|&n| stop.is_char_boundary(n))
                .find(|&n| self.held.ends_with(&stop[..n]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All text that came out, and whether a stop string ended it.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watch = StopStrings::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut out = String::new();
        for piece in pieces {
            match watch.push(piece) {
                Passed::Text(text) => out.push_str(&text),
                Passed::Stopped(text) => return (out + &text, true),
            }
        }
        (out + &watch.finish(), false)
    }

    #[test]
    fn a_stop_string_is_found_however_the_text_is_cut() {
        let text = "one två END three";
        let cuts: Vec<usize> = (1..text.len()).filter(|&at| text.is_char_boundary(at)).collect();
        for &a in &cuts {
            for &b in cuts.iter().filter(|&&b| b >= a) {
                let pieces = [&text[..a], &text[a..b], &text[b..]];
                assert_eq!(run(&["END"], &pieces), ("one två ".into(), true), "{pieces:?}");
            }
        }
    }

    #[test]
    fn a_false_beginning_is_sent_after_all() {
        assert_eq!(run(&["</s>"], &["a</", "b", "</s"]), ("a</b</s".into(), false));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b", "c"]), ("a".into(), true));
        assert_eq!(run(&["ö!"], &["xö", "?"]), ("xö?".into(), false));
    }

    #[test]
    fn the_earliest_match_wins_and_nothing_of_it_is_sent() {
        assert_eq!(run(&["world", "lo"], &["hello world"]), ("hel".into(), true));
        assert_eq!(run(&[""], &["text"]), ("text".into(), false));
        let mut watch = StopStrings::new(&["STOP".to_owned()]);
        assert_eq!(watch.push("say ST"), Passed::Text("say ".into()));
        assert_eq!(watch.push("OP now"), Passed::Stopped(String::new()));
    }
}
