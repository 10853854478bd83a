//! Runs on a tiny random model: what they learn, write and say.

mod common;

use std::fs;

use common::{Folder, Tiny, bytes, plan};
use domain::hyperparameters::{
    EarlyStopping, GradientCheckpointing, OptimizerKind, Precision, Quantization, Schedule, Tuning,
};
use domain::report::{CheckpointKind, RunReport};
use engine::train::{Happened, Prepared, Run, admit};
use model::Form;

#[test]
fn a_run_learns_its_rows_by_heart() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "heart");
    plan.hyperparameters.n_epochs = 60;
    let outcome = tiny.finish(plan);
    assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
    let (first, last) = (&outcome.steps[0], outcome.steps.last().unwrap());
    assert!(first.train_loss > 2.0, "a random model knows nothing: {}", first.train_loss);
    assert!(last.train_loss < 0.2, "loss {}", last.train_loss);
    assert!(last.train_mean_token_accuracy > 0.95, "{}", last.train_mean_token_accuracy);
    assert_eq!((last.step, last.total_steps, last.epoch), (120, 120, 60.0));
    assert_eq!(last.seconds_left, 0.0);
    assert_eq!(outcome.steps[0].learning_rate, 0.0, "the first step of a warm-up");
    assert_eq!(outcome.steps[2].learning_rate, 1e-2);
    let tokens: u64 = outcome.steps.iter().map(|metrics| metrics.tokens).sum();
    assert_eq!(last.trained_tokens, tokens);
}

#[test]
fn plain_texts_are_learned_by_heart_from_their_second_token_on() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "texts");
    let long = "abcdefgh ".repeat(8);
    plan.training_file = output.texts("train.jsonl", &["It was the best of times.", &long]);
    plan.validation_file = Some(output.texts("valid.jsonl", &["It was the best of times."]));
    plan.hyperparameters.n_epochs = 40;
    plan.hyperparameters.max_seq_len = 32;
    let outcome = tiny.finish(plan.clone());
    assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
    // Bytes are tokens: 26 of the short text; 73 of the long one, in pieces that share one token.
    let epoch: Vec<_> = outcome.steps.iter().take(2).collect();
    let sum = |count: fn(&domain::report::StepMetrics) -> u64| -> u64 {
        epoch.iter().map(|m| count(m)).sum()
    };
    assert_eq!([sum(|m| m.target_tokens), sum(|m| m.tokens)], [25 + 72, 26 + 73 + 2]);
    let last = outcome.steps.last().unwrap();
    assert_eq!(last.total_steps, 80, "two steps of at most two of the four sequences");
    assert!(last.train_loss < 0.3, "loss {}", last.train_loss);
    assert!(last.full_valid_loss.unwrap() < 0.3 * outcome.steps[0].train_loss);

    plan.validation_file = Some(output.rows("chat.jsonl", &[("Say yes.", "yes")]));
    let failure = tiny.begin(plan).unwrap_err();
    assert_eq!(failure.code, "invalid_validation_file");
    assert!(failure.message.contains("expected plain text"), "{}", failure.message);
}

#[test]
fn stop_and_resume_end_with_the_bytes_of_an_undisturbed_run() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    // Dropout too: its masks must not depend on where the run was interrupted.
    let plan_of = |name: &str| {
        let mut plan = plan(&output, name);
        plan.hyperparameters.lora.dropout = 0.1;
        plan
    };
    let straight = tiny.finish(plan_of("straight"));
    assert_eq!(straight.steps.len(), 20);

    let first = tiny.drive_and_stop_at(tiny.begin(plan_of("broken")).unwrap(), 9);
    assert_eq!(first.end, Some(Happened::Stopped));
    let checkpoint = first.checkpoints.last().unwrap();
    assert_eq!((checkpoint.step, checkpoint.kind), (9, CheckpointKind::Resume));
    let mut rest = plan_of("broken");
    rest.resume_from = Some(checkpoint.dir.clone());
    rest.fence = 2;
    let second = tiny.finish(rest);

    let losses = [first.losses(), second.losses()].concat();
    assert_eq!(losses, straight.losses());
    let tokens = |outcome: &common::Outcome| outcome.steps.last().unwrap().trained_tokens;
    assert_eq!(tokens(&second), tokens(&straight));
    for name in ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"] {
        let (a, b) = (bytes(&straight.last_dir(), name), bytes(&second.last_dir(), name));
        assert!(a == b, "{name} differs");
    }
}

#[test]
fn every_weight_learns_and_resumes_with_the_same_bytes() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let plan_of = |name: &str| {
        let mut plan = plan(&output, name);
        plan.hyperparameters.tuning = Tuning::Full;
        plan.hyperparameters.learning_rate = 2e-3;
        plan.hyperparameters.optimizer = OptimizerKind::Adamw8bit;
        plan
    };
    let straight = tiny.finish(plan_of("straight"));
    let losses = straight.losses();
    assert!(losses[19] < losses[0] / 2.0, "{losses:?}");
    let first = tiny.drive_and_stop_at(tiny.begin(plan_of("broken")).unwrap(), 9);
    let stopped = first.checkpoints.last().unwrap().dir.clone();
    assert!(stopped.join("optimizer.safetensors").exists());
    let mut rest = plan_of("broken");
    rest.resume_from = Some(stopped);
    let second = tiny.finish(rest);
    assert_eq!([first.losses(), second.losses()].concat(), losses);
    let last = second.last_dir();
    let name = "model.safetensors";
    assert!(bytes(&straight.last_dir(), name) == bytes(&last, name), "other weights");
    // A folder that any program reads, and that has nothing which only a resumed run needs.
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        assert!(last.join(name).exists(), "{name}");
    }
    assert!(!last.join("optimizer.safetensors").exists());
    // What is finished only writes its result again.
    let mut again = plan_of("broken");
    again.resume_from = Some(last.clone());
    assert_eq!(tiny.finish(again).losses(), [0.0; 0]);
}

#[test]
fn moments_in_8_bits_learn_and_resume_with_the_same_bytes() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let plan_of = |name: &str| {
        let mut plan = plan(&output, name);
        plan.hyperparameters.optimizer = OptimizerKind::Adamw8bit;
        // Matrices that are large enough for codes.
        plan.hyperparameters.lora.rank = 64;
        plan
    };
    let straight = tiny.finish(plan_of("straight"));
    let losses = straight.losses();
    assert!(losses[19] < losses[0] / 2.0, "{losses:?}");
    let first = tiny.drive_and_stop_at(tiny.begin(plan_of("broken")).unwrap(), 9);
    let mut rest = plan_of("broken");
    rest.resume_from = Some(first.checkpoints.last().unwrap().dir.clone());
    let second = tiny.finish(rest);
    assert_eq!([first.losses(), second.losses()].concat(), losses);
    for name in ["adapter_model.safetensors", "optimizer.safetensors"] {
        assert!(bytes(&straight.last_dir(), name) == bytes(&second.last_dir(), name), "{name}");
    }
    let codes = weights::TensorFile::open(&second.last_dir().join("optimizer.safetensors"));
    assert!(codes.unwrap().get("v.codes").unwrap().data.len() > 100_000);
}

#[test]
fn a_run_on_a_quantised_base_learns_and_wants_the_same_base() {
    let (tiny, output) = (Tiny::load_as(model::Quantization::Nf4), Folder::new());
    let quantised = |name: &str| {
        let mut plan = plan(&output, name);
        plan.hyperparameters.quantization = Quantization::Nf4;
        plan
    };
    let outcome = tiny.finish(quantised("nf4"));
    assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
    let losses = outcome.losses();
    assert!(losses[19] < losses[0] / 2.0, "{losses:?}");

    let failure = Tiny::load().begin(quantised("dense")).unwrap_err();
    assert_eq!(failure.param.as_deref(), Some("quantization"));
}

#[test]
fn a_run_in_bf16_learns_and_resumes_with_the_same_bytes() {
    let form = Form { precision: model::Precision::Bf16, ..Form::default() };
    let (tiny, output) = (Tiny::load_as(form), Folder::new());
    let plan_of = |name: &str| {
        let mut plan = plan(&output, name);
        plan.hyperparameters.precision = Precision::Bf16;
        plan.hyperparameters.lora.dropout = 0.1;
        plan
    };
    let straight = tiny.finish(plan_of("straight"));
    let losses = straight.losses();
    assert!(losses[19] < losses[0] / 2.0, "{losses:?}");
    assert!(straight.messages[0].contains("bf16 on a CPU"), "{:?}", straight.messages);
    let first = tiny.drive_and_stop_at(tiny.begin(plan_of("broken")).unwrap(), 9);
    let mut rest = plan_of("broken");
    rest.resume_from = Some(first.checkpoints.last().unwrap().dir.clone());
    let second = tiny.finish(rest);
    assert!(second.messages.is_empty(), "{:?}", second.messages);
    assert_eq!([first.losses(), second.losses()].concat(), losses);
    for name in ["adapter_model.safetensors", "optimizer.safetensors"] {
        assert!(bytes(&straight.last_dir(), name) == bytes(&second.last_dir(), name), "{name}");
    }

    let failure = tiny.begin(plan(&output, "fp32")).unwrap_err();
    assert_eq!(failure.param.as_deref(), Some("precision"));
}

#[test]
fn equal_plans_end_with_equal_bytes_and_other_seeds_do_not() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let adapter = |name: &str, seed: u64| {
        let mut plan = plan(&output, name);
        plan.hyperparameters.seed = seed;
        plan.hyperparameters.n_epochs = 2;
        bytes(&tiny.finish(plan).last_dir(), "adapter_model.safetensors")
    };
    let one = adapter("one", 7);
    assert!(one == adapter("two", 7), "the same plan gave other bytes");
    assert!(one != adapter("three", 8), "the seed changed nothing");
}

#[test]
fn losses_do_not_depend_on_the_size_of_micro_batches() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let losses = |tokens: u32| {
        let mut plan = plan(&output, &format!("micro-{tokens}"));
        plan.hyperparameters.batch_size = 4;
        plan.hyperparameters.micro_batch_tokens = tokens;
        tiny.finish(plan).losses()
    };
    let whole = losses(4096);
    for tokens in [1, 48, 96] {
        for (step, (a, b)) in whole.iter().zip(losses(tokens)).enumerate() {
            assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{tokens}, step {step}: {a} and {b}");
        }
    }
}

#[test]
fn runs_beside_each_other_do_not_touch_each_other() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let (one, mut other) = (plan(&output, "one"), plan(&output, "other"));
    // Another shape of adapter, so that buffers kept by the decoder must follow the turns.
    other.hyperparameters.lora.rank = 4;
    other.hyperparameters.lora.dropout = 0.2;
    let alone = [tiny.finish(one.clone()).losses(), tiny.finish(other.clone()).losses()];
    let mut runs = [one, other].map(|plan| (tiny.begin(plan).unwrap(), Vec::new(), false));
    while runs.iter().any(|(.., over)| !over) {
        for (run, losses, over) in runs.iter_mut().filter(|(.., over)| !over) {
            for event in run.turn(&tiny.decoder) {
                *over |= event.ends_run();
                if let Happened::Report(RunReport::Step(metrics)) = event {
                    losses.push(metrics.train_loss);
                }
            }
        }
    }
    assert_eq!(runs.map(|(_, losses, _)| losses), alone);
}

#[test]
fn memory_that_runs_out_once_costs_a_repeated_step_and_no_accuracy() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "relieved");
    plan.hyperparameters.batch_size = 4;
    plan.hyperparameters.micro_batch_tokens = 96;
    let undisturbed = tiny.finish(plan.clone()).losses();
    let mut run = tiny.begin(plan).unwrap();
    // Behind the announcement and into the first step, whose gradients so far must be forgotten.
    run.turn(&tiny.decoder);
    run.turn(&tiny.decoder);
    let said = |relief: Option<Happened>| match relief {
        Some(Happened::Report(RunReport::Message { message, .. })) => message,
        other => panic!("{other:?}"),
    };
    assert!(said(run.relieve()).ends_with("going on with gradient_checkpointing full."));
    run.turn(&tiny.decoder);
    assert!(said(run.relieve()).ends_with("micro_batch_tokens 96; going on with 48."));
    run.turn(&tiny.decoder);
    assert!(run.relieve().is_none(), "that is all that there is");
    for (step, (a, b)) in undisturbed.iter().zip(tiny.drive(run).losses()).enumerate() {
        assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "step {step}: {a} and {b}");
    }
}

#[test]
fn a_run_that_does_not_fit_is_made_smaller_before_it_starts() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut large = plan(&output, "large");
    let text = "yes ".repeat(24);
    large.training_file = output.rows("long.jsonl", &[("Again!", text.as_str()); 40]);
    large.hyperparameters.batch_size = 40;
    large.hyperparameters.n_epochs = 2;
    large.hyperparameters.micro_batch_tokens = 4096;
    let mut prepared = tiny.prepare(large.clone()).unwrap();
    let admitted = |prepared: &mut Prepared, free| admit(prepared, &tiny.decoder, free);
    assert_eq!(admitted(&mut prepared, 1 << 30), Ok(None));
    let Ok(Some(Happened::Report(RunReport::Message { message, .. }))) =
        admitted(&mut prepared, 16 << 20)
    else {
        panic!("nothing was said")
    };
    let smaller = prepared.plan.hyperparameters.clone();
    assert_eq!(smaller.micro_batch_tokens, 1024, "{message}");
    assert!(message.contains("micro_batch_tokens 1024 (planned: 4096)"), "{message}");
    assert_eq!(admitted(&mut prepared, 16 << 20), Ok(None), "the new plan fits");
    let refused = admitted(&mut prepared, 1 << 20).unwrap_err();
    assert_eq!((refused.code.as_str(), refused.retryable), ("insufficient_memory", false));
    let losses = tiny.drive(Run::new(prepared, &tiny.decoder).unwrap()).losses();
    for (a, b) in tiny.finish(large).losses().iter().zip(losses) {
        assert!((a - b).abs() < 1e-5 * a, "{a} and {b}");
    }
}

/// A run that learns its rows by heart and forgets the rest: its validation loss falls, then rises.
fn overfitting(output: &Folder, name: &str) -> domain::plan::TrainingPlan {
    let mut plan = plan(output, name);
    plan.hyperparameters.n_epochs = 60;
    plan.hyperparameters.schedule = Schedule::Constant;
    let rows = [("Colour of the sea?", "Blue, mostly."), ("Count to six, please.", "1 2 3 4 5 6")];
    plan.validation_file = Some(output.rows("other.jsonl", &rows));
    plan.hyperparameters.early_stopping =
        Some(EarlyStopping { patience: 3, min_delta: 0.0, evaluation_steps: 0 });
    plan
}

#[test]
fn early_stopping_ends_the_run_with_the_adapter_of_the_best_evaluation() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let outcome = tiny.finish(overfitting(&output, "early"));
    assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
    let evaluated: Vec<(u64, f64)> =
        outcome.steps.iter().filter_map(|m| Some((m.step, m.full_valid_loss?))).collect();
    let best = evaluated.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let last = outcome.steps.last().unwrap();
    assert!(last.step < last.total_steps, "the validation loss never rose: {evaluated:?}");
    assert_eq!(last.step, best.0 + 3 * 2, "three epochs of two steps after the best");
    assert!(outcome.messages.iter().any(|message| message.contains("stopped early")));
    let adapter = "adapter_model.safetensors";
    let of_best = outcome.checkpoints.iter().find(|c| c.step == best.0).unwrap();
    assert!(bytes(&of_best.dir, adapter) == bytes(&outcome.last_dir(), adapter));
}

#[test]
fn early_stopping_survives_an_interruption_after_the_best_evaluation() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let straight = tiny.finish(overfitting(&output, "straight"));
    let end = straight.steps.last().unwrap().step;
    let plan = overfitting(&output, "broken");
    let first = tiny.drive_and_stop_at(tiny.begin(plan.clone()).unwrap(), end - 3);
    let resumed = domain::plan::TrainingPlan { resume_from: Some(first.last_dir()), ..plan };
    let second = tiny.finish(resumed);
    assert_eq!(second.steps.last().unwrap().step, end);
    for name in ["adapter_model.safetensors", "best_adapter.safetensors"] {
        assert!(bytes(&straight.last_dir(), name) == bytes(&second.last_dir(), name), "{name}");
    }
}

/// The findings of a run that goes on to its end while the validation loss rises.
fn findings_of(plan: domain::plan::TrainingPlan, tiny: &Tiny) -> Vec<(String, u64)> {
    let outcome = tiny.finish(plan);
    assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
    outcome.findings.into_iter().map(|finding| (finding.code, finding.step)).collect()
}

#[test]
fn overfitting_is_told_once_with_its_signs() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = overfitting(&output, "signs");
    plan.hyperparameters.early_stopping = None;
    let found = findings_of(plan, &tiny);
    let mut codes: Vec<_> = found.iter().map(|(code, _)| code.as_str()).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["memorising", "train_accuracy_one", "validation_loss_rising"], "{found:?}");
}

#[test]
fn rows_that_help_with_the_validation_file_show_no_overfitting() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "healthy");
    plan.validation_file = Some(plan.training_file.clone());
    plan.hyperparameters.n_epochs = 10;
    assert_eq!(findings_of(plan, &tiny), []);
}

#[test]
fn a_resumed_run_tells_no_sign_twice() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let plan_of = |name: &str| {
        let mut plan = overfitting(&output, name);
        plan.hyperparameters.early_stopping = None;
        plan
    };
    let straight = findings_of(plan_of("straight"), &tiny);
    let at = straight[0].1 + 1;
    let plan = plan_of("broken");
    let first = tiny.drive_and_stop_at(tiny.begin(plan.clone()).unwrap(), at);
    let resumed = domain::plan::TrainingPlan { resume_from: Some(first.last_dir()), ..plan };
    let told = |outcome: common::Outcome| outcome.findings.into_iter().map(|f| (f.code, f.step));
    let both: Vec<_> = told(first).chain(findings_of(resumed, &tiny)).collect();
    assert_eq!(both, straight);
}

#[test]
fn folders_of_an_attempt_that_died_are_replaced() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "twice");
    plan.hyperparameters.n_epochs = 2;
    let first = tiny.finish(plan.clone());
    fs::write(first.last_dir().join("adapter_model.safetensors"), "half").unwrap();
    let second = tiny.finish(plan);
    assert_eq!(first.last_dir(), second.last_dir());
    assert!(bytes(&second.last_dir(), "adapter_model.safetensors").len() > 1000);
    assert_eq!(fs::read_dir(output.path().join("twice")).unwrap().count(), 2);
}

#[test]
fn checkpoints_come_at_epochs_in_between_and_once_at_the_end() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "kinds");
    plan.hyperparameters.n_epochs = 2;
    plan.hyperparameters.batch_size = 1;
    plan.hyperparameters.checkpoint_steps = 2;
    let outcome = tiny.finish(plan);
    let kinds: Vec<_> = outcome.checkpoints.iter().map(|c| (c.step, c.kind)).collect();
    use CheckpointKind::{Epoch, Final, Resume};
    assert_eq!(kinds, [(2, Resume), (4, Epoch), (6, Resume), (8, Final)]);
    for checkpoint in &outcome.checkpoints {
        let mut names: Vec<_> = fs::read_dir(&checkpoint.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let expected = [
            "adapter_config.json",
            "adapter_model.safetensors",
            "optimizer.safetensors",
            "state.json",
        ];
        assert_eq!(names, expected);
        assert_eq!(checkpoint.metrics.step, checkpoint.step);
    }
    let left = fs::read_dir(output.path().join("kinds")).unwrap().count();
    assert_eq!(left, 4, "temporary folders are left behind");
}

#[test]
fn the_validation_file_is_sampled_every_tenth_step_and_read_whole_at_epochs() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "validated");
    plan.hyperparameters.n_epochs = 2;
    plan.hyperparameters.batch_size = 1;
    let rows: Vec<_> = (0..24).map(|_| ("Say yes.", "yes yes yes")).collect();
    plan.training_file = output.rows("many.jsonl", &rows);
    plan.validation_file = Some(output.rows("valid.jsonl", &rows[..3]));
    let outcome = tiny.finish(plan);
    let steps_where = |seen: fn(&domain::report::StepMetrics) -> bool| -> Vec<u64> {
        outcome.steps.iter().filter(|m| seen(m)).map(|m| m.step).collect()
    };
    assert_eq!(steps_where(|m| m.valid_loss.is_some()), [10, 20, 30, 40]);
    assert_eq!(steps_where(|m| m.full_valid_loss.is_some()), [24, 48]);
    let last = outcome.steps.last().unwrap();
    // All rows are equal, so the file's loss is that of the next step: the training row after it.
    assert!(last.full_valid_loss.unwrap() < 0.5 * outcome.steps[0].train_loss);
    assert!(last.full_valid_mean_token_accuracy.is_some_and(|share| share <= 1.0));
}

#[test]
fn a_checkpoint_of_another_plan_is_refused_by_field() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let plan = plan(&output, "first");
    let stopped = tiny.drive_and_stop_at(tiny.begin(plan.clone()).unwrap(), 3);
    let resume = |change: fn(&mut domain::plan::TrainingPlan)| {
        let mut plan = plan.clone();
        plan.resume_from = Some(stopped.last_dir());
        change(&mut plan);
        tiny.begin(plan).map(|_| ()).map_err(|failure| failure.param)
    };
    let field = |name: &str| Err(Some(name.to_owned()));
    assert_eq!(resume(|plan| plan.hyperparameters.batch_size = 4), field("batch_size"));
    assert_eq!(resume(|plan| plan.hyperparameters.lora.rank = 4), field("lora.rank"));
    assert_eq!(
        resume(|plan| fs::write(
            &plan.training_file,
            fs::read(&plan.training_file).unwrap().repeat(2)
        )
        .unwrap()),
        field("training_file")
    );
}

#[test]
fn memory_and_safety_settings_may_change_on_resume() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "free");
    let stopped = tiny.drive_and_stop_at(tiny.begin(plan.clone()).unwrap(), 3);
    plan.resume_from = Some(stopped.last_dir());
    plan.hyperparameters.micro_batch_tokens = 32;
    plan.hyperparameters.checkpoint_steps = 5;
    plan.hyperparameters.gradient_checkpointing = GradientCheckpointing::Mlp;
    assert!(tiny.begin(plan).is_ok());
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "damaged");
    let stopped = tiny.drive_and_stop_at(tiny.begin(plan.clone()).unwrap(), 1);
    let file = stopped.last_dir().join("optimizer.safetensors");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    plan.resume_from = Some(stopped.last_dir());
    assert_eq!(tiny.begin(plan).map(|_| ()).unwrap_err().code, "invalid_checkpoint");
}

#[test]
fn a_finished_run_that_is_resumed_only_writes_its_result_again() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "again");
    plan.hyperparameters.n_epochs = 1;
    let first = tiny.finish(plan.clone());
    plan.resume_from = Some(first.last_dir());
    plan.output_dir = output.path().join("second");
    let second = tiny.finish(plan);
    assert!(second.steps.is_empty());
    assert_eq!(second.checkpoints.len(), 1);
    let name = "adapter_model.safetensors";
    assert!(bytes(&first.last_dir(), name) == bytes(&second.last_dir(), name));
}

#[test]
fn divergence_skips_three_steps_and_then_fails() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "diverged");
    plan.hyperparameters.learning_rate = 1e38;
    plan.hyperparameters.warmup_steps = 0;
    let outcome = tiny.finish(plan);
    assert_eq!(outcome.messages.len(), 3, "{:?}", outcome.messages);
    assert_eq!(outcome.failure.unwrap().code, "loss_diverged");
    assert!(outcome.steps.iter().all(|metrics| metrics.train_loss.is_finite()));
}

#[test]
fn a_disk_that_refuses_costs_checkpoints_first_and_the_run_last() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let mut plan = plan(&output, "full");
    plan.hyperparameters.n_epochs = 4;
    fs::write(&plan.output_dir, "a file where the folder should be").unwrap();
    let outcome = tiny.finish(plan);
    let failure = outcome.failure.unwrap();
    assert_eq!((failure.code.as_str(), failure.retryable), ("checkpoint_failed", true));
    assert_eq!((outcome.messages.len(), outcome.steps.len()), (2, 6));
}

#[test]
fn wrong_plans_are_refused_by_field() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let refused = |change: fn(&mut domain::plan::TrainingPlan)| {
        let mut plan = plan(&output, "wrong");
        change(&mut plan);
        let failure = tiny.begin(plan).map(|_| ()).unwrap_err();
        (failure.code, failure.param.unwrap_or_default())
    };
    let wrong = |field: &str| ("invalid_hyperparameters".to_owned(), field.to_owned());
    assert_eq!(refused(|p| p.hyperparameters.batch_size = 0), wrong("batch_size"));
    assert_eq!(refused(|p| p.hyperparameters.max_seq_len = 512), wrong("max_seq_len"));
    assert_eq!(refused(|p| p.hyperparameters.learning_rate = f64::NAN), wrong("learning_rate"));
    assert_eq!(
        refused(|p| p.hyperparameters.lora.target_modules = vec!["head".into()]),
        wrong("lora.target_modules")
    );
    let (code, param) = refused(|p| fs::write(&p.training_file, "{}\n").unwrap());
    assert_eq!((code.as_str(), param.as_str()), ("invalid_training_file", "training_file"));
    let (code, _) = refused(|p| p.training_file = "/nowhere/train.jsonl".into());
    assert_eq!(code, "file_unreadable");
}
