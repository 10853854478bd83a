//! One decoder layer: attention and gated MLP, each behind a norm and around a residual, forward and back.

use kernels::{
    AttentionShape, Rotary, attention, attention_backward, rms_norm, rms_norm_backward, rotate_,
    swiglu, swiglu_backward_,
};
use tch::Tensor;

use crate::activations::{LayerActivations, Recompute, Scratch};
use crate::adapter::{Adapter, Gradients, Group};
use crate::layout::{DOWN, GATE_UP, O, QKV};
use crate::linear::{Dropout, Linear, Saved};

/// The frozen weights of a layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub attention_norm: Tensor,
    pub qkv: Linear,
    pub o: Linear,
    pub mlp_norm: Tensor,
    pub gate_up: Linear,
    pub down: Linear,
}

/// What a pass through any layer needs to know of its surroundings.
pub(crate) struct Pass<'a> {
    pub positions: &'a [i64],
    pub cu_seqlens: &'a [i32],
    pub rotary: &'a Rotary,
    pub shape: AttentionShape,
    pub eps: f64,
    pub adapter: Option<&'a Adapter>,
    /// Of this batch; each product of each layer derives its own.
    pub dropout: Option<Dropout>,
}

impl<'a> Pass<'a> {
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

    /// Heads that are rotated: queries and keys.
    fn rotated_heads(&self) -> usize {
        self.shape.heads + self.shape.kv_heads
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
        swiglu(&kept.gate_up, &scratch.act);
        output.shallow_clone().copy_(&kept.middle);
        self.down.forward(&scratch.act, pass.group(index, DOWN), output, &kept.s[DOWN], true);
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
        rms_norm(input, &self.attention_norm, pass.eps, &scratch.x, &kept.rstd_attention);
        self.qkv.forward(&scratch.x, pass.group(index, QKV), &kept.qkv, &kept.s[QKV], false);
        rotate_(&kept.qkv, pass.positions, pass.rotary, pass.rotated_heads(), false);
        attention(&kept.qkv, pass.cu_seqlens, pass.shape, &kept.attention, &kept.log_sums);
        kept.middle.shallow_clone().copy_(input);
        self.o.forward(&kept.attention, pass.group(index, O), &kept.middle, &kept.s[O], true);
    }

    /// The first half of the MLP: gate and up projections of the normalised `kept.middle`.
    fn widen(&self, index: usize, kept: &LayerActivations, scratch: &Scratch, pass: &Pass<'_>) {
        rms_norm(&kept.middle, &self.mlp_norm, pass.eps, &scratch.x, &kept.rstd_mlp);
        let gate_up = pass.group(index, GATE_UP);
        self.gate_up.forward(&scratch.x, gate_up, &kept.gate_up, &kept.s[GATE_UP], false);
    }

    /// Takes the gradient of the output in `scratch.dh` and leaves that of the input there; adds the
    /// adapter's gradients. The first layer's input is frozen, so its last products are left out.
    pub fn backward(
        &self,
        index: usize,
        input: &Tensor,
        kept: &LayerActivations,
        scratch: &Scratch,
        pass: &Pass<'_>,
        gradients: &mut Gradients,
    ) {
        let mut product = |linear: &Linear, which: usize, dy: &Tensor, x, dx: Option<&Tensor>| {
            let group = pass.group(index, which);
            let saved = Saved { x, s: &kept.s[which], dropout: group.and_then(|(_, d)| d) };
            let adapter = group.map(|(group, _)| (group, &saved));
            linear.backward(dy, adapter, gradients, &scratch.ds[which], dx);
        };
        // The MLP. Its activation is recomputed; `act` first serves as the activation's gradient's input.
        let d_act = scratch.act.empty_like();
        swiglu(&kept.gate_up, &scratch.act);
        product(&self.down, DOWN, &scratch.dh, &scratch.act, Some(&d_act));
        swiglu_backward_(&kept.gate_up, &d_act);
        rms_norm(&kept.middle, &self.mlp_norm, pass.eps, &scratch.x, &kept.rstd_mlp);
        product(&self.gate_up, GATE_UP, &kept.gate_up, &scratch.x, Some(&scratch.dx));
        rms_norm_backward(&scratch.dx, &kept.middle, &self.mlp_norm, &kept.rstd_mlp, &scratch.dh);

        // Attention.
        product(&self.o, O, &scratch.dh, &kept.attention, Some(&scratch.d_attention));
        attention_backward(
            &scratch.d_attention,
            &kept.qkv,
            &kept.attention,
            &kept.log_sums,
            pass.cu_seqlens,
            pass.shape,
            &scratch.d_qkv,
        );
        rotate_(&scratch.d_qkv, pass.positions, pass.rotary, pass.rotated_heads(), true);
        rms_norm(input, &self.attention_norm, pass.eps, &scratch.x, &kept.rstd_attention);
        let dx = (index > 0).then_some(&scratch.dx);
        product(&self.qkv, QKV, &scratch.d_qkv, &scratch.x, dx);
        if let Some(dx) = dx {
            rms_norm_backward(dx, input, &self.attention_norm, &kept.rstd_attention, &scratch.dh);
        }
    }
}
