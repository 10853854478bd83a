//! Blobs that nothing refers to any more, and their removal.

use crate::Store;
use crate::error::Result;

/// Removes up to `limit` blobs whose time has come: deleted files, superseded checkpoints, uploads that
/// were broken off. The server calls it every few seconds. Returns how many were removed.
pub async fn collect(store: &Store, limit: u32) -> Result<usize> {
    let _ = (store, limit);
    crate::unwritten()
}
