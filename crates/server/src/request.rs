//! `POST /fine_tuning/jobs`: the body → a checked [`NewJob`]. After this nothing is re-checked.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use domain::{
    Auto, FileId, Hyperparameters, JobId, LossType, MethodType, ModelId, TrainingOptions,
};
use sha2::{Digest, Sha256};
use store::jobs::{JobRow, NewJob, StartModel};
use store::models::ModelKind;
use store::{Project, files, models};

use crate::error::{ApiError, ApiResult};
use crate::hyperparameters::{check_options, requested};
use crate::inference::prompt::integer;
use crate::preference;
use crate::start;
use crate::state::AppState;
use crate::tuning::choose_for_reward;
use crate::wire::job::{CreateJob, Integration};

pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";
const MAX_SUFFIX_CHARACTERS: usize = 64;
const MAX_METADATA_PAIRS: usize = 16;
const MAX_METADATA_KEY: usize = 64;
const MAX_METADATA_VALUE: usize = 512;
const MAX_INTEGRATIONS: usize = 5;
const MAX_SEED: u32 = i32::MAX as u32;

/// The id of the job to create: new, or derived from the `Idempotency-Key`, so that a repeated call
/// names the same job whichever server receives it.
pub(crate) fn job_id(project: &Project, headers: &HeaderMap) -> JobId {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return JobId::new() };
    let mut hash = Sha256::new();
    hash.update(project.id.as_str());
    hash.update([0]);
    hash.update(key.as_bytes());
    let digits: String =
        hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    JobId::from(format!("{}{digits}", JobId::PREFIX))
}

pub(crate) async fn new_job(
    state: &AppState,
    project: &Project,
    id: JobId,
    body: CreateJob,
) -> ApiResult<NewJob> {
    let (method, hyperparameters) = method(&body)?;
    let suffix = body.suffix.filter(|suffix| !suffix.is_empty());
    if let Some(length) = suffix.as_ref().map(|suffix| suffix.chars().count())
        && length > MAX_SUFFIX_CHARACTERS
    {
        return Err(ApiError::too_long("suffix", MAX_SUFFIX_CHARACTERS, length));
    }
    let seed = match body.seed {
        Some(seed) => integer("seed", seed, 0, i64::from(MAX_SEED))? as u32,
        None => uuid::Uuid::new_v4().as_u128() as u32 & MAX_SEED,
    };
    check_metadata(body.metadata.as_ref())?;
    check_integrations(body.integrations.as_deref().unwrap_or_default())?;
    let mut options = body.finetuned.unwrap_or_default();
    check_options(&options, "finetuned")?;
    let loss_type = hyperparameters.preference.map(|wish| wish.loss_type);
    let (base_model, start) = model(state, project, &body.model, loss_type, &mut options).await?;
    let training_file = FileId::from(body.training_file);
    check_file(state, project, "training_file", &training_file).await?;
    let validation_file = body.validation_file.filter(|id| !id.is_empty()).map(FileId::from);
    if let Some(file) = &validation_file {
        check_file(state, project, "validation_file", file).await?;
    } else if options.early_stopping.is_some() {
        let message = "Invalid 'finetuned.early_stopping': it watches the validation loss, so the \
                       job needs a 'validation_file'.";
        return Err(ApiError::invalid_value("finetuned.early_stopping", message));
    }
    Ok(NewJob {
        id,
        base_model,
        start,
        method,
        training_file,
        validation_file,
        hyperparameters,
        options,
        suffix,
        seed,
        metadata: body.metadata,
        priority: 0,
    })
}

/// The method and its hyperparameters; without any in its block, those at the top level.
fn method(body: &CreateJob) -> ApiResult<(MethodType, Hyperparameters)> {
    let older = body.hyperparameters.as_ref();
    let Some(method) = &body.method else {
        return Ok((MethodType::Supervised, requested(older, "hyperparameters")?));
    };
    match method.r#type.as_str() {
        "supervised" => {
            let inner = method.supervised.as_ref().and_then(|block| block.hyperparameters.as_ref());
            let wish = match inner {
                Some(_) => requested(inner, "method.supervised.hyperparameters")?,
                None => requested(older, "hyperparameters")?,
            };
            Ok((MethodType::Supervised, wish))
        }
        "dpo" => Ok((MethodType::Dpo, preference::requested_dpo(method.dpo.as_ref(), older)?)),
        "reinforcement" => Err(ApiError::invalid_value(
            "method.type",
            "The method 'reinforcement' is not available on this server. Supported values are: \
             'supervised' and 'dpo'.",
        )),
        other => Err(ApiError::unsupported_value("method.type", other, &["supervised", "dpo"])),
    }
}

pub(crate) fn check_metadata(metadata: Option<&BTreeMap<String, String>>) -> ApiResult<()> {
    let Some(metadata) = metadata else { return Ok(()) };
    if metadata.len() > MAX_METADATA_PAIRS {
        return Err(ApiError::Parameter {
            code: Some("object_above_max_properties"),
            param: "metadata".to_owned(),
            message: format!(
                "Invalid 'metadata': too many properties. Expected an object with at most \
                 {MAX_METADATA_PAIRS} properties, but got an object with {} properties instead.",
                metadata.len()
            ),
        });
    }
    for (key, value) in metadata {
        let length = key.chars().count();
        if length > MAX_METADATA_KEY {
            return Err(ApiError::too_long("metadata", MAX_METADATA_KEY, length));
        }
        let length = value.chars().count();
        if length > MAX_METADATA_VALUE {
            return Err(ApiError::too_long(&format!("metadata.{key}"), MAX_METADATA_VALUE, length));
        }
    }
    Ok(())
}

/// Checks their shape, then refuses them: an integration that is silently without effect would cost
/// somebody the record of a run.
fn check_integrations(integrations: &[Integration]) -> ApiResult<()> {
    if integrations.len() > MAX_INTEGRATIONS {
        return Err(ApiError::Parameter {
            code: Some("array_above_max_length"),
            param: "integrations".to_owned(),
            message: format!(
                "Invalid 'integrations': array too long. Expected an array with maximum length \
                 {MAX_INTEGRATIONS}, but got an array with length {} instead.",
                integrations.len()
            ),
        });
    }
    let Some(first) = integrations.first() else { return Ok(()) };
    if first.r#type != "wandb" {
        return Err(ApiError::unsupported_value("integrations[0].type", &first.r#type, &["wandb"]));
    }
    if first.wandb.is_none() {
        return Err(ApiError::missing("integrations[0].wandb"));
    }
    Err(ApiError::invalid_value(
        "integrations[0].type",
        "The integration 'wandb' is not available on this server; create the job without it. \
         The metrics are in the job's events and result files.",
    ))
}

/// The base model, and the tuned model to go on from if that is what was named. The options become those of the
/// model to go on from.
async fn model(
    state: &AppState,
    project: &Project,
    name: &str,
    loss_type: Option<LossType>,
    options: &mut TrainingOptions,
) -> ApiResult<(ModelId, Option<StartModel>)> {
    let row = match models::get(&state.store.db, project, &name.into()).await {
        Ok(row) => row,
        Err(store::Error::NotFound(_)) => {
            return Err(ApiError::ModelNotTrainable(name.to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let is_reward = loss_type == Some(LossType::Reward);
    let (Some(checkpoint), Some(trained)) = (row.checkpoint_id, row.trained_with) else {
        if row.kind != ModelKind::Base {
            return Err(ApiError::ModelNotTrainable(name.to_owned()));
        }
        if is_reward {
            choose_for_reward(options, "finetuned")?;
        }
        return Ok((row.id, None));
    };
    start::check_method(name, &trained, is_reward)?;
    *options = start::continued(options, &trained, "finetuned")?;
    Ok((row.base_model, Some(StartModel { model: row.id, checkpoint })))
}

async fn check_file(
    state: &AppState,
    project: &Project,
    param: &'static str,
    id: &FileId,
) -> ApiResult<()> {
    let row = match files::get(&state.store.db, project, id).await {
        Ok(row) => row,
        Err(store::Error::NotFound(_)) => {
            return Err(ApiError::ReferencedFileNotFound { param, id: id.to_string() });
        }
        Err(error) => return Err(error.into()),
    };
    if row.purpose != "fine-tune" {
        let message = format!(
            "File {id} has the purpose '{}', but '{param}' needs a file of the purpose \
             'fine-tune'.",
            row.purpose
        );
        return Err(ApiError::invalid_value(param, message));
    }
    Ok(())
}

/// What changed between the checks and the insertion.
pub(crate) fn creation_error(error: store::Error, new: &NewJob) -> ApiError {
    match error {
        store::Error::NotFound("training file") => ApiError::ReferencedFileNotFound {
            param: "training_file",
            id: new.training_file.to_string(),
        },
        store::Error::NotFound("validation file") => ApiError::ReferencedFileNotFound {
            param: "validation_file",
            id: new.validation_file.as_ref().map(ToString::to_string).unwrap_or_default(),
        },
        store::Error::NotFound(_) => {
            let model = new.start.as_ref().map_or(&new.base_model, |start| &start.model);
            ApiError::ModelNotTrainable(model.to_string())
        }
        other => other.into(),
    }
}

/// Whether a repeated call asks for what the first one got.
pub(crate) fn check_same(first: &JobRow, again: &NewJob) -> ApiResult<()> {
    let is_same = first.base_model == again.base_model
        && first.start == again.start
        && first.method == again.method
        && first.training_file == again.training_file
        && first.validation_file == again.validation_file
        && same_wishes(&first.hyperparameters, &again.hyperparameters)
        && first.options == again.options
        && first.suffix == again.suffix
        && first.metadata == again.metadata;
    if is_same {
        return Ok(());
    }
    Err(ApiError::BadRequest(format!(
        "The Idempotency-Key was used before, with other parameters, for job {}.",
        first.id
    )))
}

fn same_wishes(a: &Hyperparameters, b: &Hyperparameters) -> bool {
    let same_preference = match (&a.preference, &b.preference) {
        (Some(a), Some(b)) => preference::same_wishes(a, b),
        (a, b) => a == b,
    };
    same_number(a.learning_rate_multiplier, b.learning_rate_multiplier)
        && same_preference
        && a.n_epochs == b.n_epochs
        && a.batch_size == b.batch_size
}

/// JSON columns may bring a decimal back with another last bit.
pub(crate) fn same_number(a: Auto<f64>, b: Auto<f64>) -> bool {
    match (a, b) {
        (Auto::Value(a), Auto::Value(b)) => (a - b).abs() <= a.abs() * 1e-12,
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body(extra: serde_json::Value) -> CreateJob {
        let mut body = json!({"model": "m", "training_file": "file-1"});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn the_method_wins_over_the_older_place() {
        let both = body(json!({
            "hyperparameters": {"n_epochs": 2},
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5}}},
        }));
        assert_eq!(method(&both).unwrap().1.n_epochs, Auto::Value(5));
        let older = body(json!({"hyperparameters": {"n_epochs": 2}}));
        assert_eq!(method(&older).unwrap().1.n_epochs, Auto::Value(2));
        let unmatched = body(json!({"method": {
            "type": "supervised", "dpo": {"hyperparameters": {"beta": 1}}, "reinforcement": {},
        }}));
        assert_eq!(method(&unmatched).unwrap().1, Hyperparameters::default());
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for kind in ["reinforcement", "magic"] {
            let error = method(&body(json!({"method": {"type": kind}}))).unwrap_err();
            let error = error.envelope().error;
            assert_eq!(error.param.as_deref(), Some("method.type"), "{kind}");
            assert!(error.message.contains(kind), "{}", error.message);
        }
        let integrations = body(json!({
            "integrations": [{"type": "wandb", "wandb": {"project": "p"}}],
        }));
        let error = check_integrations(&integrations.integrations.unwrap()).unwrap_err();
        assert!(error.to_string().contains("not available"));
    }

    #[test]
    fn metadata_has_limits() {
        let pairs = |n: usize, key: usize, value: usize| {
            (0..n).map(|i| (format!("{i:0key$}"), "v".repeat(value))).collect::<BTreeMap<_, _>>()
        };
        assert!(check_metadata(Some(&pairs(16, 64, 512))).is_ok());
        for bad in [pairs(17, 2, 1), pairs(1, 65, 1), pairs(1, 1, 513)] {
            assert!(check_metadata(Some(&bad)).is_err());
        }
    }
}
