//! A batch as a pass computes it: behind the virtual tokens of an adapter, if it has any.
//!
//! Embeddings that are trained are rows of the batch, before each document. Keys and values that are trained
//! are there once, in rows behind all others that have nothing but keys and values, and every document sees
//! them. Documents that continue another have them through that one.

use std::borrow::Cow;

use kernels::{Segment, Segments};

use crate::adapter::Adapter;
use crate::batch::Batch;

pub(crate) struct Arrangement<'a> {
    pub batch: Cow<'a, Batch>,
    /// Rows of the virtual tokens' embeddings, document by document.
    pub prompt_rows: Vec<i64>,
    /// Rows behind all others with keys and values that every document sees.
    pub prefix_rows: usize,
}

impl<'a> Arrangement<'a> {
    pub fn new(batch: &'a Batch, adapter: Option<&Adapter>) -> Self {
        let count = adapter.map_or(0, Adapter::virtual_tokens);
        if count == 0 {
            return Self { batch: Cow::Borrowed(batch), prompt_rows: Vec::new(), prefix_rows: 0 };
        }
        if adapter.is_some_and(Adapter::has_prompt) {
            return Self::with_rows(batch, count);
        }
        let positions = batch.positions.iter().map(|position| position + count as i64).collect();
        let batch = Cow::Owned(Batch { positions, ..batch.clone() });
        Self { batch, prompt_rows: Vec::new(), prefix_rows: count }
    }

    /// `count` rows before each document.
    fn with_rows(batch: &Batch, count: usize) -> Self {
        let mut out = Batch {
            cu_seqlens: vec![0],
            continues: batch.continues.clone(),
            target_ids: batch.target_ids.clone(),
            ..Batch::default()
        };
        let mut prompt_rows = Vec::new();
        let mut targets = batch.target_rows.iter().peekable();
        for document in 0..batch.documents() {
            if batch.continued(document).is_none() {
                let start = out.input_ids.len() as i64;
                prompt_rows.extend(start..start + count as i64);
                // Any id will do: the embedding is overwritten.
                out.input_ids.extend(std::iter::repeat_n(0, count));
                out.positions.extend(0..count as i64);
            }
            let [start, end] = [document, document + 1].map(|at| batch.cu_seqlens[at] as usize);
            let shift = (out.input_ids.len() - start) as i64;
            out.input_ids.extend(&batch.input_ids[start..end]);
            out.positions.extend(batch.positions[start..end].iter().map(|at| at + count as i64));
            while let Some(row) = targets.next_if(|&&row| row < end as i64) {
                out.target_rows.push(row + shift);
            }
            out.cu_seqlens.push(out.input_ids.len() as i32);
        }
        Self { batch: Cow::Owned(out), prompt_rows, prefix_rows: 0 }
    }

    pub fn segments(&self) -> Segments {
        let segments = self.batch.segments();
        if self.prefix_rows == 0 {
            return segments;
        }
        let prefix = segments.rows()..segments.rows() + self.prefix_rows;
        let behind_prefix = |segment: &Segment| {
            let mut before = vec![prefix.clone()];
            before.extend(segment.before.iter().cloned());
            Segment { before, rows: segment.rows.clone() }
        };
        Segments::new(segments.iter().map(behind_prefix).collect())
    }

    /// Rows of the batch's own tokens, where others are among them.
    pub fn own_rows(&self) -> Option<Vec<i64>> {
        let mut prompt_rows = self.prompt_rows.iter().peekable();
        let mut is_own = |row: &i64| prompt_rows.next_if_eq(&row).is_none();
        let own = || (0..self.batch.tokens() as i64).filter(|row| is_own(row)).collect();
        (!self.prompt_rows.is_empty()).then(own)
    }
}
