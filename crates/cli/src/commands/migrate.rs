//! `finetuned migrate`: brings the database's schema up to date. Servers do not do it by themselves,
//! because several of them may start at once, and because it should be a decision.

use anyhow::Result;

use crate::backend::{self, Absent, Backend};
use crate::config::Config;
use crate::output;

pub async fn run(config: &Config) -> Result<()> {
    if config.database.url.is_none() {
        // A private database is migrated by opening it.
        let backend = Backend::open(config, Absent::Create).await?;
        backend.store.migrate().await?;
        backend.close().await;
    } else {
        let db = store::Db::connect(&config.database, backend::PATIENCE).await?;
        db.migrate().await?;
        db.close().await;
    }
    output::line("the database is up to date")?;
    Ok(())
}
