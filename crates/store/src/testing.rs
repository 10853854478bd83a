//! A migrated scratch database and a scratch blob folder. For tests only (feature `testing`).
//!
//! `DATABASE_URL` names a Postgres on which databases may be created.

use std::time::Duration;

use domain::JobId;
use secrecy::SecretString;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};

use crate::Store;
use crate::config::{DatabaseConfig, StorageConfig};
use crate::jobs::{self, MetadataFilter};
use crate::page::PageQuery;
use crate::projects::{Project, default_project};

/// Dropped, it removes the database and the folder.
pub struct TestStore {
    pub store: Store,
    pub project: Project,
    /// To open the same database a second time, as another server would.
    pub database: DatabaseConfig,
    pub storage: StorageConfig,
    /// The folder of the blobs.
    pub blobs: tempfile::TempDir,
    name: String,
}

impl TestStore {
    /// # Panics
    /// When `DATABASE_URL` is missing or its server cannot be reached.
    pub async fn new() -> Self {
        let name = format!("finetuned_test_{}", uuid::Uuid::new_v4().simple());
        run(&format!("create database {name}")).await;
        let url = SecretString::from(with_database(&server_url(), &name));
        let database =
            DatabaseConfig { url: Some(url), max_connections: 8, ..DatabaseConfig::default() };
        let blobs = tempfile::tempdir().expect("a temporary folder can be made");
        let folder = format!("file://{}", blobs.path().display());
        let storage = StorageConfig { url: Some(folder), ..StorageConfig::default() };
        let store = Store::open(&database, &storage).await.expect("the store opens");
        store.migrate().await.expect("the migrations apply");
        let project = default_project(&store.db).await.expect("there is a default project");
        Self { store, project, database, storage, blobs, name }
    }

    /// Runs SQL of the test's own, to bring about what no function does.
    ///
    /// # Errors
    /// The database's own error text.
    pub async fn sql(&self, statement: &str) -> Result<u64, String> {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()))
            .execute(&self.store.db.pool)
            .await
            .map(|outcome| outcome.rows_affected())
            .map_err(|error| error.to_string())
    }

    /// The single value of a query, as text; empty when there is none.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn value(&self, expression: &str) -> String {
        let statement = format!("select coalesce(({expression})::text, '')");
        let (value,): (String,) = sqlx::query_as(sqlx::AssertSqlSafe(statement))
            .fetch_one(&self.store.db.pool)
            .await
            .unwrap_or_else(|error| panic!("{expression}: {error}"));
        value
    }

    /// Runs SQL in a transaction that stays open, with its locks, until the value is dropped.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn hold(&self, statement: &str) -> impl Sized + use<> {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        let transaction = self.store.db.pool.begin().await.expect("a transaction begins");
        let mut transaction = Box::new(transaction);
        sqlx::query(statement).execute(&mut **transaction).await.expect("the statement runs");
        transaction
    }

    /// How Postgres would run the statement of the claim.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn plan_of_the_claim(&self) -> String {
        let statement = sqlx::AssertSqlSafe(format!("explain {}", crate::queue::CLAIM));
        let lines: Vec<(String,)> = sqlx::query_as(statement)
            .bind("worker")
            .bind(None::<&str>)
            .bind(crate::interval(Duration::from_secs(60)))
            .bind("fp32")
            .fetch_all(&self.store.db.pool)
            .await
            .expect("the claim can be planned");
        lines.into_iter().map(|(line,)| line + "\n").collect()
    }
}

/// Plans of the statements that read one job or one page of them.
impl TestStore {
    /// How Postgres would run a list of jobs.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn plan_of_a_list(&self, filter: &MetadataFilter, page: &PageQuery) -> String {
        let sql = format!("explain {}", jobs::list_statement(filter, page).0);
        let mut query = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(self.project.id.as_str().to_owned())
            .bind(page.fetch_limit());
        if let MetadataFilter::Holds(pairs) = filter {
            query = query.bind(Json(pairs.clone()));
        }
        if let Some(after) = &page.after {
            query = query.bind(after.clone());
        }
        let lines: Vec<(String,)> =
            query.fetch_all(&self.store.db.pool).await.expect("the list can be planned");
        lines.into_iter().map(|(line,)| line + "\n").collect()
    }

    /// How Postgres would count the jobs before one.
    ///
    /// # Panics
    /// When the statement fails.
    pub async fn plan_of_a_position(&self, job: &JobId) -> String {
        let statement = sqlx::AssertSqlSafe(format!("explain {}", crate::waiting::POSITION));
        let lines: Vec<(String,)> = sqlx::query_as(statement)
            .bind(job.as_str())
            .bind(self.project.id.as_str())
            .bind(1000i64)
            .fetch_all(&self.store.db.pool)
            .await
            .expect("the position can be planned");
        lines.into_iter().map(|(line,)| line + "\n").collect()
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        let statement = format!("drop database if exists {} with (force)", self.name);
        // A run-time of its own: the test's is stopping.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a run-time can be built").block_on(run(&statement));
        });
        dropping.join().ok();
    }
}

fn server_url() -> String {
    std::env::var("DATABASE_URL")
        .expect("DATABASE_URL is not set; it names a Postgres on which tests may create databases")
}

async fn run(statement: &str) {
    let mut last = None;
    for _ in 0..20 {
        let outcome = async {
            let mut connection = PgConnection::connect(&server_url()).await?;
            let statement = sqlx::AssertSqlSafe(statement.to_owned());
            sqlx::raw_sql(statement).execute(&mut connection).await?;
            connection.close().await
        };
        match outcome.await {
            Ok(()) => return,
            // Creating databases in parallel can collide on the template.
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{statement}: {}", last.expect("every attempt has failed"));
}

/// The URL with another database's name.
fn with_database(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let authority = base.find("://").map_or(0, |at| at + 3);
    let end = base[authority..].find('/').map_or(base.len(), |at| authority + at);
    let separator = if query.is_empty() { "" } else { "?" };
    format!("{}/{name}{separator}{query}", &base[..end])
}
