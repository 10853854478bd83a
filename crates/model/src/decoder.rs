//! The decoder: embedding, layers, final norm, head; its training pass and its evaluation.
//!
//! There is no autograd: the backward pass is written out, over buffers that are allocated once. The same
//! pass in plain tch with autograd is in `reference`, and the tests compare the two. What follows the last
//! layer is in `head`.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::path::{Path, PathBuf};

use kernels::{Compact, Rotary, Segments, TargetLog};
use tch::{Device, Kind, Tensor, no_grad};

use crate::activations::{Activations, Keep, Recompute};
use crate::adapter::{Adapter, Gradients, row_index};
use crate::arrangement::Arrangement;
use crate::batch::{Batch, BatchError, LossSum};
use crate::form::{Form, Quantization};
use crate::head::Groups;
use crate::layer::{Context, Layer, Pass};
use crate::layout::GROUPS;
use crate::linear::{Dropout, Linear};
use crate::load::{self, LoadError};
use crate::spec::{DecoderSpec, RopeScaling};

/// How a training pass is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassOptions {
    /// What gradients are multiplied by: 1 over the target tokens of the whole optimizer step, so that
    /// micro-batches add up to the mean over its targets.
    pub scale: f64,
    /// Of this micro-batch of this step.
    pub dropout_seed: u64,
    pub recompute: Recompute,
}

impl PassOptions {
    /// Without recomputation.
    pub fn new(scale: f64, dropout_seed: u64) -> Self {
        Self { scale, dropout_seed, recompute: Recompute::Nothing }
    }
}

/// A frozen base model on one device.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) spec: DecoderSpec,
    /// Where it was loaded from.
    pub(crate) folder: PathBuf,
    pub(crate) device: Device,
    /// `[V, D]`
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    /// The final norm's weight, times the factor on logits.
    pub(crate) norm: Tensor,
    /// `[V, D]`; the embedding itself when tied.
    pub(crate) head: Tensor,
    /// One for each of the spec's kinds of rotation.
    pub(crate) rotary: Vec<Rotary>,
    pub(crate) positions: usize,
    pub(crate) parameters: u64,
    pub(crate) form: Form,
    /// The head for few rows, as the linears have theirs.
    pub(crate) compact_head: OnceCell<Option<Compact>>,
    /// Buffers of training passes and of evaluations, kept from batch to batch.
    pub(crate) training: RefCell<Option<Activations>>,
    pub(crate) evaluation: RefCell<Option<Activations>>,
}

impl Decoder {
    /// Loads a model folder in Hugging Face's layout.
    ///
    /// # Errors
    /// When a file is missing or damaged, the family is not supported, or a tensor has the wrong shape.
    pub fn load(dir: &Path, device: Device) -> Result<Self, LoadError> {
        Self::load_as(dir, device, Form::default())
    }

    /// Loads a model folder in the form that is asked for. The same folder always gives the same weights.
    ///
    /// # Errors
    /// As [`Decoder::load`].
    pub fn load_as(dir: &Path, device: Device, form: impl Into<Form>) -> Result<Self, LoadError> {
        load::load(dir, device, form.into())
    }

    /// A model with random weights of the device's own generator, from the text of a `config.json`: for checks and
    /// measurements of shapes that no file is at hand of.
    ///
    /// # Errors
    /// When the family or an option of it is not supported.
    pub fn random(config: &str, device: Device, form: Form) -> Result<Self, LoadError> {
        load::random(config, device, form)
    }

    pub fn form(&self) -> Form {
        self.form
    }

    pub fn quantization(&self) -> Quantization {
        self.form.quantization
    }

    /// The type of weights, activations and caches.
    pub(crate) fn kind(&self) -> Kind {
        self.form.precision.kind()
    }

    /// Bytes of the linear layers' weights.
    pub fn linear_bytes(&self) -> usize {
        let products = self.layers.iter().flat_map(|layer| (0..GROUPS).map(|n| layer.linear(n)));
        products.map(|linear| linear.weight.bytes()).sum()
    }

    /// Bytes of the weights' forms for few rows, which the first answer makes.
    pub fn compact_bytes(&self) -> usize {
        let head = self.compact_head.get().and_then(Option::as_ref).map_or(0, Compact::bytes);
        let products = self.layers.iter().flat_map(|layer| (0..GROUPS).map(|n| layer.linear(n)));
        products.map(Linear::compact_bytes).sum::<usize>() + head
    }

    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Positions that can be computed: the context length, up to a limit.
    pub fn positions(&self) -> usize {
        self.positions
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Numbers in the base model.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Loss of a batch, and its gradients added to `gradients`.
    ///
    /// # Errors
    /// When the batch contradicts itself or the model; nothing has been computed then.
    pub fn forward_backward(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        gradients: &mut Gradients,
        options: PassOptions,
    ) -> Result<LossSum, BatchError> {
        let decoder = self.under(Some(adapter));
        decoder.training_pass(batch, adapter, gradients, options, |batch, hidden, head| {
            decoder.head_backward(batch, hidden, options.scale, head)
        })
    }

    /// The form for losses that are functions of the targets' log-probabilities, such as those of pairs. The
    /// targets come in groups, which end at `ends` and whose losses are apart: `coefficients` gets a group's
    /// number and its log-probabilities, group by group, and answers −∂loss/∂log p for each of them.
    ///
    /// # Errors
    /// As [`Decoder::forward_backward`].
    pub fn forward_backward_with(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        gradients: &mut Gradients,
        options: PassOptions,
        groups: Groups<'_>,
    ) -> Result<(), BatchError> {
        let decoder = self.under(Some(adapter));
        decoder.training_pass(batch, adapter, gradients, options, |batch, hidden, head| {
            decoder.head_backward_with(batch, hidden, options.scale, groups, head);
        })
    }

    /// What computes with this adapter: this model, or the adapter itself when it is a whole one.
    pub(crate) fn under<'a>(&'a self, adapter: Option<&'a Adapter>) -> &'a Self {
        adapter.and_then(Adapter::decoder).unwrap_or(self)
    }

    /// The same model with other layers, embedding and head, and with a final norm that is still to be
    /// filled.
    pub(crate) fn with_layers(&self, layers: Vec<Layer>, embedding: Tensor, head: Tensor) -> Self {
        let rotary = self.rotary.iter().map(|rotary| Rotary {
            cos: rotary.cos.shallow_clone(),
            sin: rotary.sin.shallow_clone(),
            head_dim: rotary.head_dim,
        });
        Self {
            spec: self.spec.clone(),
            folder: self.folder.clone(),
            device: self.device,
            embedding,
            layers,
            norm: self.norm.empty_like(),
            head,
            compact_head: OnceCell::new(),
            rotary: rotary.collect(),
            positions: self.positions,
            parameters: self.parameters,
            form: self.form,
            training: RefCell::new(None),
            evaluation: RefCell::new(None),
        }
    }

    /// Forgets the weights' forms for few rows, because the weights themselves have changed.
    pub(crate) fn forget_compact(&mut self) {
        self.compact_head = OnceCell::new();
        for layer in &mut self.layers {
            for linear in [&mut layer.qkv, &mut layer.o, &mut layer.gate_up, &mut layer.down] {
                linear.forget_compact();
            }
        }
    }

    /// Forward, the head's part on the last hidden state (it writes that state's gradient), backward.
    pub(crate) fn training_pass<R>(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        gradients: &mut Gradients,
        options: PassOptions,
        head: impl FnOnce(&Batch, &Tensor, (&Tensor, &Gradients)) -> R,
    ) -> Result<R, BatchError> {
        let arrangement = self.arrange(batch, Some(adapter))?;
        let batch = &*arrangement.batch;
        let rate = adapter.dropout();
        let dropout = (rate > 0.0).then_some(Dropout { rate, seed: options.dropout_seed });
        let (segments, rotary_rows) = (arrangement.segments(), self.rotary_rows(batch));
        let pass =
            Pass { dropout, ..self.pass(&arrangement, &segments, &rotary_rows, Some(adapter)) };
        let keep = Keep::ForBackward(options.recompute);
        let extra = arrangement.prefix_rows;
        let buffers = self.buffers(&self.training, (batch.tokens(), extra), Some(adapter), keep);
        no_grad(|| {
            self.forward(&batch.input_ids, &buffers, &pass);
            let dh = &buffers.scratch.dh;
            let loss = head(batch, buffers.hidden(self.layers.len()), (dh, gradients));
            for (index, layer) in self.layers.iter().enumerate().rev() {
                let (input, kept) = (buffers.hidden(index), buffers.layer(index));
                // The last layer's are still there.
                if index + 1 < self.layers.len() {
                    let recompute = options.recompute;
                    layer.restore(index, input, kept, &buffers.scratch, &pass, recompute);
                }
                layer.backward(index, input, kept, &buffers.scratch, &pass, gradients);
            }
            if let Some(whole) = gradients.whole() {
                let ids = Tensor::from_slice(&batch.input_ids).to_device(self.device);
                whole.add_embedding(&ids, dh, self.spec.embedding_scale);
            }
            if !arrangement.prompt_rows.is_empty() {
                let rows = row_index(&arrangement.prompt_rows, self.device);
                adapter.add_prompt_gradient(&dh.index_select(0, &rows), gradients);
            }
            Ok(loss)
        })
    }

    /// Loss of a batch, without dropout.
    ///
    /// # Errors
    /// As [`Decoder::forward_backward`].
    pub fn evaluate(
        &self,
        batch: &Batch,
        adapter: Option<&Adapter>,
    ) -> Result<LossSum, BatchError> {
        let decoder = self.under(adapter);
        let (hidden, arrangement) = decoder.hidden_states(batch, adapter)?;
        no_grad(|| Ok(decoder.head_loss(&arrangement.batch, &hidden)))
    }

    /// log p of every target of a batch, in their order, without dropout.
    ///
    /// # Errors
    /// As [`Decoder::forward_backward`].
    pub fn target_logs(
        &self,
        batch: &Batch,
        adapter: Option<&Adapter>,
    ) -> Result<Vec<TargetLog>, BatchError> {
        let decoder = self.under(adapter);
        let (hidden, arrangement) = decoder.hidden_states(batch, adapter)?;
        Ok(no_grad(|| decoder.head_logs(&arrangement.batch, &hidden)))
    }

    /// Logits of every row of a batch, `[T, V]`: for tests and analysis, not for training.
    ///
    /// # Errors
    /// As [`Decoder::forward_backward`].
    pub fn logits(&self, batch: &Batch, adapter: Option<&Adapter>) -> Result<Tensor, BatchError> {
        let decoder = self.under(adapter);
        let (hidden, arrangement) = decoder.hidden_states(batch, adapter)?;
        let hidden = match arrangement.own_rows() {
            Some(rows) => hidden.index_select(0, &row_index(&rows, self.device)),
            None => hidden,
        };
        Ok(no_grad(|| decoder.head_logits(&decoder.final_norm(&hidden).0)))
    }

    /// The last hidden states, of the batch as it was arranged.
    pub(crate) fn hidden_states<'a>(
        &self,
        batch: &'a Batch,
        adapter: Option<&Adapter>,
    ) -> Result<(Tensor, Arrangement<'a>), BatchError> {
        let arrangement = self.arrange(batch, adapter)?;
        let batch = &*arrangement.batch;
        let rows = (batch.tokens(), arrangement.prefix_rows);
        let buffers = self.buffers(&self.evaluation, rows, adapter, Keep::Nothing);
        let (segments, rotary_rows) = (arrangement.segments(), self.rotary_rows(batch));
        let pass = self.pass(&arrangement, &segments, &rotary_rows, adapter);
        no_grad(|| self.forward(&batch.input_ids, &buffers, &pass));
        Ok((buffers.hidden(self.layers.len()).shallow_clone(), arrangement))
    }

    /// Checks a batch and puts it behind the adapter's virtual tokens.
    fn arrange<'a>(
        &self,
        batch: &'a Batch,
        adapter: Option<&Adapter>,
    ) -> Result<Arrangement<'a>, BatchError> {
        let taken = adapter.map_or(0, Adapter::virtual_tokens);
        batch.check(self.spec.vocab_size, self.positions.saturating_sub(taken))?;
        Ok(Arrangement::new(batch, adapter))
    }

    pub(crate) fn forward(&self, ids: &[i64], buffers: &Activations, pass: &Pass<'_>) {
        let ids = Tensor::from_slice(ids).to_device(self.device);
        let _ = self.embedding.index_select_out(buffers.hidden(0), 0, &ids);
        if self.spec.embedding_scale != 1.0 {
            let _ = buffers.hidden(0).shallow_clone().g_mul_scalar_(self.spec.embedding_scale);
        }
        if !pass.prompt_rows.is_empty()
            && let Some(prompt) = pass.adapter.and_then(|adapter| adapter.prompt(adapter.values()))
        {
            let copies = pass.prompt_rows.len() as i64 / prompt.size()[0];
            let rows = row_index(pass.prompt_rows, self.device);
            let mut stream = buffers.hidden(0).shallow_clone();
            let copies = prompt.repeat([copies, 1]).to_kind(self.kind());
            let _ = stream.index_copy_(0, &rows, &copies);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let (input, output) = (buffers.hidden(index), buffers.hidden(index + 1));
            layer.forward(index, input, output, buffers.layer(index), &buffers.scratch, pass);
        }
    }

    /// Whether the kernels' forms for the CPU apply.
    pub(crate) fn computes_f32_on_cpu(&self) -> bool {
        self.device == Device::Cpu && self.embedding.kind() == Kind::Float
    }

    fn pass<'a>(
        &'a self,
        arrangement: &'a Arrangement<'_>,
        segments: &'a Segments,
        rotary_rows: &'a [i64],
        adapter: Option<&'a Adapter>,
    ) -> Pass<'a> {
        Pass {
            context: Context::Batch(segments),
            rotary_rows,
            rotary: &self.rotary,
            eps: self.spec.rms_norm_eps,
            adapter,
            prompt_rows: &arrangement.prompt_rows,
            dropout: None,
            few: false,
        }
    }

    /// True when a text of so many tokens is rotated as a long one.
    pub(crate) fn is_long(&self, tokens: usize) -> bool {
        self.spec.rotary.iter().any(|rotary| match rotary.scaling {
            RopeScaling::LongRope { original_max_position_embeddings: original, .. } => {
                tokens > original
            }
            _ => false,
        })
    }

    /// Row of the rotary tables: those of long texts stand behind the others.
    pub(crate) fn rotary_row(&self, position: i64, long: bool) -> i64 {
        if long { position + self.positions as i64 } else { position }
    }

    /// Rows of the rotary tables of a batch, each document by its own length; of those that share a beginning,
    /// the longest decides.
    pub(crate) fn rotary_rows<'a>(&self, batch: &'a Batch) -> Cow<'a, [i64]> {
        let longest = batch.positions.iter().max().map_or(0, |&position| position as usize + 1);
        if !self.is_long(longest) {
            return Cow::Borrowed(&batch.positions);
        }
        let positions = |document: usize| {
            &batch.positions
                [batch.cu_seqlens[document] as usize..batch.cu_seqlens[document + 1] as usize]
        };
        let beginning = |document: usize| batch.continued(document).unwrap_or(document);
        let mut is_long = vec![false; batch.documents()];
        for document in 0..batch.documents() {
            let end = positions(document).iter().max().map_or(0, |&last| last as usize + 1);
            is_long[beginning(document)] |= self.is_long(end);
        }
        let rows = (0..batch.documents()).flat_map(|document| {
            let long = is_long[beginning(document)];
            positions(document).iter().map(move |&position| self.rotary_row(position, long))
        });
        Cow::Owned(rows.collect())
    }

    /// Buffers cut to so many tokens, with so many rows of keys and values behind them; from `kept` when those
    /// are large enough.
    pub(crate) fn buffers(
        &self,
        kept: &RefCell<Option<Activations>>,
        (tokens, extra): (usize, usize),
        adapter: Option<&Adapter>,
        keep: Keep,
    ) -> Activations {
        let mut kept = kept.borrow_mut();
        if !kept.as_ref().is_some_and(|buffers| buffers.fits(tokens, adapter, keep)) {
            // Freed before the larger ones are made: never both at once.
            *kept = None;
        }
        kept.get_or_insert_with(|| Activations::new(self, tokens, adapter, keep)).cut(tokens, extra)
    }
}
