//! Answers as labels: which were meant, which came, and what follows of it for each label.

/// What was said where a label was expected. Labels are the rows, and what was answered the columns, of which the
/// last one is for answers that are no label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    labels: Vec<String>,
    counts: Vec<Vec<u64>>,
}

/// Figures of one label; 0 where they would divide by nothing, as scikit-learn has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfLabel {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    /// Rows that expect it.
    pub support: u64,
}

impl Confusion {
    /// Of labels, each once.
    pub fn new(labels: Vec<String>) -> Self {
        let counts = vec![vec![0; labels.len() + 1]; labels.len()];
        Self { labels, counts }
    }

    /// Counts a row; one that expects no label is left out, and false.
    pub fn add(&mut self, expected: &str, answer: &str) -> bool {
        let place = |text: &str| self.labels.iter().position(|label| label == text.trim());
        let Some(row) = place(expected) else { return false };
        let column = place(answer).unwrap_or(self.labels.len());
        self.counts[row][column] += 1;
        true
    }

    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    pub fn counts(&self) -> &[Vec<u64>] {
        &self.counts
    }

    /// The share of rows whose label was answered; none without rows.
    pub fn accuracy(&self) -> Option<f64> {
        let all: u64 = self.counts.iter().flatten().sum();
        let right: u64 = self.counts.iter().enumerate().map(|(i, row)| row[i]).sum();
        (all > 0).then(|| right as f64 / all as f64)
    }

    /// In the order of the labels.
    pub fn of_labels(&self) -> Vec<OfLabel> {
        let of = |i: usize| {
            let right = self.counts[i][i] as f64;
            let support: u64 = self.counts[i].iter().sum();
            let said: u64 = self.counts.iter().map(|row| row[i]).sum();
            let share = |of: u64| if of > 0 { right / of as f64 } else { 0.0 };
            let (precision, recall) = (share(said), share(support));
            let both = precision + recall;
            let f1 = if both > 0.0 { 2.0 * precision * recall / both } else { 0.0 };
            OfLabel { precision, recall, f1, support }
        };
        (0..self.labels.len()).map(of).collect()
    }

    /// The mean F1 of the labels that rows expect; none without rows.
    pub fn macro_f1(&self) -> Option<f64> {
        let of_labels = self.of_labels();
        let expected: Vec<f64> =
            of_labels.iter().filter(|of| of.support > 0).map(|of| of.f1).collect();
        (!expected.is_empty()).then(|| expected.iter().sum::<f64>() / expected.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_labels_are_scikit_learns() {
        // sklearn.metrics.classification_report of these pairs, "other" among the predictions.
        let mut confusion = Confusion::new(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]);
        let said =
            [("a", "a"), ("a", " a\n"), ("a", "b"), ("b", "b"), ("b", "I think b"), ("c", "a")];
        said.iter().for_each(|(expected, answer)| assert!(confusion.add(expected, answer)));
        assert!(!confusion.add("d", "a"));
        assert_eq!(confusion.counts(), [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]);
        assert_eq!(confusion.accuracy(), Some(0.5));
        let [a, b, c] = confusion.of_labels()[..] else { panic!() };
        let third = 2.0 / 3.0;
        assert!(
            (a.precision - third).abs() + (a.recall - third).abs() + (a.f1 - third).abs() < 1e-12
        );
        assert_eq!((b.precision, b.recall, b.f1, b.support), (0.5, 0.5, 0.5, 2));
        assert_eq!((c.precision, c.recall, c.f1, c.support), (0.0, 0.0, 0.0, 1));
        assert!((confusion.macro_f1().unwrap() - (third + 0.5) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn without_rows_there_are_no_figures() {
        let confusion = Confusion::new(vec!["a".to_owned()]);
        assert_eq!((confusion.accuracy(), confusion.macro_f1()), (None, None));
    }
}
