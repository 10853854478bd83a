//! In which form a base model is held: how its linear layers are kept, and the numbers that it computes with.

use tch::Kind;

/// How a base model's linear layers are kept. Embedding, head, norms and biases stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quantization {
    #[default]
    None,
    /// 4-bit NormalFloat in blocks of 64 with double quantisation, as in QLoRA.
    Nf4,
}

/// The numbers of weights and activations. Adapters, their gradients, the optimizer, norms' weights and
/// statistics, logits and losses are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    #[default]
    Fp32,
    /// Products of bf16 numbers are summed in f32 and rounded once.
    Bf16,
    /// Everything in f64, adapters too: for proofs, in which differences stand for derivatives.
    #[cfg(test)]
    Fp64,
}

impl Precision {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            #[cfg(test)]
            Self::Fp64 => Kind::Double,
        }
    }
}

/// What an engine holds is another model in another form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    pub quantization: Quantization,
    pub precision: Precision,
}

impl From<Quantization> for Form {
    fn from(quantization: Quantization) -> Self {
        Self { quantization, ..Self::default() }
    }
}

impl From<Precision> for Form {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}
