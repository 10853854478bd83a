//! API keys: only the SHA-256 of a secret is stored, so a stolen database opens no door.
//!
//! A plain hash is enough because secrets are long and random; it also lets one index look-up decide, in
//! the same time for every kind of refusal. Keys that a user chose by hand are as strong as that choice.

use domain::ApiKeyId;
use sha2::{Digest, Sha256};
use sqlx::FromRow;
use time::OffsetDateTime;

use crate::db::Db;
use crate::error::{Conflict, Error, Result};
use crate::projects::{Project, ProjectRecord};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// The public API, within one project.
    Project,
    /// The internal API of workers.
    Worker,
}

impl KeyKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Worker => "worker",
        }
    }

    fn from_column(text: &str) -> Self {
        // The column's CHECK admits two words.
        if text == "worker" { Self::Worker } else { Self::Project }
    }
}

/// Who a request speaks for.
#[derive(Debug, Clone)]
pub struct Principal {
    pub project: Project,
    pub key_id: ApiKeyId,
    pub kind: KeyKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeyRow {
    pub id: ApiKeyId,
    pub kind: KeyKind,
    pub name: String,
    /// The secret's last four characters, to tell keys apart.
    pub last_four: String,
    pub created_at: OffsetDateTime,
    pub revoked_at: Option<OffsetDateTime>,
}

#[derive(FromRow)]
struct KeyRecord {
    id: String,
    project_id: String,
    kind: String,
    name: String,
    last_four: String,
    created_at: OffsetDateTime,
    revoked_at: Option<OffsetDateTime>,
}

impl From<KeyRecord> for ApiKeyRow {
    fn from(record: KeyRecord) -> Self {
        Self {
            id: record.id.into(),
            kind: KeyKind::from_column(&record.kind),
            name: record.name,
            last_four: record.last_four,
            created_at: record.created_at,
            revoked_at: record.revoked_at,
        }
    }
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
    if secret.is_empty() {
        return Err(Error::Config("an API key cannot be empty".to_owned()));
    }
    let hash = hash(secret);
    sqlx::query(
        "insert into api_keys (id, project_id, kind, name, secret_sha256, last_four)
         values ($1, $2, $3, $4, $5, $6) on conflict (secret_sha256) do nothing",
    )
    .bind(ApiKeyId::new().as_str())
    .bind(project.id.as_str())
    .bind(kind.as_str())
    .bind(name)
    .bind(&hash)
    .bind(last_four(secret))
    .execute(&db.pool)
    .await?;
    let record: KeyRecord = sqlx::query_as(
        "select id, project_id, kind, name, last_four, created_at, revoked_at
         from api_keys where secret_sha256 = $1",
    )
    .bind(&hash)
    .fetch_one(&db.pool)
    .await?;
    let same = record.project_id == project.id.as_str() && record.kind == kind.as_str();
    if !same || record.revoked_at.is_some() {
        return Err(Conflict::Exists("This API key".to_owned()).into());
    }
    Ok(record.into())
}

/// The owner of a secret; `None` for an unknown and for a revoked one alike.
pub async fn authenticate(db: &Db, secret: &str) -> Result<Option<Principal>> {
    #[derive(FromRow)]
    struct Record {
        id: String,
        kind: String,
        #[sqlx(flatten)]
        project: ProjectRecord,
    }
    let record: Option<Record> = sqlx::query_as(
        "select k.id, k.kind, p.id as project_id, o.id as organization_id, o.slug
         from api_keys k join projects p on p.id = k.project_id
              join organizations o on o.id = p.organization_id
         where k.secret_sha256 = $1 and k.revoked_at is null",
    )
    .bind(hash(secret))
    .fetch_optional(&db.pool)
    .await?;
    Ok(record.map(|record| Principal {
        project: record.project.into(),
        key_id: record.id.into(),
        kind: KeyKind::from_column(&record.kind),
    }))
}

/// All keys, the newest first.
pub async fn list(db: &Db, project: &Project) -> Result<Vec<ApiKeyRow>> {
    let records: Vec<KeyRecord> = sqlx::query_as(
        "select id, project_id, kind, name, last_four, created_at, revoked_at from api_keys
         where project_id = $1 order by created_at desc, id desc",
    )
    .bind(project.id.as_str())
    .fetch_all(&db.pool)
    .await?;
    Ok(records.into_iter().map(Into::into).collect())
}

/// Revokes a key for good; again is harmless.
pub async fn revoke(db: &Db, project: &Project, id: &ApiKeyId) -> Result<ApiKeyRow> {
    let record: Option<KeyRecord> = sqlx::query_as(
        "update api_keys set revoked_at = coalesce(revoked_at, clock_timestamp())
         where id = $1 and project_id = $2
         returning id, project_id, kind, name, last_four, created_at, revoked_at",
    )
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(&db.pool)
    .await?;
    record.map(Into::into).ok_or(Error::NotFound("API key"))
}

fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

/// Of a short secret less is shown: four characters of six would be most of it.
fn last_four(secret: &str) -> String {
    let characters: Vec<char> = secret.chars().collect();
    let shown = if characters.len() >= 12 { 4 } else { 0 };
    characters[characters.len() - shown..].iter().collect()
}
