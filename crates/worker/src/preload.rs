//! Loads a base model before anybody asks for one, so that the first run or chat finds the engine
//! warm.

use domain::internal::BaseModel;

use crate::client::CallError;
use crate::slot::Slot;

impl Slot {
    /// Loads the configured base model, or the first that the server lists. Repeats while there is
    /// no server or no model yet; gives way to whoever has loaded one meanwhile.
    pub async fn preload(&self) {
        let mut backoff = self.backoff();
        loop {
            tokio::select! {
                () = self.draining.cancelled() => return,
                done = self.try_preload() => match done {
                    Ok(()) => return,
                    Err(why) if backoff.attempts() == 0 => {
                        tracing::info!("no base model loaded yet, will repeat: {why}");
                    }
                    Err(why) => tracing::debug!("no base model loaded yet: {why}"),
                },
            }
            tokio::select! {
                () = self.draining.cancelled() => return,
                () = backoff.pause() => {}
            }
        }
    }

    async fn try_preload(&self) -> Result<(), String> {
        if self.in_service() {
            return Ok(());
        }
        let listed = self.client.models().await.map_err(|e: CallError| e.to_string())?;
        let wanted = self.config.preload_model.as_deref();
        let model: &BaseModel = match wanted {
            Some(name) => listed
                .iter()
                .find(|model| model.id.as_str() == name)
                .ok_or_else(|| format!("the server does not have the base model '{name}'"))?,
            None => listed.first().ok_or("the server has no base model yet")?,
        };
        let dir = self.cache.base_model(&self.client, model).await.map_err(|e| e.to_string())?;
        if self.in_service() {
            return Ok(());
        }
        self.host.for_generation(model, &dir).await.map(drop).map_err(|e| e.to_string())
    }

    fn in_service(&self) -> bool {
        self.host.warm().is_some() || self.host.pinned().is_some()
    }
}
