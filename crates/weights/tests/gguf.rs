//! GGUF headers that lie: each is refused, with the cause, before anything is allocated for it.

use std::fs;

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::tempdir;
use weights::gguf::{GgufError, GgufFile};

const U32: u32 = 4;
const TEXT: u32 = 8;
const LIST: u32 = 9;

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

fn key(name: &str, value_type: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &value_type.to_le_bytes(), value].concat()
}

fn tensor(name: &str, shape: &[u64], tensor_type: u32, offset: u64) -> Vec<u8> {
    let dims: Vec<u8> = shape.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let count = (shape.len() as u32).to_le_bytes();
    [&text(name)[..], &count, &dims, &tensor_type.to_le_bytes(), &offset.to_le_bytes()].concat()
}

/// A file with right counts and the data at the default alignment.
fn file(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
    let mut bytes = start(3, tensors.len() as u64, keys.len() as u64);
    bytes.extend(keys.concat());
    bytes.extend(tensors.concat());
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    bytes
}

fn start(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
    let counts = [tensors.to_le_bytes(), keys.to_le_bytes()].concat();
    [&b"GGUF"[..], &version.to_le_bytes(), &counts].concat()
}

fn list(element: u32, length: u64) -> Vec<u8> {
    [&element.to_le_bytes()[..], &length.to_le_bytes()].concat()
}

fn open_bytes(bytes: &[u8]) -> Result<GgufFile, GgufError> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    fs::write(&path, bytes).unwrap();
    GgufFile::open(&path)
}

fn one_tensor(shape: &[u64], tensor_type: u32, offset: u64) -> Vec<u8> {
    file(&[], &[tensor("a", shape, tensor_type, offset)], 64)
}

#[test]
fn hostile_headers_are_refused_with_the_cause() {
    let alignment = |value: u32| key("general.alignment", U32, &value.to_le_bytes());
    let huge_text = [&u64::MAX.to_le_bytes()[..], b"x"].concat();
    let not_utf8 = [&1u64.to_le_bytes()[..], &[0xff]].concat();
    let nested = [list(LIST, 1), list(LIST, 1)].concat();
    let twice = [tensor("a", &[8], 0, 0), tensor("b", &[8], 0, 0)];
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", vec![], "empty"),
        ("other magic", b"GGML\x03\0\0\0\0\0\0\0".to_vec(), "begin with"),
        ("only magic", b"GGUF".to_vec(), "only 0 follow"),
        ("version 1", start(1, 0, 0), "version 1"),
        ("big-endian", start(3u32.swap_bytes(), 0, 0), "big-endian"),
        ("tensor count", start(3, u64::MAX, 0), "tensors"),
        ("key count", start(3, 0, u64::MAX), "keys"),
        ("count without entries", start(3, 0, 1), "1 keys"),
        ("key length", [start(3, 0, 1), huge_text.clone(), vec![0; 64]].concat(), "bytes of text"),
        ("text length", file(&[key("k", TEXT, &huge_text)], &[], 64), "bytes of text"),
        ("list length", file(&[key("k", LIST, &list(U32, u64::MAX))], &[], 64), "list elements"),
        ("list of texts", file(&[key("k", LIST, &list(TEXT, 90))], &[], 64), "list elements"),
        ("list of lists", file(&[key("k", LIST, &nested)], &[], 64), "lists of lists"),
        ("value type", file(&[key("k", 99, &[0; 8])], &[], 64), "type 99"),
        ("same key", file(&[alignment(32), alignment(32)], &[], 64), "occurs twice"),
        ("name not UTF-8", [&start(3, 0, 1)[..], &not_utf8, &[0; 64]].concat(), "UTF-8"),
        ("alignment 0", file(&[alignment(0)], &[], 64), "power of two"),
        ("alignment 48", file(&[alignment(48)], &[], 64), "power of two"),
        ("alignment 2^31", file(&[alignment(1 << 31)], &[], 64), "power of two"),
        ("no dimensions", one_tensor(&[], 0, 0), "0 dimensions"),
        ("five dimensions", one_tensor(&[1; 5], 0, 0), "5 dimensions"),
        ("dimension 0", one_tensor(&[8, 0], 0, 0), "zero"),
        ("shape overflow", one_tensor(&[1 << 33, 1 << 33], 0, 0), "impossibly large"),
        ("bytes overflow", one_tensor(&[1 << 31, 1 << 32], 0, 0), "impossibly large"),
        ("broken block", one_tensor(&[33], 2, 0), "whole blocks"),
        ("past the end", one_tensor(&[17], 0, 0), "truncated"),
        ("offset past the end", one_tensor(&[8], 0, 1 << 40), "truncated"),
        ("offset overflow", one_tensor(&[8], 0, u64::MAX - 31), "offset"),
        ("offset not aligned", one_tensor(&[1], 0, 4), "multiple of 32"),
        ("overlap", file(&[], &twice, 64), "overlap"),
        ("same tensor", file(&[], &[twice[0].clone(), twice[0].clone()], 64), "occurs twice"),
        ("K-quant", one_tensor(&[256], 12, 0), "Q4_K"),
        ("type of the future", one_tensor(&[256], 77, 0), "type 77"),
    ];
    for (what, bytes, cause) in cases {
        let message =
            open_bytes(bytes).err().unwrap_or_else(|| panic!("{what}: opened")).to_string();
        assert!(message.contains(cause), "{what}: {message}");
        assert!(message.contains("x.gguf"), "{what}: {message}");
    }
}

#[test]
fn a_value_of_another_type_is_an_error_that_says_both() {
    let file = open_bytes(&file(&[key("k", U32, &7u32.to_le_bytes())], &[], 64)).unwrap();
    assert_eq!(file.unsigned("k").unwrap(), Some(7));
    assert_eq!(file.text("other").unwrap(), None);
    let message = file.text("k").unwrap_err().to_string();
    assert!(message.contains("the number 7") && message.contains("text"), "{message}");
}

#[test]
fn version_2_is_read_as_version_3() {
    let mut bytes = one_tensor(&[4, 2], 0, 0);
    bytes[4] = 2;
    let file = open_bytes(&bytes).unwrap();
    assert_eq!(file.tensor("a").unwrap().shape, [2, 4]);
    assert_eq!(file.dequantise(&file.tensors()[0]), [0.0; 8]);
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        at in any::<Index>(), byte in any::<u8>(), cut in any::<Index>(),
    ) {
        let keys = [
            key("general.alignment", U32, &32u32.to_le_bytes()),
            key("list", LIST, &[list(TEXT, 2), text("one"), text("two")].concat()),
        ];
        let tensors = [tensor("a", &[32, 2], 3, 0), tensor("b", &[8], 0, 64)];
        let mut bytes = file(&keys, &tensors, 128);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(file) = open_bytes(&bytes) {
            for tensor in file.tensors() {
                file.dequantise(tensor);
            }
            let _ = file.texts("list");
        }
        let _ = open_bytes(&bytes[..cut.index(bytes.len())]);
    }
}
