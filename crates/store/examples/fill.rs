//! Fills a migrated database for measurements of the API, or lets events arrive in it.
//!
//! ```text
//! fill rows N             N ended jobs, N files, and N events of the first of these jobs
//! fill events JOBS RATE SECONDS
//!                         to JOBS queued jobs, together RATE events a second, each with the time of its writing
//! ```
//!
//! The database is that of `DATABASE_URL`; everything belongs to the default project.

use std::time::Duration;

use sqlx::PgPool;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A bulk of rows in one statement.
const BULK: i64 = 50_000;

const JOBS: &str = "
    insert into jobs (id, project_id, status, desired, base_model, created_at, finished_at, error_code)
    select 'ftjob-bench' || lpad(i::text, 13, '0'), 'proj_default',
           case when i % 3 = 0 then 'cancelled' else 'failed' end,
           case when i % 3 = 0 then 'cancel' else 'run' end,
           'smollm2-135m-instruct', now() - make_interval(secs => 86400 + $2 - i), now(),
           case when i % 3 = 0 then null else 'bench' end
    from generate_series($1::bigint, $2::bigint) i";

const DETAILS: &str = r#"
    insert into job_details (job_id, project_id, method, training_file, seed, metadata, hyperparameters, options,
                             error)
    select 'ftjob-bench' || lpad(i::text, 13, '0'), 'proj_default', 'supervised', 'file-bench', i,
           case when i % 1000 = 0 then jsonb_build_object('team', 'rare', 'number', i::text)
                when i % 2 = 0 then '{"team": "usual"}'::jsonb end,
           '{"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": "auto"}', '{}',
           case when i % 3 = 0 then null
                else '{"code": "bench", "param": null, "message": "Never run."}'::jsonb end
    from generate_series($1::bigint, $2::bigint) i"#;

const FILES: &str = "
    insert into files (id, project_id, filename, purpose, bytes, sha256, created_at)
    select 'file-bench' || lpad(i::text, 14, '0'), 'proj_default', 'rows ' || i || '.jsonl',
           case when i % 1000 = 0 then 'batch' else 'fine-tune' end, i, repeat('0', 64),
           now() - make_interval(secs => 86400 + $2 - i)
    from generate_series($1::bigint, $2::bigint) i";

const EVENTS: &str = "
    insert into events (job_id, seq, project_id, id, fence, level, type, message, data, created_at)
    select 'ftjob-bench0000000000001', i, 'proj_default', 'ftevent-bench' || lpad(i::text, 11, '0'), 0, 'info',
           'message', 'Event ' || i, '{}', now() - make_interval(secs => 86400 + $2 - i)
    from generate_series($1::bigint, $2::bigint) i";

const QUEUED_JOBS: &str = "
    insert into jobs (id, project_id, status, base_model, run_after)
    select 'ftjob-stream' || lpad(i::text, 12, '0'), 'proj_default', 'queued', 'smollm2-135m-instruct',
           now() + interval '1 day'
    from generate_series(1, $1::bigint) i";

const QUEUED_DETAILS: &str = r#"
    insert into job_details (job_id, project_id, method, training_file, seed, hyperparameters, options)
    select 'ftjob-stream' || lpad(i::text, 12, '0'), 'proj_default', 'supervised', 'file-bench', i,
           '{"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": "auto"}', '{}'
    from generate_series(1, $1::bigint) i"#;

/// One event of one job, as a worker's report becomes one.
const ONE_EVENT: &str = "
    with counted as (
        update jobs set event_seq = event_seq + 1 where id = 'ftjob-stream' || lpad($1::text, 12, '0')
        returning id, project_id, event_seq)
    insert into events (job_id, seq, project_id, id, fence, level, type, message, data)
    select id, event_seq, project_id, 'ftevent-' || replace(gen_random_uuid()::text, '-', ''), 0, 'info',
           'message', 'Written for a measurement',
           jsonb_build_object('written_at', extract(epoch from clock_timestamp()))
    from counted";

#[tokio::main]
async fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    match words.as_slice() {
        ["rows", n] => rows(&pool, n.parse()?).await,
        ["events", jobs, rate, seconds] => {
            events(&pool, jobs.parse()?, rate.parse()?, seconds.parse()?).await
        }
        _ => Err("fill rows N | fill events JOBS RATE SECONDS".into()),
    }
}

/// Brings every kind of row to `n`, on top of those that an earlier call made.
async fn rows(pool: &PgPool, n: i64) -> Result {
    let (there,): (i64,) = sqlx::query_as("select count(*) from jobs where id like 'ftjob-bench%'")
        .fetch_one(pool)
        .await?;
    let mut first = there + 1;
    while first <= n {
        let last = n.min(first + BULK - 1);
        for statement in [JOBS, DETAILS, FILES, EVENTS] {
            sqlx::query(statement).bind(first).bind(last).execute(pool).await?;
        }
        first = last + 1;
    }
    sqlx::query("update jobs set event_seq = $1 where id = 'ftjob-bench0000000000001'")
        .bind(n)
        .execute(pool)
        .await?;
    for table in ["jobs", "job_details", "files", "events"] {
        let vacuum = sqlx::AssertSqlSafe(format!("vacuum analyze {table}"));
        sqlx::query(vacuum).execute(pool).await?;
    }
    Ok(())
}

async fn events(pool: &PgPool, jobs: i64, rate: f64, seconds: f64) -> Result {
    let (there,): (i64,) =
        sqlx::query_as("select count(*) from jobs where id like 'ftjob-stream%'")
            .fetch_one(pool)
            .await?;
    if there == 0 {
        sqlx::query(QUEUED_JOBS).bind(jobs).execute(pool).await?;
        sqlx::query(QUEUED_DETAILS).bind(jobs).execute(pool).await?;
    }
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    for i in 0..(rate * seconds) as i64 {
        pace.tick().await;
        sqlx::query(ONE_EVENT).bind(i % jobs + 1).execute(pool).await?;
    }
    Ok(())
}
