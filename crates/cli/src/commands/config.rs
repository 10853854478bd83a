//! `finetuned config`.

use anyhow::Result;

use crate::arguments::ConfigCommand;
use crate::config::Loaded;
use crate::output;

pub fn run(loaded: &Loaded, command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Print { redact } => output::text(loaded.render(*redact)?)?,
        // Everything that can be checked without starting anything was checked by loading it.
        ConfigCommand::Check => output::line("the configuration is valid")?,
    }
    Ok(())
}
