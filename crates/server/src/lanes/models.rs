//! What validation needs of base models: tokenizer, width, context length. Loading a tokenizer
//! takes a good part of a second, so the latest few stay in memory, by the content they were read
//! from.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dataset::{ChatTokenizer, TokenizerParts};
use domain::memory::ModelShape;
use serde::Deserialize;
use store::Store;
use store::base_models::{self, BaseModelRow};

use crate::error::ErrorChain;
use crate::state::AppState;

const KEPT: usize = 8;
/// Largest tokenizer or configuration file.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

pub(crate) struct Model {
    pub tokenizer: ChatTokenizer,
    pub hidden_size: u64,
    /// Tokens; absent when the model's configuration does not say.
    pub context_length: Option<u32>,
}

/// The latest models, by digest. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Models(Arc<Mutex<Latest>>);

type Latest = VecDeque<(String, Arc<Model>)>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The model's own files are at fault; another try would end the same.
    #[error("The base model {model} cannot be trained: {problem}")]
    Unusable { model: String, problem: String },
}

impl Models {
    pub(crate) async fn get(
        &self,
        store: &Store,
        row: &BaseModelRow,
    ) -> Result<Arc<Model>, ModelError> {
        if let Some(model) = self.cached(&row.digest) {
            return Ok(model);
        }
        let model = Arc::new(load(store, row).await?);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(digest, _)| *digest != row.digest);
        kept.truncate(KEPT - 1);
        kept.push_front((row.digest.clone(), model.clone()));
        Ok(model)
    }

    /// Loads the registered models ahead of their first job, as many as are kept, until `stopping`
    /// fires.
    pub(crate) async fn preload(self, state: AppState) {
        let load = async {
            let rows = base_models::list_for_workers(&state.store.db).await?;
            for row in rows.iter().take(KEPT) {
                let loaded = async {
                    let model = self.get(&state.store, row).await?;
                    let context = model.context_length.map(u64::from);
                    base_models::complete(&state.store.db, row.clone(), context).await?;
                    Ok::<(), ModelError>(())
                };
                if let Err(error) = loaded.await {
                    let error = ErrorChain(&error).to_string();
                    tracing::warn!(model = %row.id, error, "a base model could not be preloaded");
                }
            }
            Ok::<(), store::Error>(())
        };
        tokio::select! {
            loaded = load => if let Err(error) = loaded {
                tracing::debug!(error = ErrorChain(&error).to_string(), "preloading failed");
            },
            () = state.stopping.cancelled() => {}
        }
    }

    fn cached(&self, digest: &str) -> Option<Arc<Model>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(other, _)| other == digest).map(|(_, model)| model.clone())
    }
}

/// What the server reads of a `config.json`.
#[derive(Deserialize)]
pub(crate) struct ModelConfig {
    #[serde(flatten)]
    pub shape: ModelShape,
    pub max_position_embeddings: Option<u32>,
}

/// The configuration of a registered model.
pub(crate) async fn config(store: &Store, row: &BaseModelRow) -> Result<ModelConfig, ModelError> {
    let unusable = |problem: String| ModelError::Unusable { model: row.id.to_string(), problem };
    let missing = || unusable("it has no config.json".to_owned());
    let text = read(store, row, "config.json").await?.ok_or_else(missing)?;
    serde_json::from_slice(&text)
        .map_err(|error| unusable(format!("its config.json cannot be read: {error}")))
}

async fn load(store: &Store, row: &BaseModelRow) -> Result<Model, ModelError> {
    let unusable = |problem: String| ModelError::Unusable { model: row.id.to_string(), problem };
    let missing = |name: &str| unusable(format!("it has no {name}"));
    let config = config(store, row).await?;
    let tokenizer =
        read(store, row, "tokenizer.json").await?.ok_or_else(|| missing("tokenizer.json"))?;
    let tokenizer_config = read(store, row, "tokenizer_config.json").await?;
    let template = read(store, row, "chat_template.jinja").await?;
    let built = tokio::task::spawn_blocking(move || {
        let template = template.as_deref().map(std::str::from_utf8).transpose();
        let chat_template =
            template.map_err(|error| format!("its chat_template.jinja is no text: {error}"))?;
        let parts = TokenizerParts {
            tokenizer_json: &tokenizer,
            tokenizer_config_json: tokenizer_config.as_deref(),
            chat_template,
        };
        ChatTokenizer::from_parts(parts).map_err(|error| error.to_string())
    });
    let tokenizer = match built.await {
        Ok(Ok(tokenizer)) => tokenizer,
        Ok(Err(problem)) => return Err(unusable(problem)),
        Err(_) => return Err(unusable("its tokenizer cannot be loaded".to_owned())),
    };
    Ok(Model {
        tokenizer,
        hidden_size: config.shape.hidden_size,
        context_length: config.max_position_embeddings,
    })
}

/// A file of the model, or none when its manifest has none such.
async fn read(store: &Store, row: &BaseModelRow, name: &str) -> store::Result<Option<Bytes>> {
    match row.blob_key(name) {
        Ok((key, _)) => store.blobs.get_bytes(&key, MAX_FILE_BYTES).await.map(Some),
        Err(store::Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
