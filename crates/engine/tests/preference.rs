//! Runs of the method `dpo`: their numbers against trl's, and what the runs do on a tiny random model.
//! Fixtures: `tests/golden/preference_fixture.py`, and `reward_fixture.py` there for reward models.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, Tiny, bytes, plan};
use dataset::{Dataset, Example};
use domain::job::MethodType;
use domain::plan::TrainingPlan;
use domain::preference::{LossType, Preference, PreferenceRequest};
use domain::report::RewardMetrics;
use engine::train::objective::{Objective, Rows};
use engine::train::preference::{Answer, pair_loss};
use engine::train::sums::Sums;
use engine::train::{Happened, prepare};
use kernels::AdamW;
use model::{Adapter, Decoder, Gradients, KvCache, PassOptions};
use serde_json::{Value, json};
use tch::{Device, Tensor};
use weights::TensorFile;
use weights::peft::{read_adapter, write_adapter};

/// The cases of the fixture: name, loss, β, label smoothing, γ.
const CASES: [(&str, LossType, f64, f64, f64); 7] = [
    ("sigmoid", LossType::Sigmoid, 0.1, 0.0, 0.0),
    ("smoothed", LossType::Sigmoid, 0.3, 0.2, 0.0),
    ("hinge", LossType::Hinge, 0.2, 0.0, 0.0),
    ("ipo", LossType::Ipo, 0.4, 0.0, 0.0),
    ("orpo", LossType::Orpo, 0.5, 0.0, 0.0),
    ("simpo", LossType::Simpo, 2.0, 0.1, 0.5),
    ("kto", LossType::Kto, 0.3, 0.0, 0.0),
];

/// The cases of reward models: name, γ, weight of the pull towards 0.
const REWARD_CASES: [(&str, f64, f64); 3] =
    [("plain", 0.0, 0.0), ("margin", 0.5, 0.0), ("centred", 0.0, 0.01)];

struct Golden {
    adapter: PathBuf,
    file: TensorFile,
    decoder: Decoder,
}

impl Golden {
    fn open() -> Self {
        let folder = fixtures("model").join("llama-tied/adapter");
        Self::with(folder, "preference")
    }

    fn of_reward_models() -> Self {
        Self::with(fixtures("engine").join("reward/adapter"), "reward")
    }

    fn with(adapter: PathBuf, name: &str) -> Self {
        tch::set_num_threads(1);
        let model = fixtures("model").join("llama-tied/model");
        let decoder = Decoder::load(&model, Device::Cpu).unwrap();
        let path = fixtures("engine").join(name).join("golden.safetensors");
        Self { adapter, file: TensorFile::open(&path).unwrap(), decoder }
    }

    fn adapter(&self) -> Adapter {
        Adapter::load(&self.decoder, &self.adapter).unwrap()
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        let data = self.file.get(name).unwrap().data;
        data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        let data = self.file.get(name).unwrap().data;
        let numbers = data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()));
        numbers.map(|n| n as usize).collect()
    }

    /// The golden gradients of a case in the adapter's own flat order: written as an adapter, and loaded.
    fn gradients(&self, case: &str) -> Tensor {
        let (config, file) = read_adapter(&self.adapter).unwrap();
        let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = file
            .names()
            .map(|name| {
                let values = self.file.get_f32(&format!("{case}.grad.{name}")).unwrap();
                (name.to_owned(), file.get(name).unwrap().shape.clone(), values)
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), &config, &tensors).unwrap();
        Adapter::load(&self.decoder, folder.path()).unwrap().values().copy()
    }

    fn rows(&self, labelled: bool) -> Rows {
        let tokens: Vec<u32> = self.integers("tokens").iter().map(|&id| id as u32).collect();
        let mut rest = &tokens[..];
        let mut take = |count: usize| {
            let (part, others) = rest.split_at(count);
            rest = others;
            part
        };
        let mut examples = Vec::new();
        for lengths in self.integers("lengths").chunks_exact(3) {
            let (prompt, answers) = (take(lengths[0]), [take(lengths[1]), take(lengths[2])]);
            examples.extend(answers.map(|answer| sequence(prompt, answer)));
        }
        if !labelled {
            return Rows::new(Dataset::grouped(examples, 2), usize::MAX);
        }
        // The same answers one by one: the preferred ones good, the others bad.
        let labels = (0..examples.len()).map(|answer| answer % 2 == 0).collect();
        let mut data = Dataset::new(examples);
        data.labels = labels;
        Rows::new(data, usize::MAX)
    }

    fn rows_for(&self, objective: &Objective) -> Rows {
        self.rows(matches!(objective, Objective::Labelled(_)))
    }
}

fn fixtures(name: &str) -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    crates.join(name).join("tests/fixtures")
}

fn sequence(prompt: &[u32], answer: &[u32]) -> Example {
    let input_ids = [prompt, answer].concat();
    Example {
        is_target: (0..input_ids.len()).map(|at| at >= prompt.len()).collect(),
        full_len: input_ids.len(),
        truncated: false,
        input_ids,
    }
}

/// The loss and gradient of all rows, in micro-batches of so many tokens.
fn learn(
    golden: &Golden,
    objective: &Objective,
    rows: &mut Rows,
    adapter: &Adapter,
    tokens: usize,
) -> (Sums, Gradients) {
    let mut gradients = Gradients::zeros(adapter);
    let mut sums = Sums::default();
    // In the fixture's order: KTO gives each input the answer of the row before it.
    let count = rows.data.rows() as u32;
    let all: Vec<u32> = (0..count).map(|row| row * 3 % count).collect();
    let options = PassOptions::new(1.0 / all.len() as f64, 0);
    for batch in objective.micro_batches(rows, &all, tokens) {
        let (adapter, decoder) = ((adapter, &mut gradients), &golden.decoder);
        objective.learn(rows, &batch, decoder, adapter, options, &mut sums).unwrap();
    }
    (sums, gradients)
}

fn objective(
    (_, loss_type, beta, label_smoothing, gamma): (&str, LossType, f64, f64, f64),
) -> Objective {
    let (desirable_weight, undesirable_weight) = (1.5, 0.75);
    let options = Preference {
        loss_type,
        beta,
        label_smoothing,
        gamma,
        desirable_weight,
        undesirable_weight,
        center_coefficient: 0.0,
    };
    match loss_type {
        LossType::Kto => Objective::Labelled(options),
        _ => Objective::Pairs(options),
    }
}

fn distance(ours: &Tensor, golden: &Tensor) -> f64 {
    ((ours - golden).norm() / golden.norm()).double_value(&[])
}

#[test]
fn losses_and_every_gradient_equal_trls() {
    let golden = Golden::open();
    let adapter = golden.adapter();
    for case in CASES {
        let name = case.0;
        let objective = objective(case);
        let mut rows = golden.rows_for(&objective);
        let (sums, gradients) = learn(&golden, &objective, &mut rows, &adapter, usize::MAX);
        let expected = golden.doubles(&format!("{name}.loss"))[0];
        let loss = sums.mean_loss();
        // Sums of log-probabilities around −100 in f32 bound what can be asked for.
        assert!((loss / expected - 1.0).abs() < 3e-6, "{name}: {loss} against {expected}");
        let distance = distance(gradients.flat(), &golden.gradients(name));
        assert!(distance <= 1e-5, "{name}: gradients are {distance:e} apart");
    }
}

#[test]
fn closed_forms_equal_trls_losses_on_the_same_log_probabilities() {
    let golden = Golden::open();
    let (with, without) = (golden.doubles("log_p"), golden.doubles("reference"));
    let lengths = golden.integers("lengths");
    for case in CASES {
        let Objective::Pairs(options) = objective(case) else { continue };
        let answer = |pair: usize, which: usize| Answer {
            log_p: with[2 * pair + which],
            tokens: lengths[3 * pair + 1 + which] as u64,
            reference: without[2 * pair + which],
        };
        let pairs = lengths.len() / 3;
        let losses = (0..pairs).map(|p| pair_loss(&options, [answer(p, 0), answer(p, 1)]).loss);
        let (mean, expected) =
            (losses.sum::<f64>() / pairs as f64, golden.doubles(&format!("{}.loss", case.0))[0]);
        assert!((mean / expected - 1.0).abs() < 1e-6, "{}: {mean} against {expected}", case.0);
    }
}

#[test]
fn rewards_are_what_the_adapter_added() {
    let golden = Golden::open();
    let (with, without) = (golden.doubles("log_p"), golden.doubles("reference"));
    let gain = |which: usize| -> f64 {
        (0..with.len() / 2).map(|pair| with[2 * pair + which] - without[2 * pair + which]).sum()
    };
    let objective = objective(CASES[0]);
    let mut rows = golden.rows_for(&objective);
    let (sums, _) = learn(&golden, &objective, &mut rows, &golden.adapter(), usize::MAX);
    let rewards = sums.rewards;
    for (ours, theirs) in [(rewards.chosen.sum, gain(0)), (rewards.rejected.sum, gain(1))] {
        assert!((ours - 0.1 * theirs).abs() < 5e-6, "{ours} against {}", 0.1 * theirs);
    }
}

#[test]
fn how_pairs_are_packed_changes_nothing() {
    let golden = Golden::open();
    let adapter = golden.adapter();
    for case in CASES {
        let objective = objective(case);
        let of =
            |tokens| learn(&golden, &objective, &mut golden.rows_for(&objective), &adapter, tokens);
        let (together, gradients) = of(usize::MAX);
        for tokens in [1, 60, 130] {
            let (apart, others) = of(tokens);
            assert!((apart.loss / together.loss - 1.0).abs() < 1e-6);
            let distance = distance(others.flat(), gradients.flat());
            assert!(distance < 1e-6, "{}, {tokens} tokens: {distance:e}", case.0);
        }
    }
}

#[test]
fn twenty_steps_follow_trls() {
    let golden = Golden::open();
    for case in CASES {
        follow(&golden, case.0, &objective(case));
    }
}

fn follow(golden: &Golden, name: &str, objective: &Objective) {
    let mut rows = golden.rows_for(objective);
    let mut adapter = golden.adapter();
    let m = Gradients::zeros(&adapter);
    let v = Gradients::zeros(&adapter);
    let losses = golden.doubles(&format!("{name}.losses"));
    let rates = golden.doubles(&format!("{name}.rates"));
    for step in 0..losses.len() {
        let (sums, gradients) = learn(golden, objective, &mut rows, &adapter, usize::MAX);
        let (loss, expected) = (sums.mean_loss(), losses[step]);
        // The hinge reaches 0, where nothing is left to compare with.
        let allowed = 1e-4 * expected.max(1e-2);
        assert!((loss - expected).abs() < allowed, "{name} step {step}: {loss}, {expected}");
        let norm = kernels::sum_of_squares(gradients.flat()).sqrt();
        let settings = AdamW {
            learning_rate: rates[step],
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

fn reward_objective((_, gamma, center_coefficient): (&str, f64, f64)) -> Objective {
    let wish = PreferenceRequest { loss_type: LossType::Reward, ..PreferenceRequest::default() };
    Objective::Reward(Preference { gamma, center_coefficient, ..wish.resolve() })
}

#[test]
fn scores_losses_and_every_gradient_of_reward_models_equal_trls() {
    let golden = Golden::of_reward_models();
    let adapter = golden.adapter();
    assert!(adapter.is_reward());
    let scores = golden.doubles("scores");
    let (chosen, rejected) = scores.split_at(scores.len() / 2);
    for case in REWARD_CASES {
        let (name, objective) = (case.0, reward_objective(case));
        let mut rows = golden.rows_for(&objective);
        let (sums, gradients) = learn(&golden, &objective, &mut rows, &adapter, usize::MAX);
        for (ours, theirs) in [(sums.rewards.chosen, chosen), (sums.rewards.rejected, rejected)] {
            let theirs = theirs.iter().sum::<f64>();
            assert!((ours.sum - theirs).abs() < 1e-5, "{name}: {} against {theirs}", ours.sum);
        }
        let won = chosen.iter().zip(rejected).filter(|(chosen, rejected)| chosen > rejected);
        assert_eq!(sums.rewards.won.sum, won.count() as f64);
        let expected = golden.doubles(&format!("{name}.loss"))[0];
        let loss = sums.mean_loss();
        assert!((loss / expected - 1.0).abs() < 3e-6, "{name}: {loss} against {expected}");
        let theirs = golden.gradients(name);
        let distance = |range: std::ops::Range<i64>| {
            let part = |flat: &Tensor| flat.narrow(0, range.start, range.end - range.start);
            distance(&part(gradients.flat()), &part(&theirs))
        };
        let (len, width) = (adapter.len() as i64, golden.decoder.spec().hidden_size as i64);
        for (what, range) in [("the matrices", 0..len - width), ("the head", len - width..len)] {
            let distance = distance(range);
            assert!(distance <= 1e-5, "{name}: gradients of {what} are {distance:e} apart");
        }
    }
}

#[test]
fn each_score_is_that_of_its_tokens_by_themselves() {
    let golden = Golden::of_reward_models();
    let adapter = golden.adapter();
    let scores = golden.doubles("scores");
    let rows = golden.rows(false);
    for row in 0..rows.data.rows() {
        for (which, example) in rows.data.row(row).iter().enumerate() {
            let expected = scores[which * scores.len() / 2 + row];
            let ids: Vec<i64> = example.input_ids.iter().map(|&id| i64::from(id)).collect();
            // In pieces, as a long conversation is read.
            let mut cache = KvCache::new(&golden.decoder, ids.len(), Some(&adapter));
            let (start, end) = ids.split_at(ids.len() / 2);
            let _ = golden.decoder.extend(&mut cache, start, Some(&adapter));
            let score = golden.decoder.extend_scored(&mut cache, end, &adapter).unwrap();
            assert!((score - expected).abs() < 3e-6, "{row}, {which}: {score}, {expected}");
        }
    }
}

#[test]
fn how_pairs_are_packed_changes_nothing_for_reward_models() {
    let golden = Golden::of_reward_models();
    let adapter = golden.adapter();
    let objective = reward_objective(REWARD_CASES[2]);
    let of =
        |tokens| learn(&golden, &objective, &mut golden.rows_for(&objective), &adapter, tokens);
    let (together, gradients) = of(usize::MAX);
    for tokens in [1, 60, 130] {
        let (apart, others) = of(tokens);
        assert!((apart.loss / together.loss - 1.0).abs() < 1e-6);
        let distance = distance(others.flat(), gradients.flat());
        assert!(distance < 1e-6, "{tokens} tokens: {distance:e}");
    }
}

#[test]
fn twenty_steps_of_reward_models_follow_trls() {
    let golden = Golden::of_reward_models();
    for case in REWARD_CASES {
        follow(&golden, case.0, &reward_objective(case));
    }
}

#[test]
fn a_reward_model_is_saved_as_peft_saves_it() {
    let golden = Golden::of_reward_models();
    let folder = tempfile::tempdir().unwrap();
    golden.adapter().save(folder.path(), "base").unwrap();
    let config = |folder: &Path| -> Value {
        serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
    };
    let (ours, theirs) = (config(folder.path()), config(&golden.adapter));
    for key in ["task_type", "modules_to_save", "peft_type", "r", "lora_alpha"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    let file = |folder: &Path| TensorFile::open(&folder.join("adapter_model.safetensors")).unwrap();
    let (ours, theirs) = (file(folder.path()), file(&golden.adapter));
    assert_eq!(ours.len(), theirs.len());
    for tensor in theirs.names() {
        let (a, b) = (ours.get(tensor).unwrap(), theirs.get(tensor).unwrap());
        assert!(a.dtype == b.dtype && a.shape == b.shape && a.data == b.data, "{tensor}");
    }
}

const PAIRS: [(&str, &str, &str); 4] = [
    ("What is the capital of France?", "Paris.", "No idea."),
    ("Say yes.", "yes yes yes", "no"),
    ("Count to five, please.", "1 2 3 4 5", "5 4 3 2"),
    ("Colour of the sky?", "Blue, mostly.", "Green."),
];

fn write_pairs(folder: &Folder, name: &str, swapped: bool) -> PathBuf {
    let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
    let row = |(question, good, bad): (&str, &str, &str)| {
        let (good, bad) = if swapped { (bad, good) } else { (good, bad) };
        json!({
            "input": {"messages": [{"role": "user", "content": question}]},
            "preferred_output": answer(good),
            "non_preferred_output": answer(bad),
        })
        .to_string()
            + "\n"
    };
    let path = folder.path().join(name);
    fs::write(&path, PAIRS.map(row).concat()).unwrap();
    path
}

/// The same answers, labelled one by one.
fn write_labelled(folder: &Folder, name: &str) -> PathBuf {
    let row = |question: &str, answer: &str, label: bool| {
        json!({"prompt": question, "completion": answer, "label": label}).to_string() + "\n"
    };
    let rows =
        PAIRS.map(|(question, good, bad)| row(question, good, true) + &row(question, bad, false));
    let path = folder.path().join(name);
    fs::write(&path, rows.concat()).unwrap();
    path
}

fn dpo_plan(output: &Folder, name: &str, loss_type: LossType) -> TrainingPlan {
    let mut plan = plan(output, name);
    plan.method = MethodType::Dpo;
    plan.training_file = match loss_type {
        LossType::Kto => write_labelled(output, &format!("{name}.jsonl")),
        _ => write_pairs(output, &format!("{name}.jsonl"), false),
    };
    let wish = PreferenceRequest { loss_type, ..PreferenceRequest::default() };
    plan.hyperparameters.preference = Some(Box::new(wish.resolve()));
    plan
}

#[test]
fn every_loss_teaches_to_prefer() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    for loss_type in LossType::ALL {
        let mut plan = dpo_plan(&output, loss_type.as_str(), loss_type);
        if loss_type == LossType::Kto {
            // Large enough a batch to hold good and bad ones.
            plan.hyperparameters.batch_size = 4;
            plan.hyperparameters.preference.as_mut().unwrap().beta = 0.5;
        }
        let outcome = tiny.finish(plan);
        assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
        let last = outcome.steps.last().unwrap();
        assert!(last.train_loss < outcome.steps[0].train_loss, "{loss_type:?}");
        assert_eq!(last.rewards.train_reward_accuracy, Some(1.0), "{loss_type:?}");
        let rewards = &last.rewards;
        let (chosen, rejected) =
            (rewards.train_chosen_reward.unwrap(), rewards.train_rejected_reward.unwrap());
        assert!((rewards.train_reward_margin.unwrap() - (chosen - rejected)).abs() < 1e-9);
        assert!(chosen > rejected);
        if loss_type == LossType::Kto {
            assert_eq!(outcome.steps.len(), 20, "eight answers, four a step, ten times");
        }
    }
}

#[test]
fn a_resumed_run_ends_with_the_bytes_of_an_undisturbed_one() {
    for loss_type in [LossType::Sigmoid, LossType::Kto, LossType::Reward] {
        check_resume(loss_type);
    }
}

fn check_resume(loss_type: LossType) {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let plan_of = |name: &str| {
        let mut plan = dpo_plan(&output, name, loss_type);
        plan.hyperparameters.lora.dropout = 0.1;
        plan.hyperparameters.micro_batch_tokens = 512;
        plan
    };
    let straight = tiny.finish(plan_of("straight"));
    let first = tiny.drive_and_stop_at(tiny.begin(plan_of("broken")).unwrap(), 9);
    let mut rest = plan_of("broken");
    rest.resume_from = Some(first.checkpoints.last().unwrap().dir.clone());
    let second = tiny.finish(rest);
    assert_eq!([first.losses(), second.losses()].concat(), straight.losses());
    for name in ["adapter_model.safetensors", "optimizer.safetensors"] {
        let (a, b) = (bytes(&straight.last_dir(), name), bytes(&second.last_dir(), name));
        assert!(a == b, "{name} differs");
    }
}

#[test]
fn swapped_answers_mirror_what_is_measured() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let plan = dpo_plan(&output, "straight", LossType::Sigmoid);
    let mut mirrored = dpo_plan(&output, "mirrored", LossType::Sigmoid);
    mirrored.training_file = write_pairs(&output, "mirrored.jsonl", true);
    let (straight, mirrored) = (tiny.finish(plan), tiny.finish(mirrored));
    // The first step's rate is 0, so the second measures the same adapter still.
    for step in 0..2 {
        let (a, b) = (&straight.steps[step].rewards, &mirrored.steps[step].rewards);
        let near = |a: Option<f64>, b: Option<f64>| (a.unwrap() - b.unwrap()).abs() < 1e-6;
        assert!(near(a.train_chosen_reward, b.train_rejected_reward));
        assert!(near(a.train_rejected_reward, b.train_chosen_reward));
        assert!(near(a.train_reward_margin, b.train_reward_margin.map(|margin| -margin)));
    }
    // Each learns what it was told, from the same rows.
    let last = |outcome: &common::Outcome| outcome.steps.last().unwrap().rewards.clone();
    assert_eq!(last(&straight).train_reward_accuracy, Some(1.0));
    assert_eq!(last(&mirrored).train_reward_accuracy, Some(1.0));
}

#[test]
fn the_validation_file_shows_rewards_too() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = dpo_plan(&output, "validated", LossType::Sigmoid);
    plan.validation_file = Some(plan.training_file.clone());
    let outcome = tiny.finish(plan);
    let sampled = &outcome.steps[9];
    assert!(sampled.rewards.valid_reward_accuracy.is_some() && sampled.valid_loss.is_some());
    let last = outcome.steps.last().unwrap();
    assert_eq!(last.rewards.full_valid_reward_accuracy, Some(1.0));
    assert!(last.rewards.full_valid_reward_margin.unwrap() > 0.0);
    assert!(last.full_valid_loss.unwrap() < std::f64::consts::LN_2);
    let supervised = tiny.finish(common::plan(&output, "supervised"));
    assert_eq!(*supervised.steps[0].rewards, RewardMetrics::default());
}

#[test]
fn a_pair_that_lost_an_answer_to_the_length_limit_is_passed_over() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = dpo_plan(&output, "cut", LossType::Ipo);
    // Room for the answers to the shortest question alone.
    plan.hyperparameters.max_seq_len = 30;
    plan.hyperparameters.n_epochs = 1;
    let outcome = tiny.finish(plan);
    assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
    assert!(outcome.steps.iter().all(|metrics| metrics.train_loss.is_finite()));
}

#[test]
fn rows_of_another_method_are_refused() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let refusal =
        |plan| prepare(plan, &tiny.tokenizer, common::CONTEXT as u64).unwrap_err().message;
    let mut plan = dpo_plan(&output, "chat", LossType::Sigmoid);
    let pairs = plan.training_file.clone();
    plan.training_file = common::plan(&output, "rows").training_file;
    let message = refusal(plan);
    assert!(message.contains("missing key 'input'"), "{message}");
    let mut plan = common::plan(&output, "pairs");
    plan.training_file = pairs;
    let message = refusal(plan);
    assert!(message.contains("train those with method 'dpo'"), "{message}");
}
