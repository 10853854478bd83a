//! Whether a run fits into memory, before it takes any: as planned, or made smaller, or not at all.
//!
//! Only settings on which no result depends are changed: the size of micro-batches, and what is computed
//! again in the backward pass. The estimate is `domain::memory`'s.

use dataset::Dataset;
use domain::hyperparameters::{GradientCheckpointing, Precision, Tuning};
use domain::memory::{self, ExtraNorms, ModelShape, Workload};
use domain::plan::TrainingPlan;
use domain::report::RunFailure;
use model::{Decoder, DecoderSpec};

use super::{Happened, Prepared, warning};
use crate::failure::permanent;

/// Makes the plan fit into `free` bytes; answers a warning that says what was changed.
///
/// # Errors
/// `insufficient_memory` when even the smallest form of the run is too large.
pub fn admit(
    prepared: &mut Prepared,
    decoder: &Decoder,
    free: u64,
) -> Result<Option<Happened>, RunFailure> {
    let shape = shape(decoder.spec());
    let data = [Some(&prepared.training), prepared.validation.as_ref()];
    let reference = reference_bytes(&prepared.plan, &shape);
    let h = &mut prepared.plan.hyperparameters;
    let extra = u64::from(h.rows_per_document());
    let rows = data.into_iter().flatten().map(|data| longest_row(data, extra));
    let longest = rows.max().unwrap_or(0);
    let mut asked = Workload::of(h, longest, prepared.validation.is_some());
    // Operations on bf16 widen what they read, on a CPU: the one place where room is counted.
    asked.precision = memory::Precision::F32;
    if prepared.validation.is_none() {
        // A step has no more than its batch to put into micro-batches.
        let rows = u64::from(h.batch_size).min(prepared.training.rows() as u64);
        asked.tokens = asked.tokens.min(rows * longest);
    }
    let free = free.saturating_sub(reference);
    let needed = memory::estimate(&shape, &asked).required_beside_weights();
    if needed <= free {
        return Ok(None);
    }
    let Some(fitting) = memory::fit(&shape, &asked, longest, free) else {
        return Err(too_large(&shape, &asked, longest, free));
    };
    let before = (h.micro_batch_tokens, h.gradient_checkpointing.as_str());
    h.micro_batch_tokens = h.micro_batch_tokens.min(fitting.tokens as u32);
    h.gradient_checkpointing = fitting.gradient_checkpointing;
    Ok(Some(warning(format!(
        "The run would take {} beside the base model, and {} are free: going on with \
         micro_batch_tokens {} (planned: {}) and gradient_checkpointing {} (planned: {}). The result \
         does not depend on them.",
        gigabytes(needed),
        gigabytes(free),
        h.micro_batch_tokens,
        before.0,
        h.gradient_checkpointing.as_str(),
        before.1,
    ))))
}

/// What a loss takes that compares with a whole tuned model: its weights once more. Adapters are small beside the
/// margin of the estimate.
fn reference_bytes(plan: &TrainingPlan, shape: &ModelShape) -> u64 {
    let h = &plan.hyperparameters;
    let compares = h.preference.as_deref().is_some_and(|options| options.loss_type.has_reference());
    if plan.start_from.is_none() || h.tuning != Tuning::Full || !compares {
        return 0;
    }
    // In f32; where it computes in bf16, a copy in that beside it.
    shape.parameters() * if h.precision == Precision::Bf16 { 6 } else { 4 }
}

fn too_large(shape: &ModelShape, asked: &Workload, longest: u64, free: u64) -> RunFailure {
    let smallest = Workload {
        tokens: longest.max(1),
        target_tokens: longest.min(asked.target_tokens),
        gradient_checkpointing: GradientCheckpointing::Full,
        ..*asked
    };
    let needed = memory::estimate(shape, &smallest).required_beside_weights();
    let message = format!(
        "The run takes at least {} beside the base model (one row of {longest} tokens at a time, \
         everything computed again), and {} are free. Lower max_seq_len or lora.rank, or use a \
         machine with more memory.",
        gigabytes(needed),
        gigabytes(free),
    );
    permanent("insufficient_memory", None, message)
}

/// Tokens of the longest row with all its sequences, and what comes to each of them in a pass: no micro-batch
/// can be smaller.
fn longest_row(data: &Dataset, extra: u64) -> u64 {
    let rows = 0..data.rows();
    let tokens = |row: usize| data.row(row).iter().map(|e| e.input_ids.len() as u64 + extra).sum();
    rows.map(tokens).max().unwrap_or(0)
}

fn shape(spec: &DecoderSpec) -> ModelShape {
    ModelShape {
        hidden_size: spec.hidden_size as u64,
        intermediate_size: spec.intermediate_size as u64,
        num_hidden_layers: spec.num_hidden_layers as u64,
        num_attention_heads: spec.num_attention_heads as u64,
        num_key_value_heads: spec.num_key_value_heads as u64,
        head_dim: spec.head_dim as u64,
        vocab_size: spec.vocab_size as u64,
        tie_word_embeddings: spec.tie_word_embeddings,
        norms: ExtraNorms::from(spec.model_type.clone()),
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
