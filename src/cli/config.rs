//! `farrier config check FILE`

use std::path::PathBuf;

use clap::Subcommand;

use super::error::CommandError;
use super::json_text;
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration file without starting anything; exit code 2 if `serve` would refuse it
    Check {
        /// The file
        file: PathBuf,
    },
}

pub(super) fn run(command: &ConfigCommand, json: bool) -> Result<String, CommandError> {
    match command {
        ConfigCommand::Check { file } => {
            let config = Config::load(file)?;
            let (bridge, address) = (&config.network.bridge, config.network.address);
            let pool = config.dhcp.pool;
            if json {
                return Ok(json_text(&serde_json::json!({
                    "ok": true,
                    "bridge": bridge.to_string(),
                    "address": address.to_string(),
                    "pool": pool.to_string(),
                    "pool_size": pool.size(),
                    "reservations": config.dhcp.reservations.len(),
                })));
            }
            Ok(format!(
                "{}: ok\n  serves {bridge} as {address}, pool {pool} ({} addresses), {} reservations\n",
                file.display(),
                pool.size(),
                config.dhcp.reservations.len(),
            ))
        }
    }
}
