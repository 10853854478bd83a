//! The models of `crates/model/tests/fixtures` on a device, against the numbers that transformers, peft and
//! bitsandbytes gave for them: logits, loss, every adapter gradient, twenty optimizer steps. What is allowed is what
//! the tests of `model` allow on the CPU.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use kernels::AdamW;
use model::{Adapter, Batch, Decoder, Form, Gradients, PassOptions, Precision, Quantization};
use tch::{Device, Tensor};
use weights::TensorFile;
use weights::peft::{read_adapter, write_adapter};

use super::findings::{Findings, Outcome};
use super::steps::distance;
use crate::failure::guard;

/// Its folder holds the weights from before quantisation.
const QLORA: &str = "qlora";

struct Allowed {
    /// Of the largest in f32; relative in the norm in bf16.
    logits: f64,
    loss: f64,
    gradient: f64,
    trajectory: f64,
}

fn allowed(precision: Precision) -> Allowed {
    match precision {
        Precision::Fp32 => Allowed { logits: 2e-5, loss: 1e-6, gradient: 1e-5, trajectory: 1e-4 },
        Precision::Bf16 => Allowed { logits: 1.4e-2, loss: 2e-3, gradient: 3e-2, trajectory: 1e-2 },
    }
}

/// Checks every model in the folder, in both precisions.
pub(super) fn run(device: Device, folder: &Path, findings: &mut Findings) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| {
            ["golden.safetensors", "adapter", "model"].iter().all(|n| entry.path().join(n).exists())
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.is_empty() {
        bail!("{} holds no fixtures", folder.display());
    }
    for name in names {
        for (precision, label) in [(Precision::Fp32, "fp32"), (Precision::Bf16, "bf16")] {
            let path = folder.join(&name);
            let outcome = |what: &str| Outcome::new("fixture", &format!("{name}: {what}"), label);
            let checked = guard(|| -> Result<()> {
                let case = Case::open(&path, &name, device, precision)?;
                case.check(precision, |what, error, bound| {
                    findings.take(outcome(what).measured(error, bound));
                })
            });
            let fault = match checked {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => format!("{error:#}"),
                Err(fault) => fault.message().to_owned(),
            };
            findings.take(Outcome { fault: Some(fault), ..outcome("all") });
        }
    }
    Ok(())
}

struct Case {
    golden: TensorFile,
    decoder: Decoder,
    adapter: Adapter,
    /// The recorded gradient in the adapter's own order.
    gradient: Tensor,
    batch: Batch,
}

impl Case {
    fn open(folder: &Path, name: &str, device: Device, precision: Precision) -> Result<Self> {
        let golden = TensorFile::open(&folder.join("golden.safetensors"))?;
        let quantization = if name == QLORA { Quantization::Nf4 } else { Quantization::None };
        let form = Form { quantization, precision };
        let decoder = Decoder::load_as(&folder.join("model"), device, form)?;
        let adapter = Adapter::load(&decoder, &folder.join("adapter"))?;
        let gradient = recorded_gradient(&decoder, &golden, &folder.join("adapter"))?;
        let integers = |name| integers(&golden, name);
        let batch = pack(&integers("input_ids")?, &integers("labels")?, &integers("lengths")?);
        Ok(Self { golden, decoder, adapter, gradient, batch })
    }

    fn check(mut self, precision: Precision, mut take: impl FnMut(&str, f64, f64)) -> Result<()> {
        let allowed = allowed(precision);
        let logits = self.decoder.logits(&self.batch, Some(&self.adapter))?.to_device(Device::Cpu);
        let expected = tensor(&self.golden, "logits")?;
        let error = match precision {
            Precision::Fp32 => {
                let off = (&logits - &expected).abs().max().double_value(&[]);
                off / expected.abs().max().double_value(&[])
            }
            Precision::Bf16 => distance(&logits, &expected),
        };
        take("logits", error, allowed.logits);

        let targets = self.batch.target_ids.len() as f64;
        let mut gradients = Gradients::zeros(&self.adapter);
        let loss = self.pass(&mut gradients)?;
        let expected = doubles(&self.golden, "loss_sum")?[0] / targets;
        take("loss", (loss / expected - 1.0).abs(), allowed.loss);
        take("gradient", distance(gradients.flat(), &self.gradient), allowed.gradient);

        let (losses, rates) = (doubles(&self.golden, "losses")?, doubles(&self.golden, "rates")?);
        let [m, v] = [0; 2].map(|_| gradients.flat().zeros_like());
        let mut worst = 0.0f64;
        for (step, (expected, rate)) in losses.iter().zip(rates).enumerate() {
            gradients.zero();
            let off = (self.pass(&mut gradients)? / expected - 1.0).abs();
            worst = if off <= worst { worst } else { off };
            let norm = kernels::sum_of_squares(gradients.flat()).sqrt();
            let settings = AdamW {
                learning_rate: rate,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
                step: step as u64 + 1,
                grad_scale: (1.0 / (norm + 1e-6)).min(1.0),
            };
            kernels::adamw(self.adapter.values(), gradients.flat(), &m, &v, settings);
            self.adapter.refresh();
        }
        take("twenty steps", worst, allowed.trajectory);
        Ok(())
    }

    /// The mean loss; gradients are added.
    fn pass(&self, gradients: &mut Gradients) -> Result<f64> {
        let targets = self.batch.target_ids.len() as f64;
        let options = PassOptions::new(1.0 / targets, 0);
        let sum = self.decoder.forward_backward(&self.batch, &self.adapter, gradients, options)?;
        Ok(sum.loss / targets)
    }
}

/// The recorded tensors `grad.*`, written as an adapter and loaded, because only an adapter knows its order.
fn recorded_gradient(decoder: &Decoder, golden: &TensorFile, adapter: &Path) -> Result<Tensor> {
    let (config, file) = read_adapter(adapter)?;
    let tensor = |name: &str| -> Result<(String, Vec<usize>, Vec<f32>)> {
        let values = golden.get_f32(&format!("grad.{name}"))?;
        Ok((name.to_owned(), file.get(name)?.shape.clone(), values))
    };
    let tensors = file.names().map(tensor).collect::<Result<Vec<_>>>()?;
    let folder = std::env::temp_dir().join(format!("finetuned-check-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let loaded = write_adapter(&folder, &config, &tensors)
        .map_err(|error| anyhow!(error))
        .and_then(|()| Ok(Adapter::load(decoder, &folder)?));
    std::fs::remove_dir_all(&folder)?;
    Ok(loaded?.values().copy())
}

fn tensor(file: &TensorFile, name: &str) -> Result<Tensor> {
    let shape: Vec<i64> = file.get(name)?.shape.iter().map(|&n| n as i64).collect();
    Ok(Tensor::from_slice(&file.get_f32(name)?).view(shape.as_slice()))
}

fn integers(file: &TensorFile, name: &str) -> Result<Vec<i64>> {
    let (numbers, _) = file.get(name)?.data.as_chunks();
    Ok(numbers.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect())
}

fn doubles(file: &TensorFile, name: &str) -> Result<Vec<f64>> {
    let (numbers, _) = file.get(name)?.data.as_chunks();
    Ok(numbers.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
}

/// Documents one after the other; what a label follows predicts it.
fn pack(ids: &[i64], labels: &[i64], lengths: &[i64]) -> Batch {
    let mut batch = Batch { input_ids: ids.to_vec(), cu_seqlens: vec![0], ..Batch::default() };
    let mut start = 0;
    for &length in lengths {
        batch.positions.extend(0..length);
        for row in start..start + length - 1 {
            if labels[row as usize + 1] >= 0 {
                batch.target_rows.push(row);
                batch.target_ids.push(labels[row as usize + 1]);
            }
        }
        start += length;
        batch.cu_seqlens.push(start as i32);
    }
    batch
}
