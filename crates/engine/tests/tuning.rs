//! Runs that train virtual tokens: prompt and prefix tuning.

mod common;

use common::{Folder, Tiny, bytes, plan};
use domain::hyperparameters::{Quantization, Tuning};
use domain::job::MethodType;
use domain::plan::{TrainingPlan, VirtualTokens};
use domain::preference::{LossType, PreferenceRequest};
use engine::train::{Happened, admit};
use model::Adapter;

const BOTH: [Tuning; 2] = [Tuning::Prompt, Tuning::Prefix];

fn tuned(output: &Folder, name: &str, tuning: Tuning) -> TrainingPlan {
    let mut plan = plan(output, name);
    let h = &mut plan.hyperparameters;
    h.tuning = tuning;
    h.virtual_tokens = Some(VirtualTokens { count: 6, init_text: None });
    h.learning_rate = 5e-2;
    plan
}

#[test]
fn a_run_learns_and_counts_the_tokens_of_its_rows_alone() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    for tuning in BOTH {
        let mut plan = tuned(&output, tuning.as_str(), tuning);
        plan.hyperparameters.n_epochs = 100;
        plan.hyperparameters.virtual_tokens.as_mut().unwrap().init_text = Some("Paris".into());
        let outcome = tiny.finish(plan);
        assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
        let (first, last) = (&outcome.steps[0], outcome.steps.last().unwrap());
        // A model of random weights follows what stands before a text only so far.
        assert!(last.train_loss < first.train_loss * 0.8, "{tuning:?}: {}", last.train_loss);
        // Virtual tokens are no tokens of the data.
        let lora = tiny.finish(common::plan(&output, "lora"));
        assert_eq!(first.tokens, lora.steps[0].tokens);

        let adapter = Adapter::load(&tiny.decoder, &outcome.last_dir()).unwrap();
        assert_eq!(adapter.virtual_tokens(), 6);
    }
}

#[test]
fn stop_and_resume_end_with_the_bytes_of_an_undisturbed_run() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    for tuning in BOTH {
        let name = |what: &str| format!("{}-{what}", tuning.as_str());
        let straight = tiny.finish(tuned(&output, &name("straight"), tuning));
        let begun = tiny.begin(tuned(&output, &name("broken"), tuning)).unwrap();
        let first = tiny.drive_and_stop_at(begun, 9);
        let mut rest = tuned(&output, &name("broken"), tuning);
        rest.resume_from = Some(first.last_dir());
        let second = tiny.finish(rest.clone());
        assert_eq!([first.losses(), second.losses()].concat(), straight.losses());
        for name in ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"] {
            let (a, b) = (bytes(&straight.last_dir(), name), bytes(&second.last_dir(), name));
            assert!(a == b, "{tuning:?}: {name} differs");
        }
        // The checkpoint of one tuning is not another's.
        rest.hyperparameters.tuning = Tuning::Lora;
        rest.hyperparameters.virtual_tokens = None;
        let failure = tiny.begin(rest).unwrap_err();
        assert_eq!(failure.code, "checkpoint_mismatch");
        assert_eq!(failure.param.as_deref(), Some("tuning"));
    }
}

#[test]
fn losses_do_not_depend_on_the_size_of_micro_batches_or_on_what_is_computed_again() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    for tuning in BOTH {
        let losses = |name: &str, change: fn(&mut TrainingPlan)| {
            let name = format!("{}-{name}", tuning.as_str());
            let mut plan = tuned(&output, &name, tuning);
            change(&mut plan);
            tiny.finish(plan).losses()
        };
        let large = losses("large", |plan| plan.hyperparameters.micro_batch_tokens = 512);
        let small = losses("small", |plan| plan.hyperparameters.micro_batch_tokens = 16);
        for (a, b) in large.iter().zip(&small) {
            assert!((a / b - 1.0).abs() < 1e-4, "{tuning:?}: {a} {b}");
        }
        let again = losses("again", |plan| {
            plan.hyperparameters.micro_batch_tokens = 512;
            plan.hyperparameters.gradient_checkpointing =
                domain::hyperparameters::GradientCheckpointing::Full;
        });
        assert_eq!(large, again);
    }
}

/// Makes the plan one of pairs that differ in one word.
fn prefer(plan: &mut TrainingPlan, output: &Folder, loss_type: LossType) {
    plan.method = MethodType::Dpo;
    let wish = PreferenceRequest { loss_type, ..PreferenceRequest::default() };
    plan.hyperparameters.preference = Some(Box::new(wish.resolve()));
    let message = |role: &str, text: &str| serde_json::json!({"role": role, "content": text});
    let row = serde_json::json!({
        "input": {"messages": [message("user", "Say yes.")]},
        "preferred_output": [message("assistant", "yes")],
        "non_preferred_output": [message("assistant", "no")],
    });
    let tuning = plan.hyperparameters.tuning.as_str();
    plan.training_file = output.path().join(format!("{tuning}-{loss_type:?}.jsonl"));
    std::fs::write(&plan.training_file, format!("{row}\n{row}\n")).unwrap();
}

#[test]
fn pairs_and_quantised_bases_are_trained_too() {
    let (tiny, output) = (Tiny::load_as(model::Quantization::Nf4), Folder::new());
    for (tuning, loss_type) in BOTH.into_iter().zip([LossType::Sigmoid, LossType::Orpo]) {
        let mut plan = tuned(&output, tuning.as_str(), tuning);
        plan.hyperparameters.quantization = Quantization::Nf4;
        prefer(&mut plan, &output, loss_type);
        let outcome = tiny.finish(plan);
        assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
        let last = outcome.steps.last().unwrap();
        assert_eq!(last.rewards.train_reward_accuracy, Some(1.0), "{tuning:?}");
        assert!(last.train_loss < outcome.steps[0].train_loss, "{tuning:?}");
    }
}

/// The reference of a wholly trained model is its base model, which stays beside it.
#[test]
fn pairs_train_whole_models_too() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    for loss_type in [LossType::Sigmoid, LossType::Ipo, LossType::Orpo, LossType::Simpo] {
        let mut plan = plan(&output, &format!("full-{loss_type:?}"));
        plan.hyperparameters.tuning = Tuning::Full;
        plan.hyperparameters.learning_rate = 1e-3;
        prefer(&mut plan, &output, loss_type);
        let outcome = tiny.finish(plan);
        assert_eq!(outcome.end, Some(Happened::Finished), "{:?}", outcome.failure);
        let (first, last) = (&outcome.steps[0], outcome.steps.last().unwrap());
        assert_eq!(last.rewards.train_reward_accuracy, Some(1.0), "{loss_type:?}");
        assert!(last.train_loss < first.train_loss, "{loss_type:?}");
        if loss_type == LossType::Sigmoid {
            // Before its first update a model is its own reference.
            assert!(
                (first.train_loss - std::f64::consts::LN_2).abs() < 1e-6,
                "{}",
                first.train_loss
            );
        }
    }
}

#[test]
fn virtual_tokens_count_for_memory_and_for_the_context() {
    let (tiny, output) = (Tiny::load(), Folder::new());
    let admitted = |count: u32, free: u64| {
        let mut plan = tuned(&output, "memory", Tuning::Prompt);
        plan.hyperparameters.virtual_tokens.as_mut().unwrap().count = count;
        admit(&mut tiny.prepare(plan).unwrap(), &tiny.decoder, free)
    };
    // Room for a few virtual tokens, not for many.
    let free = (1..200).map(|n| n * (64 << 10)).find(|&free| admitted(4, free).is_ok()).unwrap();
    assert!(admitted(100, free).is_err());

    let refused = |change: fn(&mut TrainingPlan)| {
        let mut plan = tuned(&output, "refused", Tuning::Prefix);
        change(&mut plan);
        let failure = tiny.prepare(plan).unwrap_err();
        (failure.param.unwrap_or_default(), failure.message)
    };
    let context = common::CONTEXT as u32;
    let (param, message) = refused(|plan| {
        plan.hyperparameters.max_seq_len = common::CONTEXT as u32 - 5;
    });
    assert_eq!(param, "max_seq_len", "{message}");
    assert!(message.contains("behind 6 virtual ones"), "{message}");
    let mut fits = tuned(&output, "fits", Tuning::Prefix);
    fits.hyperparameters.max_seq_len = context - 6;
    assert!(tiny.prepare(fits).is_ok());
    assert_eq!(refused(|plan| plan.hyperparameters.virtual_tokens = None).0, "virtual_tokens");
    assert_eq!(refused(|plan| plan.hyperparameters.tuning = Tuning::Lora).0, "virtual_tokens");
}
