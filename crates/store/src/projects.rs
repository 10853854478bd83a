//! Projects: the owner of every row. The first migration inserts the default one; others are made by the
//! operator, within the one organisation that there is.

use domain::{OrganizationId, ProjectId};
use sqlx::FromRow;
use time::OffsetDateTime;

use crate::db::Db;
use crate::error::{Error, Result};

/// The project that a request was authenticated for; every function about users' objects takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    pub id: ProjectId,
    pub organization: OrganizationId,
    /// The organisation's word in the names of tuned models.
    pub organization_slug: String,
}

/// `id, organization_id, slug`
#[derive(FromRow)]
pub(crate) struct ProjectRecord {
    project_id: String,
    organization_id: String,
    slug: String,
}

impl From<ProjectRecord> for Project {
    fn from(record: ProjectRecord) -> Self {
        Self {
            id: record.project_id.into(),
            organization: record.organization_id.into(),
            organization_slug: record.slug,
        }
    }
}

/// The project that the first migration inserts.
pub async fn default_project(db: &Db) -> Result<Project> {
    let record: ProjectRecord = sqlx::query_as(
        "select p.id as project_id, o.id as organization_id, o.slug
         from projects p join organizations o on o.id = p.organization_id
         where p.id = 'proj_default'",
    )
    .fetch_one(&db.pool)
    .await?;
    Ok(record.into())
}

/// A project as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectRow {
    pub id: ProjectId,
    /// For people.
    pub name: String,
    pub created_at: OffsetDateTime,
}

/// Another project of the same organisation.
pub async fn create(db: &Db, beside: &Project, name: &str) -> Result<Project> {
    let id = ProjectId::new();
    sqlx::query("insert into projects (id, organization_id, name) values ($1, $2, $3)")
        .bind(id.as_str())
        .bind(beside.organization.as_str())
        .bind(crate::text::clean(name))
        .execute(&db.pool)
        .await?;
    get(db, beside, &id).await
}

/// A project of the same organisation.
pub async fn get(db: &Db, beside: &Project, id: &ProjectId) -> Result<Project> {
    let record: Option<ProjectRecord> = sqlx::query_as(
        "select p.id as project_id, o.id as organization_id, o.slug
         from projects p join organizations o on o.id = p.organization_id
         where p.id = $1 and o.id = $2",
    )
    .bind(id.as_str())
    .bind(beside.organization.as_str())
    .fetch_optional(&db.pool)
    .await?;
    record.map(Into::into).ok_or(Error::NotFound("project"))
}

/// All projects of the same organisation, the oldest first.
pub async fn list(db: &Db, beside: &Project) -> Result<Vec<ProjectRow>> {
    let records: Vec<(String, String, OffsetDateTime)> = sqlx::query_as(
        "select id, name, created_at from projects where organization_id = $1
         order by created_at, id",
    )
    .bind(beside.organization.as_str())
    .fetch_all(&db.pool)
    .await?;
    let row = |(id, name, created_at): (String, String, OffsetDateTime)| ProjectRow {
        id: id.into(),
        name,
        created_at,
    };
    Ok(records.into_iter().map(row).collect())
}
