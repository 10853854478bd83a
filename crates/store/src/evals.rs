//! Evaluations: graders over a data source. Their runs, what a run has recorded, and who executes it are in the
//! modules below.
//!
//! What the user sent is kept as text of JSON, with its order of keys. The store reads none of it.

pub mod claims;
pub mod items;
pub mod runs;

use std::collections::BTreeMap;

use domain::EvalId;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::db::{Db, Lane};
use crate::error::{Error, Result};
use crate::idempotency::{self, Created, Once};
use crate::page::{Page, PageQuery};
use crate::projects::Project;
use crate::text;

pub type Metadata = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq)]
pub struct EvalRow {
    pub id: EvalId,
    pub name: String,
    pub data_source_config: Value,
    pub testing_criteria: Value,
    pub metadata: Option<Metadata>,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

#[derive(Debug, Clone)]
pub struct NewEval {
    pub name: String,
    pub data_source_config: Value,
    pub testing_criteria: Value,
    pub metadata: Option<Metadata>,
}

/// What may change of an evaluation; what is none stays.
#[derive(Debug, Clone, Default)]
pub struct EvalChange {
    pub name: Option<String>,
    /// `Some(None)` removes all pairs.
    pub metadata: Option<Option<Metadata>>,
}

/// By what a list of evaluations is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OrderBy {
    #[default]
    Created,
    Updated,
}

#[derive(FromRow)]
struct EvalRecord {
    id: String,
    name: String,
    data_source_config: Json<Value>,
    testing_criteria: Json<Value>,
    metadata: Option<Json<Metadata>>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    bytes: i32,
}

impl From<EvalRecord> for EvalRow {
    fn from(record: EvalRecord) -> Self {
        Self {
            id: record.id.into(),
            name: record.name,
            data_source_config: record.data_source_config.0,
            testing_criteria: record.testing_criteria.0,
            metadata: record.metadata.map(|metadata| metadata.0),
            created_at: record.created_at,
            updated_at: record.updated_at,
        }
    }
}

macro_rules! columns {
    () => {
        "id, name, data_source_config, testing_criteria, metadata, created_at, updated_at,
         octet_length(data_source_config::text) + octet_length(testing_criteria::text) as bytes"
    };
}

/// Pairs without what Postgres cannot hold.
pub(crate) fn clean_metadata(metadata: Option<&Metadata>) -> Option<Json<Metadata>> {
    let clean = |(key, value): (&String, &String)| {
        (text::clean(key).into_owned(), text::clean(value).into_owned())
    };
    metadata.map(|metadata| Json(metadata.iter().map(clean).collect()))
}

pub async fn create(
    db: &Db,
    project: &Project,
    new: NewEval,
    once: Option<Once>,
) -> Result<EvalRow> {
    let args = (project.clone(), new, once);
    db.transact(Lane::Api, args, |tx, (project, new, once)| {
        Box::pin(async move {
            let id = EvalId::new();
            let first = idempotency::begin(tx, project.id.as_str(), once.as_ref(), id.as_str());
            match first.await? {
                Some(first) => find(tx, project, &first.into()).await,
                None => insert(tx, project, &id, new).await,
            }
        })
    })
    .await
}

async fn insert(
    tx: &mut PgConnection,
    project: &Project,
    id: &EvalId,
    new: &NewEval,
) -> Result<EvalRow> {
    let record: EvalRecord = sqlx::query_as(concat!(
        "insert into evals (id, project_id, name, data_source_config, testing_criteria, metadata)
         values ($1, $2, $3, $4::json, $5::json, $6) returning ",
        columns!()
    ))
    .bind(id.as_str())
    .bind(project.id.as_str())
    .bind(text::clean(&new.name))
    .bind(new.data_source_config.to_string())
    .bind(new.testing_criteria.to_string())
    .bind(clean_metadata(new.metadata.as_ref()))
    .fetch_one(tx)
    .await?;
    Ok(record.into())
}

pub async fn get(db: &Db, project: &Project, id: &EvalId) -> Result<EvalRow> {
    find(&db.pool, project, id).await
}

async fn find(db: impl PgExecutor<'_>, project: &Project, id: &EvalId) -> Result<EvalRow> {
    let record: Option<EvalRecord> = sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from evals where id = $1 and project_id = $2"
    ))
    .bind(id.as_str())
    .bind(project.id.as_str())
    .fetch_optional(db)
    .await?;
    record.map(Into::into).ok_or(Error::NotFound("eval"))
}

pub async fn list(
    db: &Db,
    project: &Project,
    by: OrderBy,
    page: &PageQuery,
) -> Result<Page<EvalRow>> {
    let statement = match by {
        OrderBy::Created => concat!(
            "select ",
            columns!(),
            " from evals where project_id = $1 and ($2::text is null or (created_at, id) {after}
                  (select created_at, id from evals where id = $2 and project_id = $1))
              order by created_at {way}, id {way} limit $3"
        ),
        OrderBy::Updated => concat!(
            "select ",
            columns!(),
            " from evals where project_id = $1 and ($2::text is null or (updated_at, id) {after}
                  (select updated_at, id from evals where id = $2 and project_id = $1))
              order by updated_at {way}, id {way} limit $3"
        ),
    };
    let rows = sqlx::query_as::<_, EvalRecord>(page.sql(statement))
        .bind(project.id.as_str())
        .bind(page.after.as_deref())
        .bind(page.fetch_limit())
        .fetch(&db.pool);
    Page::gather(rows, page, |record| record.bytes.unsigned_abs() as usize).await
}

pub async fn update(
    db: &Db,
    project: &Project,
    id: &EvalId,
    change: &EvalChange,
) -> Result<EvalRow> {
    let record: Option<EvalRecord> = sqlx::query_as(concat!(
        "update evals set name = coalesce($3, name),
             metadata = case when $4 then $5 else metadata end, updated_at = clock_timestamp()
         where id = $1 and project_id = $2 returning ",
        columns!()
    ))
    .bind(id.as_str())
    .bind(project.id.as_str())
    .bind(change.name.as_deref().map(text::clean))
    .bind(change.metadata.is_some())
    .bind(clean_metadata(change.metadata.as_ref().and_then(Option::as_ref)))
    .fetch_optional(&db.pool)
    .await?;
    record.map(Into::into).ok_or(Error::NotFound("eval"))
}

/// Removes an evaluation with its runs and all that they recorded. A run that goes on loses its claim.
pub async fn delete(db: &Db, project: &Project, id: &EvalId) -> Result<()> {
    let args = (project.clone(), id.clone());
    db.transact(Lane::Api, args, |tx, (project, id)| {
        Box::pin(async move {
            let gone = sqlx::query("delete from evals where id = $1 and project_id = $2")
                .bind(id.as_str())
                .bind(project.id.as_str())
                .execute(&mut *tx)
                .await?;
            if gone.rows_affected() == 0 {
                return Err(Error::NotFound("eval"));
            }
            idempotency::forget(tx, project.id.as_str(), Created::Eval, id.as_str()).await
        })
    })
    .await
}
