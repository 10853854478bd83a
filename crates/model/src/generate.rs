//! Generation: new tokens through the decoder over a cache of keys and values.

use kernels::{AttentionShape, CacheEnd, attend_caches};
use tch::{Device, IndexOp, Tensor, no_grad};

use crate::activations::Keep;
use crate::adapter::Adapter;
use crate::decoder::Decoder;
use crate::layer::{Context, Pass};

/// Keys and values of the tokens so far, per layer `[capacity, KV]`.
#[derive(Debug)]
pub struct KvCache {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    /// Rows in use, those before the text included.
    len: usize,
    capacity: usize,
    /// Rows before the text: an adapter's virtual tokens.
    before: usize,
    /// Rotates as in texts that are longer than the context that the model was first trained with.
    long: bool,
}

impl KvCache {
    /// A cache without text, with room for `capacity` tokens (at most the context length is used); the virtual
    /// tokens of the adapter, if it has any, are in it and not counted. Where rotation depends on the length of
    /// the text, the room that was asked for at first decides.
    pub fn new(decoder: &Decoder, capacity: usize, adapter: Option<&Adapter>) -> Self {
        let before = adapter.map_or(0, Adapter::virtual_tokens);
        let mut cache = Self::empty(decoder, before + capacity, before);
        if let Some(adapter) = adapter.filter(|_| before > 0) {
            no_grad(|| decoder.begin(&mut cache, adapter));
        }
        cache
    }

    fn empty(decoder: &Decoder, capacity: usize, before: usize) -> Self {
        let capacity = capacity.min(decoder.positions());
        let shape = [capacity as i64, decoder.spec.kv_width() as i64];
        let buffers = || {
            (0..decoder.spec.num_hidden_layers)
                .map(|_| Tensor::empty(shape, (decoder.kind(), decoder.device)))
                .collect()
        };
        let long = decoder.is_long(capacity);
        Self { keys: buffers(), values: buffers(), len: 0, capacity, before, long }
    }

    /// Tokens of text in the cache.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.len - self.before
    }

    /// Tokens of text that it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity - self.before
    }

    /// Keys and values of a layer, `[rows in use, 2·KV]`.
    pub(crate) fn rows(&self, layer: usize) -> Tensor {
        let rows =
            [&self.keys[layer], &self.values[layer]].map(|t| t.narrow(0, 0, self.len as i64));
        Tensor::cat(&rows, 1)
    }

    /// A copy with room for `capacity` tokens: to grow, or to go on from one prompt several times.
    pub fn with_capacity(&self, decoder: &Decoder, capacity: usize) -> Self {
        let capacity = (self.before + capacity).max(self.len);
        let mut copy = Self::empty(decoder, capacity, self.before);
        (copy.len, copy.long) = (self.len, self.long);
        let rows = self.len as i64;
        let pairs = copy.keys.iter().zip(&self.keys).chain(copy.values.iter().zip(&self.values));
        for (to, from) in pairs {
            no_grad(|| to.i(..rows).copy_(&from.i(..rows)));
        }
        copy
    }
}

/// The ends of caches, to which a pass appends: each takes its number of the pass's rows, in order.
pub(crate) struct CacheEnds<'a>(Vec<(&'a KvCache, usize)>);

impl CacheEnds<'_> {
    /// Appends a layer's new keys and values and lets the new queries see all of their own cache.
    ///
    /// Shapes: qkv `[N, Q + 2·KV]` after rotation; out `[N, Q]`.
    pub fn attend(&self, layer: usize, qkv: &Tensor, shape: AttentionShape, out: &Tensor) {
        let ends = self.0.iter().map(|&(cache, rows)| CacheEnd {
            keys: &cache.keys[layer],
            values: &cache.values[layer],
            cached: cache.len,
            rows,
        });
        attend_caches(qkv, &ends.collect::<Vec<_>>(), shape, out);
    }
}

/// Prompt tokens per pass: bounds the memory of a long prompt.
const PREFILL: usize = 1024;

/// Tokens of a pass up to which its products read compact weights; for more, libtorch's are faster.
const FEW_ROWS: usize = 64;

impl Decoder {
    /// Appends `ids` to the cache and answers the logits after the last of them: f32 `[V]`, on the CPU.
    ///
    /// # Panics
    /// When `ids` is empty, an id is outside the vocabulary, or the cache has no room; callers check first.
    pub fn extend(&self, cache: &mut KvCache, ids: &[i64], adapter: Option<&Adapter>) -> Tensor {
        let decoder = self.under(adapter);
        no_grad(|| {
            let last = self.read(cache, ids, adapter);
            decoder.head_logits_few(&decoder.final_norm(&last).0).view(-1).to_device(Device::Cpu)
        })
    }

    /// Appends `ids` to the cache and answers the logits after each of them: f32 rows, on the CPU. They take
    /// memory for the whole vocabulary per row, so `ids` should be few; panics as [`extend`](Self::extend).
    pub fn extend_rows(
        &self,
        cache: &mut KvCache,
        ids: &[i64],
        adapter: Option<&Adapter>,
    ) -> Vec<Vec<f32>> {
        let decoder = self.under(adapter);
        let logits = no_grad(|| {
            let hidden = self.read_each(cache, ids, adapter);
            decoder.head_logits_few(&decoder.final_norm(&hidden).0).to_device(Device::Cpu)
        });
        let row = |row| Vec::try_from(logits.i(row)).expect("logits are f32 rows");
        (0..ids.len() as i64).map(row).collect()
    }

    /// Appends `ids` to the cache and answers the hidden state after the last of them, `[1, D]`; panics as
    /// [`extend`](Self::extend).
    pub(crate) fn read(
        &self,
        cache: &mut KvCache,
        ids: &[i64],
        adapter: Option<&Adapter>,
    ) -> Tensor {
        assert!(!ids.is_empty(), "nothing to append");
        self.check_append(cache, ids);
        let decoder = self.under(adapter);
        let mut last = Tensor::new();
        for part in ids.chunks(PREFILL) {
            last = decoder.extend_part(cache, part, adapter);
        }
        last
    }

    /// Appends `ids` to the cache and answers the hidden state after each of them, `[N, D]`; panics as
    /// [`extend`](Self::extend). All of them are held at once, so `ids` should be few.
    pub(crate) fn read_each(
        &self,
        cache: &mut KvCache,
        ids: &[i64],
        adapter: Option<&Adapter>,
    ) -> Tensor {
        self.check_append(cache, ids);
        let decoder = self.under(adapter);
        let hidden = decoder.append(vec![(&*cache, ids.len())], ids, adapter, &[]);
        cache.len += ids.len();
        hidden
    }

    /// Appends one token to each of several caches in one pass, and answers the logits after each: f32
    /// `[V]`, on the CPU. They are those of [`extend`](Self::extend) but for the last bits, because
    /// products of several rows are summed in another order.
    ///
    /// # Panics
    /// As [`extend`](Self::extend).
    pub fn extend_each(
        &self,
        inputs: &mut [(&mut KvCache, i64)],
        adapter: Option<&Adapter>,
    ) -> Vec<Vec<f32>> {
        for (cache, id) in inputs.iter() {
            self.check_append(cache, &[*id]);
        }
        let ids: Vec<i64> = inputs.iter().map(|(_, id)| *id).collect();
        let decoder = self.under(adapter);
        let logits = no_grad(|| {
            let ends = inputs.iter().map(|(cache, _)| (&**cache, 1)).collect();
            let hidden = decoder.append(ends, &ids, adapter, &[]);
            decoder.head_logits_few(&decoder.final_norm(&hidden).0).to_device(Device::Cpu)
        });
        for (cache, _) in inputs.iter_mut() {
            cache.len += 1;
        }
        let row = |row| Vec::try_from(logits.i(row)).expect("logits are f32 rows");
        (0..ids.len() as i64).map(row).collect()
    }

    /// Puts an adapter's virtual tokens into an empty cache.
    fn begin(&self, cache: &mut KvCache, adapter: &Adapter) {
        let count = adapter.virtual_tokens();
        assert!(count <= cache.capacity, "no room for the adapter's virtual tokens");
        if adapter.has_prompt() {
            let rows: Vec<i64> = (0..count as i64).collect();
            // Any ids will do: the embeddings are overwritten.
            let _ = self.append(vec![(&*cache, count)], &vec![0; count], Some(adapter), &rows);
        } else {
            for layer in 0..self.layers.len() {
                let prefix = adapter.prefix(adapter.values(), layer);
                let Some(prefix) = prefix else { continue };
                let parts = prefix.chunk(2, 1);
                for (cached, part) in [&cache.keys, &cache.values].into_iter().zip(&parts) {
                    cached[layer].narrow(0, 0, count as i64).copy_(part);
                }
            }
        }
        cache.len = count;
    }

    fn check_append(&self, cache: &KvCache, ids: &[i64]) {
        assert!(cache.len + ids.len() <= cache.capacity, "the cache is full");
        let in_vocabulary = |id: &i64| (*id as u64) < self.spec.vocab_size as u64;
        assert!(ids.iter().all(in_vocabulary), "unknown token id");
    }

    /// Hidden state of the last of `ids`, `[1, D]`.
    fn extend_part(&self, cache: &mut KvCache, ids: &[i64], adapter: Option<&Adapter>) -> Tensor {
        let hidden = self.append(vec![(&*cache, ids.len())], ids, adapter, &[]);
        cache.len += ids.len();
        hidden.i(ids.len() as i64 - 1..)
    }

    /// Hidden states of `ids`, `[N, D]`, whose keys and values are written behind these caches' ends.
    fn append(
        &self,
        ends: Vec<(&KvCache, usize)>,
        ids: &[i64],
        adapter: Option<&Adapter>,
        prompt_rows: &[i64],
    ) -> Tensor {
        let rows = |(cache, rows): &(&KvCache, usize)| {
            let (start, long) = (cache.len as i64, cache.long);
            (start..start + *rows as i64).map(move |position| self.rotary_row(position, long))
        };
        let rotary_rows: Vec<i64> = ends.iter().flat_map(rows).collect();
        let pass = Pass {
            context: Context::Caches(CacheEnds(ends)),
            rotary_rows: &rotary_rows,
            rotary: &self.rotary,
            eps: self.spec.rms_norm_eps,
            adapter,
            prompt_rows,
            dropout: None,
            few: self.computes_f32_on_cpu() && ids.len() <= FEW_ROWS,
        };
        let buffers = self.buffers(&self.evaluation, (ids.len(), 0), adapter, Keep::Nothing);
        self.forward(ids, &buffers, &pass);
        buffers.hidden(self.layers.len()).shallow_clone()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::Kind;

    use super::*;
    use crate::adapter::AdapterOptions;
    use crate::batch::Batch;
    use crate::weight::Weight;

    /// A tiny model whose weights are numbers of half the bytes, as those of most checkpoints are.
    fn rounded(folder: &Path) -> Decoder {
        let round = |t: &Tensor| t.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        let mut decoder = Decoder::load(&folder.join("model"), Device::Cpu).unwrap();
        for layer in &mut decoder.layers {
            for linear in [&mut layer.qkv, &mut layer.o, &mut layer.gate_up, &mut layer.down] {
                let Weight::Dense(weight) = &linear.weight else { panic!("a dense model") };
                linear.weight = Weight::Dense(round(weight));
            }
        }
        decoder.head = round(&decoder.head);
        decoder
    }

    /// The fixtures' weights are f32 in earnest, so that their products of few rows are not compact.
    #[test]
    fn compact_weights_give_the_logits_of_the_whole_pass() {
        for name in ["llama-tied", "qwen2", "gemma2", "phi3", "dora"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
            let decoder = rounded(&folder);
            let adapter = Adapter::load(&decoder, &folder.join("adapter")).unwrap();
            for adapter in [None, Some(&adapter)] {
                let ids = [5, 3, 17, 8, 2, 40, 9, 11, 6];
                let (positions, cu_seqlens) = ((0..9).collect(), vec![0, 9]);
                let batch =
                    Batch { input_ids: ids.to_vec(), positions, cu_seqlens, ..Batch::default() };
                let whole = decoder.logits(&batch, adapter).unwrap();
                let mut cache = KvCache::new(&decoder, 16, adapter);
                for (rows, last) in [(0..4, 3), (4..5, 4), (5..9, 8)] {
                    let logits = decoder.extend(&mut cache, &ids[rows], adapter);
                    let error = (logits - whole.i(last)).abs().max() / whole.abs().max();
                    assert!(error.double_value(&[]) < 2e-6, "{name}, row {last}");
                }
            }
            let weights = decoder.linear_bytes() + decoder.head.numel() * 4;
            let share = decoder.compact_bytes() as f64 / weights as f64;
            // Half, and what fills the last panels.
            assert!((0.5..0.7).contains(&share), "{name}: {share}");
        }
    }

    #[test]
    fn a_whole_model_that_has_answered_answers_with_its_newer_weights() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tied/model");
        let decoder = Decoder::load(&folder, Device::Cpu).unwrap();
        let mut adapter = Adapter::init(&decoder, &AdapterOptions::Full, 1).unwrap();
        let exact = |values: &Tensor| values.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        let (ids, positions) = (vec![5, 3, 17, 8], (0..4).collect());
        let batch =
            Batch { input_ids: ids.clone(), positions, cu_seqlens: vec![0, 4], ..Batch::default() };
        let first = exact(adapter.values());
        for values in [first.copy(), exact(&(first * 1.5))] {
            adapter.set_values(&values);
            let whole = decoder.logits(&batch, Some(&adapter)).unwrap();
            let mut cache = KvCache::new(&decoder, 8, Some(&adapter));
            let logits = decoder.extend(&mut cache, &ids, Some(&adapter));
            let error = (logits - whole.i(3)).abs().max() / whole.abs().max();
            assert!(error.double_value(&[]) < 2e-6);
        }
    }
}
