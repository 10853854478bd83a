//! Pages of a project's jobs, of all or of those with certain metadata.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;
use sqlx::types::Json;

use super::{JobRecord, JobRow};
use crate::db::Db;
use crate::error::Result;
use crate::page::{Page, PageQuery};
use crate::projects::Project;

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub enum MetadataFilter {
    #[default]
    Any,
    /// Jobs without metadata.
    Absent,
    /// Jobs whose metadata hold all of these pairs.
    Holds(BTreeMap<String, String>),
}

/// The statement of a list: $1 project, $2 limit, then the pairs to hold and the cursor, as far as there are
/// any. A condition that does not apply is left out, so that each kind of list has its own plan.
pub(crate) fn list_statement(filter: &MetadataFilter, page: &PageQuery) -> AssertSqlSafe<String> {
    let (filter, cursor) = match filter {
        MetadataFilter::Any => ("", "$3"),
        MetadataFilter::Absent => ("and d.project_id = $1 and d.metadata is null", "$3"),
        MetadataFilter::Holds(_) => ("and d.project_id = $1 and d.metadata @> $3", "$4"),
    };
    let cursor = match page.after {
        Some(_) => format!(
            "and (j.created_at, j.id) {{after}}
                 (select created_at, id from jobs where id = {cursor} and project_id = $1)"
        ),
        None => String::new(),
    };
    let template = select_job!(
        "where j.project_id = $1 and j.deleted_at is null {filter} {cursor}
         order by j.created_at {way}, j.id {way} limit $2"
    );
    page.fill(&template.replace("{filter}", filter).replace("{cursor}", &cursor))
}

/// The project's jobs, by creation.
pub async fn list(
    db: &Db,
    project: &Project,
    filter: &MetadataFilter,
    page: &PageQuery,
) -> Result<Page<JobRow>> {
    let mut query = sqlx::query_as(list_statement(filter, page))
        .bind(project.id.as_str())
        .bind(page.fetch_limit());
    if let MetadataFilter::Holds(pairs) = filter {
        query = query.bind(Json(pairs));
    }
    if let Some(after) = &page.after {
        query = query.bind(after);
    }
    let records: Vec<JobRecord> = query.fetch_all(&db.pool).await?;
    let rows: Result<Vec<JobRow>> = records.into_iter().map(TryInto::try_into).collect();
    Ok(Page::from_rows(rows?, page))
}
