//! The name under which a model is registered when nobody gives one.

use std::path::Path;

/// The file's or folder's name in lower case, without `.gguf` and without a suffix that only names
/// the quantisation: `SmolLM2-135M-Instruct.Q4_1.gguf` → `smollm2-135m-instruct`.
pub fn default_name(source: &Path) -> String {
    let name = source.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    let stem = match stem.rsplit_once(['.', '-']) {
        Some((front, end)) if !front.is_empty() && is_quantisation(end) => front,
        _ => stem,
    };
    let clean: String = stem.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    let clean = clean.trim_matches(['-', '.', '_']);
    if clean.is_empty() { "model".to_owned() } else { clean.to_owned() }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_')
}

/// Such as `q4_1`, `q4_k_m`, `iq3_xxs`, `tq1_0`, `f16`, `bf16`, `fp32`, `mxfp4`.
fn is_quantisation(word: &str) -> bool {
    if matches!(word, "f16" | "f32" | "bf16" | "fp16" | "fp32" | "mxfp4") {
        return true;
    }
    let digits = ["iq", "tq", "q"].iter().find_map(|prefix| word.strip_prefix(prefix));
    let Some((bits, kind)) = digits.and_then(|rest| rest.split_once('_')) else { return false };
    let known = ["0", "1", "k", "s", "m", "l", "xl", "xs", "xxs", "nl"];
    bits.len() == 1
        && bits.bytes().all(|b| b.is_ascii_digit())
        && kind.split('_').all(|part| known.contains(&part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_quantisation_is_cut_off() {
        let cases = [
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
            ("dir/Qwen3-0.6B-Q8_0.gguf", "qwen3-0.6b"),
            ("a/Llama-3.2-1B-Instruct-Q4_K_M.GGUF", "llama-3.2-1b-instruct"),
            ("model-IQ3_XXS.gguf", "model"),
            ("tiny.bf16.gguf", "tiny"),
            ("SmolLM2-1.7B", "smollm2-1.7b"),
            ("qwen-3", "qwen-3"),
            ("q8_0.gguf", "q8_0"),
            ("My model (v2).gguf", "my-model--v2"),
            ("模型.gguf", "model"),
            ("..", "model"),
        ];
        for (source, name) in cases {
            assert_eq!(default_name(Path::new(source)), name, "{source}");
        }
    }
}
