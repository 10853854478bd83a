//! A tar stream of files whose sizes are known, in the ustar form that every tool reads.
//!
//! Written here and not by a library, because a header is all there is to it; a library's builder wants a blocking
//! writer, and this is a stream.

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};

use super::ModelFiles;

const BLOCK: u64 = 512;

/// Bytes of the whole stream.
pub(crate) fn tar_bytes(model: &ModelFiles) -> u64 {
    let file = |bytes: u64| BLOCK + bytes.next_multiple_of(BLOCK);
    model.files.iter().map(|each| file(each.bytes)).sum::<u64>() + 2 * BLOCK
}

/// The files one after the other, without a folder around them.
pub(crate) fn tar(model: ModelFiles) -> impl Stream<Item = store::Result<Bytes>> + Send {
    let end = stream::once(async { Ok(zeros(2 * BLOCK)) });
    let count = model.files.len();
    stream::iter(0..count)
        .flat_map(move |index| {
            let file = &model.files[index];
            let header = header(&file.name, file.bytes, model.created_at);
            let padding = zeros(file.bytes.next_multiple_of(BLOCK) - file.bytes);
            stream::once(async { Ok(header) })
                .chain(model.read(file))
                .chain(stream::once(async { Ok(padding) }))
                .boxed()
        })
        .chain(end)
}

fn zeros(count: u64) -> Bytes {
    Bytes::from(vec![0; count as usize])
}

/// The block before a file: name, rights, owner, size, time, and the sum of its bytes.
fn header(name: &str, bytes: u64, created_at: i64) -> Bytes {
    let mut block = [0u8; BLOCK as usize];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    // Names are those of manifests: plain, and at most 128 characters. What is longer than the field is cut.
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if bytes < 1 << 33 {
        put(124, format!("{bytes:011o}\0").as_bytes());
    } else {
        // More than eleven octal digits: a binary number, marked by its first bit. tar, bsdtar and Python read it.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &bytes.to_be_bytes());
    }
    put(136, format!("{:011o}\0", created_at.max(0)).as_bytes());
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Bytes::copy_from_slice(&block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_name_size_and_its_own_sum() {
        let block = header("adapter_config.json", 1234, 1_700_000_000);
        assert_eq!(&block[..20], b"adapter_config.json\0");
        assert_eq!(&block[124..136], b"00000002322\0");
        assert_eq!(&block[257..265], b"ustar\x0000");
        let blank = block
            .iter()
            .enumerate()
            .map(|(at, &byte)| u32::from(if (148..156).contains(&at) { b' ' } else { byte }));
        let sum = u32::from_str_radix(std::str::from_utf8(&block[148..154]).unwrap(), 8).unwrap();
        assert_eq!(sum, blank.sum::<u32>());
    }

    #[test]
    fn a_file_beyond_eight_gibibytes_has_its_size_in_binary() {
        let block = header("model.safetensors", 14 << 30, 0);
        assert_eq!(block[124], 0x80);
        assert_eq!(block[128..136], (14u64 << 30).to_be_bytes());
    }
}
