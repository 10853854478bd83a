//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use domain::hyperparameters::{GradientCheckpointing, OptimizerKind, Quantization};
use serde::de::{DeserializeOwned, IntoDeserializer as _, value};

use crate::config::Flag;

/// Fine-tuning with OpenAI's API on your own machines.
#[derive(Debug, Parser)]
#[command(name = "finetuned", version, propagate_version = true)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// A configuration file (TOML); it is laid over /etc/finetuned/config.toml
    #[arg(long, value_name = "FILE", global = true, env = "FINETUNED_CONFIG")]
    pub config: Option<PathBuf>,
    /// Set any key of the configuration, as in `--set server.max_file_bytes="1 GiB"`; repeatable
    #[arg(long, value_name = "KEY=VALUE", global = true, value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// The data folder of `finetuned up` [key: up.data_dir]
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine: database, storage, server and worker
    Up(Up),
    /// Start a server; needs database.url
    Serve(Serve),
    /// Start a worker; needs worker.server_urls and worker.token
    Work(Work),
    /// Bring the database's schema up to date
    Migrate,
    /// Create, list and revoke keys
    #[command(subcommand)]
    Keys(Keys),
    /// Create and list projects
    #[command(subcommand)]
    Projects(Projects),
    /// Import, export, list and remove models
    #[command(subcommand)]
    Models(Models),
    /// List, show and cancel jobs
    #[command(subcommand)]
    Jobs(Jobs),
    /// Look at files of training data, before anything is uploaded
    #[command(subcommand)]
    Data(Data),
    /// Say how much memory a training run will take; without a model, a table of the usual sizes
    Estimate(Estimate),
    /// Print or check the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Say what was found, what is missing, and the command that mends it
    Doctor,
    /// Run a private Postgres until a signal; print its URL once it is ready
    #[command(hide = true)]
    Postgres(Postgres),
    /// Become another program that ends with its parent
    #[command(hide = true)]
    RunGuarded(RunGuarded),
    /// Lock this process in and become the interpreter of a grader
    #[command(hide = true)]
    GradePython(GradePython),
}

#[derive(Debug, Args)]
pub struct Up {
    /// Address and port; port 0 takes a free one [key: server.listen]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Import every model found in this folder [key: up.models_dir]
    #[arg(long, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// Address and port; port 0 takes a free one [key: server.listen]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

#[derive(Debug, Args)]
pub struct Work {
    /// Base URL of a server; repeatable [key: worker.server_urls]
    #[arg(long = "server", value_name = "URL")]
    pub servers: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a key and print it; it is shown this once
    Create {
        /// What the key is for, in your words
        #[arg(long, default_value = "")]
        name: String,
        /// `project` keys call the API, `worker` keys let a worker in
        #[arg(long, value_enum, default_value_t = KeyKind::Project)]
        kind: KeyKind,
        /// The project that it opens, as `projects list` shows it; default: the default project
        #[arg(long, value_name = "ID")]
        project: Option<String>,
    },
    /// List keys; secrets are not stored and not shown
    List {
        /// Of this project; default: the default project
        #[arg(long, value_name = "ID")]
        project: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Refuse a key from now on
    Revoke {
        /// As `keys list` shows it
        id: String,
        /// The project that it opens; default: the default project
        #[arg(long, value_name = "ID")]
        project: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Projects {
    /// Make a project and print its id; its keys come from `keys create --project ID`
    Create {
        /// In your words
        #[arg(long)]
        name: String,
    },
    /// List projects
    List {
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyKind {
    Project,
    Worker,
}

#[derive(Debug, Subcommand)]
pub enum Models {
    /// Register a base model: a GGUF file, or a folder in Hugging Face's layout
    Import {
        path: PathBuf,
        /// The name under which jobs ask for it; default: the file's name
        #[arg(long)]
        name: Option<String>,
    },
    /// Write a base model as a folder in Hugging Face's layout, without registering it
    Convert {
        /// A GGUF file, or a folder to check and copy
        path: PathBuf,
        /// The folder to make
        folder: PathBuf,
    },
    /// Write a model's files into a new folder: an adapter in PEFT's format, or a whole model
    Export {
        /// A base model, a tuned model or a checkpoint
        id: String,
        /// The folder to make
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Merge an adapter into its base model
        #[arg(long)]
        merged: bool,
        /// Of this project, as `projects list` shows it; default: the default project
        #[arg(long, value_name = "ID")]
        project: Option<String>,
    },
    /// List base models
    List {
        #[arg(long)]
        json: bool,
    },
    /// Take a base model away
    Remove { name: String },
}

#[derive(Debug, Subcommand)]
pub enum Jobs {
    /// List jobs, newest first
    List {
        #[arg(long, default_value_t = 20)]
        limit: u32,
        #[arg(long)]
        json: bool,
    },
    /// Show one job and its last events
    Show {
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// Cancel a job
    Cancel { id: String },
}

#[derive(Debug, Subcommand)]
pub enum Data {
    /// Say what is wrong, and what is doubtful, about a file
    Check(DataCheck),
    /// Write rows of any format as JSON lines in OpenAI's form; faults are told by row
    Convert {
        file: PathBuf,
        /// The file to make; default: standard output
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Show a row as a model sees it: its tokens, with marks around what is trained
    Preview(PreviewRow),
}

#[derive(Debug, Args)]
pub struct DataCheck {
    pub file: PathBuf,
    /// The validation file of the same job
    #[arg(long, value_name = "FILE")]
    pub validation: Option<PathBuf>,
    /// A folder in Hugging Face's layout, or a base model, as `models list` shows it
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// What the rows would be trained with
    #[arg(long, value_enum, default_value_t = RowMethod::Supervised)]
    pub method: RowMethod,
    /// Tokens after which an example is cut
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    pub max_seq_len: u32,
    /// Copy the rows that something is said about into this new file
    #[arg(long, value_name = "FILE")]
    pub bad_lines: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PreviewRow {
    pub file: PathBuf,
    /// A folder in Hugging Face's layout, or a base model, as `models list` shows it
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// The line on which the row begins, in a JSON array its place; default: the first row
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub row: Option<u64>,
    /// What the row would be trained with
    #[arg(long, value_enum, default_value_t = RowMethod::Supervised)]
    pub method: RowMethod,
    /// Tokens after which the row is cut; default: it is shown whole
    #[arg(long, value_name = "TOKENS")]
    pub max_seq_len: Option<usize>,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowMethod {
    Supervised,
    Dpo,
    Kto,
}

#[derive(Debug, Args)]
pub struct Estimate {
    /// A folder with the model's config.json, or 1b, 7b, 13b, 70b
    pub model: Option<String>,
    /// What is trained
    #[arg(long, value_enum, default_value_t = TrainedKind::Lora)]
    pub method: TrainedKind,
    /// Rank of the adapters, on all linear layers
    #[arg(long, default_value_t = 16)]
    pub rank: u64,
    /// Virtual tokens of prompt and prefix tuning
    #[arg(long, default_value_t = 20)]
    pub virtual_tokens: u64,
    /// Of the base model's linear layers: none or nf4 (qlora has nf4)
    #[arg(long, default_value = "none", value_parser = named::<Quantization>)]
    pub quantization: Quantization,
    /// Who updates what is trained: adamw or adamw_8bit
    #[arg(long, default_value = "adamw", value_parser = named::<OptimizerKind>)]
    pub optimizer: OptimizerKind,
    /// Tokens of the largest micro-batch
    #[arg(long, default_value_t = 2048)]
    pub tokens: u64,
    /// What is computed again instead of kept: none, mlp or full
    #[arg(long, default_value = "none", value_parser = named::<GradientCheckpointing>)]
    pub gradient_checkpointing: GradientCheckpointing,
    /// fp32 on a CPU, bf16 on a GPU
    #[arg(long, value_enum, default_value_t = EstimatePrecision::Bf16)]
    pub precision: EstimatePrecision,
    /// The job learns from preference pairs
    #[arg(long)]
    pub pairs: bool,
    /// The job has a validation file
    #[arg(long)]
    pub validation: bool,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrainedKind {
    Lora,
    Qlora,
    Full,
    Prompt,
    Prefix,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EstimatePrecision {
    Fp32,
    Bf16,
}

/// A value by the name that the API has for it.
fn named<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    T::deserialize(text.into_deserializer()).map_err(|error: value::Error| error.to_string())
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the effective configuration, each value with its source
    Print {
        /// Hide secrets; `--redact=false` shows them
        #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true,
              default_missing_value = "true", action = clap::ArgAction::Set)]
        redact: bool,
    },
    /// Check the configuration without starting anything
    Check,
}

#[derive(Debug, Args)]
pub struct Postgres {
    /// A further server setting, `name=value`; repeatable
    #[arg(short = 'c', value_name = "NAME=VALUE")]
    pub settings: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RunGuarded {
    /// The process that must still be the parent
    #[arg(long)]
    pub parent: i32,
    #[arg(long)]
    pub uid: Option<u32>,
    #[arg(long)]
    pub gid: Option<u32>,
    #[arg(last = true, required = true)]
    pub program: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub struct GradePython {
    /// The cage, as JSON
    pub cage: String,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    if !key.contains('.') {
        return Err(format!("'{key}' names no key: write section.key=value"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

impl Arguments {
    /// The flags that set configuration keys; `--set` first, so that a flag of its own wins over it.
    pub fn flags(&self) -> Vec<Flag> {
        let mut flags: Vec<Flag> = Vec::new();
        let mut add = |name: &str, key: &str, value: String| {
            flags.push(Flag { name: name.into(), key: key.into(), value });
        };
        for (key, value) in &self.global.set {
            add("--set", key, value.clone());
        }
        if let Some(dir) = &self.global.data_dir {
            add("--data-dir", "up.data_dir", dir.display().to_string());
        }
        match &self.command {
            Command::Up(Up { listen, models_dir }) => {
                if let Some(listen) = listen {
                    add("--listen", "server.listen", listen.clone());
                }
                if let Some(dir) = models_dir {
                    add("--models-dir", "up.models_dir", dir.display().to_string());
                }
            }
            Command::Serve(Serve { listen: Some(listen) }) => {
                add("--listen", "server.listen", listen.clone());
            }
            Command::Work(Work { servers }) if !servers.is_empty() => {
                let list: Vec<String> = servers.iter().map(|url| format!("{url:?}")).collect();
                add("--server", "worker.server_urls", format!("[{}]", list.join(",")));
            }
            _ => {}
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_flag_of_its_own_wins_over_set() {
        let line = ["finetuned", "up", "--listen", "[::1]:0", "--set", "server.listen=0.0.0.0:1"];
        let flags = Arguments::parse_from(line).flags();
        let last = flags.last().unwrap();
        assert_eq!((last.name.as_str(), last.value.as_str()), ("--listen", "[::1]:0"));
    }
}
