//! The LoRA family: low-rank updates of the decoder's linear layers, with rank-stabilised scale, ranks and
//! alphas per module, and weight decomposition (DoRA).

use std::cell::OnceCell;

use kernels::Compact;
use tch::{Tensor, no_grad};
use weights::TensorFile;
use weights::peft::{LoraConfig, Pattern};

use super::score::score_tensor;
use super::{AdapterError, Uniform, read_values};
use crate::decoder::Decoder;
use crate::layout::{GROUPS, GroupLayout, Layout, PartLayout};
use crate::spec::DecoderSpec;
use crate::weight::Weight;

const KNOWN: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
/// In families whose checkpoints hold several of the above as one layer.
const FUSED: [&str; 2] = ["qkv_proj", "gate_up_proj"];

/// What to adapt, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    pub rank: i64,
    /// The update is scaled by alpha / rank, or by alpha / √rank with `rslora`.
    pub alpha: f64,
    /// On the adapter's input, while training.
    pub dropout: f64,
    /// Names of linear layers: `q_proj`, …, `down_proj`.
    pub target_modules: Vec<String>,
    pub rslora: bool,
    /// Each output of an adapted layer has a trained magnitude; the matrices turn its direction.
    pub dora: bool,
    /// Ranks of single modules.
    pub rank_pattern: Pattern<u32>,
    /// Alphas of single modules.
    pub alpha_pattern: Pattern<f64>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: KNOWN.map(str::to_owned).to_vec(),
            rslora: false,
            dora: false,
            rank_pattern: Pattern::default(),
            alpha_pattern: Pattern::default(),
        }
    }
}

impl LoraOptions {
    /// The rank of a module, by its path.
    pub(crate) fn rank_of(&self, module: &str) -> i64 {
        self.rank_pattern.get(module).map_or(self.rank, i64::from)
    }

    /// What the update of a module is multiplied by.
    pub(crate) fn scale_of(&self, module: &str) -> f64 {
        let rank = self.rank_of(module) as f64;
        let alpha = self.alpha_pattern.get(module).unwrap_or(self.alpha);
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    pub(super) fn check(&self) -> Result<(), AdapterError> {
        let invalid = |message: String| Err(AdapterError::Invalid(message));
        let ranks = self.rank_pattern.iter().map(|(_, rank)| i64::from(rank));
        if let Some(rank) = ranks.chain([self.rank]).find(|rank| !(1..=1024).contains(rank)) {
            return invalid(format!("rank {rank} is outside 1–1024"));
        }
        let alphas = self.alpha_pattern.iter().map(|(_, alpha)| alpha);
        if let Some(alpha) = alphas.chain([self.alpha]).find(|a| !(a.is_finite() && *a > 0.0)) {
            return invalid(format!("alpha {alpha} is not a positive number"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return invalid(format!("dropout {} is outside 0–1", self.dropout));
        }
        if self.dora && self.dropout > 0.0 {
            return invalid("dropout is not supported with weight decomposition (DoRA)".into());
        }
        if self.target_modules.is_empty() {
            return invalid("no target modules".into());
        }
        let known = |name: &str| KNOWN.contains(&name) || FUSED.contains(&name);
        match self.target_modules.iter().find(|name| !known(name)) {
            Some(name) => invalid(format!("unknown target module '{name}'; known: {KNOWN:?}")),
            None => Ok(()),
        }
    }

    /// The same options with the names that the model's linear layers have: where q, k and v are one layer,
    /// that layer stands for each of them.
    fn named_as_in(mut self, spec: &DecoderSpec) -> Self {
        let mut names: Vec<String> = Vec::new();
        for name in &self.target_modules {
            let name = spec.linear_for(name);
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        self.target_modules = names;
        self
    }

    /// A key that fits nothing is a mistake that would otherwise go unnoticed.
    fn check_patterns(&self, layout: &Layout) -> Result<(), AdapterError> {
        let keys = self.rank_pattern.iter().map(|(key, _)| key);
        for key in keys.chain(self.alpha_pattern.iter().map(|(key, _)| key)) {
            let alone = Pattern::most_specific_first([(key.to_owned(), ())]);
            if !layout.parts().any(|(_, part)| alone.get(&part.module).is_some()) {
                let message = format!("the pattern '{key}' fits no adapted module of this model");
                return Err(AdapterError::Invalid(message));
            }
        }
        Ok(())
    }

    pub(super) fn to_config(&self, base_model: &str) -> LoraConfig {
        let (rank, targets) = (self.rank as u32, &self.target_modules);
        LoraConfig {
            use_rslora: self.rslora,
            use_dora: self.dora,
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            ..LoraConfig::new(base_model, rank, self.alpha, self.dropout, targets)
        }
    }
}

impl From<LoraConfig> for LoraOptions {
    fn from(config: LoraConfig) -> Self {
        Self {
            rank: i64::from(config.r),
            alpha: config.lora_alpha,
            dropout: if config.use_dora { 0.0 } else { config.lora_dropout },
            target_modules: config.target_modules,
            rslora: config.use_rslora,
            dora: config.use_dora,
            rank_pattern: config.rank_pattern,
            alpha_pattern: config.alpha_pattern,
        }
    }
}

/// All matrices of an adapter, ready for use.
#[derive(Debug)]
pub(super) struct Lora {
    pub options: LoraOptions,
    pub layout: Layout,
    pub groups: Vec<[Option<Group>; GROUPS]>,
}

/// One product's adapter.
#[derive(Debug)]
pub(crate) struct Group {
    pub layout: GroupLayout,
    /// Stacked A matrices `[R, in]`: a view of the flat buffer, or in bf16 a copy.
    pub a: Tensor,
    /// Scaled B matrices as diagonal blocks, `[out, R]`, zero elsewhere: a copy.
    pub b: Tensor,
    pub dora: Option<Dora>,
    /// A and B for passes of few rows, made by the first of them after a change.
    compact: OnceCell<(Compact, Compact)>,
}

impl Group {
    /// A and B for products with few rows.
    pub fn compact(&self) -> &(Compact, Compact) {
        self.compact.get_or_init(|| (Compact::plain(&self.a), Compact::plain(&self.b)))
    }

    /// One linear's scaled B, `[out, rank]`.
    pub fn b_block(&self, part: &PartLayout) -> Tensor {
        self.b.narrow(0, part.out_start, part.out_width).narrow(1, part.rank_start, part.rank)
    }
}

/// Weight decomposition of one product: `y = gain ⊙ (x·Wᵀ + s·(xAᵀ)Bᵀ)` with `gain = m / ‖W + sBA‖`.
#[derive(Debug)]
pub(crate) struct Dora {
    /// The frozen weight `[out, in]`.
    weight: Weight,
    /// ‖W‖² of each row, `[out]`.
    squares: Tensor,
    /// ‖W + sBA‖ of each row, `[out]`; 1 where there is no adapter. The gradient takes it as constant.
    pub norm: Tensor,
    /// `[out]`; 1 where there is no adapter.
    pub gain: Tensor,
}

impl Lora {
    /// A uniform in ±1/√in (Kaiming with a = √5), B zero, so that the first step starts from the base model.
    pub fn init(
        decoder: &Decoder,
        options: &LoraOptions,
        seed: u64,
    ) -> Result<(Self, Tensor), AdapterError> {
        options.check()?;
        let options = options.clone().named_as_in(decoder.spec());
        let layout = Layout::new(decoder.spec(), &options);
        options.check_patterns(&layout)?;
        let mut values = vec![0.0f32; layout.len as usize];
        let mut random = Uniform(seed);
        for (group, part) in layout.parts() {
            let bound = 1.0 / (group.in_width as f64).sqrt();
            let start = part.a_offset as usize;
            for value in &mut values[start..start + (part.rank * group.in_width) as usize] {
                *value = ((2.0 * random.next() - 1.0) * bound) as f32;
            }
        }
        let values = Tensor::from_slice(&values).to_device(decoder.device());
        let values = values.to_kind(kernels::wide_kind(decoder.kind()));
        let lora = Self::assemble(decoder, options, layout, &values);
        no_grad(|| lora.start_magnitudes(&values));
        Ok((lora, values))
    }

    /// The adapter of an opened folder.
    pub fn load(
        decoder: &Decoder,
        config: LoraConfig,
        file: &TensorFile,
    ) -> Result<(Self, Tensor), AdapterError> {
        let scores = config.scores;
        let options = LoraOptions::from(config).named_as_in(decoder.spec());
        options.check()?;
        let layout = Layout::new(decoder.spec(), &options);
        let (mut tensors, mut len) = (layout.tensors(), layout.len);
        if scores {
            let width = decoder.spec().hidden_size as i64;
            tensors.push(score_tensor(len, width));
            len += width;
        }
        let values = read_values(file, &tensors, len as usize)?;
        let values = Tensor::from_slice(&values).to_device(decoder.device());
        let values = values.to_kind(kernels::wide_kind(decoder.kind()));
        Ok((Self::assemble(decoder, options, layout, &values), values))
    }

    /// The same adapter over another buffer that begins with its values.
    pub fn over(self, decoder: &Decoder, values: &Tensor) -> Self {
        Self::assemble(decoder, self.options, self.layout, values)
    }

    fn assemble(decoder: &Decoder, options: LoraOptions, layout: Layout, values: &Tensor) -> Self {
        let options_of = (decoder.kind(), decoder.device());
        let group = |layer: usize, product: usize, layout: &GroupLayout| Group {
            // The view itself where it is what products take.
            a: a_view(values, layout).to_kind(decoder.kind()),
            b: Tensor::zeros([layout.out_width, layout.rank], options_of),
            dora: options
                .dora
                .then(|| Dora::new(decoder.layers[layer].linear(product).weight.share())),
            layout: layout.clone(),
            compact: OnceCell::new(),
        };
        let groups = layout.layers.iter().enumerate().map(|(layer, products)| {
            std::array::from_fn(|product| {
                products[product].as_ref().map(|layout| group(layer, product, layout))
            })
        });
        let groups = groups.collect();
        Self { options, layout, groups }
    }

    /// Renews the scaled B blocks, A where it is a copy, and the gains.
    pub fn refresh(&mut self, values: &Tensor) {
        for group in self.groups.iter_mut().flatten().flatten() {
            group.compact.take();
            if group.a.kind() != values.kind() {
                group.a.copy_(&a_view(values, &group.layout));
            }
            for part in &group.layout.parts {
                let block = group.b_block(part);
                block.shallow_clone().copy_(&(b_view(values, part) * part.scale));
            }
            let Some(dora) = &group.dora else { continue };
            let weight = dora.weight.dense();
            for part in &group.layout.parts {
                dora.refresh(&weight, values, part, &group.a, &group.b_block(part));
            }
        }
    }

    /// Magnitudes of a fresh adapter: the norms of the frozen rows.
    fn start_magnitudes(&self, values: &Tensor) {
        for group in self.groups.iter().flatten().flatten() {
            let Some(dora) = &group.dora else { continue };
            for part in &group.layout.parts {
                let Some(mut magnitude) = magnitude_view(values, part) else { continue };
                magnitude.copy_(&dora.squares.narrow(0, part.out_start, part.out_width).sqrt());
            }
        }
    }
}

impl Dora {
    fn new(weight: Weight) -> Self {
        let dense = weight.dense();
        let wide = kernels::wide_kind(dense.kind());
        let squares = dense.to_kind(wide).square().sum_dim_intlist(-1, false, wide);
        let (norm, gain) = (squares.ones_like(), squares.ones_like());
        Self { weight, squares, norm, gain }
    }

    /// Without forming BA: ‖W + B'A‖² = ‖W‖² + 2·B'·(WAᵀ) + B'·(AAᵀ)·B', row by row, with B' = sB.
    fn refresh(&self, weight: &Tensor, values: &Tensor, part: &PartLayout, a: &Tensor, b: &Tensor) {
        let rows = |t: &Tensor| t.narrow(0, part.out_start, part.out_width);
        let wide = self.squares.kind();
        let a = part.rows(a).to_kind(wide);
        let b = b.to_kind(wide);
        let along = rows(weight).to_kind(wide).mm(&a.tr());
        let products = &b * (along * 2.0 + b.mm(&a.mm(&a.tr())));
        let squares = rows(&self.squares) + products.sum_dim_intlist(-1, false, wide);
        let norm = squares.clamp_min(0.0).sqrt();
        if let Some(magnitude) = magnitude_view(values, part) {
            rows(&self.gain).copy_(&(magnitude / &norm));
        }
        rows(&self.norm).copy_(&norm);
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

/// One linear's magnitudes, `[out]`; none without weight decomposition.
pub(crate) fn magnitude_view(flat: &Tensor, part: &PartLayout) -> Option<Tensor> {
    part.magnitude_offset.map(|offset| flat.narrow(0, offset, part.out_width))
}
