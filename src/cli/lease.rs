//! `farrier lease list|pool|reservations|reserve|free`

use std::net::Ipv4Addr;

use clap::Subcommand;

use super::client::Client;
use super::error::CommandError;
use super::json_text;
use super::table::Table;
use super::text::{Style, Tone, ago, duration, or_dash};
use crate::clock::{Clock, Timestamp};
use crate::dhcp::lease::LeaseState;
use crate::net::MacAddr;
use crate::operator::api::{LeaseEntry, PoolStatus, ReservationEntry, ReservationPut, ReservationSource};

#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// List bindings and offers, by address
    List,
    /// How full the pool is
    Pool,
    /// List the addresses kept for one port each
    Reservations,
    /// Keep an address for a port of a known node
    Reserve { address: Ipv4Addr, mac: MacAddr },
    /// Keep an address for nobody any more
    Free { address: Ipv4Addr },
}

pub(super) async fn run(
    command: &LeaseCommand,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    match command {
        LeaseCommand::List => {
            let leases: Vec<LeaseEntry> = client.list("/api/v1/leases").await?;
            Ok(if json { json_text(&leases) } else { render(&leases, style, Clock::start().now()) })
        }
        LeaseCommand::Pool => {
            let pool: PoolStatus = client.get("/api/v1/pool").await?;
            Ok(if json { json_text(&pool) } else { render_pool(&pool) })
        }
        LeaseCommand::Reservations => {
            let kept: Vec<ReservationEntry> = client.list("/api/v1/reservations").await?;
            Ok(if json { json_text(&kept) } else { render_reservations(&kept, style) })
        }
        LeaseCommand::Reserve { address, mac } => {
            let wanted = ReservationPut { mac: *mac };
            let kept: ReservationEntry =
                client.put(&format!("/api/v1/reservations/{address}"), &wanted).await?;
            Ok(if json { json_text(&kept) } else { format!("{address} is kept for {mac}\n") })
        }
        LeaseCommand::Free { address } => {
            let kept: ReservationEntry = client.delete(&format!("/api/v1/reservations/{address}")).await?;
            Ok(if json {
                json_text(&kept)
            } else {
                format!("{address} is no longer kept for {}\n", kept.mac)
            })
        }
    }
}

fn render_pool(pool: &PoolStatus) -> String {
    let free = pool.size.saturating_sub(pool.bound + pool.offered + pool.quarantined);
    format!(
        "pool         {} to {}, {} addresses\nbound        {}\noffered      {}\nquarantined  {}\nfree         {free}\n",
        pool.first, pool.last, pool.size, pool.bound, pool.offered, pool.quarantined
    )
}

fn render_reservations(kept: &[ReservationEntry], style: Style) -> String {
    if kept.is_empty() {
        return "no reservations: `farrier lease reserve ADDRESS MAC` makes one\n".to_owned();
    }
    let mut table = Table::new(&["ADDRESS", "MAC", "NODE", "FIXED BY"]);
    for entry in kept {
        let source = match entry.source {
            ReservationSource::Operator => "operator",
            ReservationSource::Configuration => "configuration",
        };
        let name = or_dash(entry.node_name.as_ref());
        table.row(Tone::Plain, [entry.address.to_string(), entry.mac.to_string(), name, source.to_owned()]);
    }
    table.render(style)
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
            LeaseState::Elsewhere => (Tone::Plain, "elsewhere"),
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
