//! Early syncs of a local file that is being written: the disk works while bytes still arrive, so that the sync at
//! the end finds little left. Without them the kernel keeps what it can in memory until it is asked.

use std::fs::File;
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

/// Bytes between two syncs: some tenths of a second of a usual disk's work.
const STRIDE: usize = 32 * 1024 * 1024;

pub(super) struct EarlySync {
    /// Where `object_store` gathers the parts of a blob whose name is new: `name#1` beside it.
    staged: PathBuf,
    unsynced: usize,
    running: Option<JoinHandle<()>>,
}

impl EarlySync {
    pub(super) fn new(folder: &Path, blob: &str) -> Self {
        Self { staged: folder.join(format!("{blob}#1")), unsynced: 0, running: None }
    }

    /// So many bytes more are in the file.
    pub(super) fn written(&mut self, bytes: usize) {
        self.unsynced += bytes;
        let is_busy = self.running.as_ref().is_some_and(|sync| !sync.is_finished());
        if self.unsynced < STRIDE || is_busy {
            return;
        }
        self.unsynced = 0;
        let staged = self.staged.clone();
        self.running = Some(tokio::task::spawn_blocking(move || {
            // Only sooner: the sync at the end is the one that counts, and the kernel tells each open file of an
            // error on its own.
            if let Ok(file) = File::open(staged) {
                let _ = file.sync_data();
            }
        }));
    }
}
