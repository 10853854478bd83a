//! Whether the engine holds the base model in the form that a run was planned for.

use domain::hyperparameters::{Precision, Quantization};
use domain::plan::TrainingPlan;
use domain::report::RunFailure;
use model::{Decoder, Form};
use tch::Device;

use super::{Happened, warning};
use crate::failure::permanent;

/// The worker starts engines for a base model in one form; another one would be another model.
pub fn check_base(plan: &TrainingPlan, decoder: &Decoder) -> Result<(), RunFailure> {
    let (h, held) = (&plan.hyperparameters, decoder.form());
    let wanted = Form {
        quantization: match h.quantization {
            Quantization::None => model::Quantization::None,
            Quantization::Nf4 => model::Quantization::Nf4,
        },
        precision: match h.precision {
            Precision::Auto => held.precision,
            Precision::Fp32 => model::Precision::Fp32,
            Precision::Bf16 => model::Precision::Bf16,
        },
    };
    let param = if wanted.quantization != held.quantization {
        "quantization"
    } else if wanted.precision != held.precision {
        "precision"
    } else {
        return Ok(());
    };
    let message = format!("The engine holds the base model as {held:?}; the job wants {wanted:?}.");
    Err(permanent("internal_error", Some(param), message))
}

/// What a user should know who has chosen bf16 for a CPU.
pub fn slow_numbers(decoder: &Decoder) -> Option<Happened> {
    let is_slow =
        decoder.device() == Device::Cpu && decoder.form().precision == model::Precision::Bf16;
    is_slow.then(|| {
        warning(
            "This job computes in bf16 on a CPU, which takes several times as long as fp32: the fast \
             loops there know fp32 alone."
                .to_owned(),
        )
    })
}
