//! The same for losses of pairs of answers: the pass whose coefficients come from log-probabilities. They are found by
//! autograd on these few numbers here, in place of the engine's closed forms, which `crates/engine` proves by itself.

use kernels::TargetLog;
use tch::{IndexOp, Kind, Tensor, with_grad};

use super::{
    DOCUMENTS, Document, FAMILIES, LONG_DOCUMENTS, Slope, adapter, batch, decoder, some_targets,
};
use crate::form::Quantization;
use crate::{Adapter, Decoder, Gradients, Groups, PassOptions};

/// A loss of two answers, from the log-probabilities of their tokens `[n]` and the sums without the adapter.
type PairLoss = fn([&Tensor; 2], [f64; 2]) -> Tensor;

fn sums([w, l]: [&Tensor; 2]) -> [Tensor; 2] {
    [w, l].map(|logs| logs.sum(Kind::Double))
}

fn means([w, l]: [&Tensor; 2]) -> [Tensor; 2] {
    [w, l].map(|logs| logs.mean(Kind::Double))
}

/// β·((lp_w − ref_w) − (lp_l − ref_l)) with β = 0.3.
fn margin(logs: [&Tensor; 2], [ref_w, ref_l]: [f64; 2]) -> Tensor {
    let [w, l] = sums(logs);
    ((w - ref_w) - (l - ref_l)) * 0.3
}

/// The preference losses as their papers have them; the engine's closed forms are proved where they are.
const PAIR_LOSSES: [(&str, PairLoss); 6] = [
    ("DPO", |logs, references| {
        let z = margin(logs, references);
        -z.log_sigmoid() * 0.9 - (-z).log_sigmoid() * 0.1
    }),
    ("hinge", |logs, references| (-margin(logs, references) + 20.0).relu()),
    ("IPO", |logs, [ref_w, ref_l]| {
        let [n_w, n_l] = logs.map(|logs| logs.size()[0] as f64);
        let [w, l] = sums(logs);
        ((w - ref_w) / n_w - (l - ref_l) / n_l - 1.5).square()
    }),
    ("ORPO", |logs, _| {
        let [a, b] = means(logs);
        let odds = |x: &Tensor| x - (-x.expm1()).log();
        -&a - (odds(&a) - odds(&b)).log_sigmoid() * 0.4
    }),
    ("SimPO", |logs, _| {
        let [a, b] = means(logs);
        -((a - b) * 2.0 - 1.0).log_sigmoid()
    }),
    ("KTO, a good answer and a bad one", |logs, [ref_w, ref_l]| {
        let [w, l] = sums(logs);
        let good: Tensor = (-(w - ref_w - 0.7) * 0.2).sigmoid() * 1.5;
        good + ((l - ref_l - 0.7) * 0.2).sigmoid()
    }),
];

/// A pair's loss, and −∂loss/∂log p of each target by autograd: what an engine's closed form is to answer.
fn pair_loss(
    loss: PairLoss,
    logs: &[TargetLog],
    chosen: usize,
    references: [f64; 2],
) -> (f64, Vec<f64>) {
    let logs: Vec<f64> = logs.iter().map(|log| log.log_p).collect();
    with_grad(|| {
        let logs = Tensor::from_slice(&logs).set_requires_grad(true);
        let chosen = chosen as i64;
        let answers = [logs.i(..chosen), logs.i(chosen..)];
        let loss = loss(answers.each_ref(), references);
        loss.backward();
        (loss.double_value(&[]), Vec::try_from(-logs.grad()).unwrap())
    })
}

/// The same for a loss over the pairs that the documents with targets are.
fn check_preference(
    family: &str,
    decoder: &Decoder,
    (name, loss): (&str, PairLoss),
    documents: &[Document],
) {
    let (batch, ends) = batch(documents);
    // Where each pair ends, and how many targets its first answer has.
    let pair_ends = [ends[1], ends[3]];
    let chosen = [ends[0], ends[2] - ends[1]];
    let logs = decoder.target_logs(&batch, None).unwrap();
    let references = |pair: usize| {
        let start = if pair == 0 { 0 } else { pair_ends[0] };
        let (w, l) = logs[start..pair_ends[pair]].split_at(chosen[pair]);
        [w, l].map(|logs| logs.iter().map(|log| log.log_p).sum::<f64>())
    };
    let loss_of = |decoder: &Decoder, adapter: &Adapter| -> f64 {
        let logs = decoder.target_logs(&batch, Some(adapter)).unwrap();
        let (first, second) = logs.split_at(pair_ends[0]);
        let pairs = [first, second].into_iter().enumerate();
        pairs.map(|(n, logs)| pair_loss(loss, logs, chosen[n], references(n)).0).sum()
    };
    let mut adapter = adapter(decoder, &some_targets());
    let mut gradients = Gradients::zeros(&adapter);
    let mut coefficients =
        |n: usize, logs: &[TargetLog]| pair_loss(loss, logs, chosen[n], references(n)).1;
    let groups = Groups { ends: &pair_ends, coefficients: &mut coefficients };
    let pass = PassOptions::new(1.0, 0);
    decoder.forward_backward_with(&batch, &adapter, &mut gradients, pass, groups).unwrap();
    let mut slope = Slope::new(format!("{family}, {name}"), decoder, &mut adapter);
    let worst = slope.check(gradients.flat(), &loss_of);
    println!("{family}, {name}: {worst}");
}

/// The losses in turn.
#[test]
fn gradients_of_preference_losses_are_the_slopes_of_the_loss_in_every_family() {
    for (number, family) in FAMILIES.into_iter().enumerate() {
        let decoder = decoder(family, Quantization::None);
        check_preference(family, &decoder, PAIR_LOSSES[number % PAIR_LOSSES.len()], &DOCUMENTS);
    }
}

/// Pairs whose logits are kept for the second phase at the head, and such that are computed twice.
#[test]
fn gradients_of_long_pairs_are_the_slopes_of_the_loss() {
    let mut decoder = decoder("llama-tied", Quantization::None);
    let simpo = PAIR_LOSSES[4];
    check_preference("llama-tied, long", &decoder, simpo, &LONG_DOCUMENTS);
    // Told of a vocabulary as large as this one, the head keeps no more than a block.
    decoder.spec.vocab_size = 1 << 20;
    check_preference("llama-tied, long, twice", &decoder, simpo, &LONG_DOCUMENTS);
}
