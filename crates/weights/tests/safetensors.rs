//! Reading and writing safetensors: round trips, and files that lie about themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::tempdir;
use weights::{Dtype, FileError, TensorFile, write_safetensors};

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    file_with_length(header.len() as u64, header, data)
}

fn file_with_length(length: u64, header: &str, data: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), header.as_bytes(), data].concat()
}

fn open_bytes(bytes: &[u8]) -> Result<TensorFile, FileError> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    fs::write(&path, bytes).unwrap();
    TensorFile::open(&path)
}

#[test]
fn hostile_files_are_refused_with_the_cause() {
    let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let gap = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let mismatch = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#;
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
    let backwards = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}}"#;
    let unknown = r#"{"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}}"#;
    let deep = "[".repeat(100_000);
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", vec![], "empty"),
        ("short", vec![1, 2, 3], "too few"),
        ("length u64::MAX", file_with_length(u64::MAX, one, &[0; 8]), "claims"),
        ("length past the end", file_with_length(1000, one, &[0; 8]), "truncated"),
        ("not json", file("{nonsense", &[]), "not valid"),
        ("deeply nested", file(&deep, &[]), "not valid"),
        ("truncated data", file(one, &[0; 7]), "end where the file ends"),
        ("bytes after the data", file(one, &[0; 9]), "end where the file ends"),
        ("overlap", file(overlap, &[0; 8]), "overlaps"),
        ("gap", file(gap, &[0; 8]), "gap"),
        ("shape and bytes", file(mismatch, &[0; 8]), "do not match"),
        ("shape overflow", file(huge, &[0; 8]), "impossibly large"),
        ("offset overflow", file(backwards, &[0; 8]), "do not match"),
        ("unknown type", file(unknown, &[0; 8]), "not valid"),
    ];
    for (what, bytes, cause) in cases {
        let message =
            open_bytes(bytes).err().unwrap_or_else(|| panic!("{what}: opened")).to_string();
        assert!(message.contains(cause), "{what}: {message}");
        assert!(message.contains("x.safetensors"), "{what}: {message}");
    }
}

#[test]
fn an_index_cannot_name_files_outside_its_folder() {
    let folder = tempdir().unwrap();
    let inside = folder.path().join("model");
    fs::create_dir(&inside).unwrap();
    write_one(&folder.path().join("secret.safetensors"), "a", &[1.0]);
    for name in
        ["../secret.safetensors", "/etc/passwd", "..\\secret.safetensors", ".secret", "x.bin"]
    {
        let index = serde_json::json!({ "weight_map": { "a": name } }).to_string();
        fs::write(inside.join("model.safetensors.index.json"), index).unwrap();
        let message = TensorFile::open_folder(&inside).unwrap_err().to_string();
        assert!(message.contains("of its own folder"), "{name}: {message}");
    }
}

fn write_one(path: &Path, name: &str, values: &[f32]) {
    let entry = [(name, Dtype::F32, vec![values.len()], values)];
    write_safetensors(path, entry, &BTreeMap::new()).unwrap();
}

#[test]
fn shards_are_seen_as_one_file() {
    let folder = tempdir().unwrap();
    write_one(&folder.path().join("one.safetensors"), "a", &[1.0]);
    write_one(&folder.path().join("two.safetensors"), "b", &[2.0, 3.0]);
    let map = serde_json::json!({ "a": "one.safetensors", "b": "two.safetensors" });
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let file = TensorFile::open_folder(folder.path()).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(file.get_f32("b").unwrap(), [2.0, 3.0]);
}

#[test]
fn an_index_must_agree_with_its_shards() {
    let folder = tempdir().unwrap();
    write_one(&folder.path().join("one.safetensors"), "a", &[1.0]);
    let index = r#"{ "weight_map": { "b": "one.safetensors" } }"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let message = TensorFile::open_folder(folder.path()).unwrap_err().to_string();
    assert!(message.contains(r#"tensor "b" is not in "one.safetensors""#), "{message}");
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write_one(&path, "a", &[1.0]);
    let wrong = [("a", Dtype::F32, vec![3], &[0u8; 8][..])];
    let message = write_safetensors(&path, wrong, &BTreeMap::new()).unwrap_err().to_string();
    assert!(message.contains("8 bytes") && message.contains("12"), "{message}");
    assert_eq!(TensorFile::open(&path).unwrap().get_f32("a").unwrap(), [1.0]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_name_cannot_occur_twice() {
    let folder = tempdir().unwrap();
    let twice = ["a", "a"].map(|name| (name, Dtype::U8, vec![1], &[0u8][..]));
    let result = write_safetensors(&folder.path().join("x"), twice, &BTreeMap::new());
    assert!(matches!(result, Err(FileError::CannotWrite { .. })));
}

#[test]
fn half_precision_reads_as_f32_and_integers_do_not() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let tensors = [
        ("bf16", Dtype::BF16, vec![1], vec![0x80, 0x3f]),
        ("f16", Dtype::F16, vec![2], vec![0x00, 0x3c, 0x01, 0x00]),
        ("i64", Dtype::I64, vec![1], vec![0; 8]),
    ];
    write_safetensors(&path, tensors, &BTreeMap::new()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    assert_eq!(file.get_f32("bf16").unwrap(), [1.0]);
    assert_eq!(file.get_f32("f16").unwrap(), [1.0, 2f32.powi(-24)]);
    assert!(matches!(file.get_f32("i64"), Err(FileError::NotFloat { .. })));
    assert!(matches!(file.get("none"), Err(FileError::MissingTensor { .. })));
}

type Entry = (String, Dtype, Vec<usize>, Vec<u8>);

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let dtypes = prop::sample::select(vec![
        Dtype::U8,
        Dtype::BF16,
        Dtype::F16,
        Dtype::F32,
        Dtype::I64,
        Dtype::F64,
    ]);
    let shape = prop::collection::vec(0usize..5, 0..4);
    let tensor = (dtypes, shape).prop_flat_map(|(dtype, shape)| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (Just(dtype), Just(shape), prop::collection::vec(any::<u8>(), bytes))
    });
    prop::collection::btree_map("\\PC{1,12}", tensor, 0..8).prop_map(|map| {
        map.into_iter().map(|(name, (dtype, shape, data))| (name, dtype, shape, data)).collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in entries(), note in "\\PC{0,20}") {
        let folder = tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let metadata = BTreeMap::from([("note".to_owned(), note.clone())]);
        write_safetensors(&path, entries.clone(), &metadata).unwrap();
        let file = TensorFile::open(&path).unwrap();
        prop_assert_eq!(file.metadata("note"), Some(note.as_str()));
        prop_assert_eq!(file.len(), entries.len());
        for (name, dtype, shape, data) in &entries {
            let view = file.get(name).unwrap();
            prop_assert_eq!((view.dtype, &view.shape, view.data), (*dtype, shape, &data[..]));
        }
        let again = folder.path().join("again.safetensors");
        write_safetensors(&again, entries, &metadata).unwrap();
        prop_assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
    }

    #[test]
    fn damaged_files_never_panic(
        entries in entries(), at in any::<Index>(), byte in any::<u8>(),
    ) {
        let folder = tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        write_safetensors(&path, entries, &BTreeMap::new()).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(file) = open_bytes(&bytes) {
            for name in file.names() {
                file.get(name).unwrap();
            }
        }
        let _ = open_bytes(&bytes[..at]);
    }
}
