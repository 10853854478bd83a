//! Read-only memory maps of weight files: the only `unsafe` of the crate.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a whole regular file; an empty file is an error, because it cannot be mapped.
#[expect(unsafe_code, reason = "mapping a file is unsafe by nature; see SAFETY below")]
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty"));
    }
    // SAFETY: the map is private and read-only, and only ever seen as bytes, for which every bit
    // pattern is valid. Nobody may truncate the file meanwhile: our own files are only replaced by
    // rename (`durable`), which leaves a mapped file as it is.
    unsafe { Mmap::map(&file) }
}
