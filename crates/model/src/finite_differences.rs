//! The hand-written pass through the decoder, proved by arithmetic alone: every gradient against central differences
//! of the loss, tensor by tensor, for every kind of adapter in every family.
//!
//! All is computed in f64, by the same code as in earnest but for the kernels, whose plain references take f64;
//! `crates/kernels/tests/finite_differences.rs` proves them and holds the fast forms against them. Neither autograd nor
//! another library has a part in the proof. The precision exists in the build of these tests only. DoRA's norms are
//! held, because the method takes them as constant.
//!
//! **The bound.** A central difference errs by h²·f‴/6, because it is a secant, and by ε·|f|/h, because the two losses
//! are rounded (ε = 1.1e-16). With h = 1e-5 and losses of about 100 these are about 1e-10 and 1e-9, and gradients are
//! between 0.01 and 10. What was found is in `docs/TRAINING.md`; a wrong factor or a forgotten term is off by far more.

mod preference;

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, IndexOp, Kind, Tensor};
use weights::peft::Pattern;

use crate::adapter::Group;
use crate::form::{Form, Precision, Quantization};
use crate::layout::GROUPS;
use crate::{
    Adapter, AdapterOptions, Batch, Decoder, Gradients, LoraOptions, PassOptions, Recompute,
    VirtualTokens,
};

const STEP: f64 = 1e-5;
const BOUND: f64 = 1e-6;

/// All that the table of families knows, and Llama with and without tied heads, biases and stretched rotation.
const FAMILIES: [&str; 11] = [
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
/// The smallest vocabulary among them.
const VOCABULARY: i64 = 53;

fn decoder(family: &str, quantization: Quantization) -> Decoder {
    // Tests run beside each other, and threads of libtorch would only wait for cores.
    tch::set_num_threads(1);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
    let form = Form { quantization, precision: Precision::Fp64 };
    Decoder::load_as(&folder.join("model"), Device::Cpu, form).unwrap()
}

/// Numbers between −½ and ½ that look random, the same in every run.
fn noise(len: usize, seed: usize) -> Tensor {
    let at = Tensor::arange(len as i64, (Kind::Double, Device::Cpu));
    let turned = (at * 12.9898 + seed as f64 * 78.233).sin() * 43_758.545_3;
    &turned - turned.floor() - 0.5
}

/// What is trained. A new kind of adapter does not compile here until it has its place.
fn kind_of(options: &AdapterOptions) -> &'static str {
    match options {
        AdapterOptions::Lora(options) if options.dora => "DoRA",
        AdapterOptions::Lora(options) if options.dropout > 0.0 => "LoRA with dropout",
        AdapterOptions::Lora(_) => "LoRA",
        AdapterOptions::Full => "full",
        AdapterOptions::Prompt(_) => "prompt",
        AdapterOptions::Prefix(_) => "prefix",
    }
}

/// All linears, with a rank and a factor of their own in some.
fn lora() -> LoraOptions {
    LoraOptions {
        rank: 2,
        alpha: 3.0,
        rank_pattern: Pattern::most_specific_first([("down_proj".to_owned(), 3)]),
        alpha_pattern: Pattern::most_specific_first([("o_proj".to_owned(), 5.0)]),
        ..LoraOptions::default()
    }
}

/// Some of them, by the other rule for the factor.
fn some_targets() -> AdapterOptions {
    AdapterOptions::Lora(LoraOptions {
        rank: 2,
        alpha: 3.0,
        target_modules: ["q_proj", "v_proj", "up_proj"].map(str::to_owned).to_vec(),
        rslora: true,
        ..LoraOptions::default()
    })
}

/// An adapter away from its start, where half of the gradients are zero.
fn adapter(decoder: &Decoder, options: &AdapterOptions) -> Adapter {
    let mut adapter = Adapter::init(decoder, options, 7).unwrap();
    assert_eq!(adapter.values().kind(), Kind::Double);
    let moved = adapter.values() + noise(adapter.len(), 1) * 0.4;
    adapter.set_values(&moved);
    adapter
}

/// A document of a batch: the one that it continues, its first position, its tokens, and how many of the last of them
/// predict a target.
type Document = (Option<usize>, i64, i64, i64);

/// Two documents by themselves, and a beginning that two answers share; longer than any window.
const DOCUMENTS: [Document; 5] =
    [(None, 0, 19, 9), (None, 0, 6, 3), (None, 0, 14, 0), (Some(2), 14, 9, 8), (Some(2), 14, 3, 3)];
/// More targets than a block of the head has, in the first two alone too.
const LONG_DOCUMENTS: [Document; 4] =
    [(None, 0, 150, 149), (None, 0, 140, 139), (None, 0, 30, 12), (None, 0, 20, 9)];

/// A batch, and where each document's targets end, if it has any.
fn batch(documents: &[Document]) -> (Batch, Vec<usize>) {
    let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
    let mut ends = Vec::new();
    for (document, &(continued, start, len, targets)) in documents.iter().enumerate() {
        let token = |at: i64| (document as i64 * 17 + at * 7 + at * at) % VOCABULARY;
        for at in 0..len {
            if at >= len - targets {
                batch.target_rows.push(batch.input_ids.len() as i64);
                batch.target_ids.push(token(at + 1));
            }
            batch.input_ids.push(token(at));
            batch.positions.push(start + at);
        }
        batch.cu_seqlens.push(batch.input_ids.len() as i32);
        batch.continues.push(continued);
        if targets > 0 {
            ends.push(batch.target_ids.len());
        }
    }
    (batch, ends)
}

/// Name and place of every tensor that is trained.
fn tensors(decoder: &Decoder, adapter: &Adapter) -> Vec<(String, i64, i64)> {
    let names: Vec<String> = if let Some(layout) = adapter.layout() {
        let mut tensors = layout.tensors();
        tensors.sort_by_key(|tensor| tensor.offset);
        tensors.into_iter().map(|tensor| tensor.name).collect()
    } else if adapter.is_full() {
        let (matrices, vectors): (Vec<_>, Vec<_>) =
            decoder.spec().tensors().into_iter().partition(|tensor| tensor.shape.len() > 1);
        matrices.into_iter().chain(vectors).map(|tensor| tensor.name).collect()
    } else {
        vec!["virtual tokens".to_owned()]
    };
    let extents = adapter.extents();
    assert_eq!(names.len(), extents.len(), "every tensor has a name");
    let places = extents.into_iter().map(|extent| (extent.offset as i64, extent.len as i64));
    names.into_iter().zip(places).map(|(name, (start, len))| (name, start, len)).collect()
}

/// The groups with weight decomposition.
fn decomposed(adapter: &Adapter) -> Vec<&Group> {
    let layers = adapter.layout().map_or(0, |layout| layout.layers.len());
    let groups = (0..layers).flat_map(|layer| (0..GROUPS).map(move |n| (layer, n)));
    let groups = groups.filter_map(|(layer, n)| adapter.group(layer, n));
    groups.filter(|group| group.dora.is_some()).collect()
}

/// A point at which a loss and its gradient are known.
struct Slope<'a> {
    what: String,
    decoder: &'a Decoder,
    adapter: &'a mut Adapter,
    start: Tensor,
    /// Norms of weight decomposition at this point: the gradient takes them as constant, as the method defines.
    norms: Vec<Tensor>,
}

impl<'a> Slope<'a> {
    fn new(what: String, decoder: &'a Decoder, adapter: &'a mut Adapter) -> Self {
        let start = adapter.values().copy();
        let norm = |group: &Group| group.dora.as_ref().unwrap().norm.copy();
        let norms = decomposed(adapter).into_iter().map(norm).collect();
        Self { what, decoder, adapter, start, norms }
    }

    fn move_to(&mut self, values: &Tensor) {
        self.adapter.set_values(values);
        for (group, held) in decomposed(self.adapter).into_iter().zip(&self.norms) {
            let dora = group.dora.as_ref().unwrap();
            let _ = dora.gain.shallow_clone().g_mul_(&(&dora.norm / held));
        }
    }

    /// Compares `gradient` with differences of `loss`, for each tensor in some directions; answers the
    /// largest error by kinds of tensors.
    fn check(&mut self, gradient: &Tensor, loss: &dyn Fn(&Decoder, &Adapter) -> f64) -> String {
        assert_eq!(gradient.kind(), Kind::Double);
        let mut worst = BTreeMap::<String, f64>::new();
        for (number, (name, start, len)) in
            tensors(self.decoder, self.adapter).into_iter().enumerate()
        {
            let own = gradient.narrow(0, start, len);
            let rms = own.norm().double_value(&[]) / (len as f64).sqrt();
            let context = format!("{}, {name}", self.what);
            assert!(rms > 1e-4, "{context}: a gradient of {rms:e} proves little");
            for direction in directions(&own, number) {
                let whole = self.start.zeros_like();
                whole.narrow(0, start, len).copy_(&direction);
                let mut at = |step: f64| {
                    self.move_to(&(&self.start + &whole * step));
                    loss(self.decoder, self.adapter)
                };
                let measured = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                let computed = (&own * &direction).sum(Kind::Double).double_value(&[]);
                // What a derivative in a direction of this length amounts to, lest a small one by chance counts.
                let size = rms * direction.norm().double_value(&[]);
                let error = (measured - computed).abs() / size;
                assert!(error < BOUND, "{context}: {computed} computed, {measured} measured");
                let worst = worst.entry(sort_of(&name)).or_insert(0.0);
                *worst = f64::max(*worst, error);
            }
        }
        self.move_to(&self.start.copy());
        let worst = worst.iter().map(|(sort, error)| format!("{sort} {error:.1e}"));
        worst.collect::<Vec<_>>().join(", ")
    }
}

/// Directions: every entry at once, with random signs; the entry with the largest gradient; any one.
fn directions(gradient: &Tensor, seed: usize) -> [Tensor; 3] {
    let len = gradient.numel();
    let entry = |at: i64| {
        let direction = gradient.zeros_like();
        let _ = direction.i(at).fill_(1.0);
        direction
    };
    let largest = gradient.abs().argmax(0, false).int64_value(&[]);
    [noise(len, seed).sign(), entry(largest), entry((seed * 7919 % len) as i64)]
}

/// A tensor's name without its layer.
fn sort_of(name: &str) -> String {
    for (part, sort) in [
        ("lora_A", "A"),
        ("lora_B", "B"),
        ("magnitude", "magnitude"),
        ("norm", "norms"),
        (".bias", "biases"),
        ("embed_tokens", "embedding"),
        ("lm_head", "head"),
    ] {
        if name.contains(part) {
            return sort.to_owned();
        }
    }
    if name.starts_with("model.") { "weights".to_owned() } else { name.to_owned() }
}

/// Loss and gradient of the supervised pass, and every tensor's differences.
fn check_supervised(
    family: &str,
    decoder: &Decoder,
    options: &AdapterOptions,
    (documents, recompute): (&[Document], Recompute),
) {
    let mut adapter = adapter(decoder, options);
    let (batch, _) = batch(documents);
    let pass = PassOptions { recompute, ..PassOptions::new(1.0, 5) };
    let learn = |decoder: &Decoder, adapter: &Adapter| {
        let mut gradients = Gradients::zeros(adapter);
        let sum = decoder.forward_backward(&batch, adapter, &mut gradients, pass).unwrap();
        (sum.loss, gradients)
    };
    let (loss, gradients) = learn(decoder, &adapter);
    let drops = adapter.dropout() > 0.0;
    // The same seed drops the same numbers in both losses of a difference.
    let loss_of = |decoder: &Decoder, adapter: &Adapter| {
        if drops {
            learn(decoder, adapter).0
        } else {
            decoder.evaluate(&batch, Some(adapter)).unwrap().loss
        }
    };
    let kind = kind_of(options);
    let mut slope = Slope::new(format!("{family}, {kind}"), decoder, &mut adapter);
    assert!((loss_of(decoder, slope.adapter) / loss - 1.0).abs() < 1e-12);
    let worst = slope.check(gradients.flat(), &loss_of);
    println!("{family}, {kind}: {worst}");
}

/// The usual documents, with everything kept.
const PLAIN: (&[Document], Recompute) = (&DOCUMENTS, Recompute::Nothing);

#[test]
fn gradients_of_lora_are_the_slopes_of_the_loss_in_every_family() {
    for family in FAMILIES {
        let decoder = decoder(family, Quantization::None);
        check_supervised(family, &decoder, &AdapterOptions::Lora(lora()), PLAIN);
    }
    let decoder = decoder("llama-tied", Quantization::None);
    let long = (&LONG_DOCUMENTS[..], Recompute::Nothing);
    check_supervised("llama-tied", &decoder, &some_targets(), long);
}

#[test]
fn gradients_of_every_weight_are_the_slopes_of_the_loss_in_every_family() {
    for family in FAMILIES {
        let decoder = decoder(family, Quantization::None);
        check_supervised(family, &decoder, &AdapterOptions::Full, PLAIN);
    }
}

#[test]
fn gradients_of_virtual_tokens_are_the_slopes_of_the_loss_in_every_family() {
    let tokens = || VirtualTokens { count: 3, init: vec![7, 3, 11] };
    for family in FAMILIES {
        let decoder = decoder(family, Quantization::None);
        for options in [AdapterOptions::Prompt(tokens()), AdapterOptions::Prefix(tokens())] {
            check_supervised(family, &decoder, &options, PLAIN);
        }
    }
}

#[test]
fn gradients_of_weight_decomposition_are_the_slopes_of_the_loss() {
    let dora = AdapterOptions::Lora(LoraOptions { dora: true, ..lora() });
    for family in ["llama-wide", "olmo2", "gemma2", "phi3"] {
        let decoder = decoder(family, Quantization::None);
        check_supervised(family, &decoder, &dora, PLAIN);
    }
}

#[test]
fn dropout_a_quantised_base_and_recomputation_leave_gradients_the_slopes_of_the_loss() {
    let dropping = AdapterOptions::Lora(LoraOptions { dropout: 0.2, ..lora() });
    for (family, recompute) in [("llama-wide", Recompute::Layer), ("phi3", Recompute::Mlp)] {
        let decoder = decoder(family, Quantization::None);
        check_supervised(family, &decoder, &dropping, (&DOCUMENTS, recompute));
    }
    let quantised = decoder("qlora", Quantization::Nf4);
    check_supervised("qlora", &quantised, &AdapterOptions::Lora(lora()), PLAIN);
}
