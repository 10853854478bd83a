//! A tiny random model in a real folder, plans for it, and runs driven to their end.

#![expect(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dataset::ChatTokenizer;
use domain::hyperparameters::Schedule;
use domain::id::JobId;
use domain::job::MethodType;
use domain::plan::{LoraConfig, ResolvedHyperparameters, TrainingPlan};
use domain::report::{CheckpointReport, Finding, RunFailure, RunReport, StepMetrics};
use engine::train::{Happened, Prepared, Run, prepare};
use model::{Decoder, Form};
use serde_json::{Map, Value, json};
use tch::Device;
use weights::{Dtype, write_safetensors};

pub const CONTEXT: usize = 256;
const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 128;
const LAYERS: usize = 2;
const KEY_VALUE_WIDTH: usize = 32;

/// A folder that goes away with the test.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file of chat rows and returns its path.
    pub fn rows(&self, name: &str, rows: &[(&str, &str)]) -> PathBuf {
        let row = |(user, assistant): &(&str, &str)| {
            json!({"messages": [
                {"role": "user", "content": user},
                {"role": "assistant", "content": assistant},
            ]})
            .to_string()
                + "\n"
        };
        self.lines(name, rows.iter().map(row))
    }

    /// Writes a file of plain texts and returns its path.
    pub fn texts(&self, name: &str, texts: &[&str]) -> PathBuf {
        self.lines(name, texts.iter().map(|text| json!({"text": text}).to_string() + "\n"))
    }

    fn lines(&self, name: &str, lines: impl Iterator<Item = String>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, lines.collect::<String>()).unwrap();
        path
    }
}

/// Byte-level tokens and two control tokens, so that any text can be said in few weights.
fn tokenizer_json() -> (Value, usize) {
    // The usual table of byte-level tokenizers: printable bytes stand for themselves, others move
    // up.
    let mut vocabulary = Map::new();
    let mut moved = 0;
    for byte in 0..256u32 {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable {
            byte
        } else {
            moved += 1;
            255 + moved
        };
        let text = char::from_u32(code).unwrap().to_string();
        vocabulary.insert(text, json!(byte));
    }
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                          "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    });
    (tokenizer, 258)
}

const TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + \
     message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Writes a model of random weights with `vocab_size` tokens (none: as many as its tokenizer has).
pub fn write_model(folder: &Path, vocab_size: Option<usize>) {
    let (tokenizer, tokens) = tokenizer_json();
    let vocab_size = vocab_size.unwrap_or(tokens);
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocab_size,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true,
    });
    let tokenizer_config = json!({
        "eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": "<|im_end|>",
        "model_max_length": CONTEXT, "tokenizer_class": "GPT2Tokenizer",
    });
    let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
    write("config.json", config.to_string());
    write("tokenizer.json", tokenizer.to_string());
    write("tokenizer_config.json", tokenizer_config.to_string());
    write("chat_template.jinja", TEMPLATE.to_owned());
    write_weights(&folder.join("model.safetensors"), vocab_size);
}

fn write_weights(path: &Path, vocab_size: usize) {
    let mut state = 1u64;
    let mut random = |count: usize, size: f32| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0 * size
        };
        (0..count).map(|_| next()).collect()
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let embedding = random(vocab_size * HIDDEN, 0.3);
    tensors.push(("model.embed_tokens.weight".into(), vec![vocab_size, HIDDEN], embedding));
    tensors.push(("model.norm.weight".into(), vec![HIDDEN], vec![1.0; HIDDEN]));
    for layer in 0..LAYERS {
        let prefix = format!("model.layers.{layer}");
        for name in ["input_layernorm", "post_attention_layernorm"] {
            let name = format!("{prefix}.{name}.weight");
            tensors.push((name, vec![HIDDEN], vec![1.0; HIDDEN]));
        }
        for (name, rows, columns) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", KEY_VALUE_WIDTH, HIDDEN),
            ("self_attn.v_proj", KEY_VALUE_WIDTH, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ] {
            let values = random(rows * columns, 0.2);
            tensors.push((format!("{prefix}.{name}.weight"), vec![rows, columns], values));
        }
    }
    let tensors =
        tensors.iter().map(|(name, shape, v)| (name.clone(), Dtype::F32, shape.clone(), &v[..]));
    write_safetensors(path, tensors, &BTreeMap::new()).unwrap();
}

/// A loaded tiny model.
pub struct Tiny {
    pub folder: Folder,
    pub decoder: Decoder,
    pub tokenizer: ChatTokenizer,
}

impl Tiny {
    pub fn load() -> Self {
        Self::load_as(Form::default())
    }

    pub fn load_as(form: impl Into<Form>) -> Self {
        // One thread: tests run beside each other, and threads of libtorch would only wait for
        // cores.
        tch::set_num_threads(1);
        let folder = Folder::new();
        write_model(folder.path(), None);
        let decoder = Decoder::load_as(folder.path(), Device::Cpu, form).unwrap();
        let tokenizer = ChatTokenizer::from_folder(folder.path()).unwrap();
        Self { folder, decoder, tokenizer }
    }

    pub fn prepare(&self, plan: TrainingPlan) -> Result<Prepared, RunFailure> {
        prepare(plan, &self.tokenizer, CONTEXT as u64)
    }

    pub fn begin(&self, plan: TrainingPlan) -> Result<Run, RunFailure> {
        Run::new(self.prepare(plan)?, &self.decoder)
    }

    /// Takes turns until the run is over.
    pub fn drive(&self, mut run: Run) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            for event in run.turn(&self.decoder) {
                if outcome.take(event) {
                    return outcome;
                }
            }
        }
    }

    /// Takes turns until `step` is reported, then asks for a stop with a checkpoint and drives on.
    pub fn drive_and_stop_at(&self, mut run: Run, step: u64) -> Outcome {
        let mut outcome = Outcome::default();
        while outcome.steps.last().is_none_or(|metrics| metrics.step < step) {
            for event in run.turn(&self.decoder) {
                assert!(!outcome.take(event), "the run was over before step {step}");
            }
        }
        run.stop();
        let rest = self.drive(run);
        outcome.steps.extend(rest.steps);
        outcome.checkpoints.extend(rest.checkpoints);
        outcome.end = rest.end;
        outcome
    }

    pub fn finish(&self, plan: TrainingPlan) -> Outcome {
        self.drive(self.begin(plan).unwrap())
    }
}

/// All that a run said.
#[derive(Debug, Default)]
pub struct Outcome {
    pub steps: Vec<StepMetrics>,
    pub messages: Vec<String>,
    pub findings: Vec<Finding>,
    pub checkpoints: Vec<CheckpointReport>,
    pub end: Option<Happened>,
    pub failure: Option<RunFailure>,
}

impl Outcome {
    fn take(&mut self, event: Happened) -> bool {
        match event {
            Happened::Report(RunReport::Started(_)) => {}
            Happened::Report(RunReport::Step(metrics)) => self.steps.push(metrics),
            Happened::Report(RunReport::Message { message, .. }) => self.messages.push(message),
            Happened::Report(RunReport::Finding(finding)) => self.findings.push(finding),
            Happened::Checkpoint(checkpoint) => self.checkpoints.push(checkpoint),
            Happened::Failed(failure) => {
                self.failure = Some(failure);
                return true;
            }
            Happened::Finished | Happened::Stopped => {
                self.end = Some(event);
                return true;
            }
        }
        false
    }

    pub fn losses(&self) -> Vec<f64> {
        self.steps.iter().map(|metrics| metrics.train_loss).collect()
    }

    pub fn last_dir(&self) -> PathBuf {
        self.checkpoints.last().expect("a checkpoint").dir.clone()
    }
}

/// A plan over four short rows with two examples per step.
pub fn plan(output: &Folder, name: &str) -> TrainingPlan {
    let rows = [
        ("What is the capital of France?", "Paris."),
        ("Say yes.", "yes yes yes"),
        ("Count to five, please.", "1 2 3 4 5"),
        ("Colour of the sky?", "Blue, mostly."),
    ];
    TrainingPlan {
        job_id: JobId::from(format!("ftjob-{name}")),
        fence: 1,
        method: MethodType::Supervised,
        base_model: "tiny".to_owned(),
        training_file: output.rows("train.jsonl", &rows),
        validation_file: None,
        hyperparameters: ResolvedHyperparameters {
            n_epochs: 10,
            batch_size: 2,
            learning_rate_multiplier: 1.0,
            learning_rate: 1e-2,
            schedule: Schedule::Linear,
            warmup_steps: 2,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            max_seq_len: 128,
            micro_batch_tokens: 64,
            checkpoint_steps: 0,
            gradient_checkpointing: Default::default(),
            optimizer: Default::default(),
            early_stopping: None,
            quantization: Default::default(),
            precision: Default::default(),
            tuning: Default::default(),
            virtual_tokens: None,
            lora: LoraConfig { rank: 8, alpha: 16.0, ..LoraConfig::default() },
            preference: None,
            seed: 7,
        },
        start_from: None,
        resume_from: None,
        output_dir: output.path().join(name),
    }
}

pub fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap()
}
