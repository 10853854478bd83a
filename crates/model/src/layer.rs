//! One decoder layer: attention and gated MLP, each around a residual and with a norm before, after or both,
//! forward and back.

use kernels::{
    Activation, AttentionShape, Rotary, Segments, attention, attention_backward, gated,
    gated_backward_, rms_norm, rms_norm_backward, rotate_,
};
use tch::Tensor;

use crate::activations::{LayerActivations, Recompute, Scratch};
use crate::adapter::{Adapter, Gradients, Group, LayerParameters, add_norm};
use crate::generate::CacheEnds;
use crate::layout::{DOWN, GATE_UP, O, QKV};
use crate::linear::{Dropout, Linear, Saved};

/// The frozen weights of a layer, and what is particular to it.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Of the branches' inputs, where the family has them.
    pub attention_norm: Option<Tensor>,
    pub mlp_norm: Option<Tensor>,
    /// Of the branches' outputs.
    pub attention_out_norm: Option<Tensor>,
    pub mlp_out_norm: Option<Tensor>,
    /// Of queries and of keys before rotation: `[head_dim]`, or the width of all heads.
    pub qk_norm: Option<[Tensor; 2]>,
    pub qkv: Linear,
    pub o: Linear,
    pub gate_up: Linear,
    pub down: Linear,
    pub shape: AttentionShape,
    /// Index of the rotation; none where queries and keys stay as they are.
    pub rotary: Option<usize>,
    pub activation: Activation,
    /// What the branches are multiplied by before they are added.
    pub residual_scale: f64,
}

/// Where the keys and values of a pass are.
pub(crate) enum Context<'a> {
    /// In the pass itself.
    Batch(&'a Segments),
    /// In caches, whose ends the pass's tokens become.
    Caches(CacheEnds<'a>),
}

/// What a pass through any layer needs to know of its surroundings.
pub(crate) struct Pass<'a> {
    pub context: Context<'a>,
    /// Row of the rotary tables of each token.
    pub rotary_rows: &'a [i64],
    pub rotary: &'a [Rotary],
    pub eps: f64,
    pub adapter: Option<&'a Adapter>,
    /// Rows of the adapter's embeddings; see `Arrangement`.
    pub prompt_rows: &'a [i64],
    /// Of this batch; each product of each layer derives its own.
    pub dropout: Option<Dropout>,
    /// So few tokens that products take the time of reading the weights; without a backward pass.
    pub few: bool,
}

impl<'a> Pass<'a> {
    /// A product with its adapter, `y (+)= linear(x)`.
    fn multiply(
        &self,
        (linear, group): (&Linear, Option<(&Group, Option<Dropout>)>),
        x: &Tensor,
        y: &Tensor,
        s: &Tensor,
        accumulate: bool,
    ) {
        let adapter = group.map(|(group, _)| group);
        if !(self.few && linear.forward_few(x, adapter, y, s, accumulate)) {
            linear.forward(x, group, y, s, accumulate);
        }
    }

    fn dropout(&self, layer: usize, product: usize) -> Option<Dropout> {
        // 8 seeds per product: one for each linear in it, with room.
        self.dropout.map(|dropout| Dropout {
            seed: dropout.seed.wrapping_add((layer * 32 + product * 8) as u64),
            ..dropout
        })
    }

    fn group(&self, layer: usize, product: usize) -> Option<(&'a Group, Option<Dropout>)> {
        let group = self.adapter?.group(layer, product)?;
        Some((group, self.dropout(layer, product)))
    }
}

impl Layer {
    /// One of the four products, by its number in the layout.
    pub fn linear(&self, product: usize) -> &Linear {
        [&self.qkv, &self.o, &self.gate_up, &self.down][product]
    }

    /// `output = input + attention + mlp`; what the backward pass needs goes to `kept`.
    ///
    /// Shapes: input, output `[T, D]`.
    pub fn forward(
        &self,
        index: usize,
        input: &Tensor,
        output: &Tensor,
        kept: &LayerActivations,
        scratch: &Scratch,
        pass: &Pass<'_>,
    ) {
        self.attend(index, input, kept, scratch, pass);
        self.widen(index, kept, scratch, pass);
        gated(self.activation, &kept.gate_up, &scratch.act);
        output.shallow_clone().copy_(&kept.middle);
        self.add_branch(index, DOWN, &scratch.act, output, kept, scratch, pass);
    }

    /// Computes again what the forward pass left in buffers that other layers have used since: the
    /// same operations on the same values, so the same bits.
    pub fn restore(
        &self,
        index: usize,
        input: &Tensor,
        kept: &LayerActivations,
        scratch: &Scratch,
        pass: &Pass<'_>,
        recompute: Recompute,
    ) {
        match recompute {
            Recompute::Nothing => {}
            Recompute::Mlp => self.widen(index, kept, scratch, pass),
            Recompute::Layer => {
                self.attend(index, input, kept, scratch, pass);
                self.widen(index, kept, scratch, pass);
            }
        }
    }

    /// The attention branch: `kept.middle = input + attention`.
    fn attend(
        &self,
        index: usize,
        input: &Tensor,
        kept: &LayerActivations,
        scratch: &Scratch,
        pass: &Pass<'_>,
    ) {
        let (norm, rstd) = (&self.attention_norm, &kept.rstd_attention);
        let x = branch_input(input, norm, rstd, scratch, pass);
        let linear = (&self.qkv, pass.group(index, QKV));
        pass.multiply(linear, x, &kept.qkv, &kept.s[QKV], false);
        self.norm_heads(kept, pass.eps);
        self.rotate(&kept.qkv, pass, false);
        match &pass.context {
            Context::Batch(segments) => {
                self.put_prefix(index, kept, pass);
                attention(&kept.seen, segments, self.shape, &kept.attention, &kept.log_sums);
            }
            Context::Caches(ends) => ends.attend(index, &kept.qkv, self.shape, &kept.attention),
        }
        kept.middle.shallow_clone().copy_(input);
        self.add_branch(index, O, &kept.attention, &kept.middle, kept, scratch, pass);
    }

    /// Writes the adapter's own keys and values behind those of the tokens.
    fn put_prefix(&self, index: usize, kept: &LayerActivations, pass: &Pass<'_>) {
        let prefix = pass.adapter.and_then(|adapter| adapter.prefix(adapter.values(), index));
        if let Some(prefix) = prefix {
            self.behind_tokens(&kept.seen, &prefix).copy_(&prefix);
        }
    }

    /// The keys and values in the last rows of a buffer, as many as the prefix has.
    fn behind_tokens(&self, buffer: &Tensor, prefix: &Tensor) -> Tensor {
        let (rows, width) = (prefix.size()[0], prefix.size()[1]);
        let (all, columns) = (buffer.size()[0], buffer.size()[1]);
        buffer.narrow(0, all - rows, rows).narrow(1, columns - width, width)
    }

    /// The first half of the MLP: gate and up projections of the normalised `kept.middle`.
    fn widen(&self, index: usize, kept: &LayerActivations, scratch: &Scratch, pass: &Pass<'_>) {
        let x = branch_input(&kept.middle, &self.mlp_norm, &kept.rstd_mlp, scratch, pass);
        let linear = (&self.gate_up, pass.group(index, GATE_UP));
        pass.multiply(linear, x, &kept.gate_up, &kept.s[GATE_UP], false);
    }

    /// Normalises queries and keys where they stand in `kept.qkv`.
    fn norm_heads(&self, kept: &LayerActivations, eps: f64) {
        let Some(weights) = &self.qk_norm else { return };
        kept.qk.shallow_clone().copy_(&kept.qkv.narrow(1, 0, kept.qk.size()[1]));
        let columns = self.qk_columns();
        for ((weight, columns), rstd) in weights.iter().zip(columns).zip(&kept.rstd_qk) {
            rms_norm(&columns.of(&kept.qk), weight, eps, &columns.of(&kept.qkv), rstd);
        }
    }

    /// Turns the gradient of normalised queries and keys in `scratch.d_qkv` into that of the raw ones.
    fn norm_heads_backward(
        &self,
        kept: &LayerActivations,
        scratch: &Scratch,
        own: Option<&LayerParameters>,
    ) {
        let Some(weights) = &self.qk_norm else { return };
        let mut target = scratch.d_qkv.narrow(1, 0, kept.qk.size()[1]);
        scratch.d_qk.shallow_clone().copy_(&target);
        let _ = target.zero_();
        let columns = self.qk_columns();
        for (part, (weight, columns)) in weights.iter().zip(columns).enumerate() {
            let (dy, dx) = (columns.of(&scratch.d_qk), columns.of(&target));
            let (x, rstd) = (columns.of(&kept.qk), &kept.rstd_qk[part]);
            if let Some(norms) = own.and_then(|own| own.qk_norm.as_ref()) {
                add_norm(&norms[part], &dy, &x, rstd, 1.0);
            }
            rms_norm_backward(&dy, &x, weight, rstd, &dx);
        }
    }

    /// Columns of the queries and of the keys in a packed row.
    fn qk_columns(&self) -> [Columns; 2] {
        let [q, k] = [self.shape.heads, self.shape.kv_heads].map(|n| n * self.shape.head_dim);
        [Columns { start: 0, width: q as i64 }, Columns { start: q as i64, width: k as i64 }]
    }

    fn rotate(&self, qkv: &Tensor, pass: &Pass<'_>, inverse: bool) {
        if let Some(rotary) = self.rotary {
            let heads = self.shape.heads + self.shape.kv_heads;
            rotate_(qkv, pass.rotary_rows, &pass.rotary[rotary], heads, inverse);
        }
    }

    /// The norm of a branch's output, by its last product, with the buffers for it.
    fn output_norm<'a>(
        &'a self,
        product: usize,
        kept: &'a LayerActivations,
    ) -> Option<(&'a Tensor, &'a Tensor, &'a Tensor)> {
        let (norm, branch, rstd) = match product {
            O => (&self.attention_out_norm, &kept.attention_branch, &kept.rstd_attention_out),
            _ => (&self.mlp_out_norm, &kept.mlp_branch, &kept.rstd_mlp_out),
        };
        norm.as_ref().map(|norm| (norm, branch, rstd))
    }

    /// Adds a branch to the stream: `stream += scale · norm(product(x))`.
    #[expect(
        clippy::too_many_arguments,
        reason = "the surroundings of a product, as everywhere here"
    )]
    fn add_branch(
        &self,
        index: usize,
        product: usize,
        x: &Tensor,
        stream: &Tensor,
        kept: &LayerActivations,
        scratch: &Scratch,
        pass: &Pass<'_>,
    ) {
        let linear = (self.linear(product), pass.group(index, product));
        let s = &kept.s[product];
        match self.output_norm(product, kept) {
            None if self.residual_scale == 1.0 => {
                return pass.multiply(linear, x, stream, s, true);
            }
            None => pass.multiply(linear, x, &scratch.x, s, false),
            Some((norm, branch, rstd)) => {
                pass.multiply(linear, x, branch, s, false);
                rms_norm(branch, norm, pass.eps, &scratch.x, rstd);
            }
        }
        let mut branch = scratch.x.shallow_clone();
        if self.residual_scale != 1.0 {
            let _ = branch.g_mul_scalar_(self.residual_scale);
        }
        let _ = stream.shallow_clone().g_add_(&branch);
    }

    /// The gradient of a branch's last product from that of the stream, `scratch.dh`.
    fn branch_gradient<'a>(
        &self,
        product: usize,
        kept: &LayerActivations,
        scratch: &'a Scratch,
        own: Option<&LayerParameters>,
    ) -> &'a Tensor {
        let norm = self.output_norm(product, kept);
        if norm.is_none() && self.residual_scale == 1.0 {
            return &scratch.dh;
        }
        // Free until the gradient of the next branch's input is written.
        let mut gradient = scratch.dx.shallow_clone();
        match norm {
            None => gradient.copy_(&scratch.dh),
            Some((norm, branch, rstd)) => {
                if let Some(weight) = own.and_then(|own| own.output_norm(product)) {
                    add_norm(weight, &scratch.dh, branch, rstd, self.residual_scale);
                }
                let _ = gradient.zero_();
                rms_norm_backward(&scratch.dh, branch, norm, rstd, &gradient);
            }
        }
        if self.residual_scale != 1.0 {
            let _ = gradient.g_mul_scalar_(self.residual_scale);
        }
        &scratch.dx
    }

    /// Takes the gradient of the output in `scratch.dh` and leaves that of the input there; adds the
    /// adapter's gradients. The first layer's input is frozen unless embeddings are trained; where it is, its
    /// last products are left out.
    pub fn backward(
        &self,
        index: usize,
        input: &Tensor,
        kept: &LayerActivations,
        scratch: &Scratch,
        pass: &Pass<'_>,
        gradients: &mut Gradients,
    ) {
        let Context::Batch(segments) = pass.context else {
            unreachable!("training passes have their keys and values in themselves");
        };
        let whole = gradients.whole();
        let own = whole.as_ref().map(|whole| &whole.layers[index]);
        let mut product = |which: usize, dy: &Tensor, x: &Tensor, dx: Option<&Tensor>| {
            if let Some(own) = own {
                own.add_product(which, dy, x);
            }
            let group = pass.group(index, which);
            let saved = Saved { x, s: &kept.s[which], dropout: group.and_then(|(_, d)| d) };
            let adapter = group.map(|(group, _)| (group, &saved));
            self.linear(which).backward(dy, adapter, gradients, &scratch.ds[which], dx);
        };
        // The MLP. Its activation is recomputed.
        gated(self.activation, &kept.gate_up, &scratch.act);
        let dy = self.branch_gradient(DOWN, kept, scratch, own);
        product(DOWN, dy, &scratch.act, Some(&scratch.d_act));
        gated_backward_(self.activation, &kept.gate_up, &scratch.d_act);
        let (norm, rstd) = (&self.mlp_norm, &kept.rstd_mlp);
        let x = branch_input(&kept.middle, norm, rstd, scratch, pass);
        product(GATE_UP, &kept.gate_up, x, Some(&scratch.dx));
        let weight = own.and_then(|own| own.mlp_norm.as_ref());
        input_gradient(&kept.middle, norm, rstd, scratch, weight);

        // Attention.
        let dy = self.branch_gradient(O, kept, scratch, own);
        product(O, dy, &kept.attention, Some(&scratch.d_attention));
        attention_backward(
            &scratch.d_attention,
            &kept.seen,
            &kept.attention,
            &kept.log_sums,
            segments,
            self.shape,
            &scratch.d_seen,
        );
        self.rotate(&scratch.d_qkv, pass, true);
        self.norm_heads_backward(kept, scratch, own);
        let (norm, rstd) = (&self.attention_norm, &kept.rstd_attention);
        let x = branch_input(input, norm, rstd, scratch, pass);
        let has_prompt = pass.adapter.is_some_and(Adapter::has_prompt);
        let dx = (index > 0 || own.is_some() || has_prompt).then_some(&scratch.dx);
        product(QKV, &scratch.d_qkv, x, dx);
        if dx.is_some() {
            let weight = own.and_then(|own| own.attention_norm.as_ref());
            input_gradient(input, norm, rstd, scratch, weight);
        }
        // Still there: what came since has changed the tokens' rows alone.
        if let Some((adapter, prefix)) =
            pass.adapter.and_then(|a| Some((a, a.prefix(a.values(), index)?)))
        {
            let d_prefix = self.behind_tokens(&scratch.d_seen, &prefix);
            adapter.add_prefix_gradient(index, &d_prefix, gradients);
        }
    }
}

/// A range of columns.
#[derive(Clone, Copy)]
struct Columns {
    start: i64,
    width: i64,
}

impl Columns {
    fn of(self, matrix: &Tensor) -> Tensor {
        matrix.narrow(1, self.start, self.width)
    }
}

/// What a branch reads of the stream: its norm, or the stream itself.
fn branch_input<'a>(
    stream: &'a Tensor,
    norm: &Option<Tensor>,
    rstd: &Tensor,
    scratch: &'a Scratch,
    pass: &Pass<'_>,
) -> &'a Tensor {
    let Some(norm) = norm else { return stream };
    rms_norm(stream, norm, pass.eps, &scratch.x, rstd);
    &scratch.x
}

/// Adds to the stream's gradient what came to a branch's input, `scratch.dx`, and to that of the norm's weight
/// if it is trained.
fn input_gradient(
    stream: &Tensor,
    norm: &Option<Tensor>,
    rstd: &Tensor,
    scratch: &Scratch,
    weight: Option<&Tensor>,
) {
    if let Some(weight) = weight {
        add_norm(weight, &scratch.dx, stream, rstd, 1.0);
    }
    match norm {
        Some(norm) => rms_norm_backward(&scratch.dx, stream, norm, rstd, &scratch.dh),
        None => drop(scratch.dh.shallow_clone().g_add_(&scratch.dx)),
    }
}
