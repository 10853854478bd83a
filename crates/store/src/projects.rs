//! Projects: the owner of every row. There is one default project until tenancy is built.

use domain::{OrganizationId, ProjectId};
use sqlx::FromRow;

use crate::db::Db;
use crate::error::Result;

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
