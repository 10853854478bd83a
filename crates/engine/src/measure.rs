//! `finetuned-engine measure`: times LoRA training steps of a shape on a device, with random weights and random
//! tokens, so that no model need be at hand. Beside the tokens per second it gives the device's own rate of matrix
//! products on the same shapes, and which share of it a step reaches.
//!
//! Nothing is read but a `config.json`, and nothing is compared: what is right is for `check-device` to say.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kernels::AdamW;
use model::{
    Adapter, AdapterOptions, Batch, Decoder, DecoderSpec, Form, Gradients, LoraOptions,
    PassOptions, Precision, Quantization, Recompute,
};
use serde_json::json;
use tch::{Cuda, Device, Kind, Tensor};

use crate::device;

const USAGE: &str = "\
usage: finetuned-engine measure --config FILE [--device cpu|cuda:N] [--precision fp32|bf16]
           [--quantization none|nf4] [--recompute none|mlp|full] [--tokens N] [--length N]
           [--micro-batches N] [--targets SHARE] [--rank N] [--steps N] [--warm-up N] [--threads N]

Times LoRA training steps of random weights. JSON objects, one a line, the sum last.

  --config FILE      a config.json
  --tokens N         of a micro-batch (default: 8192)
  --length N         of a document (default: 2048); the last one of a micro-batch may be shorter
  --micro-batches N  of a step (default: 1)
  --targets SHARE    of a document's tokens that are learned from (default: 1.0)
  --rank N           of the adapter, on all linears (default: 16)
  --steps N          that are timed (default: 10), after --warm-up (default: 3)";

struct Options {
    config: PathBuf,
    device: Device,
    precision: Option<Precision>,
    quantization: Quantization,
    recompute: Recompute,
    tokens: i64,
    length: i64,
    micro_batches: usize,
    targets: f64,
    rank: i64,
    steps: usize,
    warm_up: usize,
    threads: Option<usize>,
}

/// # Errors
/// When the device cannot be used, the configuration cannot be computed, or an argument is wrong.
pub fn run(arguments: impl Iterator<Item = String>, cuda: &Result<bool, String>) -> Result<()> {
    let Some(options) = parse(arguments)? else {
        println!("{USAGE}");
        return Ok(());
    };
    let device = device::usable(options.device, cuda)?;
    device::set_threads(options.threads)?;
    device::prove_kernels(device)?;
    let native = if device.is_cuda() { Precision::Bf16 } else { Precision::Fp32 };
    let precision = options.precision.unwrap_or(native);
    let form = Form { quantization: options.quantization, precision };
    let config = std::fs::read_to_string(&options.config)
        .with_context(|| options.config.display().to_string())?;
    let began = Instant::now();
    let decoder = Decoder::random(&config, device, form)?;
    wait(device);
    println!(
        "{}",
        json!({"event": "made", "parameters": decoder.parameters(),
               "seconds": began.elapsed().as_secs_f64(), "memory_mib": memory_mib(device)})
    );
    let kind = if precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
    let rate = product_rate(decoder.spec(), options.tokens, kind, device);
    println!("{}", json!({"event": "products", "tflops": rate / 1e12}));
    steps(&options, &decoder, rate)
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options {
        config: PathBuf::new(),
        device: Device::Cpu,
        precision: None,
        quantization: Quantization::None,
        recompute: Recompute::Nothing,
        tokens: 8192,
        length: 2048,
        micro_batches: 1,
        targets: 1.0,
        rank: 16,
        steps: 10,
        warm_up: 3,
        threads: None,
    };
    while let Some(name) = arguments.next() {
        if matches!(name.as_str(), "-h" | "--help") {
            return Ok(None);
        }
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        let unknown = || format!("{name} {value}: see measure --help");
        let number = || value.parse::<usize>().ok().filter(|n| *n > 0).with_context(unknown);
        match name.as_str() {
            "--config" => options.config = PathBuf::from(value),
            "--device" => options.device = device::parse(&value)?,
            "--precision" => {
                options.precision = Some(match value.as_str() {
                    "fp32" => Precision::Fp32,
                    "bf16" => Precision::Bf16,
                    _ => bail!(unknown()),
                });
            }
            "--quantization" => {
                options.quantization = match value.as_str() {
                    "none" => Quantization::None,
                    "nf4" => Quantization::Nf4,
                    _ => bail!(unknown()),
                };
            }
            "--recompute" => {
                options.recompute = match value.as_str() {
                    "none" => Recompute::Nothing,
                    "mlp" => Recompute::Mlp,
                    "full" => Recompute::Layer,
                    _ => bail!(unknown()),
                };
            }
            "--tokens" => options.tokens = number()? as i64,
            "--length" => options.length = number()? as i64,
            "--micro-batches" => options.micro_batches = number()?,
            "--targets" => options.targets = value.parse().with_context(unknown)?,
            "--rank" => options.rank = number()? as i64,
            "--steps" => options.steps = number()?,
            "--warm-up" => options.warm_up = number()?,
            "--threads" => options.threads = Some(number()?),
            _ => bail!("unknown argument '{name}'; see measure --help"),
        }
    }
    if options.config.as_os_str().is_empty() {
        bail!("--config is missing; see measure --help");
    }
    Ok(Some(options))
}

fn steps(options: &Options, decoder: &Decoder, rate: f64) -> Result<()> {
    let device = decoder.device();
    let lora = LoraOptions { rank: options.rank, ..LoraOptions::default() };
    let mut adapter = Adapter::init(decoder, &AdapterOptions::Lora(lora), 1)?;
    let mut gradients = Gradients::zeros(&adapter);
    let [m, v] = [0; 2].map(|_| gradients.flat().zeros_like());
    let batches: Vec<Batch> = (0..options.micro_batches as u64)
        .map(|number| random_batch(options, decoder.spec().vocab_size as u64, number))
        .collect();
    let targets: usize = batches.iter().map(|batch| batch.target_ids.len()).sum();
    let tokens: usize = batches.iter().map(Batch::tokens).sum();
    let mut seconds = Vec::new();
    for step in 0..options.warm_up + options.steps {
        let began = Instant::now();
        let mut loss = 0.0;
        for batch in &batches {
            let pass = PassOptions {
                recompute: options.recompute,
                ..PassOptions::new(1.0 / targets as f64, 0)
            };
            loss += decoder.forward_backward(batch, &adapter, &mut gradients, pass)?.loss;
        }
        let norm = kernels::sum_of_squares(gradients.flat()).sqrt();
        kernels::adamw(adapter.values(), gradients.flat(), &m, &v, settings(step, norm));
        adapter.refresh();
        gradients.zero();
        wait(device);
        let taken = began.elapsed().as_secs_f64();
        let loss = loss / targets as f64;
        println!("{}", json!({"event": "step", "seconds": taken, "loss": loss, "norm": norm}));
        if !(loss.is_finite() && norm.is_finite()) {
            bail!("step {step}: the loss is {loss}, the norm of the gradient {norm}");
        }
        if step >= options.warm_up {
            seconds.push(taken);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let flops: f64 =
        batches.iter().map(|batch| step_flops(decoder.spec(), batch, options.rank)).sum();
    println!(
        "{}",
        json!({"event": "sum", "device": device::name(device), "tokens": tokens,
               "targets": targets, "median_seconds": median, "fastest_seconds": seconds[0],
               "tokens_per_second": tokens as f64 / median, "tflops": flops / median / 1e12,
               "product_tflops": rate / 1e12, "share": flops / median / rate,
               "memory_mib": memory_mib(device),
               "without": kernels::cuda::switched_off()})
    );
    Ok(())
}

fn settings(step: usize, norm: f64) -> AdamW {
    AdamW {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        step: step as u64 + 1,
        grad_scale: (1.0 / (norm + 1e-6)).min(1.0),
    }
}

/// Random tokens in documents of the wanted length; the last part of each is learned from.
fn random_batch(options: &Options, vocabulary: u64, number: u64) -> Batch {
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    let mut state = number + 1;
    let mut token = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) % vocabulary) as i64
    };
    let mut start = 0;
    while start < options.tokens {
        let length = options.length.min(options.tokens - start);
        let first = (length as f64 * (1.0 - options.targets)) as i64;
        for position in 0..length {
            batch.input_ids.push(token());
            batch.positions.push(position);
            if position >= first && position + 1 < length {
                batch.target_rows.push(start + position);
                batch.target_ids.push(token());
            }
        }
        start += length;
        batch.cu_seqlens.push(start as i32);
    }
    batch
}

/// Multiplications and additions that LoRA training of these tokens needs, without any recomputation.
fn step_flops(spec: &DecoderSpec, batch: &Batch, rank: i64) -> f64 {
    let layers = spec.num_hidden_layers as f64;
    let shapes = widths(spec);
    let weights: f64 = shapes.iter().map(|[inner, outer]| (inner * outer) as f64).sum();
    let sides: f64 = spec
        .products()
        .iter()
        .flat_map(|product| product.members.iter().map(|m| (product.in_width + m.width) as f64))
        .sum();
    let queries = (spec.num_attention_heads * spec.head_dim) as f64;
    let lengths = batch.cu_seqlens.windows(2).map(|pair| f64::from(pair[1] - pair[0]));
    let pairs: f64 = lengths.map(|length| length * length).sum();
    let tokens = batch.tokens() as f64;
    let head = (spec.hidden_size * spec.vocab_size * batch.target_ids.len()) as f64;
    // Two for a product, forward and for the input's gradient; causal attention 2 and 5.
    layers * (4.0 * weights * tokens + 7.0 * queries * pairs + 6.0 * rank as f64 * sides * tokens)
        + 4.0 * head
}

/// Inner and outer width of a layer's products.
fn widths(spec: &DecoderSpec) -> Vec<[usize; 2]> {
    let outer = |members: &[weights::spec::Member]| members.iter().map(|m| m.width).sum();
    spec.products().iter().map(|product| [product.in_width, outer(&product.members)]).collect()
}

/// Multiplications and additions per second of libtorch's own product on the model's shapes, forward and backward,
/// on random numbers; of each the best of some.
fn product_rate(spec: &DecoderSpec, tokens: i64, kind: Kind, device: Device) -> f64 {
    const ROUNDS: usize = 3;
    let each = if device.is_cuda() { 10 } else { 1 };
    let (mut seconds, mut flops) = (0.0, 0.0);
    let random = |rows: i64, columns: i64| {
        Tensor::randn([rows, columns], (Kind::Float, device)).to_kind(kind)
    };
    for [inner, outer] in widths(spec) {
        let (inner, outer) = (inner as i64, outer as i64);
        let weight = random(outer, inner);
        for (a, b) in [(random(tokens, inner), weight.tr()), (random(tokens, outer), weight)] {
            let out = Tensor::empty([tokens, b.size()[1]], (kind, device));
            let mut best = f64::INFINITY;
            for _ in 0..ROUNDS {
                wait(device);
                let began = Instant::now();
                for _ in 0..each {
                    let _ = a.mm_out(&out, &b);
                }
                wait(device);
                best = best.min(began.elapsed().as_secs_f64() / each as f64);
            }
            seconds += best;
            flops += 2.0 * (tokens * inner * outer) as f64;
        }
    }
    flops / seconds
}

fn wait(device: Device) {
    if let Device::Cuda(number) = device {
        Cuda::synchronize(number as i64);
    }
}

/// What is taken of the device's memory by now, or the most that this process took of the machine's.
fn memory_mib(device: Device) -> Option<u64> {
    if let Device::Cuda(number) = device {
        return kernels::cuda::memory_taken(number).ok().map(|bytes| bytes >> 20);
    }
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.split_whitespace().next()?.parse().ok()?;
    Some(kib >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Option<Options>> {
        parse(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn arguments_are_read_or_refused_by_name() {
        let read = options(&["--config", "c", "--tokens", "100", "--targets", "0.5"]);
        let read = read.unwrap().unwrap();
        assert_eq!((read.tokens, read.targets, read.rank), (100, 0.5, 16));
        assert!(options(&["--help"]).unwrap().is_none());
        for (words, word) in [
            (&["--tokens", "5"][..], "--config is missing"),
            (&["--config"], "--config needs a value"),
            (&["--config", "c", "--steps", "0"], "--steps 0"),
            (&["--config", "c", "--fast", "1"], "unknown argument '--fast'"),
        ] {
            let Err(error) = options(words) else { panic!("{words:?} was accepted") };
            assert!(error.to_string().contains(word), "{words:?}: {error}");
        }
    }

    #[test]
    fn a_batch_has_the_wanted_tokens_and_targets() {
        let options = options(&["--config", "c", "--tokens", "100", "--length", "40"]);
        let mut options = options.unwrap().unwrap();
        options.targets = 0.5;
        let batch = random_batch(&options, 50, 0);
        assert_eq!((batch.tokens(), batch.cu_seqlens.as_slice()), (100, &[0, 40, 80, 100][..]));
        assert_eq!(batch.target_ids.len(), 19 + 19 + 9);
    }

    /// The figure of an 8B model at length 2,048 is known from its parts: 27.92 for the weights, 1.88 for
    /// attention, 2.10 for the head, 0.25 for the adapter.
    #[test]
    fn the_work_of_a_token_is_the_sum_of_its_parts() {
        let config = include_str!("../../../tests/bench/gpu/shapes/llama-3.1-8b.json");
        let spec = weights::read_spec(&serde_json::from_str(config).unwrap()).unwrap();
        let options = options(&["--config", "c", "--tokens", "2048"]).unwrap().unwrap();
        let batch = random_batch(&options, 50, 0);
        let flops = step_flops(&spec, &batch, 16) / 2048.0;
        assert!((flops / 32.15e9 - 1.0).abs() < 2e-3, "{flops:e}");
    }
}
