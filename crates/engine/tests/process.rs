//! The program itself over its standard input and output, as a worker drives it.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command as Process, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use common::{CONTEXT, Folder, plan, write_model};
use domain::engine::{
    AnswerForm, CallChoice, CallRules, Command, FinishReason, GenerateRequest, GenerationEvent,
    Prompt, Question, Reply, Sampling, TokenLogprob,
};
use domain::id::JobId;
use domain::job::MethodType;
use domain::plan::TrainingPlan;
use domain::preference::{LossType, PreferenceRequest};
use domain::report::{RunFailure, RunReport};
use serde_json::{Value, json};

/// Nothing here takes a tenth of this; a test that waits longer is stuck.
const PATIENCE: Duration = Duration::from_secs(120);

struct Engine {
    child: Child,
    input: Option<ChildStdin>,
    replies: Receiver<Reply>,
}

impl Engine {
    /// Starts the program and takes its `Ready`.
    fn start(model: &Path) -> Self {
        Self::start_with(model, &[])
    }

    fn start_with(model: &Path, arguments: &[&str]) -> Self {
        let config = std::fs::read(model.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let model = ["--model", model.to_str().unwrap(), "--threads", "1"];
        let mut child = engine(&[&model, arguments].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, replies) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let reply =
                    serde_json::from_str(&line).expect("standard output holds replies only");
                if sender.send(reply).is_err() {
                    break;
                }
            }
        });
        let input = child.stdin.take();
        let engine = Self { child, input, replies };
        let ready = engine.reply();
        let Reply::Ready { model_type, device, context_length, parameters } = ready else {
            panic!("{ready:?}");
        };
        assert_eq!((model_type.as_str(), device.as_str()), ("llama", "cpu"));
        assert_eq!(config["max_position_embeddings"], context_length);
        assert!(parameters > 10_000);
        engine
    }

    fn line(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    fn send(&mut self, command: &Command) {
        self.line(&serde_json::to_string(command).unwrap());
    }

    fn train(&mut self, plan: &TrainingPlan) {
        self.send(&Command::Train { plan: Box::new(plan.clone()) });
    }

    fn ask(&mut self, id: &str, text: &str, sampling: Sampling) {
        let request = GenerateRequest {
            id: id.to_owned(),
            adapter: None,
            question: Question::chat(vec![json!({"role": "user", "content": text})], sampling),
        };
        self.send(&Command::Generate { request: Box::new(request) });
    }

    fn question(&mut self, id: &str, question: Question) -> Answer {
        let request = GenerateRequest { id: id.to_owned(), adapter: None, question };
        self.send(&Command::Generate { request: Box::new(request) });
        self.answer(id)
    }

    fn reply(&self) -> Reply {
        self.replies.recv_timeout(PATIENCE).expect("the engine answers")
    }

    /// Replies up to and with the first that `is_last`.
    fn replies_until(&self, is_last: impl Fn(&Reply) -> bool) -> Vec<Reply> {
        let mut replies = vec![self.reply()];
        while !is_last(replies.last().unwrap()) {
            replies.push(self.reply());
        }
        replies
    }

    fn answer(&self, id: &str) -> Answer {
        let is_end = |reply: &Reply| match reply {
            Reply::Generation { id: of, event } => {
                let over = GenerationEvent::Done { prompt_tokens: 0, completion_tokens: 0 };
                let failed = matches!(event, GenerationEvent::Failed { .. });
                let same = std::mem::discriminant(event) == std::mem::discriminant(&over);
                of == id && (same || failed)
            }
            _ => false,
        };
        Answer::of(id, &self.replies_until(is_end))
    }

    fn failure_of(&self, job: &str) -> RunFailure {
        let of_job = |reply: &Reply| match reply {
            Reply::RunFailed { job_id, .. } => job_id.as_str() == job,
            _ => false,
        };
        match self.replies_until(of_job).pop() {
            Some(Reply::RunFailed { failure, .. }) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// Closes the input and waits for the end.
    fn end(mut self) -> ExitStatus {
        drop(self.input.take());
        self.child.wait().unwrap()
    }
}

fn engine(args: &[&str]) -> Process {
    let mut process = Process::new(env!("CARGO_BIN_EXE_finetuned-engine"));
    process.args(args).env("OMP_WAIT_POLICY", "passive");
    process
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    texts: Vec<String>,
    reasons: Vec<FinishReason>,
    prompt_tokens: u32,
    completion_tokens: u32,
    score: Option<f64>,
    embedding: Option<Vec<f32>>,
    failure: Option<(String, String)>,
    echo: Option<(String, Vec<TokenLogprob>)>,
    /// Of the first choice.
    logprobs: Vec<TokenLogprob>,
    /// Of the first choice: names and arguments.
    calls: Vec<(String, String)>,
}

impl Answer {
    fn of(wanted: &str, replies: &[Reply]) -> Self {
        let mut answer = Self::default();
        for reply in replies {
            let Reply::Generation { id, event } = reply else { continue };
            if id != wanted {
                continue;
            }
            match event {
                GenerationEvent::Started { .. } => {}
                GenerationEvent::Scored { score } => answer.score = Some(*score),
                GenerationEvent::Embedded { embedding } => {
                    answer.embedding = Some(embedding.clone());
                }
                GenerationEvent::Echo { text, logprobs } => {
                    answer.echo = Some((text.clone(), logprobs.clone()));
                }
                GenerationEvent::Call { name, .. } => {
                    answer.calls.push((name.clone(), String::new()));
                }
                GenerationEvent::Arguments { call, text, .. } => {
                    answer.calls[*call as usize].1.push_str(text);
                }
                GenerationEvent::Delta { index, text, logprobs } => {
                    let index = *index as usize;
                    if index == 0 {
                        answer.logprobs.extend_from_slice(logprobs);
                    }
                    answer.texts.resize(answer.texts.len().max(index + 1), String::new());
                    answer.texts[index].push_str(text);
                }
                GenerationEvent::Finished { reason, .. } => answer.reasons.push(*reason),
                GenerationEvent::Done { prompt_tokens, completion_tokens } => {
                    answer.prompt_tokens = *prompt_tokens;
                    answer.completion_tokens = *completion_tokens;
                }
                GenerationEvent::Failed { failure } => {
                    answer.failure = Some((failure.code.clone(), failure.message.clone()));
                }
            }
        }
        answer
    }
}

fn tokens(max_tokens: u32) -> Sampling {
    Sampling { seed: Some(3), max_tokens: Some(max_tokens), ..Sampling::default() }
}

fn model() -> Folder {
    let folder = Folder::new();
    write_model(folder.path(), None);
    folder
}

#[test]
fn it_trains_and_answers_at_the_same_time() {
    let (model, output) = (model(), Folder::new());
    let mut engine = Engine::start(model.path());
    let mut long = plan(&output, "long");
    long.hyperparameters.n_epochs = 40;
    engine.train(&long);
    engine.replies_until(|reply| matches!(reply, Reply::Run { report: RunReport::Step(_), .. }));
    engine.ask("a", "Hello", tokens(20));
    let finished = |reply: &Reply| matches!(reply, Reply::RunFinished { .. });
    let replies = engine.replies_until(finished);
    let answer = Answer::of("a", &replies);
    assert!(answer.completion_tokens > 0, "no answer while the run went on: {answer:?}");
    assert!(replies.iter().any(|reply| matches!(reply, Reply::Checkpoint { .. })));
    assert!(engine.end().success());
}

#[test]
fn a_tuned_adapter_answers_what_it_was_taught() {
    let (model, output) = (model(), Folder::new());
    let mut engine = Engine::start(model.path());
    let mut taught = plan(&output, "taught");
    taught.hyperparameters.n_epochs = 60;
    engine.train(&taught);
    let replies = engine.replies_until(|reply| {
        matches!(reply, Reply::RunFinished { .. } | Reply::RunFailed { .. })
    });
    let adapter = replies.iter().rev().find_map(|reply| match reply {
        Reply::Checkpoint { checkpoint, .. } => Some(checkpoint.dir.clone()),
        _ => None,
    });
    let request = GenerateRequest {
        id: "taught".to_owned(),
        adapter,
        question: Question::chat(
            vec![json!({"role": "user", "content": "Count to five, please."})],
            Sampling { temperature: 0.0, ..Sampling::default() },
        ),
    };
    engine.send(&Command::Generate { request: Box::new(request) });
    let answer = engine.answer("taught");
    assert_eq!(answer.texts, ["1 2 3 4 5"]);
    assert_eq!(answer.reasons, [FinishReason::Stop]);
}

#[test]
fn a_reward_model_scores_whole_conversations_and_does_not_answer() {
    let (model, output) = (model(), Folder::new());
    let mut engine = Engine::start(model.path());
    let mut judge = plan(&output, "judge");
    let (question, good, bad) = ("Say yes.", "yes yes yes", "no");
    let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
    let pair = json!({
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": answer(good),
        "non_preferred_output": answer(bad),
    });
    std::fs::write(&judge.training_file, format!("{pair}\n{pair}\n")).unwrap();
    judge.method = MethodType::Dpo;
    let wish = PreferenceRequest { loss_type: LossType::Reward, ..Default::default() };
    judge.hyperparameters.preference = Some(Box::new(wish.resolve()));
    engine.train(&judge);
    let replies = engine.replies_until(|reply| {
        matches!(reply, Reply::RunFinished { .. } | Reply::RunFailed { .. })
    });
    let adapter = replies.iter().rev().find_map(|reply| match reply {
        Reply::Checkpoint { checkpoint, .. } => Some(checkpoint.dir.clone()),
        _ => None,
    });
    let last = replies.iter().rev().find_map(|reply| match reply {
        Reply::Run { report: RunReport::Step(metrics), .. } => Some(metrics.rewards.clone()),
        _ => None,
    });
    let mut ask = |messages: Vec<Value>, adapter: &Option<PathBuf>, score: bool| {
        let request = GenerateRequest {
            id: "scored".to_owned(),
            adapter: adapter.clone(),
            question: if score {
                Question::score(messages, Vec::new())
            } else {
                Question::chat(messages, tokens(1))
            },
        };
        engine.send(&Command::Generate { request: Box::new(request) });
        engine.answer("scored")
    };
    let conversation = |question: &str, text: &str| {
        let asked = json!({"role": "user", "content": question});
        vec![asked, json!({"role": "assistant", "content": text})]
    };
    let scores = [good, bad].map(|text| ask(conversation(question, text), &adapter, true));
    let [chosen, rejected] = scores.each_ref().map(|answer| answer.score.unwrap());
    // The scores of the last step are those before its update, which a rate near 0 makes small.
    let margin = last.unwrap().train_reward_margin.unwrap();
    assert!(chosen > rejected, "{chosen}, {rejected}");
    assert!(((chosen - rejected) / margin - 1.0).abs() < 0.2, "{chosen}, {rejected}, {margin}");
    assert!(scores[0].prompt_tokens > 30 && scores[0].completion_tokens == 0);
    let code = |answer: Answer| answer.failure.unwrap().0;
    assert_eq!(code(ask(conversation(question, good), &adapter, false)), "wrong_model");
    assert_eq!(code(ask(conversation(question, good), &None, true)), "wrong_model");
    let long = conversation(&"x".repeat(CONTEXT), good);
    assert_eq!(code(ask(long, &adapter, true)), "context_length_exceeded");
    assert!(engine.end().success());
}

#[test]
fn an_embedding_is_a_direction_that_the_text_alone_decides() {
    let model = model();
    let config = model.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&CONTEXT.to_string(), "512")).unwrap();
    let mut engine = Engine::start(model.path());
    let mut embed = |text: &str| engine.question("embedded", Question::embedding(text.to_owned()));
    // Longer than one turn reads.
    let long = "a b ".repeat(100);
    let [one, again, other] = [&long, &long, "b c d"].map(&mut embed);
    let direction = |answer: &Answer| answer.embedding.clone().unwrap();
    let length: f32 = direction(&one).iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    assert_eq!(direction(&one), direction(&again));
    assert_ne!(direction(&one), direction(&other));
    assert!(one.prompt_tokens > 256 && one.completion_tokens == 0, "{one:?}");
    // A text without a token has the state of what stands before texts.
    assert_eq!(embed("").prompt_tokens, 1);
    let too_long = embed(&"x".repeat(513)).failure.unwrap();
    assert_eq!(too_long.0, "context_length_exceeded");
    assert!(engine.end().success());
}

#[test]
fn sampling_limits_seeds_choices_and_stop_strings_are_kept() {
    let model = model();
    let mut engine = Engine::start(model.path());
    engine.ask("one", "Hello", tokens(24));
    let one = engine.answer("one");
    engine.ask("same", "Hello", tokens(24));
    assert_eq!(engine.answer("same"), one, "the seed decides");

    engine.ask("three", "Hello", Sampling { n: 3, ..tokens(24) });
    let three = engine.answer("three");
    assert_eq!((three.reasons.len(), three.texts[0].as_str()), (3, one.texts[0].as_str()));
    assert_ne!(three.texts[0], three.texts[1], "choices are drawn apart");
    assert!(three.completion_tokens > one.completion_tokens);

    let characters: Vec<char> = one.texts[0].chars().collect();
    let stop: String = characters[3..6].iter().collect();
    engine.ask("stopped", "Hello", Sampling { stop: vec![stop.clone()], ..tokens(24) });
    let stopped = engine.answer("stopped");
    let before = &one.texts[0][..one.texts[0].find(&stop).unwrap()];
    assert_eq!(
        (stopped.texts.concat().as_str(), &stopped.reasons[..]),
        (before, &[FinishReason::Stop][..])
    );

    engine.ask("none", "Hello", tokens(0));
    let none = engine.answer("none");
    assert_eq!((none.completion_tokens, &none.reasons[..]), (0, &[FinishReason::Length][..]));
}

/// Byte-level tokens are their bytes; the two others are control tokens.
fn id_of(token: &[u8]) -> i64 {
    match token {
        [byte] => i64::from(*byte),
        b"<|im_start|>" => 256,
        _ => 257,
    }
}

#[test]
fn log_probabilities_are_the_model_s_own() {
    let model = model();
    let mut engine = Engine::start(model.path());
    let ids: Vec<u32> = "Hello, wörld".bytes().map(u32::from).collect();
    let sampling = |logprobs| Sampling {
        temperature: 1.7,
        top_p: 0.9,
        presence_penalty: 1.0,
        logit_bias: vec![(65, 2.0)],
        logprobs,
        ..tokens(12)
    };
    let prompt = |echo| Prompt::Tokens { ids: ids.clone(), echo };
    let question =
        |prompt, logprobs| Question { prompt, ..Question::chat(Vec::new(), sampling(logprobs)) };
    let told = engine.question("told", question(prompt(true), Some(4)));
    let silent = engine.question("silent", question(prompt(false), None));
    assert_eq!(told.texts, silent.texts, "to tell them changes nothing");
    let (echo, before) = told.echo.clone().unwrap();
    assert_eq!((echo.as_str(), before.len()), ("Hello, wörld", ids.len()));
    let all: Vec<&TokenLogprob> = before.iter().chain(&told.logprobs).collect();
    let bytes: Vec<u8> = told.logprobs.iter().flat_map(|t| t.token.0.clone()).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), told.texts[0]);

    let decoder = model::Decoder::load(model.path(), tch::Device::Cpu).unwrap();
    let ids: Vec<i64> = all.iter().map(|told| id_of(&told.token.0)).collect();
    let batch = model::Batch {
        positions: (0..ids.len() as i64).collect(),
        cu_seqlens: vec![0, ids.len() as i32],
        input_ids: ids.clone(),
        ..model::Batch::default()
    };
    let logits = decoder.logits(&batch, None).unwrap();
    let expected = logits.to_kind(tch::Kind::Double).log_softmax(-1, tch::Kind::Double);
    assert!(all[0].logprob.is_none());
    for (at, told) in all.iter().enumerate().skip(1) {
        let of = |id: i64| expected.double_value(&[at as i64 - 1, id]);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-4;
        assert!(close(told.logprob.unwrap(), of(ids[at])), "token {at}");
        assert_eq!(told.top.len(), 4);
        let (best, _) = expected.get(at as i64 - 1).topk(4, -1, true, true);
        for (rank, (token, logprob)) in told.top.iter().enumerate() {
            assert!(close(*logprob, best.double_value(&[rank as i64])), "token {at}, rank {rank}");
            assert!(close(*logprob, of(id_of(&token.0))), "token {at}, rank {rank}");
        }
    }
    assert!(engine.end().success());
}

#[test]
fn forms_are_held_to_whatever_the_model_would_say() {
    let model = model();
    let mut engine = Engine::start(model.path());
    let ask = |form: AnswerForm, seed: u64| Question {
        form,
        ..Question::chat(
            vec![json!({"role": "user", "content": "x"})],
            Sampling { seed: Some(seed), max_tokens: Some(200), ..Sampling::default() },
        )
    };
    let schema = json!({"type": "object", "required": ["kind", "count"], "properties": {
        "kind": {"enum": ["red", "green"]}, "count": {"type": "integer"}, "on": {"type": "boolean"}}});
    let mut whole = 0;
    for seed in 0..4 {
        let form = AnswerForm::Schema { schema: schema.clone(), strict: true };
        let answer = engine.question(&format!("schema {seed}"), ask(form, seed));
        if answer.reasons == [FinishReason::Stop] {
            let value: Value = serde_json::from_str(&answer.texts[0]).unwrap();
            assert!(["red", "green"].contains(&value["kind"].as_str().unwrap()));
            assert!(value["count"].is_number() && value.as_object().unwrap().len() <= 3);
            whole += 1;
        }
    }
    assert!(whole > 0, "no answer has ended");
    let answer = engine.question("object", ask(AnswerForm::Object, 5));
    assert!(answer.texts[0].trim_start().starts_with('{'), "{answer:?}");

    // Nothing satisfies it: an object that must hold another one of its kind.
    let endless = json!({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}});
    let form = AnswerForm::Schema { schema: endless, strict: true };
    let answer = engine.question("endless", ask(form, 1));
    let is_told = answer.failure.is_some_and(|(code, _)| code == "invalid_form");
    assert!(is_told || answer.reasons == [FinishReason::Length]);
    let form = AnswerForm::Schema { schema: json!({"not": {}}), strict: true };
    assert_eq!(engine.question("refused", ask(form, 1)).failure.unwrap().0, "invalid_form");
    assert!(engine.end().success());
}

#[test]
fn calls_that_must_come_come_with_arguments_that_fit() {
    let model = model();
    // The functions are described in the prompt, byte by byte.
    let config = model.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&CONTEXT.to_string(), "4096")).unwrap();
    let mut engine = Engine::start(model.path());
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}}})
    };
    let ask = |choice: CallChoice, seed: u64| Question {
        prompt: Prompt::Chat {
            messages: vec![json!({"role": "user", "content": "x"})],
            tools: vec![tool("weather"), tool("clock")],
        },
        calls: CallRules { choice, parallel: false },
        ..Question::chat(Vec::new(), Sampling { seed: Some(seed), ..Sampling::default() })
    };
    for seed in 0..3 {
        let named = CallChoice::Named("clock".to_owned());
        let answer = engine.question(&format!("named {seed}"), ask(named, seed));
        if answer.reasons == [FinishReason::Calls] {
            let [(name, arguments)] = &answer.calls[..] else { panic!("{answer:?}") };
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            assert!(name == "clock" && ["C", "F"].contains(&arguments["unit"].as_str().unwrap()));
            assert!(answer.texts.is_empty(), "{answer:?}");
            let required = engine.question("required", ask(CallChoice::Required, seed));
            assert!(["weather", "clock"].contains(&required.calls[0].0.as_str()));
            return;
        }
    }
    panic!("no call has ended");
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let model = model();
    let mut engine = Engine::start(model.path());
    engine.ask("long", &"x".repeat(CONTEXT), tokens(5));
    let (code, message) = engine.answer("long").failure.unwrap();
    assert_eq!(code, "context_length_exceeded");
    assert!(message.contains(&CONTEXT.to_string()), "{message}");
    engine.ask("short", "x", tokens(5));
    assert_eq!(engine.answer("short").failure, None);
}

#[test]
fn an_unbounded_answer_ends_with_the_context() {
    let model = model();
    let mut engine = Engine::start(model.path());
    engine.ask("free", "Hello", Sampling { temperature: 0.0, ..Sampling::default() });
    let answer = engine.answer("free");
    let total = (answer.prompt_tokens + answer.completion_tokens) as usize;
    match answer.reasons[..] {
        [FinishReason::Length] => assert_eq!(total, CONTEXT),
        _ => assert!(total < CONTEXT),
    }
}

#[test]
fn a_run_stops_on_command_with_and_without_a_checkpoint() {
    let (model, output) = (model(), Folder::new());
    let mut engine = Engine::start(model.path());
    for checkpoint in [true, false] {
        let mut endless = plan(&output, &format!("stop-{checkpoint}"));
        endless.hyperparameters.n_epochs = 10_000;
        endless.hyperparameters.checkpoint_steps = 0;
        engine.train(&endless);
        engine
            .replies_until(|reply| matches!(reply, Reply::Run { report: RunReport::Step(_), .. }));
        let job_id = endless.job_id.clone();
        engine.send(&Command::StopRun { job_id: job_id.clone(), checkpoint });
        let stopped = Reply::RunStopped { job_id };
        let mut replies = engine.replies_until(|reply| *reply == stopped);
        replies.pop();
        let before = replies.pop();
        assert_eq!(matches!(before, Some(Reply::Checkpoint { .. })), checkpoint, "{before:?}");
    }
    let unknown = JobId::from("ftjob-unknown");
    engine.send(&Command::StopRun { job_id: unknown.clone(), checkpoint: true });
    assert_eq!(engine.replies_until(|_| true), [Reply::RunStopped { job_id: unknown }]);
}

#[test]
fn bad_plans_and_garbage_leave_the_engine_working() {
    let (model, output) = (model(), Folder::new());
    let mut engine = Engine::start(model.path());
    engine.line("this is not JSON");
    engine.line(r#"{"command":"fly"}"#);
    engine.line(r#"{"command":"train","plan":{"job_id":"ftjob-half"}}"#);
    assert_eq!(engine.failure_of("ftjob-half").code, "invalid_plan");
    let mut missing = plan(&output, "missing");
    missing.training_file = output.path().join("no-such-file.jsonl");
    engine.train(&missing);
    assert_eq!(engine.failure_of("ftjob-missing").code, "file_unreadable");
    engine.ask("still", "Hello", tokens(3));
    assert_eq!(engine.answer("still").failure, None);
    engine.line(r#"{"command":"generate","request":{"id":"half"}}"#);
    assert!(engine.answer("half").failure.is_some());
}

#[test]
fn a_run_beyond_the_allowed_memory_is_refused_and_answers_go_on() {
    let (model, output) = (model(), Folder::new());
    let mut engine = Engine::start_with(model.path(), &["--memory", "1000000"]);
    engine.train(&plan(&output, "large"));
    let failure = engine.failure_of("ftjob-large");
    assert_eq!(failure.code, "insufficient_memory");
    assert!(failure.message.contains("0.00 GB are free"), "{}", failure.message);
    engine.ask("still", "Hello", tokens(2));
    assert_eq!(engine.answer("still").completion_tokens, 2);
}

#[test]
fn what_fails_inside_a_turn_ends_nothing_else() {
    let (model, output) = (Folder::new(), Folder::new());
    // The tokenizer knows tokens that this model does not have: found out in the middle of a turn.
    write_model(model.path(), Some(80));
    let mut engine = Engine::start(model.path());
    engine.ask("outside", "zzz", tokens(3));
    assert_eq!(engine.answer("outside").failure.unwrap().0, "internal_error");
    engine.train(&plan(&output, "outside"));
    assert_eq!(engine.failure_of("ftjob-outside").code, "internal_error");
    engine.train(&plan(&output, "outside"));
    assert_eq!(engine.failure_of("ftjob-outside").code, "internal_error");
    let request = GenerateRequest {
        id: "adapter".to_owned(),
        adapter: Some(output.path().join("no-such-adapter")),
        question: Question::chat(vec![json!({"role": "user", "content": "x"})], tokens(3)),
    };
    engine.send(&Command::Generate { request: Box::new(request) });
    let (_, message) = engine.answer("adapter").failure.unwrap();
    assert!(message.contains("no-such-adapter"), "{message}");
    assert!(engine.end().success());
}

#[test]
fn the_end_of_input_ends_it_in_the_middle_of_a_run() {
    let (model, output) = (model(), Folder::new());
    let mut engine = Engine::start(model.path());
    let mut endless = plan(&output, "endless");
    endless.hyperparameters.n_epochs = 10_000;
    engine.train(&endless);
    engine.replies_until(|reply| matches!(reply, Reply::Run { report: RunReport::Step(_), .. }));
    assert!(engine.end().success());
}

#[test]
fn a_cancelled_answer_is_silent() {
    let model = model();
    let mut engine = Engine::start(model.path());
    // Both lines lie in the pipe before the first token is made or at least before the last.
    engine.ask("cancelled", "Hello", Sampling { n: 100, ..tokens(200) });
    engine.send(&Command::CancelGenerate { id: "cancelled".to_owned() });
    engine.ask("next", "Hello", tokens(4));
    let replies = engine.replies_until(|reply| {
        let done = |event: &GenerationEvent| matches!(event, GenerationEvent::Done { .. });
        matches!(reply, Reply::Generation { id, event } if id == "next" && done(event))
    });
    let cancelled = Answer::of("cancelled", &replies);
    assert!(cancelled.reasons.len() < 100, "it went on to its end");
}

#[test]
fn what_keeps_it_from_starting_is_one_line_and_code_2() {
    let empty = Folder::new();
    let folder = empty.path().to_str().unwrap();
    for (args, words) in [
        (&["--model", "/nowhere"][..], "no such folder"),
        (&["--model", folder], "cannot be loaded"),
        (&["--modle", "x"], "unknown argument"),
        (&["--model", folder, "--device", "cuda:0"], "cuda:0"),
    ] {
        let output = engine(args).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}
