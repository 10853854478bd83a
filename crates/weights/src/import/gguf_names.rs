//! What GGUF calls the tensors of a checkpoint, and how it orders their rows.

/// How GGUF orders the rows of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As Hugging Face does.
    Same,
    /// Within each head, row `2j` is the Hugging Face row `j`, and `2j + 1` is `j + size/2`: GGUF's
    /// rotary embedding turns neighbours, Hugging Face's turns the two halves of a head.
    Interleaved,
}

const TOP: &[(&str, &str)] =
    &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Modules of a layer: after `model.layers.N.` and after `blk.N.`.
const LAYER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Name and row order in a GGUF file of the tensor that a checkpoint calls `name`.
///
/// # Panics
/// For tensors of families that have no GGUF form here.
pub fn gguf_name(name: &str) -> (String, RowOrder) {
    let (module, field) = name.rsplit_once('.').expect("tensor names end in .weight or .bias");
    let find = |table: &[(&str, &'static str)], module: &str| {
        let entry = table.iter().find(|(hf, _)| *hf == module);
        entry.expect("every tensor of a GGUF architecture has a name").1
    };
    let Some(rest) = module.strip_prefix("model.layers.") else {
        return (format!("{}.{field}", find(TOP, module)), RowOrder::Same);
    };
    let (number, module) = rest.split_once('.').expect("a layer's number and module");
    let rotated = matches!(module, "self_attn.q_proj" | "self_attn.k_proj");
    let rows = if rotated { RowOrder::Interleaved } else { RowOrder::Same };
    (format!("blk.{number}.{}.{field}", find(LAYER, module)), rows)
}
