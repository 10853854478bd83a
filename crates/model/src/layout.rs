//! Where each adapter matrix stands in the one flat buffer of a run.
//!
//! Linears that share an input are computed as one product (q, k, v; gate, up), so their A matrices stand
//! side by side and form one `[R, in]` matrix without copying.

use tch::Tensor;
use weights::peft::{lora_a_key, lora_b_key, magnitude_key};

use crate::adapter::LoraOptions;
use crate::spec::{DecoderSpec, Product, layer_prefix};

/// The four products of a layer, in the order of the forward pass.
pub(crate) const GROUPS: usize = 4;
pub(crate) const QKV: usize = 0;
pub(crate) const O: usize = 1;
pub(crate) const GATE_UP: usize = 2;
pub(crate) const DOWN: usize = 3;

/// One adapted linear layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PartLayout {
    /// Path of the module, as in the checkpoint: `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Columns of the group's output that this linear writes.
    pub out_start: i64,
    pub out_width: i64,
    /// Columns of the group's border that this linear's rank takes.
    pub rank_start: i64,
    pub rank: i64,
    /// Element offset of A `[rank, in]` in the flat buffer.
    pub a_offset: i64,
    /// Element offset of B `[out, rank]`.
    pub b_offset: i64,
    /// Element offset of the magnitudes `[out]`, with weight decomposition.
    pub magnitude_offset: Option<i64>,
    /// What the update is multiplied by.
    pub scale: f64,
}

impl PartLayout {
    /// This linear's columns of a border `[T, R]`.
    pub fn of_border(&self, border: &Tensor) -> Tensor {
        border.narrow(1, self.rank_start, self.rank)
    }

    /// This linear's rows of the stacked A matrices `[R, in]`.
    pub fn rows(&self, a: &Tensor) -> Tensor {
        a.narrow(0, self.rank_start, self.rank)
    }
}

/// One tensor of an adapter file, and where it stands in the flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredTensor {
    pub name: String,
    pub shape: Vec<i64>,
    pub offset: i64,
}

impl StoredTensor {
    pub fn range(&self) -> std::ops::Range<usize> {
        let start = self.offset as usize;
        start..start + self.shape.iter().product::<i64>() as usize
    }
}

/// The adapted linears of one product.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupLayout {
    pub parts: Vec<PartLayout>,
    pub in_width: i64,
    pub out_width: i64,
    /// Sum of the parts' ranks.
    pub rank: i64,
    /// Offset of the stacked A matrices `[rank, in]`.
    pub a_offset: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    /// Per layer and product; none where no linear of the product is a target.
    pub layers: Vec<[Option<GroupLayout>; GROUPS]>,
    /// Elements of the flat buffer.
    pub len: i64,
}

impl Layout {
    pub fn new(spec: &DecoderSpec, options: &LoraOptions) -> Self {
        let mut len = 0;
        let layers = (0..spec.num_hidden_layers)
            .map(|layer| spec.products().map(|product| group(layer, &product, options, &mut len)))
            .collect();
        Self { layers, len }
    }

    pub fn parts(&self) -> impl Iterator<Item = (&GroupLayout, &PartLayout)> {
        let groups = self.layers.iter().flatten().flatten();
        groups.flat_map(|group| group.parts.iter().map(move |part| (group, part)))
    }

    /// The tensors of the adapter file.
    pub fn tensors(&self) -> Vec<StoredTensor> {
        let tensors = self.parts().flat_map(|(group, part)| {
            let stored = |name: String, shape: &[i64], offset: i64| {
                Some(StoredTensor { name, shape: shape.to_vec(), offset })
            };
            let (module, out) = (&part.module, part.out_width);
            [
                stored(lora_a_key(module), &[part.rank, group.in_width], part.a_offset),
                stored(lora_b_key(module), &[out, part.rank], part.b_offset),
                part.magnitude_offset
                    .and_then(|offset| stored(magnitude_key(module), &[out], offset)),
            ]
        });
        tensors.flatten().collect()
    }

    /// The widest border of each product, over all layers.
    pub fn ranks(&self) -> [i64; GROUPS] {
        std::array::from_fn(|product| {
            let widths = self.layers.iter().map(|layer| layer[product].as_ref().map(|g| g.rank));
            widths.flatten().max().unwrap_or(0)
        })
    }
}

fn group(
    layer: usize,
    product: &Product,
    options: &LoraOptions,
    len: &mut i64,
) -> Option<GroupLayout> {
    let (in_width, a_offset) = (product.in_width as i64, *len);
    let (mut out_width, mut rank_start) = (0, 0);
    let mut parts = Vec::new();
    for member in &product.members {
        let (name, width) = (member.name, member.width);
        if options.target_modules.iter().any(|target| target == name) {
            let module = format!("{}.{}.{name}", layer_prefix(layer), product.block);
            let rank = options.rank_of(&module);
            parts.push(PartLayout {
                scale: options.scale_of(&module),
                module,
                out_start: out_width,
                out_width: width as i64,
                rank_start,
                rank,
                a_offset: *len,
                b_offset: 0,
                magnitude_offset: None,
            });
            rank_start += rank;
            *len += rank * in_width;
        }
        out_width += width as i64;
    }
    for part in &mut parts {
        part.b_offset = *len;
        *len += part.out_width * part.rank;
        if options.dora {
            part.magnitude_offset = Some(*len);
            *len += part.out_width;
        }
    }
    let rank = rank_start;
    (!parts.is_empty()).then_some(GroupLayout { parts, in_width, out_width, rank, a_offset })
}
