//! Permissions: which other projects may use a tuned model or checkpoint of this project.
//!
//! A path names the model by its own name, or by the id of its checkpoint. Any key of the project that owns the
//! model may manage them.

use axum::Json;
use axum::extract::State;
use domain::{ModelId, ProjectId};
use store::permissions::{self, Granted};
use store::{Conflict, Project};

use crate::convert::{self, OrNotFound, page_query};
use crate::error::{ApiError, ApiResult};
use crate::extract::{Caller, Id, Ids, Json as Body, Page};
use crate::state::AppState;
use crate::wire::file::Deleted;
use crate::wire::list::List;
use crate::wire::permission::{CreatePermissions, Permission};
use crate::wire::query::{OrderParam, PageParams};

const SIZES: (u32, u32) = (10, 100);
const MAX_PROJECTS: usize = 100;

/// Let projects use a tuned model or checkpoint.
#[utoipa::path(post, path = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions",
    tag = "Fine-tuning", operation_id = "createFineTuningCheckpointPermission",
    params(("fine_tuned_model_checkpoint" = String, Path)),
    request_body = CreatePermissions,
    responses((status = 200, body = List<Permission>)))]
pub(crate) async fn create(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    Body(body): Body<CreatePermissions>,
) -> ApiResult<Json<List<Permission>>> {
    let count = body.project_ids.len();
    if !(1..=MAX_PROJECTS).contains(&count) {
        return Err(ApiError::Parameter {
            code: Some(if count == 0 { "empty_array" } else { "array_above_max_length" }),
            param: "project_ids".to_owned(),
            message: format!(
                "Invalid 'project_ids': expected an array with 1 to {MAX_PROJECTS} projects, but \
                 got {count} instead."
            ),
        });
    }
    let model = owned(&state, &project, &id).await?;
    let mut grantees: Vec<ProjectId> = Vec::with_capacity(count);
    for name in body.project_ids {
        let grantee = ProjectId::from(name);
        if !grantees.contains(&grantee) {
            grantees.push(grantee);
        }
    }
    let granted = permissions::create(&state.store.db, &project, &model, &grantees)
        .await
        .or_not_found(|| ApiError::ModelNotFound(id))?;
    match granted {
        Granted::All(rows) => {
            Ok(Json(List::new(rows.into_iter().map(convert::permission).collect(), false)))
        }
        Granted::UnknownProject(place) => {
            let message = format!(
                "Invalid 'project_ids': the organization has no project '{}'. Nothing was changed.",
                grantees[place]
            );
            Err(ApiError::invalid_value("project_ids", message))
        }
    }
}

/// The projects that may use a tuned model or checkpoint, the newest permission first.
#[utoipa::path(get, path = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions",
    tag = "Fine-tuning", operation_id = "listFineTuningCheckpointPermissions",
    params(("fine_tuned_model_checkpoint" = String, Path), ("project_id" = Option<String>, Query),
        PageParams, OrderParam),
    responses((status = 200, body = List<Permission>)))]
pub(crate) async fn list(
    State(state): State<AppState>,
    Caller(project): Caller,
    Id(id): Id,
    page: Page,
) -> ApiResult<Json<List<Permission>>> {
    let model = owned(&state, &project, &id).await?;
    let grantee = page.project_id.as_deref().map(ProjectId::from);
    let query = page_query(&page, SIZES);
    let rows =
        permissions::list(&state.store.db, &project, &model, grantee.as_ref(), &query).await?;
    Ok(Json(convert::list(rows, convert::permission)))
}

/// Take a permission away, at once.
#[utoipa::path(delete,
    path = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions/{permission_id}",
    tag = "Fine-tuning", operation_id = "deleteFineTuningCheckpointPermission",
    params(("fine_tuned_model_checkpoint" = String, Path), ("permission_id" = String, Path)),
    responses((status = 200, body = Deleted)))]
pub(crate) async fn delete(
    State(state): State<AppState>,
    Caller(project): Caller,
    Ids(id, permission): Ids,
) -> ApiResult<Json<Deleted>> {
    let model = owned(&state, &project, &id).await?;
    permissions::delete(&state.store.db, &project, &model, &permission.as_str().into())
        .await
        .or_not_found(|| ApiError::NoSuch {
            what: "Permission",
            param: "permission_id",
            id: permission.clone(),
        })?;
    Ok(Json(Deleted { id: permission, object: "checkpoint.permission", deleted: true }))
}

async fn owned(state: &AppState, project: &Project, id: &str) -> ApiResult<ModelId> {
    match permissions::owned_model(&state.store.db, project, id).await {
        Err(store::Error::Conflict(conflict @ Conflict::BaseIsShared(_))) => {
            Err(ApiError::invalid_value("fine_tuned_model_checkpoint", conflict.to_string()))
        }
        found => found.or_not_found(|| ApiError::ModelNotFound(id.to_owned())),
    }
}
