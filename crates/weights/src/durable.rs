//! Files that appear whole or not at all: written under a temporary name beside the target, synced,
//! renamed over it, and the folder synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A name beside `path` that no other writer of this machine uses now.
pub fn temporary_sibling(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id()))
}

/// Writes `path` through `fill`; on any error nothing is left behind and an old file stays.
pub fn write_file<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = temporary_sibling(path);
    let result = fill_and_rename(path, &temporary, fill);
    if result.is_err() {
        // The first error is the one to tell; a left-over temporary file is harmless.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn fill_and_rename<E: From<io::Error>>(
    path: &Path,
    temporary: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let file = OpenOptions::new().write(true).create_new(true).open(temporary)?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    sync_folder_of(path)?;
    Ok(())
}

pub fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_file(path, |out| out.write_all(bytes))
}

/// Makes a rename in the folder of `path` survive a power cut.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
