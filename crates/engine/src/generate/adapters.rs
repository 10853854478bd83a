//! Adapters and whole tuned models of chat requests, kept in memory while they are in use and a little longer.
//!
//! A folder's content never changes under its name (the worker caches by digest), so the path is
//! the key.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use domain::engine::GenerationFailure;
use model::{Adapter, Decoder};

use super::internal_error;

/// The most recently used adapters, newest last.
#[derive(Debug)]
pub struct AdapterCache {
    kept: usize,
    adapters: Vec<(PathBuf, Rc<Adapter>)>,
}

impl AdapterCache {
    pub fn new(kept: usize) -> Self {
        Self { kept, adapters: Vec::new() }
    }

    /// The adapter of a folder, loaded if it is not there yet. One that is dropped from here lives
    /// on as long as an answer uses it.
    ///
    /// # Errors
    /// A folder that holds no adapter for this model.
    pub fn get(
        &mut self,
        folder: &Path,
        decoder: &Decoder,
    ) -> Result<Rc<Adapter>, GenerationFailure> {
        let known = self.adapters.iter().position(|(path, _)| path == folder);
        let entry = match known {
            Some(at) => self.adapters.remove(at),
            None => {
                let adapter = Adapter::load(decoder, folder).map_err(|error| {
                    let folder = folder.display();
                    internal_error(format!("The adapter {folder} cannot be loaded: {error}"))
                })?;
                (folder.to_owned(), Rc::new(adapter))
            }
        };
        let adapter = Rc::clone(&entry.1);
        if adapter.is_full() {
            // As large as the base: one at a time.
            self.adapters.retain(|(_, other)| !other.is_full());
        }
        self.adapters.push(entry);
        if self.adapters.len() > self.kept {
            self.adapters.remove(0);
        }
        Ok(adapter)
    }
}
