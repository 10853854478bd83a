//! Virtual tokens that stand before every document: their embeddings are trained (prompt tuning), or their
//! keys and values in every layer (prefix tuning). The weights of the model are used as they are.
//!
//! Real tokens take the positions behind them. Files and numbers are PEFT's.

use tch::{Device, Tensor};
use weights::TensorFile;
use weights::peft::{VIRTUAL_TOKENS_KEY, VirtualTokensConfig};

use super::{AdapterError, Uniform, read_values};
use crate::decoder::Decoder;
use crate::generate::KvCache;
use crate::layout::StoredTensor;
use crate::spec::DecoderSpec;

/// More than any use needs; one pass computes all of them at once.
const MAX_TOKENS: i64 = 4096;

/// How many, and what they are at first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualTokens {
    pub count: i64,
    /// Token ids whose embeddings, or keys and values, they start with: cut, or repeated, to the count. None:
    /// tokens that are drawn from the vocabulary.
    pub init: Vec<i64>,
}

/// What of the virtual tokens is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Embeddings, `[D]` of each.
    Prompt,
    /// The key and the value in each layer, `[L, 2, KV]` of each.
    Prefix,
}

/// The rows of the flat buffer: `[count, width]`.
#[derive(Debug)]
pub(super) struct Rows {
    pub place: Place,
    pub count: i64,
    layers: i64,
    width: i64,
    heads: i64,
    /// What embeddings are multiplied by on their way into the stream.
    pub scale: f64,
}

impl Rows {
    fn new(spec: &DecoderSpec, place: Place, count: i64) -> Result<Self, AdapterError> {
        let most = MAX_TOKENS.min(spec.max_position_embeddings as i64 - 1);
        if !(1..=most).contains(&count) {
            let message = format!("{count} virtual tokens are outside 1–{most}");
            return Err(AdapterError::Invalid(message));
        }
        let (layers, kv) = (spec.num_hidden_layers as i64, spec.kv_width() as i64);
        Ok(match place {
            Place::Prompt => Self {
                place,
                count,
                layers,
                width: spec.hidden_size as i64,
                heads: spec.num_attention_heads as i64,
                scale: prompt_scale(spec),
            },
            Place::Prefix => Self {
                place,
                count,
                layers,
                width: 2 * layers * kv,
                heads: spec.num_key_value_heads as i64,
                scale: 1.0,
            },
        })
    }

    /// Fresh rows, which start as real tokens.
    pub fn init(
        decoder: &Decoder,
        place: Place,
        options: &VirtualTokens,
        seed: u64,
    ) -> Result<(Self, Tensor), AdapterError> {
        let rows = Self::new(decoder.spec(), place, options.count)?;
        let vocabulary = decoder.spec().vocab_size as i64;
        let count = options.count as usize;
        let ids: Vec<i64> = if options.init.is_empty() {
            let mut random = Uniform(seed);
            // Below the vocabulary's size, because numbers are below 1.
            (0..count).map(|_| (random.next() * vocabulary as f64) as i64).collect()
        } else {
            options.init.iter().copied().cycle().take(count).collect()
        };
        if let Some(id) = ids.iter().find(|id| !(0..vocabulary).contains(*id)) {
            return Err(AdapterError::Invalid(format!("unknown token id {id} to start from")));
        }
        let wide = kernels::wide_kind(decoder.kind());
        let values = match place {
            Place::Prompt => {
                let index = Tensor::from_slice(&ids).to_device(decoder.device());
                let rows_of_table = decoder.embedding.index_select(0, &index);
                rows_of_table.to_kind(wide) * (decoder.spec().embedding_scale / rows.scale)
            }
            Place::Prefix => {
                // As if these tokens stood there.
                let mut cache = KvCache::new(decoder, count, None);
                let _ = decoder.extend(&mut cache, &ids, None);
                let layers: Vec<Tensor> =
                    (0..decoder.spec().num_hidden_layers).map(|layer| cache.rows(layer)).collect();
                Tensor::cat(&layers, 1)
            }
        };
        Ok((rows, values.to_kind(wide).reshape([-1]).contiguous()))
    }

    /// The rows of an opened folder.
    pub fn load(
        decoder: &Decoder,
        place: Place,
        config: &VirtualTokensConfig,
        file: &TensorFile,
    ) -> Result<(Self, Tensor), AdapterError> {
        let rows = Self::new(decoder.spec(), place, i64::from(config.num_virtual_tokens))?;
        let len = (rows.count * rows.width) as usize;
        let values = read_values(file, &rows.tensors(), len)?;
        let values = Tensor::from_slice(&values).to_kind(kernels::wide_kind(decoder.kind()));
        Ok((rows, values.to_device(decoder.device())))
    }

    pub fn tensors(&self) -> Vec<StoredTensor> {
        let shape = vec![self.count, self.width];
        vec![StoredTensor { name: VIRTUAL_TOKENS_KEY.to_owned(), shape, offset: 0 }]
    }

    pub fn to_config(&self, base_model: &str) -> VirtualTokensConfig {
        let (peft_type, token_dim) = match self.place {
            Place::Prompt => ("PROMPT_TUNING", self.width),
            Place::Prefix => ("PREFIX_TUNING", self.width / (2 * self.layers)),
        };
        VirtualTokensConfig {
            peft_type: peft_type.to_owned(),
            task_type: Some("CAUSAL_LM".to_owned()),
            base_model_name_or_path: Some(base_model.to_owned()),
            num_virtual_tokens: self.count as u32,
            token_dim: Some(token_dim as u32),
            num_attention_heads: Some(self.heads as u32),
            num_layers: Some(self.layers as u32),
            num_transformer_submodules: Some(1),
        }
    }

    /// The embeddings, `[count, D]`, of the flat values or of their gradient; none of a prefix.
    pub fn prompt(&self, flat: &Tensor) -> Option<Tensor> {
        (self.place == Place::Prompt).then(|| flat.view([self.count, self.width]))
    }

    /// A layer's keys and values, `[count, 2·KV]`, of the flat values or of their gradient; none of a prompt.
    pub fn prefix(&self, flat: &Tensor, layer: usize) -> Option<Tensor> {
        let width = self.width / self.layers;
        let view = || flat.view([self.count, self.layers, width]).select(1, layer as i64);
        (self.place == Place::Prefix).then(view)
    }
}

/// transformers takes Gemma's factor to be part of its table, so that embeddings from elsewhere have it in
/// them, and multiplies Granite's stream with all that is in it.
fn prompt_scale(spec: &DecoderSpec) -> f64 {
    if spec.model_type == "granite" { spec.embedding_scale } else { 1.0 }
}

/// Rows numbers `[N]` on a device.
pub(crate) fn row_index(rows: &[i64], device: Device) -> Tensor {
    Tensor::from_slice(rows).to_device(device)
}
