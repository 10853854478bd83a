//! Times training passes of a model folder on random ragged documents, without any of the machinery around:
//! `cargo run --release -p model --example step -- FOLDER [passes] [mean length] [share of targets]`.

use std::path::Path;
use std::time::Instant;

use model::{Adapter, AdapterOptions, Batch, Decoder, Gradients, LoraOptions, PassOptions};
use tch::Device;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: f64| -> f64 {
        arguments.get(index).map_or(default, |text| text.parse().expect("a number"))
    };
    let folder = arguments.first().expect("a model folder");
    let (passes, mean, share) = (number(1, 5.0) as usize, number(2, 109.0), number(3, 0.54));
    tch::set_num_threads(2);
    kernels::set_threads(2);
    let decoder = Decoder::load(Path::new(folder), Device::Cpu).expect("a model");
    let options = AdapterOptions::Lora(LoraOptions::default());
    let adapter = Adapter::init(&decoder, &options, 1).expect("an adapter");
    let mut gradients = Gradients::zeros(&adapter);
    let batch = ragged(mean, share, decoder.spec().vocab_size as u64);
    println!("{} tokens, {} targets", batch.tokens(), batch.target_ids.len());
    for pass in 0..passes {
        let start = Instant::now();
        let loss = decoder
            .forward_backward(&batch, &adapter, &mut gradients, PassOptions::new(1e-3, 0))
            .expect("a sound batch");
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "pass {pass}: {seconds:.3} s, {:.1} tokens/s, loss {:.4}",
            batch.tokens() as f64 / seconds,
            loss.loss / loss.targets as f64
        );
    }
}

/// Eight documents whose lengths vary by half around the mean, the last part of each being targets.
fn ragged(mean: f64, share: f64, vocabulary: u64) -> Batch {
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    for document in 0..8 {
        let length = (mean * (0.55 + 0.9 * f64::from(document) / 7.0)) as i64;
        let start = batch.tokens() as i64;
        for position in 0..length {
            batch.input_ids.push((random() % vocabulary) as i64);
            batch.positions.push(position);
            if position as f64 >= length as f64 * (1.0 - share) - 1.0 && position + 1 < length {
                batch.target_rows.push(start + position);
                batch.target_ids.push((random() % vocabulary) as i64);
            }
        }
        batch.cu_seqlens.push(batch.tokens() as i32);
    }
    batch
}
