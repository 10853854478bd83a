//! The score head of a reward model: one number for a whole document, `w · h` with h the last token's hidden
//! state after the final norm, as transformers' models for sequence classification compute it.
//!
//! w is part of the adapter and trained with it. The language model's own head takes no part.

use kernels::rms_norm_backward;
use tch::{Kind, Tensor, no_grad};

use crate::adapter::{Adapter, Gradients};
use crate::batch::{Batch, BatchError};
use crate::decoder::{Decoder, PassOptions};
use crate::generate::KvCache;

/// What scores are made of.
struct Scored {
    /// The last rows of the documents, `[N]`.
    rows: Tensor,
    /// Their hidden states before and after the final norm, `[N, D]`, and 1/rms of each.
    states: Tensor,
    x: Tensor,
    rstd: Tensor,
    scores: Vec<f64>,
}

impl Decoder {
    /// The score of every document of a batch that no other document continues, in their order.
    ///
    /// # Errors
    /// As [`Decoder::forward_backward`], and for an adapter without a score head.
    pub fn scores(&self, batch: &Batch, adapter: &Adapter) -> Result<Vec<f64>, BatchError> {
        let weight = score_head(adapter)?;
        let (hidden, arrangement) = self.hidden_states(batch, Some(adapter))?;
        Ok(no_grad(|| self.scored(&arrangement.batch, &weight, &hidden).scores))
    }

    /// A training pass for a loss that is a function of the documents' scores: `coefficients` gets the scores
    /// and answers −∂loss/∂score for each of them.
    ///
    /// # Errors
    /// As [`Decoder::scores`].
    pub fn forward_backward_scores(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        gradients: &mut Gradients,
        options: PassOptions,
        coefficients: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> Result<(), BatchError> {
        let weight = score_head(adapter)?;
        let head = |batch: &Batch, hidden: &Tensor, (dh, _): (&Tensor, &Gradients)| {
            let scored = self.scored(batch, &weight, hidden);
            let scale = -options.scale / self.spec.logit_scale;
            let slopes: Vec<f32> = coefficients(&scored.scores)
                .into_iter()
                .map(|coefficient| (coefficient * scale) as f32)
                .collect();
            // [N, 1]
            let slopes = Tensor::from_slice(&slopes).to_device(self.device).unsqueeze(1);
            let dx = (&slopes * &weight).to_kind(scored.x.kind());
            let d_states = scored.states.zeros_like();
            rms_norm_backward(&dx, &scored.states, &self.norm, &scored.rstd, &d_states);
            let mut dh = dh.shallow_clone();
            let _ = dh.zero_();
            let _ = dh.index_copy_(0, &scored.rows, &d_states);
            let products = slopes * scored.x.to_kind(Kind::Float);
            products.sum_dim_intlist([0i64].as_slice(), false, Kind::Float)
        };
        let d_weight = self.training_pass(batch, adapter, gradients, options, head)?;
        if let Some(mut gradient) = gradients.score(adapter) {
            let _ = no_grad(|| gradient.g_add_(&d_weight));
        }
        Ok(())
    }

    /// Appends `ids` to the cache and answers the score of all that is in it; none of an adapter without a
    /// score head.
    ///
    /// # Panics
    /// As [`Decoder::extend`].
    pub fn extend_scored(
        &self,
        cache: &mut KvCache,
        ids: &[i64],
        adapter: &Adapter,
    ) -> Option<f64> {
        let weight = adapter.score()?;
        let scores = no_grad(|| {
            let (x, _) = self.final_norm(&self.read(cache, ids, Some(adapter)));
            self.products(&x, &weight)
        });
        scores.first().copied()
    }

    fn scored(&self, batch: &Batch, weight: &Tensor, hidden: &Tensor) -> Scored {
        let rows = Tensor::from_slice(&batch.last_rows()).to_device(self.device);
        let states = hidden.index_select(0, &rows);
        let (x, rstd) = self.final_norm(&states);
        let scores = self.products(&x, weight);
        Scored { rows, states, x, rstd, scores }
    }

    /// Scores of normalised rows `[N, D]`. The factor on logits, which the norm carries, is no part of them.
    fn products(&self, x: &Tensor, weight: &Tensor) -> Vec<f64> {
        let products = x.to_kind(Kind::Float).mv(weight) / self.spec.logit_scale;
        Vec::try_from(products.to_kind(Kind::Double)).expect("scores are a flat tensor")
    }
}

fn score_head(adapter: &Adapter) -> Result<Tensor, BatchError> {
    adapter.score().ok_or_else(|| BatchError::of("the adapter has no score head"))
}
