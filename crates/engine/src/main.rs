//! The program `finetuned-engine`: loads one base model, then obeys the lines on its standard
//! input.
//!
//! Exit codes: 0 at the end of the input, 2 when it cannot start (one line on standard error says
//! why), 3 when its device is lost. `check-device` ends with 1 when a check failed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use dataset::ChatTokenizer;
use domain::engine::Reply;
use engine::protocol::{Replies, read_commands};
use engine::room::Room;
use engine::scheduler::Scheduler;
use engine::{check, device, measure};
use model::{Decoder, Form, Precision, Quantization};
use tch::Device;

const USAGE: &str = "\
usage: finetuned-engine --model FOLDER [--quantization none|nf4] [--precision auto|fp32|bf16]
                        [--device cpu|cuda:N]
                        [--threads N] [--memory BYTES]
       finetuned-engine check-device [--device cpu|cuda:N] [--fixtures FOLDER] [--json]
       finetuned-engine measure --config FILE [--device cpu|cuda:N] ...

Trains and answers with one base model. Commands are JSON lines on standard input, replies
JSON lines on standard output; started by a worker, not by hand.

  --model FOLDER       the base model: config.json, model.safetensors, tokenizer.json, ...
  --quantization FORM  how its linear layers are kept: none (default) or nf4
  --precision NUMBERS  what it computes with: fp32, bf16, or auto (default): bf16 on a GPU
  --device DEVICE      cpu (default) or cuda:N
  --threads N          CPU threads (default: all cores)
  --memory BYTES       what this process may take on the CPU (default: what the machine has free)

check-device proves the kernels on a device against libtorch's operations; measure times training
steps of a shape with random weights. Both say more with --help.";

const EXIT_CANNOT_START: u8 = 2;
const EXIT_LOST: u8 = 3;

fn main() -> ExitCode {
    // Before anything of libtorch runs: its CUDA part registers itself when it is loaded.
    let cuda = kernels::load_cuda();
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("check-device") => return exit(check::run(arguments, &cuda)),
        Some("measure") => return exit(measure::run(arguments, &cuda).map(|()| true)),
        _ => {}
    }
    let (decoder, tokenizer, room) = match start(&cuda) {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("finetuned-engine: {error:#}");
            return ExitCode::from(EXIT_CANNOT_START);
        }
    };
    match serve(&decoder, &Arc::new(tokenizer), room) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("finetuned-engine: {error:#}");
            ExitCode::from(EXIT_LOST)
        }
    }
}

/// Of a command that is no engine: success, failure, or why there was neither.
fn exit(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("finetuned-engine: {error:#}");
            ExitCode::from(EXIT_CANNOT_START)
        }
    }
}

fn serve(decoder: &Decoder, tokenizer: &Arc<ChatTokenizer>, room: Room) -> Result<()> {
    let (inputs, received) = channel();
    let mut replies = Replies::new(io::stdout().lock());
    let spec = decoder.spec();
    replies.send(&Reply::Ready {
        model_type: spec.model_type.clone(),
        parameters: decoder.parameters(),
        device: device::name(decoder.device()),
        context_length: u32::try_from(spec.max_position_embeddings).unwrap_or(u32::MAX),
    })?;
    read_commands(inputs.clone());
    Scheduler::new(decoder, tokenizer, room, inputs, replies).run(&received)
}

/// Everything up to `Ready`; none when only the usage was asked for.
fn start(cuda: &Result<bool, String>) -> Result<Option<(Decoder, ChatTokenizer, Room)>> {
    let Some(options) = Options::parse(std::env::args().skip(1))? else {
        println!("{USAGE}");
        return Ok(None);
    };
    let device = device::usable(options.device, cuda)?;
    device::set_threads(options.threads)?;
    device::prove_kernels(device)?;
    let began = Instant::now();
    let (decoder, tokenizer) = load(&options.model, device, options.form_on(device))?;
    eprintln!("loaded {} in {:.1} s", options.model.display(), began.elapsed().as_secs_f64());
    Ok(Some((decoder, tokenizer, Room { limit: options.memory })))
}

fn load(folder: &Path, device: Device, form: Form) -> Result<(Decoder, ChatTokenizer)> {
    if !folder.is_dir() {
        bail!("--model {}: no such folder", folder.display());
    }
    let tokenizer = ChatTokenizer::from_folder(folder)
        .with_context(|| format!("the tokenizer of {} cannot be loaded", folder.display()))?;
    // A damaged weight file can fail inside libtorch, whose errors are panics.
    let decoder = engine::failure::guard(|| Decoder::load_as(folder, device, form))
        .map_err(|fault| anyhow::anyhow!(fault.message().to_owned()))
        .and_then(|loaded| Ok(loaded?))
        .with_context(|| format!("the model {} cannot be loaded", folder.display()))?;
    Ok((decoder, tokenizer))
}

struct Options {
    model: PathBuf,
    quantization: Quantization,
    /// None: the device's.
    precision: Option<Precision>,
    device: Device,
    threads: Option<usize>,
    memory: Option<u64>,
}

impl Options {
    /// None when the usage is asked for.
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let (mut model, mut device, mut threads) = (None, Device::Cpu, None);
        let (mut quantization, mut precision, mut memory) = (Quantization::None, None, None);
        while let Some(name) = args.next() {
            if matches!(name.as_str(), "-h" | "--help") {
                return Ok(None);
            }
            let value = args.next();
            let value = || value.with_context(|| format!("{name} needs a value; see --help"));
            match name.as_str() {
                "--model" => model = Some(PathBuf::from(value()?)),
                "--quantization" => quantization = parse_quantization(&value()?)?,
                "--precision" => precision = parse_precision(&value()?)?,
                "--device" => device = device::parse(&value()?)?,
                "--threads" => threads = Some(parse_threads(&value()?)?),
                "--memory" => memory = Some(parse_memory(&value()?)?),
                _ => bail!("unknown argument '{name}'; see --help"),
            }
        }
        let model = model.context("--model is missing; see --help")?;
        Ok(Some(Self { model, quantization, precision, device, threads, memory }))
    }

    fn form_on(&self, device: Device) -> Form {
        let native = if device.is_cuda() { Precision::Bf16 } else { Precision::Fp32 };
        Form { quantization: self.quantization, precision: self.precision.unwrap_or(native) }
    }
}

fn parse_quantization(text: &str) -> Result<Quantization> {
    match text {
        "none" => Ok(Quantization::None),
        "nf4" => Ok(Quantization::Nf4),
        _ => bail!("--quantization {text}: expected none or nf4"),
    }
}

fn parse_precision(text: &str) -> Result<Option<Precision>> {
    match text {
        "auto" => Ok(None),
        "fp32" => Ok(Some(Precision::Fp32)),
        "bf16" => Ok(Some(Precision::Bf16)),
        _ => bail!("--precision {text}: expected auto, fp32 or bf16"),
    }
}

fn parse_threads(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(threads) if (1..=1024).contains(&threads) => Ok(threads),
        _ => bail!("--threads {text}: expected a number from 1 to 1024"),
    }
}

fn parse_memory(text: &str) -> Result<u64> {
    text.parse().ok().with_context(|| format!("--memory {text}: expected a number of bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Option<Options>> {
        Options::parse(args.iter().map(|arg| arg.to_string()))
    }

    #[test]
    fn arguments_are_read_or_refused_by_name() {
        let options = parse(&["--model", "m", "--device", "cuda:1", "--threads", "2"]);
        let options = options.unwrap().unwrap();
        assert_eq!((options.device, options.threads), (Device::Cuda(1), Some(2)));
        assert_eq!(options.form_on(Device::Cuda(1)).precision, Precision::Bf16);
        assert_eq!(options.form_on(Device::Cpu), Form::default());
        assert!(parse(&["--help"]).unwrap().is_none());
        for (args, word) in [
            (&["--device", "cpu"][..], "--model"),
            (&["--model"], "--model needs a value"),
            (&["--model", "m", "--device", "gpu"], "expected cpu or cuda:N"),
            (&["--model", "m", "--threads", "0"], "from 1 to 1024"),
            (&["--model", "m", "--memory", "2G"], "a number of bytes"),
            (&["--model", "m", "--quantization", "fp4"], "expected none or nf4"),
            (&["--model", "m", "--precision", "fp16"], "expected auto, fp32 or bf16"),
            (&["--model", "m", "--fast", "1"], "unknown argument '--fast'"),
        ] {
            let Err(error) = parse(args) else { panic!("{args:?} was accepted") };
            assert!(error.to_string().contains(word), "{args:?}: {error}");
        }
    }
}
