//! `string_check`: 1 or 0 by comparing two texts.

use crate::definition::Operation;

/// Whether `input` stands to `reference` as the operation says.
pub fn holds(operation: Operation, input: &str, reference: &str) -> bool {
    match operation {
        Operation::Eq => input == reference,
        Operation::Ne => input != reference,
        Operation::Like => input.contains(reference),
        Operation::Ilike => input.to_lowercase().contains(&reference.to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_compare_as_their_names_say() {
        use Operation::{Eq, Ilike, Like, Ne};
        for (operation, input, reference, expected) in [
            (Eq, "a", "a", true),
            (Eq, "a", "A", false),
            (Eq, "a ", "a", false),
            (Ne, "a", "b", true),
            (Ne, "a", "a", false),
            (Like, "the answer", "answer", true),
            (Like, "answer", "the answer", false),
            (Like, "The Answer", "answer", false),
            (Like, "anything", "", true),
            (Ilike, "THE ÄNSWER", "änswer", true),
            (Ilike, "a", "b", false),
        ] {
            assert_eq!(holds(operation, input, reference), expected, "{operation:?} {input}");
        }
    }
}
