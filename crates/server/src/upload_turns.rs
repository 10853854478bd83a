//! Turns of completing uploads, within this process: one at a time for each upload, a few at a time
//! altogether. It only saves work; what must not happen twice is decided in the database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use domain::UploadId;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// Each reads and hashes a whole content.
const AT_ONCE: usize = 4;

pub(crate) struct UploadTurns {
    uploads: Mutex<HashMap<UploadId, Weak<AsyncMutex<()>>>>,
    slots: Arc<Semaphore>,
}

/// Held while an upload is completed.
pub(crate) struct Turn {
    _upload: OwnedMutexGuard<()>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Default for UploadTurns {
    fn default() -> Self {
        Self { uploads: Mutex::default(), slots: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl UploadTurns {
    pub(crate) async fn turn(&self, upload: &UploadId) -> Turn {
        let mutex = {
            let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
            uploads.retain(|_, mutex| mutex.strong_count() > 0);
            match uploads.get(upload).and_then(Weak::upgrade) {
                Some(mutex) => mutex,
                None => {
                    let mutex = Arc::new(AsyncMutex::new(()));
                    uploads.insert(upload.clone(), Arc::downgrade(&mutex));
                    mutex
                }
            }
        };
        let upload = mutex.lock_owned().await;
        // The semaphore is never closed.
        Turn { _upload: upload, _slot: self.slots.clone().acquire_owned().await.ok() }
    }
}
