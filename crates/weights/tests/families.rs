//! Import of every family from the folders that transformers wrote for the decoder's tests
//! (`tests/golden/families_fixture.py`), and what is refused before anything is kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use weights::spec::RopeScaling;
use weights::{Dtype, FAMILIES, TensorFile, import, read_spec, write_safetensors};

/// Folder of the fixture and `model_type`.
const CASES: [(&str, &str); 10] = [
    ("llama-wide", "llama"),
    ("mistral", "mistral"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("smollm3", "smollm3"),
    ("granite", "granite"),
    ("olmo2", "olmo2"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3_text"),
    ("phi3", "phi3"),
];

fn model(case: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    fixtures.join(case).join("model")
}

fn config(case: &str) -> Value {
    serde_json::from_slice(&fs::read(model(case).join("config.json")).unwrap()).unwrap()
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(folder: &Path) -> Tensors {
    let file = TensorFile::open_folder(folder).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let read = |name: &String| {
        let view = file.get(name).unwrap();
        (name.clone(), (view.dtype, view.shape, view.data.to_vec()))
    };
    names.iter().map(read).collect()
}

/// A folder to import, with a tokenizer of two words.
fn folder(config: &Value, tensors: &Tensors) -> TempDir {
    let folder = tempdir().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("in")).unwrap();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": { "type": "WordLevel", "vocab": { "a": 0, "b": 1 }, "unk_token": "a" },
    });
    fs::write(path.join("in/tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(path.join("in/config.json"), config.to_string()).unwrap();
    let entries = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name.as_str(), *dtype, shape.clone(), &data[..]));
    write_safetensors(&path.join("in/model.safetensors"), entries, &BTreeMap::new()).unwrap();
    folder
}

fn refusal(config: &Value, tensors: &Tensors) -> String {
    let folder = folder(config, tensors);
    let out = folder.path().join("out");
    let message = import(&folder.path().join("in"), &out).unwrap_err().to_string();
    assert!(!out.exists());
    message
}

#[test]
fn every_family_has_a_case() {
    let cases: Vec<&str> = CASES.iter().map(|(_, model_type)| *model_type).collect();
    let families: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    assert_eq!(cases, families);
}

#[test]
fn every_family_is_imported_with_all_its_tensors() {
    for (case, model_type) in CASES {
        let (config, tensors_in) = (config(case), tensors(&model(case)));
        let folder = folder(&config, &tensors_in);
        let out = folder.path().join("out");
        let imported = import(&folder.path().join("in"), &out).unwrap();
        assert_eq!(imported.architecture, model_type);
        assert!(tensors(&out) == tensors_in, "{case}");
        let numbers =
            |(_, shape, _): &(Dtype, Vec<usize>, Vec<u8>)| shape.iter().product::<usize>();
        let expected: usize = tensors_in.values().map(numbers).sum();
        assert_eq!(imported.parameters, expected as u64, "{case}");
    }
}

#[test]
fn any_tensor_that_is_missing_or_of_another_shape_is_named() {
    for (case, _) in CASES {
        let (config, whole) = (config(case), tensors(&model(case)));
        // One layer's is enough: the names of the others differ in the number only.
        let names = whole.keys().filter(|name| !name.contains("layers.1") && !name.contains(".2."));
        for name in names {
            let mut without = whole.clone();
            let (dtype, shape, data) = without.remove(name).unwrap();
            let message = refusal(&config, &without);
            assert!(message.contains(name.as_str()), "{case} without {name}: {message}");

            let row = data.len() / shape[0];
            let (mut shape, data) = (shape, data[row..].to_vec());
            shape[0] -= 1;
            without.insert(name.clone(), (dtype, shape, data));
            let message = refusal(&config, &without);
            assert!(message.contains(name.as_str()), "{case}, {name} cut: {message}");
            assert!(message.contains("shape"), "{message}");
        }
    }
}

#[test]
fn options_that_the_decoder_does_not_compute_are_refused_by_name() {
    let cases: &[(&str, &str, Value, &str)] = &[
        ("llama-wide", "model_type", json!("mixtral"), "\"mixtral\" is not supported"),
        ("qwen3", "model_type", json!("qwen3_moe"), "\"qwen3_moe\" is not supported"),
        ("granite", "model_type", json!("granitemoe"), "supported: llama, mistral"),
        ("gemma3", "architectures", json!(["Gemma3ForSequenceClassification"]), "Classification"),
        ("llama-wide", "hidden_act", json!("relu2"), "hidden_act \"relu2\""),
        ("gemma2", "hidden_activation", json!("gelu"), "hidden_activation \"gelu\""),
        ("gemma3", "use_bidirectional_attention", json!(true), "use_bidirectional_attention"),
        ("qwen2", "rope_parameters", json!({"rope_type": "dynamic"}), "rope_type \"dynamic\""),
        ("mistral", "partial_rotary_factor", json!(0.5), "partial_rotary_factor 0.5"),
        ("gemma2", "layer_types", json!(["full_attention"]), "layer_types has 1 entries"),
        (
            "gemma3",
            "layer_types",
            json!(["chunked_attention", "full_attention"]),
            "\"chunked_attention\"",
        ),
        ("smollm3", "no_rope_layers", json!([1]), "no_rope_layers has 1 entries"),
        ("phi3", "partial_rotary_factor", json!("x"), "partial_rotary_factor"),
        ("phi3", "quantization_config", json!({"bits": 4}), "quantised"),
        ("granite", "residual_multiplier", json!(0), "residual_multiplier"),
        ("mistral", "sliding_window", json!(-4), "sliding_window"),
        ("llama-wide", "attention_bias", json!("yes"), "attention_bias"),
    ];
    for (case, field, value, named) in cases {
        let mut config = config(case);
        if config["rope_parameters"]["partial_rotary_factor"].is_number() {
            config["rope_parameters"]["partial_rotary_factor"] = value.clone();
        }
        config[field] = value.clone();
        let message = refusal(&config, &tensors(&model(case)));
        assert!(message.contains(named), "{case} {field}: {message}");
        assert!(message.contains("config.json"), "{message}");
    }
}

#[test]
fn the_language_model_is_taken_out_of_one_that_also_sees() {
    let flat = config("gemma3");
    // The sizes that equal transformers' own are left out in published files.
    let mut text = flat.clone();
    for field in ["model_type", "architectures", "bos_token_id"] {
        text.as_object_mut().unwrap().remove(field);
    }
    let whole = json!({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "bos_token_id": flat["bos_token_id"], "text_config": text, "vision_config": {},
    });
    let image = (Dtype::F32, vec![1], vec![0; 4]);
    for (prefix, other) in [("language_model.model.", ""), ("model.language_model.", "model.")] {
        let mut named = Tensors::new();
        for (name, tensor) in tensors(&model("gemma3")) {
            named.insert(name.replacen("model.", prefix, 1), tensor);
        }
        named.insert(format!("{other}vision_tower.x.weight"), image.clone());
        named.insert(format!("{other}multi_modal_projector.x.weight"), image.clone());
        let folder = folder(&whole, &named);
        let out = folder.path().join("out");
        let imported = import(&folder.path().join("in"), &out).unwrap();
        assert_eq!(imported.architecture, "gemma3_text");
        assert!(tensors(&out) == tensors(&model("gemma3")));
        let written: Value =
            serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(read_spec(&written).unwrap(), read_spec(&flat).unwrap());
        assert_eq!(written["bos_token_id"], flat["bos_token_id"]);
        named.insert(format!("{prefix}layers.0.extra.weight"), image.clone());
        assert!(refusal(&whole, &named).contains("layers.0.extra.weight"));
    }
}

#[test]
fn sizes_left_to_the_defaults_are_written_out() {
    let published = json!({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "sliding_window": 1024,
            "rope_scaling": { "factor": 8.0, "rope_type": "linear" },
        },
    });
    // The tensors are missing, but the configuration has been understood by then.
    let message = refusal(&published, &Tensors::new());
    assert!(message.contains("model.embed_tokens.weight"), "{message}");
    let mut text = published["text_config"].clone();
    text["architectures"] = json!(["Gemma3ForCausalLM"]);
    let spec = read_spec(&text).unwrap();
    assert_eq!((spec.num_attention_heads, spec.head_dim, spec.vocab_size), (8, 256, 262_208));
    assert_eq!(spec.max_position_embeddings, 131_072);
    let windows: Vec<bool> = spec.layers.iter().map(|layer| layer.window.is_some()).collect();
    assert_eq!(windows[..7], [true, true, true, true, true, false, true]);
    assert_eq!(spec.rotary[0].scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!((spec.rotary[0].theta, spec.rotary[1].theta), (1_000_000.0, 10_000.0));
    assert_eq!(spec.rotary[1].scaling, RopeScaling::None);
    assert_eq!((spec.layers[0].rotary, spec.layers[5].rotary), (Some(1), Some(0)));
}

#[test]
fn earlier_spellings_of_the_rotary_fields_mean_the_same() {
    let mut config = config("qwen2");
    let new = read_spec(&config).unwrap();
    let parameters = config["rope_parameters"].take();
    config.as_object_mut().unwrap().remove("rope_parameters");
    config["rope_theta"] = parameters["rope_theta"].clone();
    config["rope_scaling"] = json!({
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256,
    });
    assert_eq!(read_spec(&config).unwrap(), new);
    // Phi-3's first files call longrope "su".
    let mut config = self::config("phi3");
    let new = read_spec(&config).unwrap();
    let mut parameters = config["rope_parameters"].take();
    config.as_object_mut().unwrap().remove("rope_parameters");
    config["partial_rotary_factor"] = json!(0.75);
    parameters.as_object_mut().unwrap().remove("rope_type");
    parameters["type"] = json!("su");
    config["rope_scaling"] = parameters;
    assert_eq!(read_spec(&config).unwrap(), new);
}
