//! Import of base models, against golden files that `tests/golden/gguf_fixture.py` made with the
//! `gguf` package, numpy and transformers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use tokenizers::Tokenizer;
use weights::{Dtype, TensorFile, import, write_safetensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn imported_tiny() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let out = folder.path().join("tiny");
    import(&fixture("tiny.gguf"), &out).unwrap();
    (folder, out)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every weight as `f32`, bit for bit.
fn assert_same_weights(found: &TensorFile, expected: &TensorFile) {
    let names = |file: &TensorFile| file.names().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for name in expected.names() {
        let (found, expected) = (found.get_f32(name).unwrap(), expected.get_f32(name).unwrap());
        assert!(bits(&found) == bits(&expected), "{name} differs");
    }
}

fn assert_same_ids(folder: &Path, golden: &Value) {
    let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    for pair in golden.as_array().unwrap() {
        let text = pair[0].as_str().unwrap();
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(json!(ids), pair[1], "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn every_tensor_type_is_decoded_as_the_reference_does() {
    let (_folder, out) = imported_tiny();
    let expected = TensorFile::open(&fixture("tiny.safetensors")).unwrap();
    assert_same_weights(&TensorFile::open_folder(&out).unwrap(), &expected);
}

#[test]
fn half_precision_is_kept_and_quantised_becomes_f32() {
    let (_folder, out) = imported_tiny();
    let file = TensorFile::open_folder(&out).unwrap();
    let dtype =
        |name: &str| file.get(&format!("model.layers.0.self_attn.{name}.weight")).unwrap().dtype;
    assert_eq!(dtype("q_proj"), Dtype::F32);
    assert_eq!(dtype("v_proj"), Dtype::F16);
    assert_eq!(dtype("o_proj"), Dtype::BF16);
}

#[test]
fn texts_get_the_ids_of_a_plain_byte_pair_encoding() {
    let (_folder, out) = imported_tiny();
    assert_same_ids(&out, &read_json(&fixture("tiny_ids.json")));
}

#[test]
fn a_begin_token_is_added_when_the_file_asks_for_it() {
    let key = b"tokenizer.ggml.add_bos_token\x07\0\0\0";
    let mut bytes = fs::read(fixture("tiny.gguf")).unwrap();
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    bytes[at + key.len()] = 1;
    let folder = tempdir().unwrap();
    let source = folder.path().join("x.gguf");
    fs::write(&source, bytes).unwrap();
    let out = folder.path().join("out");
    import(&source, &out).unwrap();
    let tokenizer = Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    let ids = |special| tokenizer.encode("hello", special).unwrap().get_ids().to_vec();
    assert_eq!(ids(true), [&[1], &ids(false)[..]].concat());
}

#[test]
fn the_configuration_names_what_transformers_needs() {
    let (_folder, out) = imported_tiny();
    let config = read_json(&out.join("config.json"));
    let expected = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0 },
        "tie_word_embeddings": true,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "float32",
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&config[name], value, "{name}");
    }
    let tokens = read_json(&out.join("tokenizer_config.json"));
    assert_eq!(tokens["eos_token"], "<|im_end|>");
    assert_eq!(tokens["bos_token"], "<|im_start|>");
    assert_eq!(tokens["pad_token"], "<|im_end|>");
    let template = fs::read_to_string(out.join("chat_template.jinja")).unwrap();
    assert_eq!(tokens["chat_template"], template);
    assert!(template.starts_with("{% for message in messages %}"));
}

#[test]
fn what_is_listed_is_what_is_there() {
    let folder = tempdir().unwrap();
    let imported = import(&fixture("tiny.gguf"), folder.path()).unwrap();
    assert_eq!(imported.architecture, "llama");
    let listed: BTreeMap<String, u64> =
        imported.files.into_iter().map(|file| (file.name, file.size)).collect();
    let there: BTreeMap<String, u64> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()))
        .collect();
    assert_eq!(listed, there);
    let weights = TensorFile::open_folder(folder.path()).unwrap();
    let count = |name| weights.get_f32(name).unwrap().len() as u64;
    assert_eq!(imported.parameters, weights.names().map(count).sum::<u64>());
}

#[test]
fn a_folder_that_is_not_empty_is_left_alone() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("mine"), "x").unwrap();
    let message = import(&fixture("tiny.gguf"), folder.path()).unwrap_err().to_string();
    assert!(message.contains("not empty"), "{message}");
}

/// Changes bytes of the tiny model; every text occurs once.
fn changed_tiny(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(fixture("tiny.gguf")).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[test]
fn what_a_gguf_file_has_that_we_do_not_support_is_named() {
    let cases = [
        ("llama", "qwen2", "\"qwen2\""),
        ("smollm", "qwen35", "\"qwen35\""),
        ("gpt2", "bert", "\"bert\""),
        ("blk.0.attn_v.weight", "blk.0.attn_x.weight", "\"blk.0.attn_x.weight\""),
        ("hell o", "hell x", "\"hell x\""),
        ("llama.embedding_length", "llama.embedding_lengtX", "llama.embedding_length"),
    ];
    for (from, to, named) in cases {
        let folder = tempdir().unwrap();
        let source = folder.path().join("x.gguf");
        fs::write(&source, changed_tiny(from, to)).unwrap();
        let out = folder.path().join("out");
        let message = import(&source, &out).unwrap_err().to_string();
        assert!(message.contains(named), "{to}: {message}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{to}: something is left");
    }
}

#[test]
fn any_other_file_is_refused() {
    let folder = tempdir().unwrap();
    let source = folder.path().join("x.txt");
    fs::write(&source, "hello").unwrap();
    let message = import(&source, &folder.path().join("out")).unwrap_err().to_string();
    assert!(message.contains("neither"), "{message}");
}

/// The imported tiny model as a folder in two shards, as older tools write it: with a copy of the
/// embedding as `lm_head`, and the chat template only in `tokenizer_config.json`.
fn sharded(folder: &Path) -> PathBuf {
    let (_keep, tiny) = imported_tiny();
    let source = folder.join("sharded");
    fs::create_dir(&source).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny.join(name), source.join(name)).unwrap();
    }
    let file = TensorFile::open_folder(&tiny).unwrap();
    let mut map = BTreeMap::new();
    let mut shards = [Vec::new(), Vec::new()];
    for (i, name) in file.names().enumerate() {
        let view = file.get(name).unwrap();
        map.insert(name.to_owned(), format!("part-{}.safetensors", i % 2));
        shards[i % 2].push((name.to_owned(), view.dtype, view.shape, view.data));
    }
    let head = file.get("model.embed_tokens.weight").unwrap();
    map.insert("lm_head.weight".into(), "part-0.safetensors".into());
    shards[0].push(("lm_head.weight".into(), head.dtype, head.shape, head.data));
    for (i, shard) in shards.into_iter().enumerate() {
        let path = source.join(format!("part-{i}.safetensors"));
        write_safetensors(&path, shard, &BTreeMap::new()).unwrap();
    }
    let index = json!({ "weight_map": map }).to_string();
    fs::write(source.join("model.safetensors.index.json"), index).unwrap();
    source
}

#[test]
fn a_sharded_folder_becomes_one_file() {
    let folder = tempdir().unwrap();
    let source = sharded(folder.path());
    let out = folder.path().join("out");
    import(&source, &out).unwrap();
    let expected = TensorFile::open(&fixture("tiny.safetensors")).unwrap();
    assert_same_weights(&TensorFile::open_folder(&out).unwrap(), &expected);
    let template = fs::read_to_string(out.join("chat_template.jinja")).unwrap();
    assert_eq!(read_json(&out.join("tokenizer_config.json"))["chat_template"], template);
    assert_same_ids(&out, &read_json(&fixture("tiny_ids.json")));
}

#[test]
fn a_folder_whose_parts_do_not_fit_is_refused_with_the_field() {
    let cases: &[(&str, Value, &str)] = &[
        ("model_type", json!("bloom"), "\"bloom\""),
        ("architectures", json!(["LlamaForSequenceClassification"]), "SequenceClassification"),
        ("quantization_config", json!({ "bits": 4 }), "quantised"),
        ("num_hidden_layers", json!(2), "model.layers.1"),
        ("num_hidden_layers", json!(u64::MAX), "num_hidden_layers"),
        ("hidden_size", json!(64), "shape"),
        ("hidden_size", json!("x"), "hidden_size"),
        ("num_key_value_heads", json!(0), "num_key_value_heads"),
        ("vocab_size", json!(100), "embed_tokens"),
        ("attention_bias", json!(true), "q_proj.bias"),
    ];
    let folder = tempdir().unwrap();
    let source = sharded(folder.path());
    let good = read_json(&source.join("config.json"));
    for (field, value, named) in cases {
        let mut config = good.clone();
        config[field] = value.clone();
        fs::write(source.join("config.json"), config.to_string()).unwrap();
        let out = folder.path().join("out");
        let message = import(&source, &out).unwrap_err().to_string();
        assert!(message.contains(named), "{field}: {message}");
        assert!(!out.exists());
    }
}

#[test]
fn an_output_layer_is_kept_unless_it_is_tied() {
    let folder = tempdir().unwrap();
    let source = sharded(folder.path());
    let mut config = read_json(&source.join("config.json"));
    config["tie_word_embeddings"] = json!(false);
    fs::write(source.join("config.json"), config.to_string()).unwrap();
    let out = folder.path().join("out");
    import(&source, &out).unwrap();
    assert!(TensorFile::open_folder(&out).unwrap().contains("lm_head.weight"));
}

#[test]
fn a_folder_without_a_fast_tokenizer_is_refused() {
    let folder = tempdir().unwrap();
    let source = sharded(folder.path());
    fs::remove_file(source.join("tokenizer.json")).unwrap();
    let message = import(&source, &folder.path().join("out")).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[test]
fn smollm2_is_what_transformers_loads() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let source = root.join(".deps/models/smollm2-135m-instruct.gguf");
    assert!(source.exists(), "{} is missing: run `cargo xtask setup`", source.display());
    let folder = tempdir().unwrap();
    let imported = import(&source, folder.path()).unwrap();
    assert_eq!(imported.parameters, 134_515_008);

    let golden = read_json(&fixture("smollm2.json"));
    let file = TensorFile::open_folder(folder.path()).unwrap();
    let found: BTreeMap<&str, String> =
        file.names().map(|name| (name, checksum(file.get(name).unwrap().data))).collect();
    assert_eq!(json!(found), golden["checksums"]);
    assert_same_ids(folder.path(), &golden["ids"]);
}

/// Σ bits × (2 × place + 1), modulo 2^64.
fn checksum(data: &[u8]) -> String {
    let (values, _) = data.as_chunks::<4>();
    let bits = values.iter().map(|bytes| u64::from(u32::from_le_bytes(*bytes)));
    let sum = (0u64..)
        .zip(bits)
        .fold(0u64, |sum, (place, bits)| sum.wrapping_add(bits.wrapping_mul(2 * place + 1)));
    sum.to_string()
}
