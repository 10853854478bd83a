//! Merged weights against those of peft (`tests/golden/merge_fixture.py`), and what cannot be merged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use weights::merge::{MergePlan, TensorPlace, header_bytes, tensor_places};
use weights::peft::AdapterConfig;
use weights::{Dtype, TensorFile, write_safetensors};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("model/tests/fixtures")
}

fn places(file: &[u8]) -> Vec<TensorPlace> {
    let length = header_bytes(*file.first_chunk().unwrap(), file.len() as u64).unwrap();
    tensor_places(&file[..length as usize], file.len() as u64).unwrap()
}

/// As the server does it, with the files in memory.
fn merge(base: &[Vec<u8>], adapter: &Path) -> Result<Vec<u8>, String> {
    let config = AdapterConfig::from_json(&fs::read(adapter.join("adapter_config.json")).unwrap())?;
    let adapter = fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let of_base: Vec<_> = base.iter().map(|file| places(file)).collect();
    let plan = MergePlan::new(&of_base, &config, places(&adapter))?;
    let cut = |file: &[u8], range: &std::ops::Range<u64>| {
        file[range.start as usize..range.end as usize].to_vec()
    };
    let mut merged = plan.header.clone();
    for part in &plan.parts {
        let mut bytes = cut(&base[part.file], &part.bytes);
        if let Some(update) = &part.update {
            let of = |place: &TensorPlace| cut(&adapter, &place.bytes);
            let magnitude = update.magnitude.as_ref().map(of);
            update.apply(&mut bytes, &of(&update.a), &of(&update.b), magnitude.as_deref())?;
        }
        merged.extend(bytes);
    }
    assert_eq!(merged.len() as u64, plan.bytes);
    Ok(merged)
}

fn opened(folder: &Path, content: &[u8]) -> TensorFile {
    let path = folder.join("merged.safetensors");
    fs::write(&path, content).unwrap();
    TensorFile::open(&path).unwrap()
}

#[test]
fn merged_matrices_equal_pefts() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama-tied", "rslora", "dora", "phi3", "qwen2"] {
        let case = models().join(name);
        let base = fs::read(case.join("model/model.safetensors")).unwrap();
        let merged = opened(folder.path(), &merge(&[base], &case.join("adapter")).unwrap());
        let original = TensorFile::open(&case.join("model/model.safetensors")).unwrap();
        let fixture = format!("tests/fixtures/merge/{name}.safetensors");
        let golden =
            TensorFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture)).unwrap();
        assert!(!golden.is_empty());
        assert!(merged.names().eq(original.names()), "{name}");
        for key in original.names() {
            let (ours, base) = (merged.get(key).unwrap(), original.get(key).unwrap());
            assert_eq!((ours.dtype, &ours.shape), (base.dtype, &base.shape), "{name} {key}");
            if !golden.contains(key) {
                assert_eq!(ours.data, base.data, "{name} {key}: not adapted, and changed");
                continue;
            }
            assert_ne!(ours.data, base.data, "{name} {key}: adapted, and not changed");
            let theirs = golden.get_f32(key).unwrap();
            let largest = theirs.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (ours, theirs) in ours.to_f32().unwrap().iter().zip(&theirs) {
                // Half of the last place of what the base is stored in, and the order of f32 sums.
                let rounding = if base.dtype == Dtype::F32 { 0.0 } else { theirs.abs() / 256.0 };
                let bound = rounding + 1e-6 * largest;
                assert!((ours - theirs).abs() <= bound, "{name} {key}: {ours} against {theirs}");
            }
        }
    }
}

#[test]
fn a_base_of_several_files_becomes_one() {
    let folder = tempfile::tempdir().unwrap();
    let case = models().join("llama-tied");
    let whole = fs::read(case.join("model/model.safetensors")).unwrap();
    let file = TensorFile::open(&case.join("model/model.safetensors")).unwrap();
    let names: Vec<&str> = file.names().collect();
    let halves = names.chunks(names.len() / 2 + 1).map(|names| {
        let tensors = names.iter().map(|name| {
            let view = file.get(name).unwrap();
            (*name, view.dtype, view.shape.clone(), view.data)
        });
        let path = folder.path().join("half.safetensors");
        write_safetensors(&path, tensors, &BTreeMap::new()).unwrap();
        fs::read(path).unwrap()
    });
    let halves: Vec<Vec<u8>> = halves.collect();
    let adapter = case.join("adapter");
    let split = opened(folder.path(), &merge(&halves, &adapter).unwrap());
    let other = tempfile::tempdir().unwrap();
    let together = opened(other.path(), &merge(&[whole], &adapter).unwrap());
    for name in names {
        assert_eq!(split.get(name).unwrap().data, together.get(name).unwrap().data, "{name}");
    }
}

#[test]
fn what_has_no_place_in_the_weights_is_refused_by_name() {
    let base = |name: &str| fs::read(models().join(name).join("model/model.safetensors")).unwrap();
    // Of another model.
    let refusal = merge(&[base("llama-wide")], &models().join("llama-tied/adapter")).unwrap_err();
    assert!(refusal.contains("k_proj") || refusal.contains("shapes"), "{refusal}");
    let mut found = 0;
    for entry in fs::read_dir(models().join("virtual")).unwrap() {
        let adapter = entry.unwrap().path();
        if adapter.join("adapter_config.json").exists() {
            let refusal = merge(&[base("llama-tied")], &adapter).unwrap_err();
            assert!(refusal.contains("virtual tokens"), "{refusal}");
            found += 1;
        }
    }
    let reward = models().join("../../../engine/tests/fixtures/reward/adapter");
    let refusal = merge(&[base("llama-tied")], &reward).unwrap_err();
    assert!(found > 0 && refusal.contains("reward model"), "{found} {refusal}");
    let twice = base("llama-tied");
    let refusal = merge(&[twice.clone(), twice], &models().join("llama-tied/adapter")).unwrap_err();
    assert!(refusal.contains("twice"), "{refusal}");
}

#[test]
fn headers_that_lie_are_refused() {
    let file = fs::read(models().join("llama-tied/model/model.safetensors")).unwrap();
    let bytes = file.len() as u64;
    assert!(header_bytes(u64::MAX.to_le_bytes(), bytes).is_err());
    assert!(header_bytes((1u64 << 40).to_le_bytes(), 1 << 50).is_err(), "beyond the limit");
    let length = header_bytes(*file.first_chunk().unwrap(), bytes).unwrap() as usize;
    assert!(tensor_places(&file[..length], bytes - 1).is_err());
    assert!(tensor_places(&file[..length - 9], bytes).is_err());
    assert!(tensor_places(b"", 0).is_err());
}
