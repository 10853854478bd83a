//! The weights of a merged model, computed while they are read.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use domain::ModelId;
use domain::internal::ManifestFile;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use store::blob::BlobKey;
use store::{Blobs, Error, Result};
use tokio::sync::{Semaphore, SemaphorePermit};
use weights::merge::{MergePlan, TensorPlace, Update, header_bytes, tensor_places};
use weights::peft::{AdapterConfig, CONFIG_FILE, WEIGHTS_FILE};

use super::WeightsError;

const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Matrices that are read and computed while the one before them is sent.
const AHEAD: usize = 2;

/// Merges at once in this process: each keeps a few of its model's matrices in memory until its reader has taken them.
static AT_ONCE: Semaphore = Semaphore::const_new(8);

pub(super) struct Merged {
    _turn: SemaphorePermit<'static>,
    plan: MergePlan,
    base: Vec<BlobKey>,
    adapter: BlobKey,
}

impl Merged {
    /// Reads headers alone.
    pub async fn plan(
        blobs: &Blobs,
        id: &ModelId,
        weights: Vec<(BlobKey, ManifestFile)>,
        tuned: &[(BlobKey, ManifestFile)],
    ) -> std::result::Result<Self, WeightsError> {
        let turn = AT_ONCE.try_acquire().map_err(|_| WeightsError::Busy)?;
        let refused = |why: String| {
            WeightsError::CannotMerge(format!(
                "{id} cannot be merged into its base model: {why}. Download it without 'merged'."
            ))
        };
        let find = |name: &str| {
            let found = tuned.iter().find(|(_, file)| file.name == name);
            found.cloned().ok_or(Error::NotFound("file of the model"))
        };
        let (key, _) = find(CONFIG_FILE)?;
        let config = blobs.get_bytes(&key, MAX_CONFIG_BYTES).await?;
        let config = AdapterConfig::from_json(&config).map_err(refused)?;
        let (adapter, file) = find(WEIGHTS_FILE)?;
        let places = places(blobs, &adapter, file.bytes).await?;
        let (mut base, mut of_base) = (Vec::new(), Vec::new());
        for (key, file) in
            weights.into_iter().filter(|(_, file)| file.name.ends_with(".safetensors"))
        {
            of_base.push(self::places(blobs, &key, file.bytes).await?);
            base.push(key);
        }
        let plan = MergePlan::new(&of_base, &config, places).map_err(refused)?;
        Ok(Self { _turn: turn, plan, base, adapter })
    }

    pub fn bytes(&self) -> u64 {
        self.plan.bytes
    }

    pub fn read(self: Arc<Self>, blobs: Blobs) -> BoxStream<'static, Result<Bytes>> {
        let header = Bytes::copy_from_slice(&self.plan.header);
        let count = self.plan.parts.len();
        let part = move |index| {
            let (merged, blobs) = (self.clone(), blobs.clone());
            async move { merged.part(&blobs, index).await }
        };
        let parts = stream::iter(0..count).map(part).buffered(AHEAD).try_flatten();
        stream::once(async { Ok(header) }).chain(parts).boxed()
    }

    async fn part(
        self: Arc<Self>,
        blobs: &Blobs,
        index: usize,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let part = &self.plan.parts[index];
        let key = &self.base[part.file];
        let Some(update) = &part.update else {
            return Ok(blobs.get(key, Some(part.bytes.clone())).await?.stream);
        };
        let matrix = read(blobs, key, part.bytes.clone());
        let of_adapter = |place: &TensorPlace| read(blobs, &self.adapter, place.bytes.clone());
        let (matrix, a, b) =
            futures::try_join!(matrix, of_adapter(&update.a), of_adapter(&update.b))?;
        let magnitude = match &update.magnitude {
            Some(place) => Some(of_adapter(place).await?),
            None => None,
        };
        let merged = self.clone();
        let computed = tokio::task::spawn_blocking(move || {
            let mut matrix = matrix;
            let update = merged.update(index)?;
            let applied = update.apply(&mut matrix, &a, &b, magnitude.as_deref());
            applied.map_err(Error::Inconsistent)?;
            Ok::<Bytes, Error>(matrix.freeze())
        });
        let computed = computed.await.map_err(|error| Error::Inconsistent(error.to_string()))??;
        Ok(stream::once(async { Ok(computed) }).boxed())
    }

    fn update(&self, index: usize) -> Result<&Update> {
        let update = self.plan.parts[index].update.as_ref();
        update.ok_or_else(|| Error::Inconsistent(format!("part {index} has no update")))
    }
}

/// The tensors of a stored file.
async fn places(blobs: &Blobs, key: &BlobKey, bytes: u64) -> Result<Vec<TensorPlace>> {
    let damaged = |why: String| Error::Inconsistent(format!("{}: {why}", key.path()));
    let first = read(blobs, key, 0..bytes.min(8)).await?;
    let first: [u8; 8] = first[..].try_into().map_err(|_| damaged("it is too short".to_owned()))?;
    let length = header_bytes(first, bytes).map_err(damaged)?;
    let header = read(blobs, key, 0..length).await?;
    tensor_places(&header, bytes).map_err(damaged)
}

/// A part of a blob, whole in memory.
async fn read(blobs: &Blobs, key: &BlobKey, range: Range<u64>) -> Result<BytesMut> {
    let length = (range.end - range.start) as usize;
    let mut content = BytesMut::with_capacity(length);
    if length > 0 {
        let mut reader = blobs.get(key, Some(range)).await?;
        while let Some(chunk) = reader.stream.try_next().await? {
            content.extend_from_slice(&chunk);
        }
    }
    if content.len() != length {
        let problem = format!("{} ends after {} bytes of {length}", key.path(), content.len());
        return Err(Error::Inconsistent(problem));
    }
    Ok(content)
}
