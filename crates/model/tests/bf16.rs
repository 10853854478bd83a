//! The decoder in bf16 against the f32 numbers of transformers and peft, and its error against theirs in bf16.
//! Fixtures: those of `golden.rs`, and `tests/golden/bf16_fixture.py`.

use std::path::{Path, PathBuf};

use kernels::AdamW;
use model::{
    Adapter, AdapterOptions, Batch, Decoder, Form, Gradients, KvCache, LoraOptions, PassOptions,
    Precision, Quantization, Recompute,
};
use tch::{Device, Kind, Tensor};
use weights::TensorFile;
use weights::peft::{read_adapter, write_adapter};

const CASES: [&str; 14] = [
    "llama-tied",
    "llama-wide",
    "rslora",
    "dora",
    QLORA,
    "qwen2",
    "mistral",
    "qwen3",
    "smollm3",
    "granite",
    "olmo2",
    "gemma2",
    "gemma3",
    "phi3",
];
const QLORA: &str = "qlora";

struct Case {
    folder: PathBuf,
    /// Of f32.
    golden: TensorFile,
    decoder: Decoder,
    adapter: Adapter,
    batch: Batch,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let golden = TensorFile::open(&folder.join("golden.safetensors")).unwrap();
        let quantization = if name == QLORA { Quantization::Nf4 } else { Quantization::None };
        let form = Form { quantization, precision: Precision::Bf16 };
        let decoder = Decoder::load_as(&folder.join("model"), Device::Cpu, form).unwrap();
        let adapter = Adapter::load(&decoder, &folder.join("adapter")).unwrap();
        let ids = |name| integers(&golden, name);
        let batch = pack(&ids("input_ids"), &ids("labels"), &ids("lengths"));
        Self { folder, golden, decoder, adapter, batch }
    }

    /// The numbers of transformers and peft in bf16.
    fn recorded(&self) -> Option<TensorFile> {
        let file = self.folder.join("bf16.safetensors");
        file.exists().then(|| TensorFile::open(&file).unwrap())
    }

    fn documents(&self) -> Vec<Batch> {
        let (ids, labels) = (integers(&self.golden, "input_ids"), integers(&self.golden, "labels"));
        let bounds = self.batch.cu_seqlens.windows(2);
        bounds
            .map(|pair| {
                let rows = pair[0] as usize..pair[1] as usize;
                pack(&ids[rows.clone()], &labels[rows.clone()], &[rows.len() as i64])
            })
            .collect()
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        let view = self.golden.get(name).unwrap();
        view.data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// The tensors `prefix.*` of a file in the adapter's own flat order.
    fn flat(&self, file: &TensorFile, prefix: &str) -> Tensor {
        let (config, names) = read_adapter(&self.folder.join("adapter")).unwrap();
        let tensor = |name: &str| {
            let values = file.get_f32(&format!("{prefix}.{name}")).unwrap();
            (name.to_owned(), names.get(name).unwrap().shape.clone(), values)
        };
        let tensors: Vec<_> = names.names().map(tensor).collect();
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), &config, &tensors).unwrap();
        Adapter::load(&self.decoder, folder.path()).unwrap().values().copy()
    }

    fn pass(&self, batch: &Batch, adapter: &Adapter, recompute: Recompute) -> (f64, Tensor) {
        let mut gradients = Gradients::zeros(adapter);
        let scale = 1.0 / self.batch.target_ids.len() as f64;
        let options = PassOptions { recompute, ..PassOptions::new(scale, 9) };
        let sum = self.decoder.forward_backward(batch, adapter, &mut gradients, options).unwrap();
        (sum.loss, gradients.flat().copy())
    }
}

fn tensor(file: &TensorFile, name: &str) -> Tensor {
    let shape: Vec<i64> = file.get(name).unwrap().shape.iter().map(|&n| n as i64).collect();
    Tensor::from_slice(&file.get_f32(name).unwrap()).view(shape.as_slice())
}

fn integers(file: &TensorFile, name: &str) -> Vec<i64> {
    let view = file.get(name).unwrap();
    view.data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

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

fn distance(ours: &Tensor, golden: &Tensor) -> f64 {
    assert_eq!(ours.size(), golden.size());
    ((ours - golden).norm() / golden.norm()).double_value(&[])
}

/// These models are small and their weights wide, so that every part matters: roundings weigh more than in
/// real ones. transformers' own bf16 is up to 1.6e-2 away from its f32.
const LOGITS: f64 = 1.4e-2;
const LOSS: f64 = 2e-3;
const GRADIENT: f64 = 3e-2;
/// Which way a rounding goes depends on the processor: 0.01003 was measured on one with AVX-512, as on a GPU.
const TRAJECTORY: f64 = 1.1e-2;
/// Of the error of transformers and peft in bf16.
const OF_THEIRS: f64 = 1.2;

/// The cases that transformers and peft were run on in bf16.
const RECORDED: [&str; 5] = ["llama-tied", "qwen3", "gemma2", "phi3", QLORA];

#[test]
fn logits_are_near_those_of_f32() {
    for name in CASES {
        let case = Case::open(name);
        for (golden, adapter) in [("logits", Some(&case.adapter)), ("base_logits", None)] {
            let ours = case.decoder.logits(&case.batch, adapter).unwrap();
            assert_eq!(ours.kind(), Kind::Float);
            let expected = tensor(&case.golden, golden);
            let error = distance(&ours, &expected);
            assert!(error <= LOGITS, "{name} {golden}: {error:e}");
            if let Some(bf16) = case.recorded() {
                let theirs = distance(&tensor(&bf16, golden), &expected);
                assert!(error <= OF_THEIRS * theirs, "{name} {golden}: {error:e} / {theirs:e}");
            }
        }
    }
}

#[test]
fn loss_and_gradients_are_near_those_of_f32() {
    for name in CASES {
        let case = Case::open(name);
        let (loss, gradient) = case.pass(&case.batch, &case.adapter, Recompute::Nothing);
        let error = (loss / case.doubles("loss_sum")[0] - 1.0).abs();
        assert!(error <= LOSS, "{name}: loss {error:e}");
        let expected = case.flat(&case.golden, "grad");
        let error = distance(&gradient, &expected);
        assert!(error <= GRADIENT, "{name}: gradient {error:e}");
        if let Some(bf16) = case.recorded() {
            let theirs = distance(&case.flat(&bf16, "grad"), &expected);
            assert!(error <= OF_THEIRS * theirs, "{name}: gradient {error:e} / {theirs:e}");
        }
        // The same bf16 weights, in f32 and by autograd.
        let scale = 1.0 / case.batch.target_ids.len() as f64;
        let (_, exact) =
            model::reference::loss_and_gradient(&case.decoder, &case.batch, &case.adapter, scale);
        let error = distance(&gradient, &exact);
        assert!(error <= GRADIENT, "{name}: {error:e} from autograd");
    }
}

#[test]
fn twenty_optimizer_steps_stay_near_those_of_f32() {
    for name in RECORDED {
        let mut case = Case::open(name);
        let (losses, rates) = (case.doubles("losses"), case.doubles("rates"));
        let zeros = || case.adapter.values().zeros_like();
        let (m, v) = (zeros(), zeros());
        for (step, (expected, rate)) in losses.iter().zip(rates).enumerate() {
            let (loss, gradient) = case.pass(&case.batch, &case.adapter, Recompute::Nothing);
            let error = (loss / case.batch.target_ids.len() as f64 / expected - 1.0).abs();
            assert!(error <= TRAJECTORY, "{name} step {step}: {error:e}");
            let norm = kernels::sum_of_squares(&gradient).sqrt();
            let settings = AdamW {
                learning_rate: rate,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
                step: step as u64 + 1,
                grad_scale: (1.0 / (norm + 1e-6)).min(1.0),
            };
            kernels::adamw(case.adapter.values(), &gradient, &m, &v, settings);
            case.adapter.refresh();
        }
    }
}

#[test]
fn a_packed_batch_is_near_its_documents_one_by_one() {
    for name in RECORDED {
        let case = Case::open(name);
        let (whole, packed) = case.pass(&case.batch, &case.adapter, Recompute::Nothing);
        let (mut sum, mut single) = (0.0, packed.zeros_like());
        for document in case.documents() {
            let (loss, gradient) = case.pass(&document, &case.adapter, Recompute::Nothing);
            (sum, single) = (sum + loss, single + gradient);
        }
        assert!((whole / sum - 1.0).abs() <= LOSS, "{name}: {whole} / {sum}");
        assert!(distance(&packed, &single) <= GRADIENT, "{name}");
    }
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for name in RECORDED {
        let case = Case::open(name);
        let options = LoraOptions { dropout: 0.2, rank: 4, ..LoraOptions::default() };
        let options = AdapterOptions::Lora(options);
        let adapter = Adapter::init(&case.decoder, &options, 5).unwrap();
        let kept = case.pass(&case.batch, &adapter, Recompute::Nothing);
        for recompute in [Recompute::Mlp, Recompute::Layer] {
            assert_eq!(case.pass(&case.batch, &adapter, recompute), kept, "{name} {recompute:?}");
        }
    }
}

#[test]
fn tokens_one_by_one_lead_to_the_logits_of_all_at_once() {
    for name in RECORDED {
        let case = Case::open(name);
        let text = &case.documents()[0].input_ids;
        let adapter = Some(&case.adapter);
        let mut at_once = KvCache::new(&case.decoder, text.len(), None);
        let whole = case.decoder.extend(&mut at_once, text, adapter);
        let mut by_one = KvCache::new(&case.decoder, text.len(), None);
        let mut last = Tensor::new();
        for token in text {
            last = case.decoder.extend(&mut by_one, &[*token], adapter);
        }
        let error = distance(&last, &whole);
        assert!(error <= 2.0 * LOGITS, "{name}: {error:e}");
    }
}

#[test]
fn weights_take_half_of_the_memory() {
    for (name, share) in [("llama-tied", 0.5), (QLORA, 1.0)] {
        let case = Case::open(name);
        let quantization = case.decoder.quantization();
        let model = case.folder.join("model");
        let wide = Decoder::load_as(&model, Device::Cpu, quantization).unwrap();
        let ratio = case.decoder.linear_bytes() as f64 / wide.linear_bytes() as f64;
        assert_eq!(ratio, share, "{name}");
    }
}
