//! `farrier lease list`

use clap::Subcommand;

use super::client::Client;
use super::error::CommandError;
use super::json_text;
use super::table::Table;
use super::text::{Style, Tone, ago, duration, or_dash};
use crate::clock::{Clock, Timestamp};
use crate::dhcp::lease::LeaseState;
use crate::operator::api::LeaseEntry;

#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// List bindings and offers, by address
    List,
}

pub(super) async fn run(
    command: &LeaseCommand,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    match command {
        LeaseCommand::List => {
            let leases: Vec<LeaseEntry> = client.get("/api/v1/leases").await?;
            Ok(if json { json_text(&leases) } else { render(&leases, style, Clock::start().now()) })
        }
    }
}

pub(super) fn render(leases: &[LeaseEntry], style: Style, now: Timestamp) -> String {
    if leases.is_empty() {
        return "no leases\n".to_owned();
    }
    let mut table = Table::new(&["ADDRESS", "MAC", "NODE", "HOST NAME", "STATE", "ENDS"]);
    for lease in leases {
        let over = lease.expires_at <= now;
        let (tone, state) = match lease.state {
            LeaseState::Offered => (Tone::Plain, "offered"),
            LeaseState::Bound if over => (Tone::Plain, "expired"),
            LeaseState::Bound => (Tone::Plain, "bound"),
            LeaseState::Released => (Tone::Plain, "released"),
            LeaseState::Quarantined => (Tone::Attention, "quarantined"),
        };
        let ends = if over {
            ago(lease.expires_at, now)
        } else {
            format!("in {}", duration(lease.expires_at.since(now)))
        };
        let name = or_dash(lease.node_name.as_ref());
        let hostname = or_dash(lease.hostname.as_ref());
        let cells =
            [lease.address.to_string(), lease.mac.to_string(), name, hostname, state.to_owned(), ends];
        table.row(tone, cells);
    }
    table.render(style)
}
