//! Full fine-tuning against transformers: the gradient of every weight, twenty optimizer steps, and the folder that
//! comes out, for every family. Fixtures: `tests/golden/full_fixture.py`, over those of `families_fixture.py`.

use std::path::{Path, PathBuf};

use kernels::AdamW;
use model::{
    Adapter, AdapterOptions, Batch, Decoder, Gradients, KvCache, PassOptions, Precision,
    Quantization, Recompute,
};
use tch::{Device, Kind, Tensor};
use weights::TensorFile;

const CASES: [&str; 11] = [
    "llama-tied",
    "llama-wide",
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

struct Case {
    model: PathBuf,
    golden: TensorFile,
    decoder: Decoder,
    adapter: Adapter,
    batch: Batch,
}

impl Case {
    fn open(name: &str) -> Self {
        // Tests run beside each other, and threads of libtorch would only wait for cores.
        tch::set_num_threads(1);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let golden = TensorFile::open(&folder.join("full.safetensors")).unwrap();
        let model = folder.join("model");
        let decoder = Decoder::load(&model, Device::Cpu).unwrap();
        let adapter = Adapter::init(&decoder, &AdapterOptions::Full, 1).unwrap();
        let batch = batch(&TensorFile::open(&folder.join("golden.safetensors")).unwrap());
        Self { model, golden, decoder, adapter, batch }
    }

    fn scale(&self) -> f64 {
        1.0 / self.batch.target_ids.len() as f64
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        let view = self.golden.get(name).unwrap();
        view.data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// Every weight's part of a flat buffer against the golden tensor `prefix.name`; answers the distance of
    /// all together.
    fn check_each(&self, flat: &Tensor, prefix: &str, bound: f64) -> f64 {
        let folder = tempfile::tempdir().unwrap();
        let mut named = Adapter::init(&self.decoder, &AdapterOptions::Full, 1).unwrap();
        named.set_values(flat);
        named.save(folder.path(), "base").unwrap();
        let ours = TensorFile::open_folder(folder.path()).unwrap();
        let expected = self.golden.names().filter(|name| name.starts_with(prefix)).count();
        assert_eq!(ours.len(), expected, "every weight");
        let (mut error, mut size) = (0.0, 0.0);
        for name in ours.names() {
            let a = Tensor::from_slice(&ours.get_f32(name).unwrap());
            let b = Tensor::from_slice(&self.golden.get_f32(&format!("{prefix}.{name}")).unwrap());
            let squares = |t: Tensor| t.square().sum(Kind::Double).double_value(&[]);
            let (off, whole) = (squares(a - &b), squares(b));
            (error, size) = (error + off, size + whole);
            let distance = (off / whole).sqrt();
            assert!(distance <= bound, "{prefix} {name}: {distance:e}, allowed {bound:e}");
        }
        f64::sqrt(error / size)
    }

    fn pass(&self, gradients: &mut Gradients, recompute: Recompute) -> f64 {
        let options = PassOptions { recompute, ..PassOptions::new(self.scale(), 0) };
        let pass = self.decoder.forward_backward(&self.batch, &self.adapter, gradients, options);
        pass.unwrap().loss
    }
}

fn batch(golden: &TensorFile) -> Batch {
    let integers = |name: &str| -> Vec<i64> {
        let view = golden.get(name).unwrap();
        view.data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let (labels, mut start) = (integers("labels"), 0);
    let mut batch =
        Batch { input_ids: integers("input_ids"), cu_seqlens: vec![0], ..Batch::default() };
    for length in integers("lengths") {
        batch.positions.extend(0..length);
        for row in (start..start + length - 1).filter(|&row| labels[row as usize + 1] >= 0) {
            batch.target_rows.push(row);
            batch.target_ids.push(labels[row as usize + 1]);
        }
        start += length;
        batch.cu_seqlens.push(start as i32);
    }
    batch
}

#[test]
fn the_gradient_of_every_weight_equals_transformers() {
    for name in CASES {
        println!("{name}");
        let case = Case::open(name);
        let mut gradients = Gradients::zeros(&case.adapter);
        let loss = case.pass(&mut gradients, Recompute::Nothing);
        let expected = case.doubles("loss_sum")[0];
        assert!((loss / expected - 1.0).abs() < 1e-6, "{name}: {loss} and {expected}");
        case.check_each(gradients.flat(), "grad", 1e-5);
        for recompute in [Recompute::Mlp, Recompute::Layer] {
            let mut again = Gradients::zeros(&case.adapter);
            assert_eq!(case.pass(&mut again, recompute), loss, "{name} {recompute:?}");
            assert_eq!(again.flat(), gradients.flat(), "{name} {recompute:?}");
        }
    }
}

#[test]
fn twenty_steps_follow_torch_and_leave_the_base_as_it_is() {
    for name in CASES {
        let mut case = Case::open(name);
        let (losses, rates, norms) =
            (case.doubles("losses"), case.doubles("rates"), case.doubles("norms"));
        let before = case.decoder.logits(&case.batch, None).unwrap();
        let mut gradients = Gradients::zeros(&case.adapter);
        let (m, v) = (gradients.flat().zeros_like(), gradients.flat().zeros_like());
        for step in 0..losses.len() {
            gradients.zero();
            let loss = case.pass(&mut gradients, Recompute::Nothing) * case.scale();
            let norm = kernels::sum_of_squares(gradients.flat()).sqrt();
            assert!((loss / losses[step] - 1.0).abs() < 1e-4, "{name} step {step}: {loss}");
            assert!((norm / norms[step] - 1.0).abs() < 1e-3, "{name} step {step}: norm {norm}");
            for extent in case.adapter.extents() {
                let part = |t: &Tensor| t.narrow(0, extent.offset as i64, extent.len as i64);
                let settings = AdamW {
                    learning_rate: rates[step],
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: if extent.decays { 0.01 } else { 0.0 },
                    step: step as u64 + 1,
                    grad_scale: (1.0 / (norm + 1e-6)).min(1.0),
                };
                let (values, grads) = (part(case.adapter.values()), part(gradients.flat()));
                kernels::adamw(&values, &grads, &part(&m), &part(&v), settings);
            }
            case.adapter.refresh();
        }
        if case.golden.names().any(|name| name.starts_with("final")) {
            // A bias of keys has next to no gradient, and AdamW makes whole steps of what is left of it.
            let distance = case.check_each(case.adapter.values(), "final", 5e-3);
            assert!(distance < 1e-3, "{name}: final weights {distance:e}");
        }
        assert_eq!(case.decoder.logits(&case.batch, None).unwrap(), before, "{name}: the base");
    }
}

#[test]
fn a_fresh_whole_model_computes_what_its_base_does() {
    for name in CASES {
        let case = Case::open(name);
        let base = case.decoder.logits(&case.batch, None).unwrap();
        let own = case.decoder.logits(&case.batch, Some(&case.adapter)).unwrap();
        assert_eq!(own, base, "{name}");
        assert_eq!(case.adapter.len() as u64, case.decoder.parameters());
    }
}

#[test]
fn a_saved_model_is_a_model_folder_and_loads_with_the_same_bits() {
    for name in CASES {
        let mut case = Case::open(name);
        let moved = case.adapter.values() * 1.01 + 1e-3;
        case.adapter.set_values(&moved);
        let folder = tempfile::tempdir().unwrap();
        case.adapter.save(folder.path(), "base").unwrap();
        let expected = case.decoder.logits(&case.batch, Some(&case.adapter)).unwrap();
        // By itself, and over its base.
        let alone = Decoder::load(folder.path(), Device::Cpu).unwrap();
        assert_eq!(alone.logits(&case.batch, None).unwrap(), expected, "{name}");
        let again = Adapter::load(&case.decoder, folder.path()).unwrap();
        assert!(again.is_full());
        assert_eq!(again.values(), case.adapter.values());
        // Answers too.
        let prompt = &case.batch.input_ids[..7];
        let logits = |decoder: &Decoder, adapter| {
            let mut cache = KvCache::new(decoder, 16, adapter);
            let _ = decoder.extend(&mut cache, prompt, adapter);
            decoder.extend_each(&mut [(&mut cache, 3)], adapter)
        };
        assert_eq!(logits(&case.decoder, Some(&again)), logits(&alone, None), "{name}");
        let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
        assert!(config.contains(r#"dtype": "float32""#), "{config}");
        assert!(case.model.join("generation_config.json").exists());
        assert!(folder.path().join("generation_config.json").exists());
    }
}

#[test]
fn in_bf16_the_gradients_are_those_of_f32_but_for_the_rounding() {
    for name in ["llama-tied", "llama-wide", "gemma2", "phi3"] {
        let case = Case::open(name);
        let decoder = Decoder::load_as(&case.model, Device::Cpu, Precision::Bf16).unwrap();
        let mut adapter = Adapter::init(&decoder, &AdapterOptions::Full, 1).unwrap();
        let (mut narrow, mut wide) = (Gradients::zeros(&adapter), Gradients::zeros(&case.adapter));
        let pass = PassOptions::new(case.scale(), 0);
        decoder.forward_backward(&case.batch, &adapter, &mut narrow, pass).unwrap();
        case.pass(&mut wide, Recompute::Nothing);
        let distance = (narrow.flat() - wide.flat()).norm() / wide.flat().norm();
        let distance = distance.double_value(&[]);
        assert!(distance < 5e-2, "{name}: {distance:e}");
        // The trained values are not rounded, and the next pass sees them.
        let before = decoder.logits(&case.batch, Some(&adapter)).unwrap();
        adapter.set_values(&(adapter.values() * 1.05));
        assert_ne!(decoder.logits(&case.batch, Some(&adapter)).unwrap(), before, "{name}");
    }
}

#[test]
fn a_quantised_base_is_refused() {
    let case = Case::open(CASES[0]);
    let decoder = Decoder::load_as(&case.model, Device::Cpu, Quantization::Nf4).unwrap();
    let error = Adapter::init(&decoder, &AdapterOptions::Full, 1).unwrap_err().to_string();
    assert!(error.contains("not quantised"), "{error}");
}
