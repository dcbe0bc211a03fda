//! `farrier config check FILE`

use std::path::PathBuf;

use clap::Subcommand;

use super::error::{CommandError, error_chain};
use super::json_text;
use crate::config::{Config, DhcpMode, NetworkConfig};
use crate::net::bridge::Bridge;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration file without starting anything; exit code 2 if it has a mistake
    Check {
        /// The file
        file: PathBuf,
        /// Also look at this machine: the bridge must be here, up, carry the address, and be fit to serve
        #[arg(long)]
        bridge: bool,
    },
}

pub(super) fn run(command: &ConfigCommand, json: bool) -> Result<String, CommandError> {
    match command {
        ConfigCommand::Check { file, bridge: look } => {
            let config = Config::load(file)?;
            if *look {
                let NetworkConfig { bridge, address, allow, .. } = &config.network;
                Bridge::admit(bridge, *address, *allow)
                    .map_err(|error| CommandError::Usage(error_chain(&error)))?;
            }
            let (bridge, address) = (&config.network.bridge, config.network.address);
            let mode = config.dhcp.mode;
            let pool = config.dhcp.pool;
            if json {
                return Ok(json_text(&serde_json::json!({
                    "ok": true,
                    "bridge": bridge.to_string(),
                    "address": address.to_string(),
                    "mode": mode,
                    "pool": pool.to_string(),
                    "pool_size": pool.size(),
                    "reservations": config.dhcp.reservations.len(),
                })));
            }
            let file = file.display();
            let reservations = config.dhcp.reservations.len();
            Ok(match mode {
                DhcpMode::Server => format!(
                    "{file}: ok\n  serves {bridge} as {address}, pool {pool} ({} addresses), {reservations} reservations\n",
                    pool.size(),
                ),
                DhcpMode::Proxy => format!(
                    "{file}: ok\n  serves {bridge} as {address} beside another DHCP server, which gives the addresses\n"
                ),
                DhcpMode::Observe => {
                    format!("{file}: ok\n  observes {bridge} as {address}, and answers nobody there\n")
                }
            })
        }
    }
}
