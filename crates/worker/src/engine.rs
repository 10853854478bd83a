//! The engine of one slot: at most one process, with one base model loaded, used by a run and by
//! generations at the same time.
//!
//! Whoever wants another base model waits until nobody uses the loaded one; a run claims it first.
//! The engine is started when it is wanted and started again when it has died; how often that is
//! worth trying is the user's question.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domain::hyperparameters::Precision;
use domain::internal::BaseModel;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};

use crate::launch::Launch;
use crate::supervise::{Engine, EngineError};

/// The right to use the loaded engine; it is not exchanged as long as this is held.
pub type EngineUse = OwnedRwLockReadGuard<Option<Engine>, Engine>;

pub struct EngineHost {
    launch: Launch,
    start_limit: Duration,
    grace: Duration,
    /// Readers use the engine, a writer exchanges it. The lock is fair, so nobody waits for ever.
    loaded: Arc<RwLock<Option<Engine>>>,
    /// The base model that a run needs, from its claim to its end.
    pinned: watch::Sender<Option<BaseModel>>,
}

impl EngineHost {
    pub fn new(launch: Launch, start_limit: Duration, grace: Duration) -> Self {
        let (loaded, pinned) = (Arc::default(), watch::Sender::new(None));
        Self { launch, start_limit, grace, loaded, pinned }
    }

    /// The base model that is loaded and ready; none also while it is being exchanged.
    pub fn warm(&self) -> Option<BaseModel> {
        let loaded = self.loaded.try_read().ok()?;
        loaded.as_ref().filter(|engine| engine.is_alive()).map(|engine| engine.base().clone())
    }

    pub fn pinned(&self) -> Option<BaseModel> {
        self.pinned.borrow().clone()
    }

    /// What `auto` means on this device.
    pub fn precision(&self) -> Precision {
        Precision::of_device(&self.launch.device)
    }

    /// `base` in the form in which this device holds it.
    fn held(&self, base: &BaseModel) -> BaseModel {
        BaseModel { precision: base.precision.or_native(self.precision()), ..base.clone() }
    }

    /// Reserves the engine for runs on `base`; generations on others are turned away meanwhile.
    pub fn pin(&self, base: &BaseModel) -> Pin<'_> {
        self.pinned.send_replace(Some(self.held(base)));
        Pin(self)
    }

    /// The engine with `base` loaded, for a run that has pinned it.
    pub async fn for_run(&self, base: &BaseModel, dir: &Path) -> Result<EngineUse, EngineError> {
        let base = self.held(base);
        loop {
            if let Some(engine) = self.in_use(&base).await {
                return Ok(engine);
            }
            self.exchange(&base, dir).await?;
        }
    }

    /// The engine with `base` loaded, unless a run holds it on another base model.
    pub async fn for_generation(
        &self,
        base: &BaseModel,
        dir: &Path,
    ) -> Result<EngineUse, EngineError> {
        let mut pinned = self.pinned.subscribe();
        let (mut other_run, wanted) = (None, self.held(base).variant());
        let claimed = pinned.wait_for(|pinned| {
            other_run = pinned.as_ref().map(BaseModel::variant).filter(|model| *model != wanted);
            other_run.is_some()
        });
        tokio::select! {
            biased;
            _ = claimed => {}
            engine = self.for_run(base, dir) => return engine,
        }
        Err(EngineError::Busy(other_run.map(|model| model.to_string()).unwrap_or_default()))
    }

    /// Ends the process when nobody uses it any more.
    pub async fn stop(&self) {
        let engine = self.loaded.write().await.take();
        if let Some(engine) = engine {
            engine.stop().await;
        }
    }

    async fn in_use(&self, base: &BaseModel) -> Option<EngineUse> {
        let loaded = self.loaded.clone().read_owned().await;
        OwnedRwLockReadGuard::try_map(loaded, |engine| {
            engine.as_ref().filter(|engine| serves(engine, base))
        })
        .ok()
    }

    async fn exchange(&self, base: &BaseModel, dir: &Path) -> Result<(), EngineError> {
        let mut loaded = self.loaded.write().await;
        if loaded.as_ref().is_some_and(|engine| serves(engine, base)) {
            return Ok(()); // Another waiter was faster.
        }
        if let Some(engine) = loaded.take() {
            engine.stop().await;
        }
        let (limit, grace) = (self.start_limit, self.grace);
        let started = Engine::start(&self.launch, base, dir, limit, grace).await;
        let failed = |error: &EngineError| tracing::error!(model = %base.id, "{error}");
        *loaded = Some(started.inspect_err(failed)?);
        Ok(())
    }
}

fn serves(engine: &Engine, base: &BaseModel) -> bool {
    let held = engine.base();
    let form = |model: &BaseModel| (model.quantization, model.precision);
    engine.is_alive() && held.digest == base.digest && form(held) == form(base)
}

/// The reservation of a run.
pub struct Pin<'a>(&'a EngineHost);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.pinned.send_replace(None);
    }
}
