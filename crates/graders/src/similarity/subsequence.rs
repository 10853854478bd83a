//! The length of the longest common subsequence, by bit vectors: 64 places of the first sequence at once.

use std::collections::HashMap;

const BITS: usize = u64::BITS as usize;

/// How many symbols `a` and `b` have in common in the same order.
///
/// Row `i` of the classical table only ever grows by 0 or 1 from place to place. `rows` holds its steps: a bit is 0
/// where the row grows. One addition with carries makes the next row of the last (Hyyrö 2004).
pub(super) fn longest_common(a: &[u32], b: &[u32]) -> usize {
    if a.is_empty() || b.is_empty() {
        return 0;
    }
    let places = places(a);
    let mut row = vec![u64::MAX; a.len().div_ceil(BITS)];
    for symbol in b {
        if let Some(matches) = places.get(symbol) {
            advance(&mut row, matches);
        }
    }
    let beyond = row.len() * BITS - a.len();
    if let Some(last) = row.last_mut() {
        // Places after the end of `a` never grow.
        *last |= u64::MAX.checked_shl((BITS - beyond) as u32).unwrap_or(0);
    }
    row.iter().map(|bits| bits.count_zeros() as usize).sum()
}

/// For each symbol the words of its bit vector that are not 0. Whole vectors would take the square of the length
/// for texts without repetition.
fn places(a: &[u32]) -> HashMap<u32, Vec<(usize, u64)>> {
    let mut places: HashMap<u32, Vec<(usize, u64)>> = HashMap::new();
    for (i, symbol) in a.iter().enumerate() {
        let (word, bit) = (i / BITS, 1 << (i % BITS));
        let words = places.entry(*symbol).or_default();
        match words.last_mut() {
            Some((last, bits)) if *last == word => *bits |= bit,
            _ => words.push((word, bit)),
        }
    }
    places
}

/// row = (row + (row & matches)) | (row & !matches), over words whose matches are 0 only while a carry runs.
fn advance(row: &mut [u64], matches: &[(usize, u64)]) {
    let mut carry = false;
    let mut word = 0;
    let mut next = matches.iter().peekable();
    loop {
        if !carry {
            match next.peek() {
                Some((at, _)) => word = *at,
                None => return,
            }
        }
        let Some(old) = row.get(word).copied() else { return };
        let bits = next.next_if(|(at, _)| *at == word).map_or(0, |(_, bits)| *bits);
        let (sum, first) = old.overflowing_add(old & bits);
        let (sum, second) = sum.overflowing_add(u64::from(carry));
        row[word] = sum | (old & !bits);
        carry = first || second;
        word += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_table(a: &[u32], b: &[u32]) -> usize {
        let mut row = vec![0; b.len() + 1];
        for x in a {
            let mut diagonal = 0;
            for (j, y) in b.iter().enumerate() {
                let up = row[j + 1];
                row[j + 1] = if x == y { diagonal + 1 } else { up.max(row[j]) };
                diagonal = up;
            }
        }
        row[b.len()]
    }

    #[test]
    fn bit_vectors_find_what_the_table_finds() {
        // A small generator; the sequences need variety, not randomness.
        let mut state = 1_u32;
        let mut draw = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        for round in 0..300 {
            let alphabet = [1, 2, 4, 50, 1000][round % 5];
            let (m, n) = (draw(300) as usize, draw(300) as usize);
            let a: Vec<u32> = (0..m).map(|_| draw(alphabet)).collect();
            let b: Vec<u32> = (0..n).map(|_| draw(alphabet)).collect();
            assert_eq!(longest_common(&a, &b), by_table(&a, &b), "{a:?} {b:?}");
        }
        let same: Vec<u32> = (0..128).collect();
        assert_eq!(longest_common(&same, &same), 128);
    }
}
