//! Prompt and prefix tuning against peft: logits, loss, gradients, twenty optimizer steps, greedy tokens and
//! files, over the families of models and a 4-bit base. Fixtures: `tests/golden/virtual_tokens_fixture.py`.

use std::path::{Path, PathBuf};

use kernels::AdamW;
use model::{
    Adapter, AdapterOptions, Batch, Decoder, Form, Gradients, KvCache, PassOptions, Precision,
    Quantization, Recompute, VirtualTokens,
};
use tch::{Device, IndexOp, Tensor};
use weights::TensorFile;
use weights::peft::VIRTUAL_TOKENS_KEY;

const FAMILIES: [&str; 11] = [
    "llama-wide",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "granite",
    "olmo2",
    "gemma2",
    "gemma3",
    "phi3",
    "qlora",
];
const COUNT: i64 = 5;

struct Case {
    name: String,
    folder: PathBuf,
    golden: TensorFile,
    decoder: Decoder,
    adapter: Adapter,
    batch: Batch,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn decoder(family: &str) -> Decoder {
    let quantization = if family == "qlora" { Quantization::Nf4 } else { Quantization::None };
    let folder = fixtures().join(family).join("model");
    Decoder::load_as(&folder, Device::Cpu, quantization).unwrap()
}

fn cases() -> impl Iterator<Item = Case> {
    let kinds = ["prompt", "prefix"].into_iter();
    kinds.flat_map(|kind| FAMILIES.into_iter().map(move |family| Case::open(kind, family)))
}

impl Case {
    fn open(kind: &str, family: &str) -> Self {
        let name = format!("{kind}-{family}");
        let folder = fixtures().join("virtual").join(&name);
        let golden = TensorFile::open(&folder.join("golden.safetensors")).unwrap();
        let decoder = decoder(family);
        let adapter = Adapter::load(&decoder, &folder).unwrap();
        let lengths = integers(&golden, "lengths");
        let batch = pack(&integers(&golden, "input_ids"), &integers(&golden, "labels"), &lengths);
        Self { name, folder, golden, decoder, adapter, batch }
    }

    fn tensor(&self, name: &str) -> Tensor {
        let shape: Vec<i64> =
            self.golden.get(name).unwrap().shape.iter().map(|&n| n as i64).collect();
        Tensor::from_slice(&self.golden.get_f32(name).unwrap()).view(shape.as_slice())
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        let view = self.golden.get(name).unwrap();
        view.data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn first_document(&self) -> &[i64] {
        &self.batch.input_ids[..self.batch.cu_seqlens[1] as usize]
    }

    /// Loss and gradient of the packed batch.
    fn pass(&self, batch: &Batch, recompute: Recompute) -> (f64, Tensor) {
        let mut gradients = Gradients::zeros(&self.adapter);
        let options = PassOptions { recompute, ..PassOptions::new(1.0 / targets(batch), 0) };
        let sum = self.decoder.forward_backward(batch, &self.adapter, &mut gradients, options);
        (sum.unwrap().loss, gradients.flat().copy())
    }
}

fn targets(batch: &Batch) -> f64 {
    batch.target_ids.len() as f64
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

/// A text alone, without targets.
fn text(ids: &[i64]) -> Batch {
    pack(ids, &vec![-100; ids.len()], &[ids.len() as i64])
}

fn assert_close(what: &str, ours: &Tensor, golden: &Tensor, bound: f64) {
    let golden = golden.view(ours.size().as_slice());
    let distance = ((ours - &golden).norm() / golden.norm()).double_value(&[]);
    assert!(distance <= bound, "{what}: relative distance {distance:e}, allowed {bound:e}");
}

fn greedy(logits: &Tensor) -> i64 {
    logits.argmax(-1, false).int64_value(&[])
}

#[test]
fn logits_loss_and_gradients_equal_peft_and_autograd() {
    for case in cases() {
        let name = &case.name;
        let ours = case.decoder.logits(&case.batch, Some(&case.adapter)).unwrap();
        let expected = case.tensor("logits");
        let largest = expected.abs().max().double_value(&[]);
        let error = (ours - expected).abs().max().double_value(&[]);
        assert!(error <= 2e-5 * largest, "{name}: {error:e} of {largest}");

        let (loss, gradient) = case.pass(&case.batch, Recompute::Nothing);
        let expected = case.doubles("loss_sum")[0];
        assert!((loss / expected - 1.0).abs() < 1e-6, "{name}: {loss} / {expected}");
        assert_close(name, &gradient, &case.tensor("grad"), 1e-5);
        let scale = 1.0 / targets(&case.batch);
        let (slow, by_autograd) =
            model::reference::loss_and_gradient(&case.decoder, &case.batch, &case.adapter, scale);
        assert!((loss / slow.loss - 1.0).abs() < 1e-6, "{name}");
        assert_close(&format!("{name} autograd"), &gradient, &by_autograd, 1e-5);
        let evaluated = case.decoder.evaluate(&case.batch, Some(&case.adapter)).unwrap();
        assert_eq!((evaluated.correct, evaluated.targets), (slow.correct, slow.targets));
    }
}

#[test]
fn what_is_computed_again_has_the_same_bits_and_packing_changes_nothing() {
    for case in cases() {
        let kept = case.pass(&case.batch, Recompute::Nothing);
        for recompute in [Recompute::Mlp, Recompute::Layer] {
            assert_eq!(case.pass(&case.batch, recompute), kept, "{} {recompute:?}", case.name);
        }
        // The same documents in the opposite order.
        let mut labels = vec![-100; case.batch.input_ids.len()];
        for (row, id) in case.batch.target_rows.iter().zip(&case.batch.target_ids) {
            labels[*row as usize + 1] = *id;
        }
        let bounds: Vec<_> = case.batch.cu_seqlens.windows(2).rev().collect();
        let turned = |values: &[i64]| -> Vec<i64> {
            let parts = bounds.iter().map(|b| &values[b[0] as usize..b[1] as usize]);
            parts.flatten().copied().collect()
        };
        let lengths: Vec<i64> = bounds.iter().map(|b| i64::from(b[1] - b[0])).collect();
        let batch = pack(&turned(&case.batch.input_ids), &turned(&labels), &lengths);
        let (loss, gradient) = case.pass(&batch, Recompute::Nothing);
        assert!((loss / kept.0 - 1.0).abs() < 1e-6);
        assert_close(&case.name, &gradient, &kept.1, 1e-6);
    }
}

#[test]
fn documents_that_share_their_beginning_have_the_virtual_tokens_once() {
    for case in cases() {
        let ids = case.first_document();
        let (shared, a, b) = (&ids[..6], &ids[6..10], &ids[12..15]);
        let apart = pack(
            &[shared, a, shared, b].concat(),
            &[&[-100; 6][..], a, &[-100; 6], b].concat(),
            &[10, 9],
        );
        let mut together =
            pack(&[shared, a, b].concat(), &[&[-100; 6][..], a, b].concat(), &[6, 4, 3]);
        together.continues = vec![None, Some(0), Some(0)];
        together.positions = (0..10).chain(6..9).collect();
        // Documents do not predict across their bounds, so compare what both predict.
        let inner = |batch: &mut Batch, rows: &[i64]| {
            let keep: Vec<bool> = batch.target_rows.iter().map(|row| rows.contains(row)).collect();
            let mut kept = keep.iter();
            batch.target_ids.retain(|_| *kept.next().unwrap());
            batch.target_rows.retain(|row| rows.contains(row));
        };
        let (mut apart, mut together) = (apart, together);
        inner(&mut apart, &[6, 7, 8, 16, 17]);
        inner(&mut together, &[6, 7, 8, 10, 11]);
        let (expected, gradient) = case.pass(&apart, Recompute::Nothing);
        let (loss, shared_gradient) = case.pass(&together, Recompute::Nothing);
        assert!((loss / expected - 1.0).abs() < 1e-6, "{}: {loss} {expected}", case.name);
        assert_close(&case.name, &shared_gradient, &gradient, 1e-5);
    }
}

#[test]
fn twenty_optimizer_steps_follow_the_recorded_ones() {
    for case in cases() {
        let (losses, rates, norms) =
            (case.doubles("losses"), case.doubles("rates"), case.doubles("norms"));
        let values = case.adapter.values();
        let (m, v) = (values.zeros_like(), values.zeros_like());
        for step in 0..losses.len() {
            let (loss, gradient) = case.pass(&case.batch, Recompute::Nothing);
            let loss = loss / targets(&case.batch);
            let norm = kernels::sum_of_squares(&gradient).sqrt();
            let name = &case.name;
            assert!((loss / losses[step] - 1.0).abs() < 1e-4, "{name} step {step}: {loss}");
            assert!((norm / norms[step] - 1.0).abs() < 1e-3, "{name} step {step}: norm {norm}");
            let settings = AdamW {
                learning_rate: rates[step],
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
                step: step as u64 + 1,
                grad_scale: (1.0 / (norm + 1e-6)).min(1.0),
            };
            kernels::adamw(values, &gradient, &m, &v, settings);
        }
        assert_close(&case.name, values, &case.tensor("final"), 1e-3);
    }
}

#[test]
fn greedy_tokens_equal_peft_token_by_token_and_at_once() {
    for case in cases() {
        let (golden, prompt) = (integers(&case.golden, "greedy"), case.first_document());
        let (decoder, adapter) = (&case.decoder, Some(&case.adapter));
        let mut cache = KvCache::new(decoder, prompt.len() + golden.len(), adapter);
        assert_eq!((cache.len(), cache.capacity()), (0, prompt.len() + golden.len()));
        let mut logits = decoder.extend(&mut cache, prompt, adapter);
        let mut tokens = vec![greedy(&logits)];
        while tokens.len() < golden.len() {
            // A cache that grew or was copied goes on as before.
            cache = cache.with_capacity(decoder, cache.capacity());
            logits = decoder.extend(&mut cache, &tokens[tokens.len() - 1..], adapter);
            tokens.push(greedy(&logits));
        }
        assert_eq!(tokens, golden, "{}", case.name);
        assert_eq!(cache.len(), prompt.len() + golden.len() - 1);

        let whole: Vec<i64> = prompt.iter().chain(&golden[..golden.len() - 1]).copied().collect();
        let mut cache = KvCache::new(decoder, whole.len() + 1, adapter);
        let at_once = decoder.extend(&mut cache, &whole, adapter);
        assert_close(&case.name, &at_once, &logits, 1e-5);
    }
}

#[test]
fn answers_of_several_adapters_go_on_in_one_pass() {
    for family in ["llama-wide", "gemma3"] {
        let [prompt, prefix] = ["prompt", "prefix"].map(|kind| Case::open(kind, family));
        let decoder = &prompt.decoder;
        let adapters = [Some(&prompt.adapter), Some(&prefix.adapter), None];
        assert!(adapters.iter().flatten().all(|adapter| !adapter.changes_weights()));
        let begin = |adapter: &Option<&Adapter>| {
            let mut cache = KvCache::new(decoder, 16, *adapter);
            let _ = decoder.extend(&mut cache, &[4, 9, 2], *adapter);
            cache
        };
        let mut alone: Vec<KvCache> = adapters.iter().map(begin).collect();
        let mut together: Vec<KvCache> = adapters.iter().map(begin).collect();
        for id in [3, 5] {
            let mut inputs: Vec<_> = together.iter_mut().map(|cache| (cache, id)).collect();
            let rows = decoder.extend_each(&mut inputs, None);
            for ((row, cache), adapter) in rows.iter().zip(&mut alone).zip(&adapters) {
                let expected = decoder.extend(cache, &[id], *adapter);
                assert_close(family, &Tensor::from_slice(row), &expected, 1e-5);
            }
        }
    }
}

#[test]
fn a_fresh_adapter_says_what_its_text_would_say() {
    for family in FAMILIES {
        let decoder = decoder(family);
        let (init, ids) = ([7, 3, 11], [5, 2, 8, 1]);
        let tokens = VirtualTokens { count: COUNT, init: init.to_vec() };
        // Repeated up to the count.
        let whole: Vec<i64> = [7, 3, 11, 7, 3].into_iter().chain(ids).collect();
        let expected = decoder.logits(&text(&whole), None).unwrap().i(COUNT..);
        for options in [AdapterOptions::Prompt(tokens.clone()), AdapterOptions::Prefix(tokens)] {
            let adapter = Adapter::init(&decoder, &options, 1).unwrap();
            assert_eq!(adapter.virtual_tokens(), COUNT as usize);
            let ours = decoder.logits(&text(&ids), Some(&adapter)).unwrap();
            assert_close(family, &ours, &expected, 2e-6);
        }
    }
}

#[test]
fn in_bf16_loss_and_gradient_are_near() {
    for family in ["mistral", "granite", "gemma3"] {
        for kind in ["prompt", "prefix"] {
            let case = Case::open(kind, family);
            let (loss, gradient) = case.pass(&case.batch, Recompute::Nothing);
            let form = Form { precision: Precision::Bf16, ..Form::default() };
            let model = fixtures().join(family).join("model");
            let decoder = Decoder::load_as(&model, Device::Cpu, form).unwrap();
            let adapter = Adapter::load(&decoder, &case.folder).unwrap();
            let case = Case { decoder, adapter, ..case };
            let (rounded, rounded_gradient) = case.pass(&case.batch, Recompute::Nothing);
            assert!((rounded / loss - 1.0).abs() < 1e-2, "{}: {rounded} {loss}", case.name);
            assert_close(&case.name, &rounded_gradient, &gradient, 5e-2);
            let mut cache = KvCache::new(&case.decoder, 8, Some(&case.adapter));
            let logits = case.decoder.extend(&mut cache, &[3, 4], Some(&case.adapter));
            assert!(logits.isfinite().all().int64_value(&[]) == 1);
        }
    }
}

#[test]
fn without_a_text_the_seed_draws_tokens() {
    let decoder = decoder("mistral");
    let tokens = VirtualTokens { count: COUNT, init: Vec::new() };
    for options in [AdapterOptions::Prompt(tokens.clone()), AdapterOptions::Prefix(tokens)] {
        let fresh = |seed| Adapter::init(&decoder, &options, seed).unwrap().values().copy();
        assert_eq!(fresh(3), fresh(3));
        assert_ne!(fresh(3), fresh(4));
    }
}

#[test]
fn files_are_those_of_peft() {
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        case.adapter.save(folder.path(), "base").unwrap();
        let again = Adapter::load(&case.decoder, folder.path()).unwrap();
        assert_eq!(again.values(), case.adapter.values());
        let open = |folder: &Path| {
            let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
            (TensorFile::open(&folder.join("adapter_model.safetensors")).unwrap(), config)
        };
        let ((ours, our_config), (theirs, their_config)) =
            (open(folder.path()), open(&case.folder));
        let (a, b) =
            (ours.get(VIRTUAL_TOKENS_KEY).unwrap(), theirs.get(VIRTUAL_TOKENS_KEY).unwrap());
        assert!(a.dtype == b.dtype && a.shape == b.shape && a.data == b.data, "{}", case.name);
        assert_eq!((ours.len(), theirs.len()), (1, 1));
        for (field, value) in our_config.as_object().unwrap() {
            // The first names the model; the second is of the projection that a prefix is trained through.
            let differs = ["base_model_name_or_path", "encoder_hidden_size"].contains(&&**field);
            assert!(their_config.get(field).is_some(), "{field} is not a field of peft");
            assert!(differs || their_config[field] == *value, "{}: {field}", case.name);
        }
    }
}

#[test]
fn what_cannot_be_trained_or_does_not_fit_is_refused() {
    let case = Case::open("prefix", "mistral");
    let decoder = &case.decoder;
    for (count, init, word) in [(0, 1, "virtual tokens"), (128, 1, "1–127"), (5, 53, "token id 53")]
    {
        let tokens = VirtualTokens { count, init: vec![init] };
        let error = Adapter::init(decoder, &AdapterOptions::Prompt(tokens), 1).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    // A context that the virtual tokens leave no room in.
    let ids = vec![1; 124];
    assert!(decoder.evaluate(&text(&ids), None).is_ok());
    assert!(decoder.evaluate(&text(&ids), Some(&case.adapter)).is_err());
    // The prefix of another model.
    let other = fixtures().join("virtual/prefix-llama-wide");
    let error = Adapter::load(decoder, &other).unwrap_err().to_string();
    assert!(error.contains(VIRTUAL_TOKENS_KEY), "{error}");
}
