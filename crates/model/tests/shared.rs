//! Documents that share their beginning against the same documents whole: logits, log-probabilities, loss and
//! every gradient, in every family. The models and adapters are those of `golden.rs`.

use std::path::Path;

use model::{
    Adapter, AdapterOptions, Batch, Decoder, Gradients, LoraOptions, PassOptions, Recompute,
    reference,
};
use tch::{Device, Tensor};

const FAMILIES: [&str; 12] = [
    "llama-tied",
    "llama-wide",
    "dora",
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

fn open(name: &str) -> (Decoder, Adapter) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let decoder = Decoder::load(&folder.join("model"), Device::Cpu).unwrap();
    let adapter = Adapter::load(&decoder, &folder.join("adapter")).unwrap();
    (decoder, adapter)
}

/// Tokens of a prompt and of answers to it.
type Group = (usize, &'static [usize]);

/// Long enough for the windows; for phi3, some groups are long texts and one is short.
const GROUPS: [Group; 3] = [(21, &[9, 40]), (1, &[3, 2, 5]), (12, &[7])];

fn token(group: usize, answer: usize, at: usize) -> i64 {
    ((group * 31 + answer * 17 + at * 7 + 3) % 53) as i64
}

/// The groups, each prompt once; the answers are the targets.
fn shared() -> Batch {
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    for (group, (prompt, answers)) in GROUPS.into_iter().enumerate() {
        // The last token of a prompt predicts the answer's first, so it belongs to each answer.
        let head = prompt - 1;
        let beginning = (head > 0).then_some(batch.cu_seqlens.len() - 1);
        if head > 0 {
            batch.input_ids.extend((0..head).map(|at| token(group, 0, at)));
            batch.positions.extend(0..head as i64);
            batch.cu_seqlens.push(batch.input_ids.len() as i32);
            batch.continues.push(None);
        }
        for (answer, &len) in answers.iter().enumerate() {
            batch.continues.push(beginning);
            push(&mut batch, group, answer, (head, prompt, len));
        }
    }
    batch
}

/// The same documents, each by itself.
fn whole() -> Batch {
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    for (group, (prompt, answers)) in GROUPS.into_iter().enumerate() {
        for (answer, &len) in answers.iter().enumerate() {
            push(&mut batch, group, answer, (0, prompt, len));
        }
    }
    batch
}

fn push(
    batch: &mut Batch,
    group: usize,
    answer: usize,
    (from, prompt, len): (usize, usize, usize),
) {
    for at in from..prompt + len {
        let of = |at: usize| token(group, if at < prompt { 0 } else { answer + 1 }, at);
        if at + 1 >= prompt && at + 1 < prompt + len {
            batch.target_rows.push(batch.input_ids.len() as i64);
            batch.target_ids.push(of(at + 1));
        }
        batch.input_ids.push(of(at));
        batch.positions.push(at as i64);
    }
    batch.cu_seqlens.push(batch.input_ids.len() as i32);
}

fn assert_close(what: &str, ours: &Tensor, expected: &Tensor, bound: f64) {
    assert_eq!(ours.size(), expected.size(), "{what}");
    let distance = ((ours - expected).norm() / expected.norm()).double_value(&[]);
    assert!(distance <= bound, "{what}: relative distance {distance:e}, allowed {bound:e}");
}

fn pass(decoder: &Decoder, adapter: &Adapter, batch: &Batch) -> (f64, Tensor) {
    let mut gradients = Gradients::zeros(adapter);
    let options = PassOptions::new(0.01, 0);
    let sum = decoder.forward_backward(batch, adapter, &mut gradients, options).unwrap();
    (sum.loss, gradients.flat().copy())
}

#[test]
fn a_shared_beginning_changes_no_number() {
    tch::set_num_threads(1);
    let (shared, whole) = (shared(), whole());
    assert!(shared.tokens() < whole.tokens());
    for name in FAMILIES {
        let (decoder, adapter) = open(name);
        let logs = |batch: &Batch| -> Tensor {
            let logs = decoder.target_logs(batch, Some(&adapter)).unwrap();
            Tensor::from_slice(&logs.iter().map(|log| log.log_p).collect::<Vec<_>>())
        };
        assert_close(name, &logs(&shared), &logs(&whole), 1e-6);
        let (loss, gradient) = pass(&decoder, &adapter, &shared);
        let (expected_loss, expected) = pass(&decoder, &adapter, &whole);
        assert!((loss / expected_loss - 1.0).abs() < 1e-6, "{name}: {loss}, {expected_loss}");
        assert_close(name, &gradient, &expected, 2e-6);
        let (_, slow) = reference::loss_and_gradient(&decoder, &shared, &adapter, 0.01);
        assert_close(name, &gradient, &slow, 1e-5);
        let logits = decoder.logits(&shared, Some(&adapter)).unwrap();
        let slow = reference::logits(&decoder, &shared, Some((&adapter, adapter.values())));
        assert_close(name, &logits, &slow, 2e-5);
    }
}

#[test]
fn what_is_computed_again_has_the_same_bits_with_a_shared_beginning() {
    let (decoder, adapter) = open("llama-tied");
    let options = LoraOptions { dropout: 0.2, ..adapter.lora().unwrap().clone() };
    let adapter = Adapter::init(&decoder, &AdapterOptions::Lora(options), 5).unwrap();
    let pass = |recompute| {
        let mut gradients = Gradients::zeros(&adapter);
        let options = PassOptions { recompute, ..PassOptions::new(0.01, 9) };
        let sum = decoder.forward_backward(&shared(), &adapter, &mut gradients, options);
        (sum.unwrap(), gradients.flat().copy())
    };
    assert_eq!(pass(Recompute::Layer), pass(Recompute::Nothing));
}

/// A prompt's gradient has two parts; the finite difference sees both.
#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let (decoder, mut adapter) = open("llama-tied");
    let batch = shared();
    let (_, gradient) = pass(&decoder, &adapter, &batch);
    let direction = &gradient / gradient.norm();
    let start = adapter.values().copy();
    let mut loss_at = |step: f64| {
        adapter.set_values(&(&start + &direction * step));
        decoder.evaluate(&batch, Some(&adapter)).unwrap().loss * 0.01
    };
    let step = 1e-2;
    let measured = (loss_at(step) - loss_at(-step)) / (2.0 * step);
    let slope = gradient.norm().double_value(&[]);
    assert!((measured / slope - 1.0).abs() < 5e-3, "slope {slope}, measured {measured}");
}

#[test]
fn continuations_that_contradict_the_batch_are_refused() {
    let (decoder, _) = open("llama-tied");
    let broken: [fn(&mut Batch); 5] = [
        |b| b.continues[0] = Some(0),
        |b| b.continues[2] = Some(1),
        |b| b.continues.truncate(3),
        |b| b.continues[1] = Some(7),
        |b| b.positions[b.cu_seqlens[1] as usize] = 0,
    ];
    assert!(decoder.evaluate(&shared(), None).is_ok());
    for break_it in broken {
        let mut batch = shared();
        break_it(&mut batch);
        assert!(decoder.evaluate(&batch, None).is_err());
    }
}
