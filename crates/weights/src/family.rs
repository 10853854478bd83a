//! The architectures that can be imported, each as a table: its names in GGUF and in Hugging Face
//! files, and every tensor with both names, its shape and the order of its rows.
//!
//! Another architecture is another [`Family`] in [`FAMILIES`].

/// Limits that keep what a header makes us compute small; real models are far below.
pub const MAX_LAYERS: u64 = 1_024;
pub const MAX_DIMENSION: u64 = 1 << 24;

#[derive(Debug)]
pub struct Family {
    /// `general.architecture` of a GGUF file, and the prefix of its keys.
    pub gguf_architecture: &'static str,
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// `architectures[0]` of `config.json`.
    pub class: &'static str,
    /// Tensors of the whole model.
    top: &'static [TensorRule],
    /// Tensors of each layer, named after `blk.N.` and `model.layers.N.`.
    layer: &'static [TensorRule],
}

#[derive(Debug)]
struct TensorRule {
    gguf: &'static str,
    hf: &'static str,
    shape: &'static [Size],
    rows: RowOrder,
    when: When,
}

#[derive(Debug, Clone, Copy)]
enum Size {
    Vocabulary,
    Hidden,
    FeedForward,
    /// heads × head size
    Queries,
    /// key-value heads × head size
    Keys,
}

/// How GGUF orders the rows of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As Hugging Face does.
    Same,
    /// Within each head, row `2j` is the Hugging Face row `j`, and `2j + 1` is `j + size/2`: GGUF's
    /// rotary embedding turns neighbours, Hugging Face's turns the two halves of a head.
    Interleaved,
}

#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    Untied,
    AttentionBias,
    MlpBias,
}

/// The numbers that fix the shapes of all tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub vocabulary: usize,
    pub hidden: usize,
    pub feed_forward: usize,
    pub layers: usize,
    pub heads: usize,
    pub key_value_heads: usize,
    pub head_size: usize,
    /// The output layer is the embedding.
    pub tied: bool,
    pub attention_bias: bool,
    pub mlp_bias: bool,
}

/// One tensor that a model of the family must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub gguf: String,
    pub hf: String,
    pub shape: Vec<usize>,
    pub rows: RowOrder,
}

impl Family {
    pub fn by_gguf_architecture(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.gguf_architecture == name)
    }

    pub fn by_model_type(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.model_type == name)
    }

    /// All tensors of a model of this shape.
    pub fn expected(&self, shape: &Shape) -> Vec<Expected> {
        let top = self.top.iter().filter(|rule| rule.applies(shape));
        let mut expected: Vec<Expected> = top.map(|rule| rule.tensor("", "", shape)).collect();
        for number in 0..shape.layers {
            let (gguf, hf) = (format!("blk.{number}."), format!("model.layers.{number}."));
            let rules = self.layer.iter().filter(|rule| rule.applies(shape));
            expected.extend(rules.map(|rule| rule.tensor(&gguf, &hf, shape)));
        }
        expected
    }
}

impl TensorRule {
    fn applies(&self, shape: &Shape) -> bool {
        match self.when {
            When::Always => true,
            When::Untied => !shape.tied,
            When::AttentionBias => shape.attention_bias,
            When::MlpBias => shape.mlp_bias,
        }
    }

    fn tensor(&self, gguf: &str, hf: &str, shape: &Shape) -> Expected {
        Expected {
            gguf: format!("{gguf}{}", self.gguf),
            hf: format!("{hf}{}", self.hf),
            shape: self.shape.iter().map(|size| shape.size(*size)).collect(),
            rows: self.rows,
        }
    }
}

impl Shape {
    /// # Errors
    /// Why heads and sizes do not fit together.
    pub fn check(&self) -> Result<(), String> {
        let (heads, key_value_heads, size) = (self.heads, self.key_value_heads, self.head_size);
        if heads.is_multiple_of(key_value_heads) && size > 0 && size.is_multiple_of(2) {
            return Ok(());
        }
        Err(format!(
            "{heads} heads, {key_value_heads} key-value heads and head size {size} \
             do not fit together"
        ))
    }

    fn size(&self, size: Size) -> usize {
        match size {
            Size::Vocabulary => self.vocabulary,
            Size::Hidden => self.hidden,
            Size::FeedForward => self.feed_forward,
            Size::Queries => self.heads * self.head_size,
            Size::Keys => self.key_value_heads * self.head_size,
        }
    }
}

pub const FAMILIES: &[Family] = &[Family {
    gguf_architecture: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    top: LLAMA,
    layer: LLAMA_LAYER,
}];

const fn weight(gguf: &'static str, hf: &'static str, shape: &'static [Size]) -> TensorRule {
    TensorRule { gguf, hf, shape, rows: RowOrder::Same, when: When::Always }
}

const fn rotary(rule: TensorRule) -> TensorRule {
    TensorRule { rows: RowOrder::Interleaved, ..rule }
}

const fn only(when: When, rule: TensorRule) -> TensorRule {
    TensorRule { when, ..rule }
}

use Size::{FeedForward, Hidden, Keys, Queries, Vocabulary};
use When::{AttentionBias, MlpBias, Untied};

const LLAMA: &[TensorRule] = &[
    weight("token_embd.weight", "model.embed_tokens.weight", &[Vocabulary, Hidden]),
    weight("output_norm.weight", "model.norm.weight", &[Hidden]),
    only(Untied, weight("output.weight", "lm_head.weight", &[Vocabulary, Hidden])),
];

const LLAMA_LAYER: &[TensorRule] = &[
    weight("attn_norm.weight", "input_layernorm.weight", &[Hidden]),
    rotary(weight("attn_q.weight", "self_attn.q_proj.weight", &[Queries, Hidden])),
    rotary(weight("attn_k.weight", "self_attn.k_proj.weight", &[Keys, Hidden])),
    weight("attn_v.weight", "self_attn.v_proj.weight", &[Keys, Hidden]),
    weight("attn_output.weight", "self_attn.o_proj.weight", &[Hidden, Queries]),
    only(AttentionBias, rotary(weight("attn_q.bias", "self_attn.q_proj.bias", &[Queries]))),
    only(AttentionBias, rotary(weight("attn_k.bias", "self_attn.k_proj.bias", &[Keys]))),
    only(AttentionBias, weight("attn_v.bias", "self_attn.v_proj.bias", &[Keys])),
    only(AttentionBias, weight("attn_output.bias", "self_attn.o_proj.bias", &[Hidden])),
    weight("ffn_norm.weight", "post_attention_layernorm.weight", &[Hidden]),
    weight("ffn_gate.weight", "mlp.gate_proj.weight", &[FeedForward, Hidden]),
    weight("ffn_up.weight", "mlp.up_proj.weight", &[FeedForward, Hidden]),
    weight("ffn_down.weight", "mlp.down_proj.weight", &[Hidden, FeedForward]),
    only(MlpBias, weight("ffn_gate.bias", "mlp.gate_proj.bias", &[FeedForward])),
    only(MlpBias, weight("ffn_up.bias", "mlp.up_proj.bias", &[FeedForward])),
    only(MlpBias, weight("ffn_down.bias", "mlp.down_proj.bias", &[Hidden])),
];
