//! Chat completions that are kept, with the request that they answer.
//!
//! Both are the API's own objects; nothing here looks into them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use time::OffsetDateTime;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::page::{Page, PageQuery};
use crate::projects::Project;

/// Rows that one round removes.
const EXPIRED_AT_ONCE: i64 = 1_000;

pub type Metadata = BTreeMap<String, String>;

#[derive(Debug, Clone)]
pub struct CompletionRow {
    pub id: String,
    pub metadata: Metadata,
    pub request: Value,
    pub completion: Value,
    pub created_at: OffsetDateTime,
}

#[derive(FromRow)]
struct CompletionRecord {
    id: String,
    metadata: Json<Metadata>,
    request: Value,
    completion: Value,
    created_at: OffsetDateTime,
}

impl From<CompletionRecord> for CompletionRow {
    fn from(record: CompletionRecord) -> Self {
        let CompletionRecord { id, metadata: Json(metadata), request, completion, created_at } =
            record;
        Self { id, metadata, request, completion, created_at }
    }
}

/// A completion to be kept.
#[derive(Debug, Clone)]
pub struct NewCompletion {
    pub id: String,
    pub model: String,
    pub metadata: Metadata,
    pub request: Value,
    pub completion: Value,
}

pub async fn insert(db: &Db, project: &Project, new: &NewCompletion) -> Result<()> {
    sqlx::query(
        "insert into completions (id, project_id, model, metadata, request, completion)
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&new.id)
    .bind(project.id.as_str())
    .bind(&new.model)
    .bind(Json(&new.metadata))
    .bind(&new.request)
    .bind(&new.completion)
    .execute(&db.pool)
    .await?;
    Ok(())
}

/// Those of a model (any, if none is named) whose metadata hold all of these pairs.
pub async fn list(
    db: &Db,
    project: &Project,
    model: Option<&str>,
    metadata: &Metadata,
    page: &PageQuery,
) -> Result<Page<CompletionRow>> {
    let records: Vec<CompletionRecord> = sqlx::query_as(page.sql(
        "select id, metadata, request, completion, created_at from completions
         where project_id = $1 and ($2::text is null or model = $2) and metadata @> $3
           and ($4::text is null or
                id {after} (select id from completions where id = $4 and project_id = $1))
         order by id {way} limit $5",
    ))
    .bind(project.id.as_str())
    .bind(model)
    .bind(Json(metadata))
    .bind(page.after.as_deref())
    .bind(page.fetch_limit())
    .fetch_all(&db.pool)
    .await?;
    Ok(Page::from_rows(records.into_iter().map(Into::into).collect(), page))
}

/// Which completions somebody wants; what is none does not choose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filter {
    pub model: Option<String>,
    /// All of these pairs.
    pub metadata: Metadata,
    pub created_after: Option<OffsetDateTime>,
    pub created_before: Option<OffsetDateTime>,
}

/// Up to `most` of those that are older than the one with the id `before`, which may be gone by now; the newest
/// first.
pub async fn matching(
    db: &Db,
    project: &Project,
    filter: &Filter,
    before: Option<&str>,
    most: u32,
) -> Result<Vec<CompletionRow>> {
    let records: Vec<CompletionRecord> = sqlx::query_as(
        "select id, metadata, request, completion, created_at from completions
         where project_id = $1 and ($2::text is null or model = $2) and metadata @> $3
           and ($4::timestamptz is null or created_at > $4)
           and ($5::timestamptz is null or created_at < $5)
           and ($6::text is null or id < $6)
         order by id desc limit $7",
    )
    .bind(project.id.as_str())
    .bind(filter.model.as_deref())
    .bind(Json(&filter.metadata))
    .bind(filter.created_after)
    .bind(filter.created_before)
    .bind(before)
    .bind(i64::from(most))
    .fetch_all(&db.pool)
    .await?;
    Ok(records.into_iter().map(Into::into).collect())
}

pub async fn get(db: &Db, project: &Project, id: &str) -> Result<CompletionRow> {
    let record: Option<CompletionRecord> = sqlx::query_as(
        "select id, metadata, request, completion, created_at from completions
         where id = $1 and project_id = $2",
    )
    .bind(id)
    .bind(project.id.as_str())
    .fetch_optional(&db.pool)
    .await?;
    record.map(Into::into).ok_or(Error::NotFound("completion"))
}

/// Replaces the metadata.
pub async fn describe(
    db: &Db,
    project: &Project,
    id: &str,
    metadata: &Metadata,
) -> Result<CompletionRow> {
    let record: Option<CompletionRecord> = sqlx::query_as(
        "update completions set metadata = $3 where id = $1 and project_id = $2
         returning id, metadata, request, completion, created_at",
    )
    .bind(id)
    .bind(project.id.as_str())
    .bind(Json(metadata))
    .fetch_optional(&db.pool)
    .await?;
    record.map(Into::into).ok_or(Error::NotFound("completion"))
}

pub async fn delete(db: &Db, project: &Project, id: &str) -> Result<()> {
    let done = sqlx::query("delete from completions where id = $1 and project_id = $2")
        .bind(id)
        .bind(project.id.as_str())
        .execute(&db.pool)
        .await?;
    if done.rows_affected() == 0 { Err(Error::NotFound("completion")) } else { Ok(()) }
}

/// Removes some of those that are older than this; how many.
pub async fn expire(db: &Db, age: Duration) -> Result<u64> {
    let done = sqlx::query(
        "delete from completions where id in (
             select id from completions
             where created_at < clock_timestamp() - make_interval(secs => $1)
             order by created_at limit $2 for update skip locked)",
    )
    .bind(age.as_secs_f64())
    .bind(EXPIRED_AT_ONCE)
    .execute(&db.pool)
    .await?;
    Ok(done.rows_affected())
}
