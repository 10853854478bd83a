//! `finetuned config`.

use anyhow::Result;

use crate::arguments::ConfigCommand;
use crate::config::Loaded;

pub fn run(loaded: &Loaded, command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Print { redact } => print!("{}", loaded.render(*redact)?),
        // Everything that can be checked without starting anything was checked by loading it.
        ConfigCommand::Check => println!("the configuration is valid"),
    }
    Ok(())
}
