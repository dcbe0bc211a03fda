//! `/leases`: the pool as a map, and each address with who has it and for how long.

use std::collections::HashMap;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use crate::clock::Timestamp;
use crate::config::DhcpMode;
use crate::dhcp::lease::LeaseView;
use crate::net::MacAddr;
use crate::page::layout::{self, Live, Tab};
use crate::page::pool_map::{self, Cell, Taken};
use crate::page::visitor::Visitor;
use crate::page::{Shared, overview, words};

/// Rows of the table; the map shows all, and the API lists all.
const ROWS_MAX: usize = 500;

pub(super) async fn show(State(parts): State<Shared>, visitor: Visitor) -> Response {
    let now = parts.now();
    let held = parts.leases();
    let leases = held.by_address.as_slice();
    let names = parts.names();
    let who = |lease: &LeaseView| {
        names
            .get(&lease.mac)
            .cloned()
            .or_else(|| lease.hostname.clone())
            .unwrap_or_else(|| lease.mac.to_string())
    };
    let (pool, mode) = {
        let config = parts.operator.config.load();
        (config.dhcp.pool, config.dhcp.mode)
    };
    let used = parts.operator.appliance.pool_use();
    let taken_count = u64::from(used.bound) + u64::from(used.offered) + u64::from(used.quarantined);
    let mut taken: Taken = leases
        .iter()
        .map(|lease| (lease.address, (Cell::of(lease, now), crate::cli::text::inert(&who(lease)))))
        .collect();
    for (address, owner) in parts.reservations(&names) {
        taken.entry(address).or_insert((Cell::Reserved, owner));
    }
    let body = html! {
        div.page-head { h1 { "Leases" } }
        section #pool.panel aria-labelledby="pool-title" data-live {
            div.panel-head {
                h2 #pool-title { "Pool" }
                @if mode != DhcpMode::Proxy {
                    p { b { (words::grouped(taken_count)) } " of " (words::plural(used.size.into(), "address", "addresses")) " in use" }
                }
            }
            @if mode == DhcpMode::Proxy {
                p.empty { "farrier gives out no addresses here: " code { "dhcp.mode = \"proxy\"" } " leaves that to another DHCP server. Those it was heard to give are below." }
            } @else { (overview::meter(taken_count, used.size.into())) }
            @if mode != DhcpMode::Proxy { div.pool {
                (pool_map::draw(pool.first, pool.last, &taken))
                ul.legend {
                    @for cell in Cell::ALL {
                        @let count = taken.values().filter(|(of, _)| *of == cell).count() as u64;
                        li { (cell.glyph()) b { (words::grouped(count)) } " " (cell.word()) }
                    }
                }
            } }
        }
        section #leases.panel aria-labelledby="leases-title" data-live {
            div.panel-head {
                h2 #leases-title { "Addresses" }
                @if leases.len() > ROWS_MAX { p.quiet { "The first " (ROWS_MAX) " of " (words::grouped(leases.len() as u64)) ". " code { "farrier lease list" } " has them all." } }
            }
            @if leases.is_empty() {
                p.empty { (nothing(mode)) }
            } @else { (table(&names, leases, now)) }
        }
    };
    layout::page(&visitor, Tab::Leases, "Leases", Live::Slowly, body)
}

fn nothing(mode: DhcpMode) -> &'static str {
    match mode {
        DhcpMode::Server => "No address has been given out. One is when a machine on the bridge asks for it.",
        DhcpMode::Proxy => "The other DHCP server was not heard to give an address yet.",
        DhcpMode::Observe => "Nobody is answered: dhcp.mode = \"observe\".",
    }
}

fn table(names: &HashMap<MacAddr, String>, leases: &[LeaseView], now: Timestamp) -> Markup {
    html! {
        div.table-scroll tabindex="0" role="region" aria-label="Table of addresses" {
            table.grid {
                thead { tr { th scope="col" { "Address" } th scope="col" { "State" } th scope="col" { "Node" } th scope="col" { "MAC" } th scope="col" { "Host name" } th scope="col" { "Since" } th scope="col" { "Ends" } } }
                tbody {
                    @for lease in leases.iter().take(ROWS_MAX) {
                        @let cell = Cell::of(lease, now);
                        tr id={ "lease-" (lease.address) } {
                            th.mono scope="row" { (lease.address) }
                            td { (cell.glyph()) " " (cell.word()) }
                            td { a href={ "/nodes/" (lease.mac) } { (names.get(&lease.mac).map_or("unnamed", String::as_str)) } }
                            td.mono { (lease.mac) }
                            td { @if let Some(hostname) = &lease.hostname { (words::wire(hostname)) } }
                            td { (words::ago_or_never(lease.granted_at, now)) }
                            td { (words::until(lease.expires_at, now)) }
                        }
                    }
                }
            }
        }
    }
}
