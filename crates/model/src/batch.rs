//! A packed batch: documents one after the other in one row, without padding.
//!
//! Documents that begin with the same tokens may share them: the beginning is a document of its own, computed
//! once, and each of the others continues it.

use kernels::{Segment, Segments};
use thiserror::Error;

/// Tokens of several documents, and which of their hidden states predict a target.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// `[T]`
    pub input_ids: Vec<i64>,
    /// `[T]`, from 0 in every document, or from where the document that it continues has ended.
    pub positions: Vec<i64>,
    /// The documents' first rows and, last, T.
    pub cu_seqlens: Vec<i32>,
    /// For each document, the earlier one that it continues, if any. Empty: none continues another.
    pub continues: Vec<Option<usize>>,
    /// Rows whose hidden state predicts a target, each at most once, ascending.
    pub target_rows: Vec<i64>,
    /// The token to predict at each of `target_rows`.
    pub target_ids: Vec<i64>,
}

/// A batch that contradicts itself or the model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("malformed batch: {0}")]
pub struct BatchError(String);

impl BatchError {
    pub(crate) fn of(message: &str) -> Self {
        Self(message.to_owned())
    }
}

impl Batch {
    /// The last row of each document that no other one continues.
    pub(crate) fn last_rows(&self) -> Vec<i64> {
        let documents = 0..self.cu_seqlens.len().saturating_sub(1);
        let ends = documents.filter(|document| !self.continues.contains(&Some(*document)));
        ends.map(|document| i64::from(self.cu_seqlens[document + 1]) - 1).collect()
    }

    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Checks that the parts fit each other, so that the kernels may index without looking.
    pub(crate) fn check(&self, vocab_size: usize, max_positions: usize) -> Result<(), BatchError> {
        let fail = |message: &str| Err(BatchError(message.to_owned()));
        let tokens = self.tokens();
        if tokens == 0 || self.positions.len() != tokens {
            return fail("no tokens, or not one position per token");
        }
        let documents = &self.cu_seqlens;
        let covers = documents.first() == Some(&0)
            && documents.last().is_some_and(|&end| end as usize == tokens)
            && documents.is_sorted();
        if !covers {
            return fail("documents do not cover the tokens");
        }
        self.check_continuations()?;
        let in_vocabulary = |ids: &[i64]| ids.iter().all(|&id| (id as u64) < vocab_size as u64);
        if !in_vocabulary(&self.input_ids) || !in_vocabulary(&self.target_ids) {
            return fail("a token id is outside the vocabulary");
        }
        if self.positions.iter().any(|&p| p as u64 >= max_positions as u64) {
            return fail("a position is beyond the context length");
        }
        let rows = &self.target_rows;
        let ascending = rows.windows(2).all(|pair| pair[0] < pair[1]);
        if rows.len() != self.target_ids.len()
            || !ascending
            || rows.iter().any(|&row| row as u64 >= tokens as u64)
        {
            return fail("target rows are not ascending rows of the batch, one per target");
        }
        Ok(())
    }

    /// What the attention kernels see: each document, behind the one that it continues.
    pub(crate) fn segments(&self) -> Segments {
        let rows = |document: usize| {
            self.cu_seqlens[document] as usize..self.cu_seqlens[document + 1] as usize
        };
        let segment = |document| Segment {
            rows: rows(document),
            before: self.continued(document).map(rows).into_iter().collect(),
        };
        Segments::new((0..self.documents()).map(segment).collect())
    }

    pub(crate) fn documents(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// The document that this one continues.
    pub(crate) fn continued(&self, document: usize) -> Option<usize> {
        self.continues.get(document).copied().flatten()
    }

    fn check_continuations(&self) -> Result<(), BatchError> {
        let fail = |message: &str| Err(BatchError(message.to_owned()));
        if !self.continues.is_empty() && self.continues.len() != self.documents() {
            return fail("not one answer per document to whether it continues another");
        }
        for (document, earlier) in self.continues.iter().enumerate() {
            let &Some(earlier) = earlier else { continue };
            if earlier >= document || self.continued(earlier).is_some() {
                return fail("a document continues one that is later, or that continues another");
            }
            let [start, end] = [document, earlier + 1].map(|at| self.cu_seqlens[at] as usize);
            let is_empty = self.cu_seqlens[earlier] as usize == end;
            if is_empty || self.positions.get(start) != Some(&(self.positions[end - 1] + 1)) {
                return fail("positions do not go on from the document that is continued");
            }
        }
        Ok(())
    }
}

/// Sums over the targets of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossSum {
    /// Σ −log p(target), nats.
    pub loss: f64,
    /// Targets that were the most probable token.
    pub correct: u64,
    pub targets: u64,
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.correct += other.correct;
        self.targets += other.targets;
    }
}
