//! `POST /fine_tuning/jobs`: the body → a checked [`NewJob`]. After this nothing is re-checked.
//!
//! [`read`] finds every fault, for the validation of a request; [`new_job`] answers with the first.

use std::collections::BTreeMap;

use domain::{FileId, Hyperparameters, JobId, LossType, MethodType, ModelId, TrainingOptions};
use serde_json::Value;
use store::files::FileRow;
use store::jobs::{NewJob, StartModel};
use store::models::ModelKind;
use store::{Project, files, models};

use crate::error::{ApiError, ApiResult};
use crate::faults::Faults;
use crate::hyperparameters::find_option_faults;
use crate::inference::prompt::integer;
use crate::integrations;
use crate::method::method;
use crate::reinforcement;
use crate::start;
use crate::state::AppState;
use crate::tuning::choose_for_reward;
use crate::wire::job::CreateJob;

const MAX_SUFFIX_CHARACTERS: usize = 64;
const MAX_METADATA_PAIRS: usize = 16;
const MAX_METADATA_KEY: usize = 64;
const MAX_METADATA_VALUE: usize = 512;
const MAX_SEED: u32 = i32::MAX as u32;

/// A request as far as it can be read.
pub(crate) struct Wanted {
    pub method: MethodType,
    pub hyperparameters: Hyperparameters,
    pub options: TrainingOptions,
    pub suffix: Option<String>,
    pub seed: u32,
    pub metadata: Option<BTreeMap<String, String>>,
    pub integrations: Vec<Value>,
    /// None where the request names none that can be used.
    pub base_model: Option<ModelId>,
    /// The tuned model to go on from.
    pub start: Option<StartModel>,
    pub training_file: Option<FileRow>,
    pub validation_file: Option<FileRow>,
}

/// Reads a request and finds its faults, all but those in the files. None when it cannot be read at all.
pub(crate) async fn read(
    state: &AppState,
    project: &Project,
    body: Value,
    faults: &mut Faults,
) -> ApiResult<Option<Wanted>> {
    let Some(body) = faults.read::<CreateJob>(body) else { return Ok(None) };
    let (method, hyperparameters) = method(&body, faults);
    let suffix = body.suffix.filter(|suffix| !suffix.is_empty());
    if let Some(length) = suffix.as_ref().map(|suffix| suffix.chars().count())
        && length > MAX_SUFFIX_CHARACTERS
    {
        faults.push(ApiError::too_long("suffix", MAX_SUFFIX_CHARACTERS, length));
    }
    let seed =
        body.seed.and_then(|seed| faults.take(integer("seed", seed, 0, i64::from(MAX_SEED))));
    let seed =
        seed.map_or_else(|| uuid::Uuid::new_v4().as_u128() as u32 & MAX_SEED, |seed| seed as u32);
    find_metadata_faults(body.metadata.as_ref(), faults);
    let integrations = integrations::requested(body.integrations.as_ref(), faults);
    let mut options = body.finetuned.unwrap_or_default();
    find_option_faults(&options, "finetuned", faults);
    let loss_type = hyperparameters.preference.map(|wish| wish.loss_type);
    let found = match faults.blame("model") {
        true => None,
        false => {
            let found = model(state, project, &body.model, loss_type, &mut options, faults).await;
            faults.take_or_fail(found)?
        }
    };
    let (base_model, start) = found.unzip();
    let training_file = match faults.blame("training_file") {
        true => None,
        false => {
            let id = FileId::from(body.training_file);
            faults.take_or_fail(file(state, project, "training_file", &id).await)?
        }
    };
    let validation_file = body.validation_file.filter(|id| !id.is_empty()).map(FileId::from);
    let has_validation = validation_file.is_some() || faults.blame("validation_file");
    let validation_file = match validation_file {
        Some(id) => faults.take_or_fail(file(state, project, "validation_file", &id).await)?,
        None => None,
    };
    if !has_validation && options.early_stopping.is_some() {
        let message = "Invalid 'finetuned.early_stopping': it watches the validation loss, so the \
                       job needs a 'validation_file'.";
        faults.invalid("finetuned.early_stopping", message);
    }
    if method == MethodType::Reinforcement {
        if !has_validation {
            faults.push(ApiError::missing("validation_file"));
        }
        faults.push(reinforcement::unavailable());
    }
    Ok(Some(Wanted {
        method,
        hyperparameters,
        options,
        suffix,
        seed,
        metadata: body.metadata,
        integrations,
        base_model,
        start: start.flatten(),
        training_file,
        validation_file,
    }))
}

/// A request without any fault, as a job to be created.
pub(crate) async fn new_job(state: &AppState, project: &Project, body: Value) -> ApiResult<NewJob> {
    let mut faults = Faults::default();
    let wanted = read(state, project, body, &mut faults).await?;
    faults.into_result()?;
    let whole = wanted.and_then(|wanted| {
        Some(NewJob {
            id: JobId::new(),
            base_model: wanted.base_model?,
            start: wanted.start,
            method: wanted.method,
            training_file: wanted.training_file?.id,
            validation_file: wanted.validation_file.map(|file| file.id),
            hyperparameters: wanted.hyperparameters,
            options: wanted.options,
            suffix: wanted.suffix,
            seed: wanted.seed,
            metadata: wanted.metadata,
            integrations: wanted.integrations,
            priority: 0,
        })
    });
    whole.ok_or_else(|| ApiError::internal("a request without faults lacks a part"))
}

/// The first fault of an object's metadata, if there is one.
pub(crate) fn check_metadata(metadata: Option<&BTreeMap<String, String>>) -> ApiResult<()> {
    let mut faults = Faults::default();
    find_metadata_faults(metadata, &mut faults);
    faults.into_result()
}

fn find_metadata_faults(metadata: Option<&BTreeMap<String, String>>, faults: &mut Faults) {
    let Some(metadata) = metadata else { return };
    if metadata.len() > MAX_METADATA_PAIRS {
        faults.push(ApiError::Parameter {
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
            faults.push(ApiError::too_long("metadata", MAX_METADATA_KEY, length));
        }
        let length = value.chars().count();
        if length > MAX_METADATA_VALUE {
            let path = format!("metadata.{key}");
            faults.push(ApiError::too_long(&path, MAX_METADATA_VALUE, length));
        }
    }
}

/// The base model, and the tuned model to go on from if that is what was named. The options become those of the
/// model to go on from.
async fn model(
    state: &AppState,
    project: &Project,
    name: &str,
    loss_type: Option<LossType>,
    options: &mut TrainingOptions,
    faults: &mut Faults,
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
            choose_for_reward(options, "finetuned", faults);
        }
        return Ok((row.id, None));
    };
    start::check_method(name, &trained, is_reward)?;
    *options = start::continued(options, &trained, "finetuned")?;
    Ok((row.base_model, Some(StartModel { model: row.id, checkpoint })))
}

async fn file(
    state: &AppState,
    project: &Project,
    param: &'static str,
    id: &FileId,
) -> ApiResult<FileRow> {
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
    if row.status != "processed" {
        let details = row.status_details.map(|details| format!(": {details}")).unwrap_or_default();
        let message = format!("File {id} is not ready{details}");
        return Err(ApiError::Parameter { code: None, param: param.to_owned(), message });
    }
    Ok(row)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_has_limits() {
        let pairs = |n: usize, key: usize, value: usize| {
            (0..n).map(|i| (format!("{i:0key$}"), "v".repeat(value))).collect::<BTreeMap<_, _>>()
        };
        let faults_of = |pairs: &BTreeMap<String, String>| {
            let mut faults = Faults::default();
            find_metadata_faults(Some(pairs), &mut faults);
            faults.into_vec().len()
        };
        assert_eq!(faults_of(&pairs(16, 64, 512)), 0);
        for (bad, count) in [(pairs(17, 2, 1), 1), (pairs(1, 65, 1), 1), (pairs(2, 65, 513), 4)] {
            assert_eq!(faults_of(&bad), count);
        }
    }
}
