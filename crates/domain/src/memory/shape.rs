//! The shape of a base model: what its `config.json` says, and the numbers of parameters that follow.

use serde::{Deserialize, Serialize};

/// The numbers of a base model that its memory depends on, by their names in `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    pub hidden_size: u64,
    pub intermediate_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    /// 0 means as many as heads.
    #[serde(default)]
    pub num_key_value_heads: u64,
    /// 0 means the hidden size divided among the heads.
    #[serde(default)]
    pub head_dim: u64,
    pub vocab_size: u64,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default, rename = "model_type")]
    pub norms: ExtraNorms,
}

/// Norms that a family has beside those of branches' inputs: their inputs are kept as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ExtraNorms {
    /// Of the branches' outputs.
    pub of_outputs: bool,
    /// Of queries and keys.
    pub of_queries_and_keys: bool,
}

impl ExtraNorms {
    pub const NONE: Self = Self { of_outputs: false, of_queries_and_keys: false };
}

/// By `model_type`.
impl From<String> for ExtraNorms {
    fn from(model_type: String) -> Self {
        Self {
            of_outputs: matches!(
                model_type.as_str(),
                "gemma2" | "gemma3" | "gemma3_text" | "olmo2"
            ),
            of_queries_and_keys: matches!(
                model_type.as_str(),
                "gemma3" | "gemma3_text" | "olmo2" | "qwen3"
            ),
        }
    }
}

/// A `model_type` that has them.
impl From<ExtraNorms> for String {
    fn from(norms: ExtraNorms) -> Self {
        match (norms.of_outputs, norms.of_queries_and_keys) {
            (false, false) => "llama",
            (false, true) => "qwen3",
            (true, false) => "gemma2",
            (true, true) => "olmo2",
        }
        .to_owned()
    }
}

impl ModelShape {
    pub(super) fn head_size(&self) -> u64 {
        match self.head_dim {
            0 => self.hidden_size / self.num_attention_heads.max(1),
            size => size,
        }
    }

    /// Columns of all query heads.
    pub(super) fn queries(&self) -> u64 {
        self.num_attention_heads * self.head_size()
    }

    /// Columns of all key heads.
    pub(super) fn keys(&self) -> u64 {
        let heads = match self.num_key_value_heads {
            0 => self.num_attention_heads,
            heads => heads,
        };
        heads * self.head_size()
    }

    /// Input and output width of each linear of a layer, grouped by product: those that share an input.
    fn products(&self) -> [(u64, &'static [LinearWidth]); 4] {
        use LinearWidth::{Hidden, Intermediate, Keys, Queries};
        [
            (self.hidden_size, &[Queries, Keys, Keys]),
            (self.queries(), &[Hidden]),
            (self.hidden_size, &[Intermediate, Intermediate]),
            (self.intermediate_size, &[Hidden]),
        ]
    }

    fn width(&self, width: LinearWidth) -> u64 {
        match width {
            LinearWidth::Hidden => self.hidden_size,
            LinearWidth::Intermediate => self.intermediate_size,
            LinearWidth::Queries => self.queries(),
            LinearWidth::Keys => self.keys(),
        }
    }

    /// Numbers in the linears of one layer.
    pub(super) fn layer_linears(&self) -> u64 {
        let outputs = |widths: &[LinearWidth]| widths.iter().map(|&w| self.width(w)).sum::<u64>();
        self.products().iter().map(|(input, widths)| input * outputs(widths)).sum()
    }

    /// Numbers in the model.
    pub fn parameters(&self) -> u64 {
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * (self.layer_linears() + 2 * self.hidden_size)
            + self.hidden_size
            + embeddings * self.vocab_size * self.hidden_size
    }

    /// Numbers in adapters of this rank on all linears.
    pub fn adapter_parameters(&self, rank: u64) -> u64 {
        let product = |(input, widths): &(u64, &[LinearWidth])| -> u64 {
            widths.iter().map(|&output| rank * (input + self.width(output))).sum()
        };
        self.num_hidden_layers * self.products().iter().map(product).sum::<u64>()
    }

    /// Numbers in the A matrices of such adapters.
    pub(super) fn adapter_inputs(&self, rank: u64) -> u64 {
        let product = |(input, widths): &(u64, &[LinearWidth])| rank * input * widths.len() as u64;
        self.num_hidden_layers * self.products().iter().map(product).sum::<u64>()
    }

    /// Numbers in the adapters' derived matrices: the B blocks of a product stand in one matrix, as wide
    /// as its ranks together.
    pub(super) fn derived_parameters(&self, rank: u64) -> u64 {
        let product = |(_, widths): &(u64, &[LinearWidth])| -> u64 {
            let outputs: u64 = widths.iter().map(|&w| self.width(w)).sum();
            outputs * rank * widths.len() as u64
        };
        self.num_hidden_layers * self.products().iter().map(product).sum::<u64>()
    }
}

#[derive(Debug, Clone, Copy)]
enum LinearWidth {
    Hidden,
    Intermediate,
    Queries,
    Keys,
}
