//! Examples to micro-batches without padding: documents one behind the other, with their bounds.
//!
//! Packing only arranges the examples of one optimizer step; which examples those are is decided
//! before, so that results do not depend on it.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::mask::Example;

/// One micro-batch. Rows are numbered over all documents of the micro-batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Token ids, one per row.
    pub input_ids: Vec<i64>,
    /// Position inside its document, from 0 or from the end of the one that it continues, one per row.
    pub positions: Vec<i64>,
    /// First row of each document, and the number of rows: documents + 1 entries.
    pub cu_seqlens: Vec<i32>,
    /// For each document, the earlier one that it continues, if any.
    pub continues: Vec<Option<usize>>,
    /// The rows whose hidden state predicts a target: the row before the target's own.
    pub target_rows: Vec<i64>,
    /// The token that each of `target_rows` has to predict.
    pub target_ids: Vec<i64>,
}

/// What fits into one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub tokens: usize,
    /// Rows that each document takes in a pass beside its tokens.
    pub per_document: usize,
}

impl From<usize> for Room {
    fn from(tokens: usize) -> Self {
        Self { tokens, per_document: 0 }
    }
}

/// Arranges examples into micro-batches that have room for so many tokens: longest first, each
/// into the fullest micro-batch that has room. A longer example stands alone. Examples without
/// tokens are left out. The same input gives the same output.
pub fn pack(examples: &[&Example], room: impl Into<Room>) -> Vec<Packed> {
    let room = room.into();
    let len = |example: &&Example| match example.input_ids.len() {
        0 => 0,
        len => len + room.per_document,
    };
    let lens: Vec<usize> = examples.iter().map(len).collect();
    let bins = best_fit(&lens, room.tokens);
    let fill = |bin: Vec<usize>| {
        let mut packed = Packed::empty();
        bin.into_iter().for_each(|index| packed.push(examples[index]));
        packed
    };
    bins.into_iter().map(fill).collect()
}

/// A micro-batch of whole rows of several sequences, such as pairs. What the sequences of a row have in common
/// before their first targets is there once, as a document of its own that the others continue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedRows {
    pub packed: Packed,
    /// Which of the given rows are here, in the order of their sequences.
    pub rows: Vec<usize>,
    /// For each sequence, where its targets end among `target_ids`.
    pub target_ends: Vec<usize>,
}

/// As [`pack`] for rows whose sequences are compared with each other: a row is never divided. A row
/// with a sequence that has no target has nothing to compare, and is left out.
pub fn pack_rows(rows: &[&[Example]], room: impl Into<Room>) -> Vec<PackedRows> {
    let room = room.into();
    let size = |row: &&[Example]| {
        let whole = row.iter().all(|example| example.targets() > 0);
        let sizes = row.iter().map(|example| example.input_ids.len());
        // A beginning that is shared counts once.
        let shared = shared_tokens(row);
        let again = shared * row.len().saturating_sub(1);
        let beginnings = if shared > 0 { 1 } else { row.len() };
        let extra = beginnings * room.per_document;
        if whole { sizes.sum::<usize>() - again + extra } else { 0 }
    };
    let sizes: Vec<usize> = rows.iter().map(size).collect();
    let fill = |bin: Vec<usize>| {
        let mut out = PackedRows { packed: Packed::empty(), ..PackedRows::default() };
        for &row in &bin {
            let (row, shared) = (rows[row], shared_tokens(rows[row]));
            let beginning = (shared > 0).then(|| out.packed.push_part(&row[0], 0..shared, None));
            for example in row {
                let rest = shared..example.input_ids.len();
                out.packed.push_part(example, rest, beginning);
                out.target_ends.push(out.packed.target_ids.len());
            }
        }
        PackedRows { rows: bin, ..out }
    };
    best_fit(&sizes, room.tokens).into_iter().map(fill).collect()
}

/// Tokens that all sequences of a row begin with and that can be computed once for all of them: those before
/// the token that predicts the first target, since that one has a target in each sequence. None of a row of
/// one sequence.
fn shared_tokens(row: &[Example]) -> usize {
    let [first, others @ ..] = row else { return 0 };
    let first_target = |example: &Example| {
        let mut targets = example.is_target.iter().skip(1);
        targets.position(|&target| target).unwrap_or(0)
    };
    let common = |other: &Example| {
        let pairs = first.input_ids.iter().zip(&other.input_ids);
        pairs.take_while(|(a, b)| a == b).count().min(first_target(other))
    };
    others.iter().map(common).min().unwrap_or(0).min(first_target(first))
}

/// Divides things into bins: largest first, each into the fullest bin that has room. What is larger
/// than a bin has one to itself; what has no size is left out.
fn best_fit(sizes: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).filter(|&index| sizes[index] > 0).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(sizes[index]));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // (room, bin): the fullest bin with enough room is the first one from (len, 0) on.
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for index in order {
        let needed = sizes[index];
        let (free, bin) = match room.range((needed, 0)..).next().copied() {
            Some(found) => {
                room.remove(&found);
                found
            }
            None => {
                bins.push(Vec::new());
                (capacity.max(needed), bins.len() - 1)
            }
        };
        bins[bin].push(index);
        room.insert((free - needed, bin));
    }
    bins
}

impl Packed {
    /// Number of target tokens.
    pub fn targets(&self) -> usize {
        self.target_ids.len()
    }

    fn empty() -> Self {
        Self { cu_seqlens: vec![0], ..Self::default() }
    }

    fn push(&mut self, example: &Example) {
        self.push_part(example, 0..example.input_ids.len(), None);
    }

    /// Adds a part of an example as a document, and answers its number.
    fn push_part(
        &mut self,
        example: &Example,
        part: Range<usize>,
        continues: Option<usize>,
    ) -> usize {
        let ids = &example.input_ids;
        // The row of the example's first token, were it here.
        let start = self.input_ids.len() as i64 - part.start as i64;
        self.input_ids.extend(ids[part.clone()].iter().map(|&id| i64::from(id)));
        self.positions.extend(part.start as i64..part.end as i64);
        let end = i32::try_from(self.input_ids.len()).unwrap_or(i32::MAX);
        self.cu_seqlens.push(end);
        self.continues.push(continues);
        // The first token of a document has nothing before it here that could predict it.
        for at in (part.start + 1..part.end).filter(|&at| example.is_target[at]) {
            self.target_rows.push(start + at as i64 - 1);
            self.target_ids.push(i64::from(ids[at]));
        }
        self.continues.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> impl Strategy<Value = Example> {
        proptest::collection::vec((0u32..1000, any::<bool>()), 0..40).prop_map(|tokens| {
            let (input_ids, is_target) = tokens.into_iter().unzip();
            Example { input_ids, is_target, ..Example::default() }
        })
    }

    /// The documents of micro-batches: ids, and the mask that the target rows stand for.
    fn unpacked(batches: &[Packed]) -> Vec<(Vec<u32>, Vec<bool>)> {
        let mut documents = Vec::new();
        for batch in batches {
            let mut mask = vec![false; batch.input_ids.len()];
            for (row, id) in batch.target_rows.iter().zip(&batch.target_ids) {
                assert_eq!(batch.input_ids[*row as usize + 1], *id);
                mask[*row as usize + 1] = true;
            }
            for bounds in batch.cu_seqlens.windows(2) {
                let rows = bounds[0] as usize..bounds[1] as usize;
                let ids = batch.input_ids[rows.clone()].iter().map(|&id| id as u32).collect();
                documents.push((ids, mask[rows.clone()].to_vec()));
                let positions: Vec<i64> = (0..rows.len() as i64).collect();
                assert_eq!(batch.positions[rows], positions);
            }
        }
        documents
    }

    proptest! {
        #[test]
        fn no_token_is_lost_and_none_trained_that_is_masked(
            examples in proptest::collection::vec(example(), 0..30), limit in 1usize..80,
        ) {
            let batches = pack(&examples.iter().collect::<Vec<_>>(), limit);
            let mut found = unpacked(&batches);
            let mut expected: Vec<_> = examples
                .iter()
                .filter(|example| !example.input_ids.is_empty())
                .map(|example| {
                    let mut mask = example.is_target.clone();
                    mask[0] = false;
                    (example.input_ids.clone(), mask)
                })
                .collect();
            found.sort();
            expected.sort();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn micro_batches_respect_the_limit(
            examples in proptest::collection::vec(example(), 0..30), limit in 1usize..80,
        ) {
            let batches = pack(&examples.iter().collect::<Vec<_>>(), limit);
            for batch in &batches {
                let alone = batch.cu_seqlens.len() == 2;
                prop_assert!(batch.input_ids.len() <= limit || alone);
                prop_assert_eq!(*batch.cu_seqlens.last().unwrap() as usize, batch.input_ids.len());
            }
            prop_assert_eq!(&batches, &pack(&examples.iter().collect::<Vec<_>>(), limit));
        }

        #[test]
        fn two_half_empty_micro_batches_never_remain(
            examples in proptest::collection::vec(example(), 0..30), limit in 1usize..80,
        ) {
            let batches = pack(&examples.iter().collect::<Vec<_>>(), limit);
            let loose = batches.iter().filter(|batch| batch.input_ids.len() * 2 <= limit).count();
            prop_assert!(loose <= 1, "{} of {}", loose, batches.len());
        }
    }

    fn sequence(ids: &[u32], first_target: usize) -> Example {
        let is_target = (0..ids.len()).map(|at| at >= first_target).collect();
        Example { input_ids: ids.to_vec(), is_target, ..Example::default() }
    }

    #[test]
    fn a_rows_common_beginning_is_there_once() {
        let pair = [sequence(&[1, 2, 3, 4, 5, 6], 4), sequence(&[1, 2, 3, 4, 7], 4)];
        // The fourth token predicts the first target of both.
        assert_eq!(shared_tokens(&pair), 3);
        let packed = pack_rows(&[&pair], 100).remove(0);
        let expected = Packed {
            input_ids: vec![1, 2, 3, 4, 5, 6, 4, 7],
            positions: vec![0, 1, 2, 3, 4, 5, 3, 4],
            cu_seqlens: vec![0, 3, 6, 8],
            continues: vec![None, Some(0), Some(0)],
            target_rows: vec![3, 4, 6],
            target_ids: vec![5, 6, 7],
        };
        assert_eq!((packed.packed, packed.target_ends), (expected, vec![2, 3]));
    }

    #[test]
    fn only_what_is_common_and_before_every_target_is_shared() {
        let shared = |a: (&[u32], usize), b: (&[u32], usize)| {
            shared_tokens(&[sequence(a.0, a.1), sequence(b.0, b.1)])
        };
        assert_eq!(shared((&[1, 2, 3, 4], 3), (&[1, 9, 3, 4], 3)), 1, "they differ earlier");
        assert_eq!(shared((&[8, 2, 3, 4], 3), (&[1, 2, 3, 4], 3)), 0, "they differ at once");
        assert_eq!(shared((&[1, 2, 3, 4], 3), (&[1, 2, 3, 4], 2)), 1, "an earlier target");
        assert_eq!(shared((&[1, 2, 3, 4], 3), (&[1, 2, 3, 4], 3)), 2, "equal sequences");
        assert_eq!(shared((&[1, 2], 1), (&[1, 3], 1)), 0, "nothing before the one that predicts");
        assert_eq!(shared((&[1, 2], 0), (&[1, 3], 0)), 0, "a first token predicts nothing");
        assert_eq!(shared_tokens(&[sequence(&[1, 2, 3], 2)]), 0, "one sequence alone");
    }

    proptest! {
        #[test]
        fn rows_hold_every_target_of_every_sequence(
            rows in proptest::collection::vec((0usize..6, 1usize..5, 1usize..5), 1..9),
            limit in 1usize..40,
        ) {
            let rows: Vec<[Example; 2]> = rows
                .iter()
                .map(|&(prompt, a, b)| [a, b].map(|answer| {
                    let ids: Vec<u32> = (0..prompt as u32).chain((0..answer as u32).map(|n| {
                        50 + n * answer as u32
                    })).collect();
                    sequence(&ids, prompt)
                }))
                .collect();
            let views: Vec<&[Example]> = rows.iter().map(|row| &row[..]).collect();
            for packed in pack_rows(&views, limit) {
                let mut done = 0;
                let sequences = packed.rows.iter().flat_map(|&row| &rows[row]);
                for (example, &end) in sequences.zip(&packed.target_ends) {
                    let targets = (1..example.input_ids.len()).filter(|&at| example.is_target[at]);
                    let ids: Vec<i64> =
                        targets.map(|at| i64::from(example.input_ids[at])).collect();
                    prop_assert_eq!(&packed.packed.target_ids[done..end], &ids[..]);
                    done = end;
                }
                prop_assert!(packed.packed.target_rows.windows(2).all(|pair| pair[0] < pair[1]));
                let tokens = packed.packed.input_ids.len();
                prop_assert!(tokens <= limit || packed.rows.len() == 1);
            }
        }
    }

    #[test]
    fn an_example_goes_into_the_fullest_micro_batch_with_room() {
        let lengths = [5, 6, 3, 4];
        let examples: Vec<_> = lengths
            .iter()
            .map(|&n| Example {
                input_ids: vec![n; n as usize],
                is_target: vec![false; n as usize],
                ..Example::default()
            })
            .collect();
        let batches = pack(&examples.iter().collect::<Vec<_>>(), 10);
        let first_ids: Vec<Vec<i64>> = batches
            .iter()
            .map(|b| b.cu_seqlens.windows(2).map(|w| b.input_ids[w[0] as usize]).collect())
            .collect();
        assert_eq!(first_ids, [vec![6, 4], vec![5, 3]]);
    }
}
