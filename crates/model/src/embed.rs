//! A text's embedding: the mean of its tokens' states after the final norm.
//!
//! What stands first has a state of its own, whatever it is, because attention rests on it. So a token comes before
//! the text that is no part of the mean.
//!
//! The states of a model that was made to write, not to compare: texts about the same thing lie closer to each
//! other than to others, but all of them lie in a narrow cone, so differences count and absolute values do not.

use tch::{IndexOp as _, Kind, no_grad};

use crate::adapter::Adapter;
use crate::decoder::Decoder;
use crate::generate::KvCache;

impl Decoder {
    /// Appends `ids` to the cache and answers the sum of their states after the final norm, those of the first
    /// `skipped` left out: one value per hidden dimension.
    ///
    /// # Panics
    /// As [`Decoder::extend`].
    pub fn extend_summed(
        &self,
        cache: &mut KvCache,
        ids: &[i64],
        skipped: usize,
        adapter: Option<&Adapter>,
    ) -> Vec<f64> {
        let sum = no_grad(|| {
            let states = self.read_each(cache, ids, adapter);
            let (states, _) = self.under(adapter).final_norm(&states.i(skipped as i64..));
            states.to_kind(Kind::Double).sum_dim_intlist([0i64].as_slice(), false, Kind::Double)
        });
        Vec::try_from(sum).expect("a sum of rows is a flat tensor")
    }
}
