//! What a run has recorded: one output item per row of its data source.

use domain::{EvalId, EvalRunId, OutputItemId};
use serde_json::Value;
use sqlx::FromRow;
use sqlx::types::Json;
use time::OffsetDateTime;

use super::runs;
use crate::db::Db;
use crate::error::{Error, Result};
use crate::page::{Page, PageQuery};
use crate::projects::Project;

/// The verdict of all graders together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Fail,
    /// The item could not be judged.
    Error,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Error => "error",
        }
    }

    fn from_column(text: &str) -> Self {
        // The column's CHECK admits these three.
        match text {
            "pass" => Self::Pass,
            "fail" => Self::Fail,
            _ => Self::Error,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ItemRow {
    pub id: OutputItemId,
    /// Place of the row in the data source, from 0.
    pub item: u32,
    pub status: Verdict,
    pub datasource_item: Value,
    pub results: Value,
    pub sample: Value,
    pub created_at: OffsetDateTime,
}

#[derive(FromRow)]
struct ItemRecord {
    id: String,
    item: i32,
    status: String,
    datasource_item: Json<Value>,
    results: Json<Value>,
    sample: Json<Value>,
    created_at: OffsetDateTime,
    bytes: i32,
}

impl From<ItemRecord> for ItemRow {
    fn from(record: ItemRecord) -> Self {
        Self {
            id: record.id.into(),
            item: record.item.unsigned_abs(),
            status: Verdict::from_column(&record.status),
            datasource_item: record.datasource_item.0,
            results: record.results.0,
            sample: record.sample.0,
            created_at: record.created_at,
        }
    }
}

macro_rules! columns {
    () => {
        "id, item, status, datasource_item, results, sample, created_at,
         octet_length(datasource_item::text) + octet_length(results::text) + octet_length(sample::text) as bytes"
    };
}

/// The output items of a run, in the order of its rows; of one verdict alone, if it is named.
pub async fn list(
    db: &Db,
    project: &Project,
    (eval, run): (&EvalId, &EvalRunId),
    status: Option<Verdict>,
    page: &PageQuery,
) -> Result<Page<ItemRow>> {
    runs::require(db, project, eval, run).await?;
    let statement = page.sql(concat!(
        "select ",
        columns!(),
        " from eval_output_items where run_id = $1 and ($2::text is null or status = $2)
            and ($3::text is null or item {after}
                 (select item from eval_output_items where id = $3 and run_id = $1))
          order by item {way} limit $4"
    ));
    let rows = sqlx::query_as::<_, ItemRecord>(statement)
        .bind(run.as_str())
        .bind(status.map(Verdict::as_str))
        .bind(page.after.as_deref())
        .bind(page.fetch_limit())
        .fetch(&db.pool);
    Page::gather(rows, page, |record| record.bytes.unsigned_abs() as usize).await
}

pub async fn get(
    db: &Db,
    project: &Project,
    (eval, run): (&EvalId, &EvalRunId),
    id: &OutputItemId,
) -> Result<ItemRow> {
    runs::require(db, project, eval, run).await?;
    let record: Option<ItemRecord> = sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from eval_output_items where id = $1 and run_id = $2"
    ))
    .bind(id.as_str())
    .bind(run.as_str())
    .fetch_optional(&db.pool)
    .await?;
    record.map(Into::into).ok_or(Error::NotFound("output item"))
}
