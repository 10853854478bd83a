//! Runs that go on from a tuned model: against peft and transformers, against trl, and on a tiny random model with
//! every kind of tuning. Fixture: `tests/golden/start_fixture.py`.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use common::{Folder, Tiny, bytes, plan};
use dataset::{ChatTokenizer, Dataset, Example};
use domain::hyperparameters::{Quantization, Tuning};
use domain::job::MethodType;
use domain::plan::{StartWeights, TrainingPlan, VirtualTokens};
use domain::preference::{LossType, Preference, PreferenceRequest};
use engine::train::objective::{Objective, Rows};
use engine::train::sums::Sums;
use engine::train::{Happened, Run, prepare};
use kernels::AdamW;
use model::{Adapter, Decoder, Gradients, PassOptions};
use serde_json::{Map, json};
use tch::Device;
use weights::TensorFile;

fn fixtures(name: &str) -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    crates.join(name).join("tests/fixtures")
}

fn golden() -> TensorFile {
    TensorFile::open(&fixtures("engine").join("start/golden.safetensors")).unwrap()
}

fn doubles(file: &TensorFile, name: &str) -> Vec<f64> {
    let data = file.get(name).unwrap().data;
    data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn integers(file: &TensorFile, name: &str) -> Vec<usize> {
    let data = file.get(name).unwrap().data;
    data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
}

fn start(dir: &Path) -> Option<StartWeights> {
    Some(StartWeights { dir: dir.to_owned(), digest: dir.display().to_string() })
}

/// A tokenizer whose words are the fixture's tokens: `w5 w17`, each row ended by token 1.
fn words(folder: &Path) -> ChatTokenizer {
    let word = |id: usize| if id == 1 { "</s>".to_owned() } else { format!("w{id}") };
    let vocabulary: Map<_, _> = (0..61).map(|id| (word(id), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": 1, "content": "</s>", "special": true, "single_word": false,
                          "lstrip": false, "rstrip": false, "normalized": false}],
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    });
    let config = json!({"eos_token": "</s>", "model_max_length": 256});
    let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
    write("tokenizer.json", tokenizer.to_string());
    write("tokenizer_config.json", config.to_string());
    let template =
        "{% for message in messages %}{{ ' ' + message['content'] + ' </s>' }}{% endfor %}";
    write("chat_template.jinja", template.to_owned());
    ChatTokenizer::from_folder(folder).unwrap()
}

#[test]
fn two_jobs_in_a_row_equal_those_of_peft_and_transformers() {
    tch::set_num_threads(1);
    let (golden, output) = (golden(), Folder::new());
    let model = fixtures("model").join("rslora");
    let decoder = Decoder::load(&model.join("model"), Device::Cpu).unwrap();
    let tokenizer = words(output.path());
    let tokens = integers(&golden, "tokens");
    let mut rest = &tokens[..];
    let texts: Vec<String> = integers(&golden, "lengths")
        .into_iter()
        .map(|length| {
            let (row, others) = rest.split_at(length);
            rest = others;
            row.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
        })
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let training_file = output.texts("rows.jsonl", &texts);
    let mut from = model.join("adapter");
    for (name, rate) in [("first", 5e-3), ("second", 2e-3)] {
        let mut plan = TrainingPlan {
            training_file: training_file.clone(),
            start_from: start(&from),
            ..plan(&output, name)
        };
        let h = &mut plan.hyperparameters;
        // Each step is an epoch: the order of the rows in it does not matter.
        (h.n_epochs, h.batch_size, h.warmup_steps) = (6, texts.len() as u32, 1);
        (h.learning_rate, h.micro_batch_tokens) = (rate, 256);
        let mut run = Run::new(prepare(plan, &tokenizer, 256).unwrap(), &decoder).unwrap();
        let (mut losses, mut last) = (Vec::new(), None);
        while last != Some(Happened::Finished) {
            for event in run.turn(&decoder) {
                match &event {
                    Happened::Report(domain::RunReport::Step(step)) => losses.push(step.train_loss),
                    Happened::Checkpoint(checkpoint) => from = checkpoint.dir.clone(),
                    Happened::Failed(failure) => panic!("{failure:?}"),
                    _ => {}
                }
                last = Some(event);
            }
        }
        let expected = doubles(&golden, &format!("{name}.losses"));
        assert_eq!(losses.len(), expected.len());
        for (ours, theirs) in losses.iter().zip(&expected) {
            assert!((ours / theirs - 1.0).abs() < 1e-5, "{name}: {losses:?} {expected:?}");
        }
        let ours = TensorFile::open(&from.join("adapter_model.safetensors")).unwrap();
        for key in ours.names() {
            let theirs = golden.get_f32(&format!("{name}.{key}")).unwrap();
            let ours = ours.get_f32(key).unwrap();
            let (mut off, mut size) = (0.0, 0.0);
            for (a, b) in ours.iter().zip(&theirs) {
                off += f64::from(a - b).powi(2);
                size += f64::from(*b).powi(2);
            }
            assert!(off.sqrt() < 1e-4 * size.sqrt(), "{name}, {key}: {off:e} of {size:e}");
        }
    }
}

/// The losses with a reference, as in the fixture: name, loss, β.
const CASES: [(&str, LossType, f64); 4] = [
    ("sigmoid", LossType::Sigmoid, 0.1),
    ("hinge", LossType::Hinge, 0.2),
    ("ipo", LossType::Ipo, 0.4),
    ("kto", LossType::Kto, 0.3),
];

fn preference_rows(is_labelled: bool) -> Rows {
    let pairs = fixtures("engine").join("preference/golden.safetensors");
    let file = TensorFile::open(&pairs).unwrap();
    let tokens: Vec<u32> = integers(&file, "tokens").iter().map(|&id| id as u32).collect();
    let mut rest = &tokens[..];
    let mut take = |count: usize| {
        let (part, others) = rest.split_at(count);
        rest = others;
        part
    };
    let mut examples = Vec::new();
    for lengths in integers(&file, "lengths").chunks_exact(3) {
        let (prompt, answers) = (take(lengths[0]), [take(lengths[1]), take(lengths[2])]);
        examples.extend(answers.map(|answer| Example {
            is_target: (0..lengths[0] + answer.len()).map(|at| at >= lengths[0]).collect(),
            full_len: lengths[0] + answer.len(),
            truncated: false,
            input_ids: [prompt, answer].concat(),
        }));
    }
    if !is_labelled {
        return Rows::new(Dataset::grouped(examples, 2), usize::MAX);
    }
    let labels = (0..examples.len()).map(|answer| answer % 2 == 0).collect();
    let mut data = Dataset::new(examples);
    data.labels = labels;
    Rows::new(data, usize::MAX)
}

#[test]
fn the_reference_of_preferences_is_the_start_as_trl_has_it() {
    tch::set_num_threads(1);
    let golden = golden();
    let folder = fixtures("model").join("llama-tied");
    let decoder = Decoder::load(&folder.join("model"), Device::Cpu).unwrap();
    for (name, loss_type, beta) in CASES {
        let wish = PreferenceRequest { loss_type, ..PreferenceRequest::default() };
        let (desirable_weight, undesirable_weight) = (1.5, 0.75);
        let options = Preference { beta, desirable_weight, undesirable_weight, ..wish.resolve() };
        let is_labelled = loss_type == LossType::Kto;
        let objective =
            if is_labelled { Objective::Labelled(options) } else { Objective::Pairs(options) };
        let load = || Adapter::load(&decoder, &folder.join("adapter")).unwrap();
        let mut adapter = load();
        let mut rows = preference_rows(is_labelled).with_start(Some(Rc::new(load())));
        let (m, v) = (Gradients::zeros(&adapter), Gradients::zeros(&adapter));
        let rates = doubles(&golden, &format!("{name}.rates"));
        let expected = doubles(&golden, &format!("{name}.losses"));
        let count = rows.data.rows() as u32;
        // In the fixture's order: KTO gives each input the answer of the row before it.
        let order: Vec<u32> = (0..count).map(|row| row * 3 % count).collect();
        for (step, (&rate, &expected)) in rates.iter().zip(&expected).enumerate() {
            let (mut gradients, mut sums) = (Gradients::zeros(&adapter), Sums::default());
            for batch in objective.micro_batches(&rows, &order, usize::MAX) {
                let pass = PassOptions::new(1.0 / f64::from(count), 0);
                let of = (&adapter, &mut gradients);
                objective.learn(&mut rows, &batch, &decoder, of, pass, &mut sums).unwrap();
            }
            let loss = sums.mean_loss();
            let allowed = 1e-4 * expected.max(1e-2);
            assert!((loss - expected).abs() < allowed, "{name} {step}: {loss}, {expected}");
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
            kernels::adamw(adapter.values(), gradients.flat(), m.flat(), v.flat(), settings);
            adapter.refresh();
        }
    }
}

/// What a model can be tuned as.
type Change = fn(&mut TrainingPlan);

fn tunings() -> [(&'static str, Change); 6] {
    fn virtual_tokens(plan: &mut TrainingPlan, tuning: Tuning) {
        plan.hyperparameters.tuning = tuning;
        plan.hyperparameters.virtual_tokens = Some(VirtualTokens { count: 4, init_text: None });
    }
    [
        ("lora", |_| {}),
        ("rslora", |plan| {
            let lora = &mut plan.hyperparameters.lora;
            lora.rslora = true;
            lora.rank_pattern = BTreeMap::from([("0.self_attn.q_proj".to_owned(), 3)]);
        }),
        ("dora", |plan| plan.hyperparameters.lora.dora = true),
        ("full", |plan| plan.hyperparameters.tuning = Tuning::Full),
        ("prompt", |plan| virtual_tokens(plan, Tuning::Prompt)),
        ("prefix", |plan| virtual_tokens(plan, Tuning::Prefix)),
    ]
}

/// A plan of two epochs, of another seed than the run that it goes on from.
fn short(output: &Folder, name: &str, shape: fn(&mut TrainingPlan)) -> TrainingPlan {
    let mut plan = plan(output, name);
    (plan.hyperparameters.n_epochs, plan.hyperparameters.warmup_steps) = (2, 0);
    shape(&mut plan);
    plan
}

/// Makes the plan one of pairs that differ in one word.
fn prefer(plan: &mut TrainingPlan, output: &Folder, loss_type: LossType) {
    plan.method = MethodType::Dpo;
    let wish = PreferenceRequest { loss_type, ..PreferenceRequest::default() };
    plan.hyperparameters.preference = Some(Box::new(wish.resolve()));
    let message = |role: &str, text: &str| json!({"role": role, "content": text});
    let row = json!({
        "input": {"messages": [message("user", "Say yes.")]},
        "preferred_output": [message("assistant", "yes")],
        "non_preferred_output": [message("assistant", "no")],
    });
    plan.training_file = output.path().join("pairs.jsonl");
    fs::write(&plan.training_file, format!("{row}\n{row}\n{row}\n{row}\n")).unwrap();
}

#[test]
fn every_tuning_goes_on_from_its_weights_and_resumes_to_the_byte() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    for (name, shape) in tunings() {
        let first = tiny.finish(short(&output, &format!("{name}-first"), shape));
        // Preferences after chats: the loss that only the reference decides is that of a coin.
        let mut then = short(&output, &format!("{name}-then"), shape);
        then.start_from = start(&first.last_dir());
        prefer(&mut then, &output, LossType::Sigmoid);
        then.hyperparameters.learning_rate = 1e-3;
        let straight = tiny.finish(then.clone());
        assert_eq!(straight.end, Some(Happened::Finished), "{name}: {:?}", straight.failure);
        let coin = std::f64::consts::LN_2;
        assert!((straight.losses()[0] - coin).abs() < 1e-6, "{name}: {:?}", straight.losses());
        assert!(straight.losses()[3] < coin - 1e-4, "{name}: {:?}", straight.losses());

        let mut broken = TrainingPlan { output_dir: output.path().join("broken"), ..then.clone() };
        let begun = tiny.drive_and_stop_at(tiny.begin(broken.clone()).unwrap(), 2);
        broken.resume_from = Some(begun.last_dir());
        let resumed = tiny.finish(broken.clone());
        assert_eq!([begun.losses(), resumed.losses()].concat(), straight.losses(), "{name}");
        let weights =
            if name == "full" { "model.safetensors" } else { "adapter_model.safetensors" };
        for file in [weights, "config.json", "adapter_config.json"] {
            if straight.last_dir().join(file).exists() {
                let (a, b) = (bytes(&straight.last_dir(), file), bytes(&resumed.last_dir(), file));
                assert!(a == b, "{name}: {file} differs");
            }
        }
        // Under other weights to start from it would be another run.
        broken.start_from = start(&straight.last_dir());
        let failure = tiny.begin(broken).unwrap_err();
        assert_eq!(failure.param.as_deref(), Some("start_from"), "{failure:?}");
        fs::remove_dir_all(output.path().join("broken")).unwrap();
    }
}

#[test]
fn chats_after_preferences_and_labels_on_a_quantised_base_go_on_too() {
    let (tiny, output) = (Tiny::load_as(model::Quantization::Nf4), Folder::new());
    let quantised = |plan: &mut TrainingPlan| plan.hyperparameters.quantization = Quantization::Nf4;
    let mut pairs = short(&output, "pairs", |_| {});
    quantised(&mut pairs);
    prefer(&mut pairs, &output, LossType::Ipo);
    let pairs = tiny.finish(pairs);
    assert_eq!(pairs.end, Some(Happened::Finished), "{:?}", pairs.failure);
    let mut chats = short(&output, "chats", |_| {});
    quantised(&mut chats);
    chats.start_from = start(&pairs.last_dir());
    chats.hyperparameters.lora.dropout = 0.1;
    let chats = tiny.finish(chats);
    assert_eq!(chats.end, Some(Happened::Finished), "{:?}", chats.failure);
    let losses = chats.losses();
    assert!(losses[3] < losses[0], "{losses:?}");
    let config = fs::read_to_string(chats.last_dir().join("adapter_config.json")).unwrap();
    assert!(config.contains("\"lora_dropout\": 0.1"), "{config}");
}

#[test]
fn weights_that_are_not_as_planned_are_refused_by_name() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let lora = tiny.finish(short(&output, "lora", |_| {}));
    let mut wrong = short(&output, "wrong", |plan| plan.hyperparameters.tuning = Tuning::Full);
    wrong.start_from = start(&lora.last_dir());
    let failure = tiny.begin(wrong).unwrap_err();
    assert_eq!((failure.code.as_str(), failure.retryable), ("invalid_start_model", false));
    let mut absent = short(&output, "absent", |_| {});
    absent.start_from = start(&output.path().join("nowhere"));
    assert_eq!(tiny.begin(absent).unwrap_err().code, "invalid_start_model");
}
