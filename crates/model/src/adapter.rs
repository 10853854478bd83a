//! LoRA adapters: the trainable matrices of one run, and their gradients.
//!
//! All matrices live in one flat f32 buffer, so that the optimizer, the norm and a checkpoint see one
//! vector. Products use views of it; only the scaled block matrices of B are copies, renewed by `refresh`.

use std::path::Path;

use tch::{Device, Kind, Tensor, no_grad};
use thiserror::Error;
use weights::peft::{AdapterConfig, read_adapter, write_adapter};

use crate::decoder::Decoder;
use crate::layout::{GROUPS, GroupLayout, Layout, PartLayout};

/// What to adapt, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    pub rank: i64,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// On the adapter's input, while training.
    pub dropout: f64,
    /// Names of linear layers: `q_proj`, …, `down_proj`.
    pub target_modules: Vec<String>,
}

impl LoraOptions {
    fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    fn check(&self) -> Result<(), AdapterError> {
        let invalid = |message: String| Err(AdapterError::Invalid(message));
        if !(1..=1024).contains(&self.rank) {
            return invalid(format!("rank {} is outside 1–1024", self.rank));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return invalid(format!("alpha {} is not a positive number", self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return invalid(format!("dropout {} is outside 0–1", self.dropout));
        }
        let known = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        if self.target_modules.is_empty() {
            return invalid("no target modules".into());
        }
        match self.target_modules.iter().find(|name| !known.contains(&name.as_str())) {
            Some(name) => invalid(format!("unknown target module '{name}'; known: {known:?}")),
            None => Ok(()),
        }
    }
}

/// An adapter that cannot be made, read or written.
#[derive(Debug, Error)]
pub enum AdapterError {
    #[error("invalid adapter options: {0}")]
    Invalid(String),
    #[error("the adapter does not fit the model: {0}")]
    Mismatch(String),
    #[error(transparent)]
    File(#[from] weights::FileError),
}

/// One product's adapter, ready for use.
#[derive(Debug)]
pub(crate) struct Group {
    pub layout: GroupLayout,
    /// Stacked A matrices `[R, in]`: a view of the flat buffer.
    pub a: Tensor,
    /// Scaled B matrices as diagonal blocks, `[out, R]`, zero elsewhere: a copy.
    pub b: Tensor,
}

/// The adapter of one run or of one tuned model.
#[derive(Debug)]
pub struct Adapter {
    options: LoraOptions,
    layout: Layout,
    values: Tensor,
    groups: Vec<[Option<Group>; GROUPS]>,
}

impl Adapter {
    /// A fresh adapter: A uniform in ±1/√in (Kaiming with a = √5), B zero, so that the first step starts
    /// from the base model. The same seed gives the same matrices on every machine.
    ///
    /// # Errors
    /// For options out of range.
    pub fn init(decoder: &Decoder, options: &LoraOptions, seed: u64) -> Result<Self, AdapterError> {
        options.check()?;
        let layout = Layout::new(decoder.spec(), options);
        let mut values = vec![0.0f32; layout.len as usize];
        let mut random = Uniform(seed);
        for (group, part) in layout.parts() {
            let bound = 1.0 / (group.in_width as f64).sqrt();
            let start = part.a_offset as usize;
            for value in &mut values[start..start + (part.rank * group.in_width) as usize] {
                *value = ((2.0 * random.next() - 1.0) * bound) as f32;
            }
        }
        Ok(Self::assemble(options.clone(), layout, &values, decoder.device()))
    }

    /// Reads an adapter folder in PEFT's format.
    ///
    /// # Errors
    /// When the folder is damaged, asks for something that this decoder does not do, or has shapes that do
    /// not fit the model; the message names the tensor.
    pub fn load(decoder: &Decoder, dir: &Path) -> Result<Self, AdapterError> {
        let (config, file) = read_adapter(dir)?;
        let options = LoraOptions {
            rank: i64::from(config.r),
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
            target_modules: config.target_modules.clone(),
        };
        options.check()?;
        let layout = Layout::new(decoder.spec(), &options);
        let mut values = vec![0.0f32; layout.len as usize];
        let mut read = |name: String, shape: [i64; 2], offset: i64| -> Result<(), AdapterError> {
            let found = file.get(&name)?.shape.clone();
            if found != shape.map(|n| n as usize) {
                let message = format!("{name} has shape {found:?}, expected {shape:?}");
                return Err(AdapterError::Mismatch(message));
            }
            let data = file.get_f32(&name)?;
            values[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
            Ok(())
        };
        let mut tensors = 0;
        for (group, part) in layout.parts() {
            read(
                weights::peft::lora_a_key(&part.module),
                [part.rank, group.in_width],
                part.a_offset,
            )?;
            read(
                weights::peft::lora_b_key(&part.module),
                [part.out_width, part.rank],
                part.b_offset,
            )?;
            tensors += 2;
        }
        if file.len() != tensors {
            let message = format!("it has {} tensors, expected {tensors}", file.len());
            return Err(AdapterError::Mismatch(message));
        }
        Ok(Self::assemble(options, layout, &values, decoder.device()))
    }

    /// Writes `adapter_model.safetensors` and `adapter_config.json` into an existing folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, dir: &Path, base_model: &str) -> Result<(), AdapterError> {
        let config = AdapterConfig::lora(
            base_model,
            self.options.rank as u32,
            self.options.alpha,
            self.options.dropout,
            &self.options.target_modules,
        );
        let values = Vec::<f32>::try_from(self.values.to_device(Device::Cpu))
            .map_err(|error| AdapterError::Invalid(error.to_string()))?;
        let slice = |offset: i64, len: i64| &values[offset as usize..(offset + len) as usize];
        let mut tensors = Vec::new();
        for (group, part) in self.layout.parts() {
            let a_shape = vec![part.rank as usize, group.in_width as usize];
            let b_shape = vec![part.out_width as usize, part.rank as usize];
            let a = slice(part.a_offset, part.rank * group.in_width);
            let b = slice(part.b_offset, part.out_width * part.rank);
            tensors.push((weights::peft::lora_a_key(&part.module), a_shape, a));
            tensors.push((weights::peft::lora_b_key(&part.module), b_shape, b));
        }
        Ok(write_adapter(dir, &config, &tensors)?)
    }

    pub fn options(&self) -> &LoraOptions {
        &self.options
    }

    /// Trainable numbers.
    #[expect(clippy::len_without_is_empty, reason = "an adapter always has parameters")]
    pub fn len(&self) -> usize {
        self.layout.len as usize
    }

    /// The flat buffer `[len]`, f32. After writing to it, call [`Adapter::refresh`].
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Takes the values of another moment, `[len]`.
    pub fn set_values(&mut self, values: &Tensor) {
        no_grad(|| self.values.copy_(values));
        self.refresh();
    }

    /// Renews what is derived from the values.
    pub fn refresh(&mut self) {
        let scale = self.options.scale();
        no_grad(|| {
            for group in self.groups.iter().flatten().flatten() {
                for part in &group.layout.parts {
                    let block = b_block(&group.b, part);
                    block.shallow_clone().copy_(&(b_view(&self.values, part) * scale));
                }
            }
        });
    }

    /// Scale of the update: alpha / rank.
    pub(crate) fn scale(&self) -> f64 {
        self.options.scale()
    }

    pub(crate) fn group(&self, layer: usize, product: usize) -> Option<&Group> {
        self.groups[layer][product].as_ref()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn assemble(options: LoraOptions, layout: Layout, values: &[f32], device: Device) -> Self {
        let values = Tensor::from_slice(values).to_device(device);
        let group = |layout: &GroupLayout| Group {
            a: a_view(&values, layout),
            b: Tensor::zeros([layout.out_width, layout.rank], (Kind::Float, device)),
            layout: layout.clone(),
        };
        let groups = layout
            .layers
            .iter()
            .map(|products| products.each_ref().map(|layout| layout.as_ref().map(group)))
            .collect();
        let mut adapter = Self { options, layout, values, groups };
        adapter.refresh();
        adapter
    }
}

/// The stacked A matrices of a product, `[R, in]`.
pub(crate) fn a_view(flat: &Tensor, group: &GroupLayout) -> Tensor {
    flat.narrow(0, group.a_offset, group.rank * group.in_width).view([group.rank, group.in_width])
}

/// One linear's B, `[out, rank]`.
pub(crate) fn b_view(flat: &Tensor, part: &PartLayout) -> Tensor {
    flat.narrow(0, part.b_offset, part.out_width * part.rank).view([part.out_width, part.rank])
}

/// One linear's block of a product's block matrix.
fn b_block(b: &Tensor, part: &PartLayout) -> Tensor {
    b.narrow(0, part.out_start, part.out_width).narrow(1, part.rank_start, part.rank)
}

/// Gradients of an adapter's values, laid out alike.
#[derive(Debug)]
pub struct Gradients {
    flat: Tensor,
}

impl Gradients {
    pub fn zeros(adapter: &Adapter) -> Self {
        Self { flat: adapter.values.zeros_like() }
    }

    /// `[len]`, f32.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    pub fn zero(&mut self) {
        let _ = self.flat.zero_();
    }
}

/// Uniform numbers in [0, 1) by SplitMix64: tiny, and the same everywhere for ever.
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
