//! API keys: only the SHA-256 of a secret is stored, so a stolen database opens no door.

use domain::ApiKeyId;
use time::OffsetDateTime;

use crate::db::Db;
use crate::error::Result;
use crate::projects::Project;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// The public API, within one project.
    Project,
    /// The internal API of workers.
    Worker,
}

/// Who a request speaks for.
#[derive(Debug, Clone)]
pub struct Principal {
    pub project: Project,
    pub key_id: ApiKeyId,
    pub kind: KeyKind,
}

#[derive(Debug, Clone)]
pub struct ApiKeyRow {
    pub id: ApiKeyId,
    pub kind: KeyKind,
    pub name: String,
    /// The secret's last four characters, to tell keys apart.
    pub last_four: String,
    pub created_at: OffsetDateTime,
    pub revoked_at: Option<OffsetDateTime>,
}

/// Stores a key. The same secret of the same kind again changes nothing and gives the first row; a
/// revoked secret stays revoked (`Conflict`), and so does one of another kind or project.
pub async fn create(
    db: &Db,
    project: &Project,
    kind: KeyKind,
    name: &str,
    secret: &str,
) -> Result<ApiKeyRow> {
    let _ = (db, project, kind, name, secret);
    crate::unwritten()
}

/// The owner of a secret; `None` for an unknown and for a revoked one alike.
pub async fn authenticate(db: &Db, secret: &str) -> Result<Option<Principal>> {
    let _ = (db, secret);
    crate::unwritten()
}

/// All keys, the newest first.
pub async fn list(db: &Db, project: &Project) -> Result<Vec<ApiKeyRow>> {
    let _ = (db, project);
    crate::unwritten()
}

/// Revokes a key for good; again is harmless.
pub async fn revoke(db: &Db, project: &Project, id: &ApiKeyId) -> Result<ApiKeyRow> {
    let _ = (db, project, id);
    crate::unwritten()
}
