//! A model that was merged by `weights::merge` computes what peft computes with the adapter beside the base.
//! Fixtures: `tests/golden/families_fixture.py` and `adapters_fixture.py`; the merged matrices themselves are compared
//! in the tests of `weights`.

use std::fs;
use std::ops::Range;
use std::path::Path;

use model::{Batch, Decoder};
use tch::{Device, Tensor};
use weights::TensorFile;
use weights::merge::{MergePlan, TensorPlace, header_bytes, tensor_places};
use weights::peft::AdapterConfig;

fn places(file: &[u8]) -> Vec<TensorPlace> {
    let length = header_bytes(*file.first_chunk().unwrap(), file.len() as u64).unwrap();
    tensor_places(&file[..length as usize], file.len() as u64).unwrap()
}

/// Merges a case's adapter into a copy of its model folder.
fn merge(case: &Path, out: &Path) {
    for entry in fs::read_dir(case.join("model")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, out.join(path.file_name().unwrap())).unwrap();
    }
    let base = fs::read(case.join("model/model.safetensors")).unwrap();
    let adapter = fs::read(case.join("adapter/adapter_model.safetensors")).unwrap();
    let config = fs::read(case.join("adapter/adapter_config.json")).unwrap();
    let config = AdapterConfig::from_json(&config).unwrap();
    let plan = MergePlan::new(&[places(&base)], &config, places(&adapter)).unwrap();
    let cut =
        |file: &[u8], range: &Range<u64>| file[range.start as usize..range.end as usize].to_vec();
    let mut merged = plan.header.clone();
    for part in &plan.parts {
        let mut bytes = cut(&base, &part.bytes);
        if let Some(update) = &part.update {
            let of = |place: &TensorPlace| cut(&adapter, &place.bytes);
            let magnitude = update.magnitude.as_ref().map(of);
            update.apply(&mut bytes, &of(&update.a), &of(&update.b), magnitude.as_deref()).unwrap();
        }
        merged.extend(bytes);
    }
    fs::write(out.join("model.safetensors"), merged).unwrap();
}

fn integers(file: &TensorFile, name: &str) -> Vec<i64> {
    let data = file.get(name).unwrap().data;
    data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn logits_of_merged_models_equal_pefts_with_the_adapter_beside_the_base() {
    tch::set_num_threads(1);
    // Bases in f32, then in bf16, whose merged matrices are rounded to it.
    for (name, bound) in
        [("llama-tied", 2e-5), ("rslora", 2e-5), ("dora", 2e-5), ("qwen2", 2e-2), ("phi3", 2e-2)]
    {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let folder = tempfile::tempdir().unwrap();
        merge(&case, folder.path());
        let decoder = Decoder::load(folder.path(), Device::Cpu).unwrap();
        let golden = TensorFile::open(&case.join("golden.safetensors")).unwrap();
        let (input_ids, mut start) = (integers(&golden, "input_ids"), 0);
        let mut batch = Batch { input_ids, cu_seqlens: vec![0], ..Batch::default() };
        for length in integers(&golden, "lengths") {
            batch.positions.extend(0..length);
            start += length;
            batch.cu_seqlens.push(start as i32);
        }
        let ours = decoder.logits(&batch, None).unwrap();
        let shape: Vec<i64> = ours.size();
        let theirs = Tensor::from_slice(&golden.get_f32("logits").unwrap()).view(&shape[..]);
        let largest = theirs.abs().max().double_value(&[]);
        let error = (ours - theirs).abs().max().double_value(&[]);
        println!("{name}: {error:e} of {largest}");
        assert!(error <= bound * largest, "{name}: {error:e} of {largest}");
    }
}
