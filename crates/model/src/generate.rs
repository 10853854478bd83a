//! Generation: new tokens through the decoder over a cache of keys and values.

use kernels::{cached_attention, rms_norm, rotate_, swiglu};
use tch::{Device, IndexOp, Kind, Tensor, no_grad};

use crate::adapter::Adapter;
use crate::decoder::Decoder;
use crate::layer::Layer;
use crate::layout::{DOWN, GATE_UP, O, QKV};

/// Keys and values of the tokens so far, per layer `[capacity, KV]`.
#[derive(Debug)]
pub struct KvCache {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens (at most the context length is used).
    pub fn new(decoder: &Decoder, capacity: usize) -> Self {
        let capacity = capacity.min(decoder.rotary.positions());
        let shape = [capacity as i64, decoder.spec.kv_width() as i64];
        let buffers = || {
            (0..decoder.spec.num_hidden_layers)
                .map(|_| Tensor::empty(shape, (Kind::Float, decoder.device)))
                .collect()
        };
        Self { keys: buffers(), values: buffers(), len: 0, capacity }
    }

    /// Tokens in the cache.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// A copy with room for `capacity` tokens: to grow, or to go on from one prompt several times.
    pub fn with_capacity(&self, decoder: &Decoder, capacity: usize) -> Self {
        let mut copy = Self::new(decoder, capacity.max(self.len));
        copy.len = self.len;
        let rows = self.len as i64;
        let pairs = copy.keys.iter().zip(&self.keys).chain(copy.values.iter().zip(&self.values));
        for (to, from) in pairs {
            no_grad(|| to.i(..rows).copy_(&from.i(..rows)));
        }
        copy
    }
}

/// Prompt tokens per pass: bounds the memory of a long prompt.
const PREFILL: usize = 1024;

impl Decoder {
    /// Appends `ids` to the cache and answers the logits after the last of them: f32 `[V]`, on the CPU.
    ///
    /// # Panics
    /// When `ids` is empty, an id is outside the vocabulary, or the cache has no room; callers check first.
    pub fn extend(&self, cache: &mut KvCache, ids: &[i64], adapter: Option<&Adapter>) -> Tensor {
        assert!(!ids.is_empty(), "nothing to append");
        assert!(cache.len + ids.len() <= cache.capacity, "the cache is full");
        assert!(
            ids.iter().all(|&id| (id as u64) < self.spec.vocab_size as u64),
            "unknown token id"
        );
        no_grad(|| {
            let mut last = Tensor::new();
            for part in ids.chunks(PREFILL) {
                last = self.extend_part(cache, part, adapter);
            }
            let x = self.final_norm(&last).0;
            x.mm(&self.head.tr()).view(-1).to_device(Device::Cpu)
        })
    }

    /// Hidden state of the last of `ids`, `[1, D]`.
    fn extend_part(&self, cache: &mut KvCache, ids: &[i64], adapter: Option<&Adapter>) -> Tensor {
        let start = cache.len as i64;
        let positions: Vec<i64> = (start..start + ids.len() as i64).collect();
        let index = Tensor::from_slice(ids).to_device(self.device);
        let mut hidden = self.embedding.index_select(0, &index);
        for (number, layer) in self.layers.iter().enumerate() {
            hidden = self.extend_layer(cache, layer, number, &hidden, &positions, adapter);
        }
        cache.len += ids.len();
        hidden.i(ids.len() as i64 - 1..)
    }

    fn extend_layer(
        &self,
        cache: &KvCache,
        layer: &Layer,
        number: usize,
        hidden: &Tensor,
        positions: &[i64],
        adapter: Option<&Adapter>,
    ) -> Tensor {
        let (n, shape) = (positions.len() as i64, self.attention_shape());
        let (q, kv) = (self.spec.query_width() as i64, self.spec.kv_width() as i64);
        let empty = |width: i64| Tensor::empty([n, width], (Kind::Float, self.device));
        let product = |which: usize, x: &Tensor, y: &Tensor, accumulate: bool| {
            let group = adapter.and_then(|adapter| adapter.group(number, which));
            let s = empty(group.map_or(0, |group| group.layout.rank));
            layer.linear(which).forward(x, group.map(|group| (group, None)), y, &s, accumulate);
        };
        let x = empty(self.spec.hidden_size as i64);
        let rstd = Tensor::empty([n], (Kind::Float, self.device));
        rms_norm(hidden, &layer.attention_norm, self.spec.rms_norm_eps, &x, &rstd);
        let qkv = empty(q + 2 * kv);
        product(QKV, &x, &qkv, false);
        rotate_(&qkv, positions, &self.rotary, shape.heads + shape.kv_heads, false);
        let (keys, values) = (&cache.keys[number], &cache.values[number]);
        let rows = cache.len as i64..cache.len as i64 + n;
        keys.i(rows.clone()).copy_(&qkv.narrow(1, q, kv));
        values.i(rows).copy_(&qkv.narrow(1, q + kv, kv));
        let attended = empty(q);
        cached_attention(&qkv.narrow(1, 0, q), keys, values, cache.len, shape, &attended);
        let hidden = hidden.copy();
        product(O, &attended, &hidden, true);

        rms_norm(&hidden, &layer.mlp_norm, self.spec.rms_norm_eps, &x, &rstd);
        let f = self.spec.intermediate_size as i64;
        let (gate_up, act) = (empty(2 * f), empty(f));
        product(GATE_UP, &x, &gate_up, false);
        swiglu(&gate_up, &act);
        product(DOWN, &act, &hidden, true);
        hidden
    }
}
