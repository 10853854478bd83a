//! `finetuned estimate`: the memory that a training run will take, and the table of the usual sizes.
//! Reads at most one `config.json`; starts nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use domain::hyperparameters::Quantization;
use domain::memory::{Estimate, ExtraNorms, ModelShape, Precision, Trained, Workload, estimate};
use serde_json::{Value, json};

use crate::arguments::{self, EstimatePrecision, TrainedKind};
use crate::output;

/// Shapes of published models, and what guides give for them as a rule of thumb in GB: full, LoRA, QLoRA.
const SIZES: [(&str, ModelShape, [u32; 3]); 4] = [
    ("1b", shape([2048, 8192, 16, 32, 8], 64, 128_256, true), [8, 5, 3]),
    ("7b", shape([4096, 11_008, 32, 32, 32], 128, 32_000, false), [56, 18, 8]),
    ("13b", shape([5120, 13_824, 40, 40, 40], 128, 32_000, false), [104, 32, 14]),
    ("70b", shape([8192, 28_672, 80, 64, 8], 128, 32_000, false), [560, 160, 48]),
];
const GB: f64 = 1e9;

const fn shape(
    [hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads]: [u64; 5],
    head_dim: u64,
    vocab_size: u64,
    tie_word_embeddings: bool,
) -> ModelShape {
    ModelShape {
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size,
        tie_word_embeddings,
        norms: ExtraNorms::NONE,
    }
}

pub fn run(asked: &arguments::Estimate) -> Result<()> {
    let Some(model) = &asked.model else { return table(asked) };
    let shape = shape_of(model)?;
    let found = estimate(&shape, &workload(asked, asked.method));
    if asked.json {
        return output::json(&as_json(&shape, &found));
    }
    let parameters = output::millions(shape.parameters());
    output::line(format_args!(
        "{model}: {parameters} parameters, {} tokens at once",
        asked.tokens
    ))?;
    let mut table = output::Table::new(["MEMORY", "GB"]);
    for (name, bytes) in parts(&found) {
        table.row([name.to_owned(), gigabytes(bytes)]);
    }
    output::text(&table)?;
    Ok(())
}

/// The usual sizes and methods, beside the rule of thumb.
fn table(asked: &arguments::Estimate) -> Result<()> {
    output::line(format_args!(
        "Peak memory in GB: one micro-batch of {} tokens, rank {}, gradient checkpointing {};\n\
         beside it, in brackets, the rule of thumb of the field's guides.\n",
        asked.tokens,
        asked.rank,
        asked.gradient_checkpointing.as_str()
    ))?;
    let mut table = output::Table::new(["MODEL", "FULL", "LORA", "QLORA"]);
    for (name, shape, rules) in &SIZES {
        let cell = |method: TrainedKind, rule: u32| {
            let required = estimate(shape, &workload(asked, method)).required();
            format!("{} ({rule})", gigabytes(required))
        };
        table.row([
            name.to_uppercase(),
            cell(TrainedKind::Full, rules[0]),
            cell(TrainedKind::Lora, rules[1]),
            cell(TrainedKind::Qlora, rules[2]),
        ]);
    }
    output::text(&table)?;
    Ok(())
}

/// A published size by name, or the `config.json` of a model folder.
fn shape_of(model: &str) -> Result<ModelShape> {
    if let Some((_, shape, _)) = SIZES.iter().find(|(name, ..)| name.eq_ignore_ascii_case(model)) {
        return Ok(*shape);
    }
    let path = Path::new(model).join("config.json");
    if !path.exists() {
        let sizes = SIZES.map(|(name, ..)| name).join(", ");
        bail!("'{model}' is neither a folder with a config.json nor one of {sizes}");
    }
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let config: Value =
        serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    // Models of several kinds of input keep the language model's numbers one level deeper.
    let config = config.get("text_config").unwrap_or(&config).clone();
    serde_json::from_value(config).with_context(|| format!("{}", path.display()))
}

fn workload(asked: &arguments::Estimate, method: TrainedKind) -> Workload {
    let (rank, tokens) = (asked.rank, asked.virtual_tokens);
    let quantised = asked.quantization == Quantization::Nf4;
    Workload {
        trained: match method {
            TrainedKind::Lora if !quantised => Trained::Lora { rank },
            TrainedKind::Lora | TrainedKind::Qlora => Trained::Qlora { rank },
            TrainedKind::Prompt => Trained::Prompt { tokens, quantised },
            TrainedKind::Prefix => Trained::Prefix { tokens, quantised },
            TrainedKind::Full => Trained::Full,
        },
        optimizer: asked.optimizer,
        precision: match asked.precision {
            EstimatePrecision::Fp32 => Precision::F32,
            EstimatePrecision::Bf16 => Precision::Bf16,
        },
        tokens: asked.tokens,
        target_tokens: asked.tokens,
        gradient_checkpointing: asked.gradient_checkpointing,
        // The reference of pairs is a pass without gradients too.
        has_validation: asked.validation || asked.pairs,
        keeps_logits: asked.pairs,
    }
}

fn parts(estimate: &Estimate) -> [(&'static str, u64); 7] {
    [
        ("weights", estimate.weights),
        ("adapter or weights in training, gradients, moments", estimate.trainable),
        ("activations", estimate.activations),
        ("buffers of a layer and of the head", estimate.workspace),
        ("the process", estimate.runtime),
        ("peak", estimate.peak()),
        ("required, with margin", estimate.required()),
    ]
}

fn as_json(shape: &ModelShape, estimate: &Estimate) -> Value {
    json!({
        "parameters": shape.parameters(),
        "weights_bytes": estimate.weights,
        "trainable_bytes": estimate.trainable,
        "activations_bytes": estimate.activations,
        "workspace_bytes": estimate.workspace,
        "runtime_bytes": estimate.runtime,
        "peak_bytes": estimate.peak(),
        "required_bytes": estimate.required(),
    })
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / GB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_their_parameters() {
        let counts = SIZES.map(|(_, shape, _)| shape.parameters());
        let published = [1_235_814_400, 6_738_415_616, 13_015_864_320, 68_976_648_192];
        assert_eq!(counts, published);
    }

    #[test]
    fn a_name_that_is_neither_is_answered_with_what_is_known() {
        let error = shape_of("8t").unwrap_err().to_string();
        assert!(error.contains("1b, 7b, 13b, 70b"), "{error}");
    }
}
