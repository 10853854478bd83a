//! The score head of a reward model: one row of weights `[D]`, behind everything else in the flat buffer.
//!
//! What it computes is in `crate::score`.

use tch::Tensor;
use weights::peft::SCORE_KEY;

use super::{Adapter, AdapterError, Gradients, Kind, Uniform};
use crate::decoder::Decoder;
use crate::layout::StoredTensor;

/// Of a fresh head's weights, as transformers begins them.
const STANDARD_DEVIATION: f64 = 0.02;

impl Adapter {
    /// The same with a fresh score head behind it.
    ///
    /// # Errors
    /// For a kind of adapter that has none.
    pub fn with_score(self, decoder: &Decoder, seed: u64) -> Result<Self, AdapterError> {
        let Kind::Lora(lora) = self.kind else {
            let message = "a score head is trained together with LoRA only";
            return Err(AdapterError::Invalid(message.to_owned()));
        };
        let mut random = Uniform(seed);
        let weights: Vec<f32> = (0..decoder.spec().hidden_size)
            .map(|_| (STANDARD_DEVIATION * normal(&mut random)) as f32)
            .collect();
        let weights = Tensor::from_slice(&weights).to_device(decoder.device());
        let score = Some(self.values.numel() as i64);
        let values = Tensor::cat(&[&self.values, &weights], 0);
        let kind = Kind::Lora(lora.over(decoder, &values));
        Ok(Self { values, kind, score }.refreshed())
    }

    /// Whether this is a reward model: it scores, and does not answer.
    pub fn is_reward(&self) -> bool {
        self.score.is_some()
    }

    /// The head's weight `[D]`.
    pub(crate) fn score(&self) -> Option<Tensor> {
        self.score_of(&self.values)
    }

    /// Its part of a flat buffer.
    fn score_of(&self, flat: &Tensor) -> Option<Tensor> {
        self.score.map(|offset| flat.narrow(0, offset, flat.numel() as i64 - offset))
    }

    pub(super) fn score_tensor(&self) -> Option<StoredTensor> {
        let len = self.values.numel() as i64;
        self.score.map(|offset| score_tensor(offset, len - offset))
    }
}

impl Gradients {
    /// That of the score head, `[D]`.
    pub(crate) fn score(&self, adapter: &Adapter) -> Option<Tensor> {
        adapter.score_of(&self.flat)
    }
}

/// Files have it as a matrix of one row.
pub(super) fn score_tensor(offset: i64, width: i64) -> StoredTensor {
    StoredTensor { name: SCORE_KEY.to_owned(), shape: vec![1, width], offset }
}

/// A number of the standard normal distribution, by Box and Muller.
fn normal(random: &mut Uniform) -> f64 {
    let (radius, angle) = (1.0 - random.next(), random.next());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}
