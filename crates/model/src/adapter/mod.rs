//! Adapters: what one run trains, as one flat vector, and its gradients.
//!
//! All trainable numbers live in one flat f32 buffer, so that the optimizer, the norm and a checkpoint see one
//! vector. The pass through the decoder uses views of it, or copies that `refresh` renews. There are several
//! kinds of adapters; each is a module here, and this one only tells them apart.

mod full;
mod lora;
mod score;
mod virtual_tokens;

use std::path::Path;
use std::rc::Rc;

use tch::{Device, Tensor, no_grad};
use thiserror::Error;
use weights::TensorFile;
use weights::peft::{AdapterConfig, LoraConfig, read_adapter, write_adapter};

use self::full::Full;
pub(crate) use self::full::{LayerParameters, Parameters, add_norm};
use self::lora::Lora;
pub use self::lora::LoraOptions;
pub(crate) use self::lora::{Dora, Group, a_view, b_view, magnitude_view};
pub use self::virtual_tokens::VirtualTokens;
pub(crate) use self::virtual_tokens::row_index;
use self::virtual_tokens::{Place, Rows};
use crate::decoder::Decoder;
use crate::layout::{GROUPS, Layout, StoredTensor};

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

/// What to train, and how.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterOptions {
    Lora(LoraOptions),
    /// Every weight of the model.
    Full,
    /// Prompt tuning: embeddings before each document.
    Prompt(VirtualTokens),
    /// Prefix tuning: keys and values in each layer before each document.
    Prefix(VirtualTokens),
}

/// The adapter of one run or of one tuned model.
#[derive(Debug)]
pub struct Adapter {
    values: Tensor,
    kind: Kind,
    /// Where the score head of a reward model begins in the flat buffer: behind everything else.
    score: Option<i64>,
}

#[derive(Debug)]
enum Kind {
    Lora(Lora),
    Full(Box<Full>),
    Virtual(Rows),
}

impl Adapter {
    /// A fresh adapter. The same seed gives the same numbers on every machine.
    ///
    /// # Errors
    /// For options out of range.
    pub fn init(
        decoder: &Decoder,
        options: &AdapterOptions,
        seed: u64,
    ) -> Result<Self, AdapterError> {
        let rows = |place, tokens| {
            no_grad(|| Rows::init(decoder, place, tokens, seed))
                .map(|(rows, values)| (Kind::Virtual(rows), values))
        };
        let (kind, values) = match options {
            AdapterOptions::Lora(options) => {
                let (lora, values) = Lora::init(decoder, options, seed)?;
                (Kind::Lora(lora), values)
            }
            AdapterOptions::Full => Self::whole(decoder, &decoder.folder)?,
            AdapterOptions::Prompt(tokens) => rows(Place::Prompt, tokens)?,
            AdapterOptions::Prefix(tokens) => rows(Place::Prefix, tokens)?,
        };
        Ok(Self { values, kind, score: None }.refreshed())
    }

    /// Reads an adapter folder in PEFT's format, or the folder of a whole tuned model.
    ///
    /// # Errors
    /// When the folder is damaged, asks for something that this decoder does not do, or has shapes that do
    /// not fit the model; the message names the tensor.
    pub fn load(decoder: &Decoder, dir: &Path) -> Result<Self, AdapterError> {
        if weights::is_model(dir) {
            let (kind, values) = Self::whole(decoder, dir)?;
            return Ok(Self { values, kind, score: None }.refreshed());
        }
        let (config, file) = read_adapter(dir)?;
        let rows = |place, config: &_| {
            Rows::load(decoder, place, config, &file)
                .map(|(rows, values)| (Kind::Virtual(rows), values, None))
        };
        let (kind, values, score) = match config {
            AdapterConfig::Lora(config) => {
                let scores = config.scores;
                let (lora, values) = Lora::load(decoder, config, &file)?;
                let score = scores.then_some(lora.layout.len);
                (Kind::Lora(lora), values, score)
            }
            AdapterConfig::Prompt(config) => rows(Place::Prompt, &config)?,
            AdapterConfig::Prefix(config) => rows(Place::Prefix, &config)?,
        };
        Ok(Self { values, kind, score }.refreshed())
    }

    fn whole(decoder: &Decoder, dir: &Path) -> Result<(Kind, Tensor), AdapterError> {
        let (full, values) = Full::load(decoder, dir)?;
        Ok((Kind::Full(Box::new(full)), values))
    }

    /// The model that computes instead of the base, when every weight is trained.
    pub(crate) fn decoder(&self) -> Option<&Decoder> {
        match &self.kind {
            Kind::Full(full) => Some(&full.decoder),
            Kind::Lora(_) | Kind::Virtual(_) => None,
        }
    }

    /// True for a whole model: as large as its base.
    pub fn is_full(&self) -> bool {
        self.decoder().is_some()
    }

    /// Writes `adapter_model.safetensors` and `adapter_config.json` into an existing folder; of a
    /// whole model, `model.safetensors` and all other files of a model folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, dir: &Path, base_model: &str) -> Result<(), AdapterError> {
        let config = match &self.kind {
            Kind::Full(full) => return full.save(dir, &self.values),
            Kind::Lora(lora) => AdapterConfig::Lora(LoraConfig {
                scores: self.is_reward(),
                ..lora.options.to_config(base_model)
            }),
            Kind::Virtual(rows) => {
                let config = rows.to_config(base_model);
                match rows.place {
                    Place::Prompt => AdapterConfig::Prompt(config),
                    Place::Prefix => AdapterConfig::Prefix(config),
                }
            }
        };
        let values = Vec::<f32>::try_from(self.values.to_device(Device::Cpu))
            .map_err(|error| AdapterError::Invalid(error.to_string()))?;
        let tensors: Vec<_> = self
            .adapter_tensors()
            .into_iter()
            .map(|tensor| {
                let shape = tensor.shape.iter().map(|&n| n as usize).collect();
                let range = tensor.range();
                (tensor.name, shape, &values[range])
            })
            .collect();
        Ok(write_adapter(dir, &config, &tensors)?)
    }

    /// The options of a LoRA adapter.
    pub fn lora(&self) -> Option<&LoraOptions> {
        match &self.kind {
            Kind::Lora(lora) => Some(&lora.options),
            Kind::Full(_) | Kind::Virtual(_) => None,
        }
    }

    /// Positions before every document that the adapter takes.
    pub fn virtual_tokens(&self) -> usize {
        self.rows().map_or(0, |rows| rows.count as usize)
    }

    /// Whether it changes what the weights compute. When not, it has done its part once a text has begun, and
    /// several may go on in one pass.
    pub fn changes_weights(&self) -> bool {
        matches!(self.kind, Kind::Lora(_) | Kind::Full(_))
    }

    /// Trainable numbers.
    #[expect(clippy::len_without_is_empty, reason = "an adapter always has parameters")]
    pub fn len(&self) -> usize {
        self.values.numel()
    }

    /// The tensors of the flat buffer, in their order.
    pub fn extents(&self) -> Vec<Extent> {
        if let Kind::Full(full) = &self.kind {
            return full.extents();
        }
        let extent = |tensor: StoredTensor| {
            let range = tensor.range();
            Extent { offset: range.start, len: range.len(), decays: true }
        };
        let mut extents: Vec<_> = self.adapter_tensors().into_iter().map(extent).collect();
        extents.sort_by_key(|extent| extent.offset);
        extents
    }

    /// The tensors of an adapter's file; a whole model has others.
    fn adapter_tensors(&self) -> Vec<StoredTensor> {
        let mut tensors = match &self.kind {
            Kind::Lora(lora) => lora.layout.tensors(),
            Kind::Virtual(rows) => rows.tensors(),
            Kind::Full(_) => Vec::new(),
        };
        tensors.extend(self.score_tensor());
        tensors
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
        match &mut self.kind {
            Kind::Lora(lora) => no_grad(|| lora.refresh(&self.values)),
            Kind::Full(full) => no_grad(|| full.refresh()),
            // Used as they are.
            Kind::Virtual(_) => {}
        }
    }

    fn refreshed(mut self) -> Self {
        self.refresh();
        self
    }

    /// What stands beside a product; none where nothing does.
    pub(crate) fn group(&self, layer: usize, product: usize) -> Option<&Group> {
        match &self.kind {
            Kind::Lora(lora) => lora.groups[layer][product].as_ref(),
            Kind::Full(_) | Kind::Virtual(_) => None,
        }
    }

    /// Where the matrices of linear layers stand in the flat buffer; none without any.
    pub(crate) fn layout(&self) -> Option<&Layout> {
        match &self.kind {
            Kind::Lora(lora) => Some(&lora.layout),
            Kind::Full(_) | Kind::Virtual(_) => None,
        }
    }

    /// The widest border of each product, over all layers.
    pub(crate) fn ranks(&self) -> [i64; GROUPS] {
        self.layout().map_or([0; GROUPS], Layout::ranks)
    }

    fn rows(&self) -> Option<&Rows> {
        match &self.kind {
            Kind::Virtual(rows) => Some(rows),
            Kind::Lora(_) | Kind::Full(_) => None,
        }
    }

    /// Whether embeddings are trained.
    pub(crate) fn has_prompt(&self) -> bool {
        self.rows().is_some_and(|rows| rows.place == Place::Prompt)
    }

    /// The embeddings `[P, D]` of virtual tokens as they enter the stream, from the flat values.
    pub(crate) fn prompt(&self, flat: &Tensor) -> Option<Tensor> {
        let rows = self.rows()?;
        rows.prompt(flat).map(|prompt| prompt * rows.scale)
    }

    /// The keys and values `[P, 2·KV]` of virtual tokens in a layer, from the flat values.
    pub(crate) fn prefix(&self, flat: &Tensor, layer: usize) -> Option<Tensor> {
        self.rows()?.prefix(flat, layer)
    }

    /// Adds the gradient of all copies of the embeddings, `[n·P, D]`.
    pub(crate) fn add_prompt_gradient(&self, copies: &Tensor, gradients: &mut Gradients) {
        let Some(rows) = self.rows() else { return };
        let Some(mut target) = rows.prompt(gradients.flat()) else { return };
        let copies = copies.view([-1, rows.count, copies.size()[1]]);
        let sum = copies.sum_dim_intlist([0i64].as_slice(), false, target.kind());
        let _ = target.g_add_(&(sum * rows.scale));
    }

    /// Adds the gradient of a layer's keys and values, `[P, 2·KV]`.
    pub(crate) fn add_prefix_gradient(
        &self,
        layer: usize,
        rows: &Tensor,
        gradients: &mut Gradients,
    ) {
        if let Some(mut target) = self.prefix(gradients.flat(), layer) {
            let _ = target.g_add_(rows);
        }
    }

    /// Sets the dropout of a LoRA adapter: a matter of training, not of what it computes.
    ///
    /// # Errors
    /// A share out of range, or beside weight decomposition.
    pub fn set_dropout(&mut self, dropout: f64) -> Result<(), AdapterError> {
        let Kind::Lora(lora) = &mut self.kind else { return Ok(()) };
        let options = LoraOptions { dropout, ..lora.options.clone() };
        options.check()?;
        lora.options = options;
        Ok(())
    }

    /// On the inputs of what stands beside products, while training.
    pub(crate) fn dropout(&self) -> f64 {
        self.lora().map_or(0.0, |options| options.dropout)
    }
}

/// The values of these tensors of a file, in the flat order: all that it has, and of the right shapes.
fn read_values(
    file: &TensorFile,
    tensors: &[StoredTensor],
    len: usize,
) -> Result<Vec<f32>, AdapterError> {
    let mut values = vec![0.0f32; len];
    for tensor in tensors {
        let found = file.get(&tensor.name)?.shape.clone();
        if !found.iter().map(|&n| n as i64).eq(tensor.shape.iter().copied()) {
            let (name, expected) = (&tensor.name, &tensor.shape);
            let message = format!("{name} has shape {found:?}, expected {expected:?}");
            return Err(AdapterError::Mismatch(message));
        }
        let data = file.get_f32(&tensor.name)?;
        values[tensor.range()].copy_from_slice(&data);
    }
    if file.len() != tensors.len() {
        let message = format!("it has {} tensors, expected {}", file.len(), tensors.len());
        return Err(AdapterError::Mismatch(message));
    }
    Ok(values)
}

/// A stretch of the flat buffer that is one tensor of the result. Extents follow each other without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: usize,
    pub len: usize,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// Gradients of an adapter's values, laid out alike.
#[derive(Debug)]
pub struct Gradients {
    flat: Tensor,
    /// Views of it, when every weight is trained.
    whole: Option<Rc<Parameters>>,
}

impl Gradients {
    pub fn zeros(adapter: &Adapter) -> Self {
        let flat = adapter.values.zeros_like();
        let whole = match &adapter.kind {
            Kind::Full(full) => Some(Rc::new(full.gradients(&flat))),
            Kind::Lora(_) | Kind::Virtual(_) => None,
        };
        Self { flat, whole }
    }

    /// Those of every weight, when all are trained.
    pub(crate) fn whole(&self) -> Option<Rc<Parameters>> {
        self.whole.clone()
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
