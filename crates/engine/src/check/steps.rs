//! Training steps of tiny models with random weights: the hand-written pass and the kernels on one side, autograd and
//! plain tch on the other, from the same adapter on the same batch.

use kernels::AdamW;
use model::{
    Adapter, AdapterOptions, Batch, Decoder, Form, Gradients, LoraOptions, PassOptions, Precision,
    Quantization,
};
use tch::{Device, Tensor};

use super::findings::{Findings, Outcome};
use crate::failure::guard;

/// Name, configuration, form of the weights. Heads of 64 and of 128, groups; the second has caps, windows, norms
/// behind the branches, and the other activation.
const MODELS: [(&str, &str, Quantization); 3] = [
    ("llama", LLAMA, Quantization::None),
    ("llama in nf4", LLAMA, Quantization::Nf4),
    ("gemma2", GEMMA, Quantization::None),
];
const LLAMA: &str = r#"{"model_type": "llama", "hidden_act": "silu", "hidden_size": 128,
    "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 311, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
const GEMMA: &str = r#"{"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 128, "query_pre_attn_scalar": 128, "vocab_size": 311,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "sliding_window": 40, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}"#;
const STEPS: u64 = 3;
/// Of documents: one that is shorter than a tile, one that another goes on from, two that need several tiles; and
/// which one each goes on from.
const DOCUMENTS: [(i64, Option<usize>); 4] = [(5, None), (33, None), (70, None), (67, Some(1))];

/// What the tests of `model` allow of these.
fn bounds(precision: Precision) -> Distances {
    match precision {
        Precision::Fp32 => Distances { gradient: 1e-5, loss: 1e-6, later: 1e-4 },
        Precision::Bf16 => Distances { gradient: 3e-2, loss: 2e-3, later: 1e-2 },
    }
}

/// How far two runs are apart: relative, of gradients in the norm.
struct Distances {
    /// Of the first step.
    gradient: f64,
    loss: f64,
    /// The farthest loss of the steps behind it.
    later: f64,
}

pub(super) fn run(device: Device, findings: &mut Findings) {
    for (name, config, quantization) in MODELS {
        for (precision, label) in [(Precision::Fp32, "fp32"), (Precision::Bf16, "bf16")] {
            let form = Form { quantization, precision };
            let outcome = |what: &str| Outcome::new("step", &format!("{name}: {what}"), label);
            match guard(|| compare(config, device, form)) {
                Ok(Ok(found)) => {
                    let bounds = bounds(precision);
                    findings.take(outcome("loss").measured(found.loss, bounds.loss));
                    findings.take(outcome("gradient").measured(found.gradient, bounds.gradient));
                    findings.take(outcome("later losses").measured(found.later, bounds.later));
                }
                Ok(Err(error)) => {
                    findings.take(Outcome { fault: Some(error), ..outcome("all") });
                }
                Err(fault) => {
                    let fault = Some(fault.message().to_owned());
                    findings.take(Outcome { fault, ..outcome("all") });
                }
            }
        }
    }
}

fn compare(config: &str, device: Device, form: Form) -> Result<Distances, String> {
    let decoder = Decoder::random(config, device, form).map_err(|error| error.to_string())?;
    let batch = batch(decoder.spec().vocab_size as i64);
    let scale = 1.0 / batch.target_ids.len() as f64;
    let fresh = || {
        let options = AdapterOptions::Lora(LoraOptions { rank: 4, ..LoraOptions::default() });
        Adapter::init(&decoder, &options, 3).map_err(|error| error.to_string())
    };
    let (mut ours, mut plain) = (fresh()?, fresh()?);
    let mut gradients = Gradients::zeros(&ours);
    let moments = |adapter: &Adapter| [0; 2].map(|_| adapter.values().zeros_like());
    let ([m, v], [plain_m, plain_v]) = (moments(&ours), moments(&plain));
    let mut found = Distances { gradient: 0.0, loss: 0.0, later: 0.0 };
    for step in 1..=STEPS {
        gradients.zero();
        let pass = PassOptions::new(scale, 0);
        let sum = decoder
            .forward_backward(&batch, &ours, &mut gradients, pass)
            .map_err(|error| error.to_string())?;
        let (expected, gradient) =
            model::reference::loss_and_gradient(&decoder, &batch, &plain, scale);
        let off = (sum.loss / expected.loss - 1.0).abs();
        if step == 1 {
            found.loss = off;
            found.gradient = distance(gradients.flat(), &gradient);
        }
        found.later = if off <= found.later { found.later } else { off };
        let norms = (
            kernels::sum_of_squares(gradients.flat()).sqrt(),
            kernels::reference::sum_of_squares(&gradient).sqrt(),
        );
        tch::no_grad(|| {
            kernels::adamw(ours.values(), gradients.flat(), &m, &v, settings(step, norms.0));
            let settings = settings(step, norms.1);
            kernels::reference::adamw(plain.values(), &gradient, &plain_m, &plain_v, settings);
        });
        ours.refresh();
        plain.refresh();
    }
    Ok(found)
}

fn settings(step: u64, norm: f64) -> AdamW {
    AdamW {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step,
        grad_scale: (1.0 / (norm + 1e-6)).min(1.0),
    }
}

pub(super) fn distance(ours: &Tensor, expected: &Tensor) -> f64 {
    let wide = |tensor: &Tensor| tensor.to_device(Device::Cpu).to_kind(tch::Kind::Double);
    let (ours, expected) = (wide(ours), wide(expected));
    ((ours - &expected).norm() / expected.norm()).double_value(&[])
}

/// Documents whose second halves are targets, as in a batch of chats and of pairs.
fn batch(vocabulary: i64) -> Batch {
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    for (length, earlier) in DOCUMENTS {
        let start = batch.tokens() as i64;
        let behind = earlier.map_or(0, |earlier| DOCUMENTS[earlier].0);
        for position in 0..length {
            let token = |row: i64| (row * 7919 + row * row % 97) % vocabulary;
            batch.input_ids.push(token(start + position));
            batch.positions.push(behind + position);
            if position >= length / 2 && position + 1 < length {
                batch.target_rows.push(start + position);
                batch.target_ids.push(token(start + position + 1));
            }
        }
        batch.cu_seqlens.push(batch.tokens() as i32);
        batch.continues.push(earlier);
    }
    batch
}
