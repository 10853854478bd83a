//! Permissions: a project lets other projects of its organisation use one of its tuned models or checkpoints.
//!
//! A permission is the right to see the model, to chat with it, to download it and to train from it. What
//! follows from it in other calls is a condition in [`crate::models`]; it ends with the row.

use domain::{CheckpointId, ModelId, PermissionId, ProjectId};
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::db::{Db, Lane};
use crate::error::{Conflict, Error, Result};
use crate::page::{Page, PageQuery};
use crate::projects::Project;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionRow {
    pub id: PermissionId,
    /// The project that may use the model.
    pub grantee: ProjectId,
    pub created_at: OffsetDateTime,
}

#[derive(FromRow)]
struct PermissionRecord {
    id: String,
    grantee_id: String,
    created_at: OffsetDateTime,
}

impl From<PermissionRecord> for PermissionRow {
    fn from(record: PermissionRecord) -> Self {
        Self {
            id: record.id.into(),
            grantee: record.grantee_id.into(),
            created_at: record.created_at,
        }
    }
}

/// The model that a path means: its own name, or the id of its checkpoint. `NotFound` when the project cannot
/// see it, `Conflict` when it is a base model or another project's.
pub async fn owned_model(db: &Db, project: &Project, name: &str) -> Result<ModelId> {
    let name = match name.strip_prefix(CheckpointId::PREFIX) {
        None => name.to_owned(),
        Some(_) => {
            let model: Option<(String,)> =
                sqlx::query_as("select id from models where checkpoint_id = $1")
                    .bind(name)
                    .fetch_optional(&db.pool)
                    .await?;
            model.ok_or(Error::NotFound("model"))?.0
        }
    };
    let found: Option<(i32,)> = sqlx::query_as(
        "select 1 from models where id = $1 and project_id = $2
         union all select 2 from checkpoint_permissions where model = $1 and grantee_id = $2
         union all select 3 from base_models where id = $1 and (shared or project_id = $2)
         order by 1 limit 1",
    )
    .bind(&name)
    .bind(project.id.as_str())
    .fetch_optional(&db.pool)
    .await?;
    match found {
        Some((1,)) => Ok(name.into()),
        Some((2,)) => Err(Conflict::NotOwner(name).into()),
        Some(_) => Err(Conflict::BaseIsShared(name).into()),
        None => Err(Error::NotFound("model")),
    }
}

/// What giving permissions led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Granted {
    /// One per project, in the order of the projects.
    All(Vec<PermissionRow>),
    /// The organisation has no such project, by its place in the list; nothing was given.
    UnknownProject(usize),
}

/// Lets projects use a model of this project's; one that may already keeps its permission.
pub async fn create(
    db: &Db,
    project: &Project,
    model: &ModelId,
    grantees: &[ProjectId],
) -> Result<Granted> {
    let args = (project.clone(), model.clone(), grantees.to_vec());
    db.transact(Lane::Api, args, |tx, (project, model, grantees)| {
        Box::pin(insert(tx, project, model, grantees))
    })
    .await
}

async fn insert(
    tx: &mut PgConnection,
    project: &Project,
    model: &ModelId,
    grantees: &[ProjectId],
) -> Result<Granted> {
    sqlx::query("select 1 from models where id = $1 and project_id = $2 for key share")
        .bind(model.as_str())
        .bind(project.id.as_str())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(Error::NotFound("model"))?;
    let names: Vec<&str> = grantees.iter().map(ProjectId::as_str).collect();
    let known: Vec<(String,)> =
        sqlx::query_as("select id from projects where id = any($1) and organization_id = $2")
            .bind(&names)
            .bind(project.organization.as_str())
            .fetch_all(&mut *tx)
            .await?;
    let unknown = names.iter().position(|name| !known.iter().any(|(known,)| known == name));
    if let Some(unknown) = unknown {
        return Ok(Granted::UnknownProject(unknown));
    }
    let mut rows = Vec::with_capacity(grantees.len());
    for grantee in grantees {
        // The update changes nothing; it makes the statement return the row that is there already.
        let record: PermissionRecord = sqlx::query_as(
            "insert into checkpoint_permissions (id, project_id, model, grantee_id)
             values ($1, $2, $3, $4)
             on conflict (model, grantee_id) do update set grantee_id = excluded.grantee_id
             returning id, grantee_id, created_at",
        )
        .bind(PermissionId::new().as_str())
        .bind(project.id.as_str())
        .bind(model.as_str())
        .bind(grantee.as_str())
        .fetch_one(&mut *tx)
        .await?;
        rows.push(record.into());
    }
    Ok(Granted::All(rows))
}

/// The permissions of a model, by creation; of one project alone when it is named.
pub async fn list(
    db: &Db,
    project: &Project,
    model: &ModelId,
    grantee: Option<&ProjectId>,
    page: &PageQuery,
) -> Result<Page<PermissionRow>> {
    let records: Vec<PermissionRecord> = sqlx::query_as(page.sql(
        "select id, grantee_id, created_at from checkpoint_permissions
         where model = $1 and project_id = $2 and ($3::text is null or grantee_id = $3)
           and ($4::text is null or (created_at, id) {after}
                (select created_at, id from checkpoint_permissions where id = $4 and model = $1))
         order by created_at {way}, id {way} limit $5",
    ))
    .bind(model.as_str())
    .bind(project.id.as_str())
    .bind(grantee.map(ProjectId::as_str))
    .bind(page.after.as_deref())
    .bind(page.fetch_limit())
    .fetch_all(&db.pool)
    .await?;
    Ok(Page::from_rows(records.into_iter().map(Into::into).collect(), page))
}

/// Takes a permission away, at once. Jobs that were created under it go on.
pub async fn delete(db: &Db, project: &Project, model: &ModelId, id: &PermissionId) -> Result<()> {
    let gone = sqlx::query(
        "delete from checkpoint_permissions where id = $1 and model = $2 and project_id = $3",
    )
    .bind(id.as_str())
    .bind(model.as_str())
    .bind(project.id.as_str())
    .execute(&db.pool)
    .await?
    .rows_affected();
    if gone == 1 { Ok(()) } else { Err(Error::NotFound("permission")) }
}
