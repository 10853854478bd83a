//! Projects: the owner of every row. There is one default project until tenancy is built.

use domain::{OrganizationId, ProjectId};

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

/// The project that the first migration inserts.
pub async fn default_project(db: &Db) -> Result<Project> {
    let _ = db;
    crate::unwritten()
}
