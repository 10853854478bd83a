//! The description of a decoder: what every family's `config.json` is read into, and which tensors follow from it.

/// Everything that shapes the computation. Closed and small on purpose: a field is added when two families
/// need it or it costs five lines in the decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    pub model_type: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    /// Context length, tokens.
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub norm_placement: NormPlacement,
    /// Norms multiply by 1 + weight.
    pub norm_plus_one: bool,
    pub qk_norm: QkNorm,
    pub activation: Activation,
    /// The head multiplies by the embedding matrix.
    pub tie_word_embeddings: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    pub o_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// The checkpoint holds q, k, v as one matrix, and gate, up as another.
    pub fused_projections: bool,
    /// What embeddings are multiplied by before the first layer.
    pub embedding_scale: f64,
    /// What each branch is multiplied by before it is added to the residual stream.
    pub residual_scale: f64,
    /// Factor on attention scores.
    pub attention_scale: f64,
    /// Factor on logits.
    pub logit_scale: f64,
    /// Attention scores s become c·tanh(s/c).
    pub attention_softcap: Option<f64>,
    /// Logits z become c·tanh(z/c).
    pub logit_softcap: Option<f64>,
    /// Kinds of rotation in use.
    pub rotary: Vec<RotarySpec>,
    /// One per layer.
    pub layers: Vec<LayerSpec>,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// Keys that a query sees, its own included; all when none.
    pub window: Option<usize>,
    /// Index into [`DecoderSpec::rotary`]; queries and keys are not rotated when none.
    pub rotary: Option<usize>,
}

/// Where the norms of the two branches (attention and MLP) stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// On the branch's input.
    Before,
    /// On the branch's output, before it is added.
    After,
    Both,
}

/// Names of a layer's norms, where it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormNames {
    pub attention_input: Option<&'static str>,
    pub attention_output: Option<&'static str>,
    pub mlp_input: Option<&'static str>,
    pub mlp_output: Option<&'static str>,
}

impl NormPlacement {
    pub fn names(self) -> NormNames {
        let (attention_input, attention_output, mlp_input, mlp_output) = match self {
            Self::Before => (Some("input_layernorm"), None, Some("post_attention_layernorm"), None),
            Self::After => {
                (None, Some("post_attention_layernorm"), None, Some("post_feedforward_layernorm"))
            }
            Self::Both => (
                Some("input_layernorm"),
                Some("post_attention_layernorm"),
                Some("pre_feedforward_layernorm"),
                Some("post_feedforward_layernorm"),
            ),
        };
        NormNames { attention_input, attention_output, mlp_input, mlp_output }
    }
}

/// The norm of queries and keys before rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Each head by itself, one weight `[head_dim]` for all.
    PerHead,
    /// All heads of a token together.
    FullWidth,
}

/// What the gate of the MLP goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    GeluTanh,
}

/// One kind of rotation.
#[derive(Debug, Clone, PartialEq)]
pub struct RotarySpec {
    pub theta: f64,
    /// Leading elements of a head that are rotated.
    pub dim: usize,
    pub scaling: RopeScaling,
    /// What cosines and sines are multiplied by.
    pub factor: f64,
}

/// How rotary frequencies are stretched for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by the factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: f64,
    },
    /// As above with the ramp over the frequencies' numbers, between those that turn `beta_fast` and
    /// `beta_slow` times in the original context.
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_max_position_embeddings: f64,
        /// The ramp begins and ends at whole numbers.
        truncate: bool,
    },
    /// Each frequency divided by a factor of its own: `short` for texts up to the original context, `long`
    /// for all of a longer one.
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original_max_position_embeddings: usize,
    },
}

/// Linear layers that share their input, and are computed as one product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// The module of a layer that holds them.
    pub block: &'static str,
    pub in_width: usize,
    /// In the order of their columns.
    pub members: Vec<Member>,
}

/// One linear layer of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub name: &'static str,
    /// Output columns.
    pub width: usize,
    pub bias: bool,
}

/// A tensor that a model must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
}

pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const FINAL_NORM: &str = "model.norm.weight";
pub const HEAD: &str = "lm_head.weight";

impl DecoderSpec {
    /// Columns of all query heads.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Columns of all key heads (and of all value heads).
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The products of every layer in the order of the forward pass: queries, keys and values; output;
    /// gate and up; down.
    pub fn products(&self) -> [Product; 4] {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.query_width(), self.kv_width());
        let member = |name, width, bias| Member { name, width, bias };
        let (qkv, gate_up) = if self.fused_projections {
            (
                vec![member("qkv_proj", q + 2 * kv, self.qkv_bias)],
                vec![member("gate_up_proj", 2 * f, self.mlp_bias)],
            )
        } else {
            let each = |name, width| member(name, width, self.qkv_bias);
            (
                vec![each("q_proj", q), each("k_proj", kv), each("v_proj", kv)],
                ["gate_proj", "up_proj"].map(|name| member(name, f, self.mlp_bias)).to_vec(),
            )
        };
        let product = |block, in_width, members| Product { block, in_width, members };
        [
            product("self_attn", d, qkv),
            product("self_attn", q, vec![member("o_proj", d, self.o_bias)]),
            product("mlp", d, gate_up),
            product("mlp", f, vec![member("down_proj", d, self.mlp_bias)]),
        ]
    }

    /// The linear layer of this model that holds the one of this name: itself, or the fused one.
    pub fn linear_for<'a>(&self, name: &'a str) -> &'a str {
        match name {
            "q_proj" | "k_proj" | "v_proj" if self.fused_projections => "qkv_proj",
            "gate_proj" | "up_proj" if self.fused_projections => "gate_up_proj",
            same => same,
        }
    }

    /// All tensors of a model of this shape, by their names in a checkpoint.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.push(TensorSpec { name, shape: shape.to_vec() });
        };
        let (v, d) = (self.vocab_size, self.hidden_size);
        add(EMBEDDING.into(), &[v, d]);
        add(FINAL_NORM.into(), &[d]);
        if !self.tie_word_embeddings {
            add(HEAD.into(), &[v, d]);
        }
        let norms = self.norm_placement.names();
        let norms =
            [norms.attention_input, norms.attention_output, norms.mlp_input, norms.mlp_output];
        for number in 0..self.num_hidden_layers {
            let layer = layer_prefix(number);
            for product in self.products() {
                for member in &product.members {
                    let module = format!("{layer}.{}.{}", product.block, member.name);
                    add(format!("{module}.weight"), &[member.width, product.in_width]);
                    if member.bias {
                        add(format!("{module}.bias"), &[member.width]);
                    }
                }
            }
            for name in norms.iter().flatten() {
                add(format!("{layer}.{name}.weight"), &[d]);
            }
            if let Some(widths) = self.qk_norm_widths() {
                add(format!("{layer}.self_attn.q_norm.weight"), &[widths[0]]);
                add(format!("{layer}.self_attn.k_norm.weight"), &[widths[1]]);
            }
        }
        tensors
    }

    /// Widths of the weights of the norms of queries and keys, where there are any.
    pub fn qk_norm_widths(&self) -> Option<[usize; 2]> {
        match self.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some([self.head_dim; 2]),
            QkNorm::FullWidth => Some([self.query_width(), self.kv_width()]),
        }
    }
}

/// The path of a layer in a checkpoint.
pub fn layer_prefix(number: usize) -> String {
    format!("model.layers.{number}")
}
