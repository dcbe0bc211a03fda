//! The map of the pool: a cell for each address, in rows of 32.
//!
//! A pool beyond [`CELLS_MAX`] has a cell for each block of addresses instead, the darker the fuller.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use maud::{Markup, html};

use crate::clock::Timestamp;
use crate::dhcp::lease::{LeaseState, LeaseView};
use crate::page::words;

const COLUMNS: u32 = 32;
/// 64 rows: what a screen shows, and a browser draws at once.
const CELLS_MAX: u32 = COLUMNS * 64;
const CELL: u32 = 20;
/// Where the cells begin: the row's first address stands before them.
const LEFT: u32 = 74;

/// What one address is, to the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cell {
    Bound,
    Offered,
    Quarantined,
    /// Kept for the client that had it, as long as nobody needs it.
    Remembered,
    Reserved,
}

impl Cell {
    pub(super) const ALL: [Cell; 5] =
        [Cell::Bound, Cell::Offered, Cell::Quarantined, Cell::Remembered, Cell::Reserved];

    pub(super) fn of(lease: &LeaseView, now: Timestamp) -> Cell {
        let over = lease.expires_at <= now;
        match lease.state {
            LeaseState::Bound | LeaseState::Offered | LeaseState::Quarantined if over => Cell::Remembered,
            LeaseState::Elsewhere if over => Cell::Remembered,
            // Held by its machine all the same; the heading says by whose leave.
            LeaseState::Bound | LeaseState::Elsewhere => Cell::Bound,
            LeaseState::Offered => Cell::Offered,
            LeaseState::Quarantined => Cell::Quarantined,
            LeaseState::Released => Cell::Remembered,
        }
    }

    pub(super) fn key(self) -> &'static str {
        match self {
            Cell::Bound => "bound",
            Cell::Offered => "offered",
            Cell::Quarantined => "quarantined",
            Cell::Remembered => "remembered",
            Cell::Reserved => "reserved",
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Cell::Bound => "bound",
            Cell::Offered => "offered",
            Cell::Quarantined => "quarantined",
            Cell::Remembered => "free, remembered",
            Cell::Reserved => "reserved",
        }
    }

    /// In a cell of 20, told by shape as well as by colour.
    fn shape(self) -> &'static str {
        match self {
            Cell::Bound => "M3 3h14v14H3z",
            Cell::Offered => "M3 17 17 3v14z",
            Cell::Quarantined => "M3 5 5 3l5 5 5-5 2 2-5 5 5 5-2 2-5-5-5 5-2-2 5-5z",
            Cell::Remembered => "M7 7h6v6H7z",
            Cell::Reserved => "M3 3h14v14H3zM6 6v8h8V6z",
        }
    }

    pub(super) fn glyph(self) -> Markup {
        html! {
            svg class={ "cell-" (self.key()) } viewBox="0 0 20 20" width="14" height="14" aria-hidden="true" {
                path fill-rule="evenodd" d=(self.shape()) {}
            }
        }
    }
}

/// What is known of addresses that are not simply free: what they are, and who has them.
pub(super) type Taken = BTreeMap<Ipv4Addr, (Cell, String)>;

pub(super) fn draw(first: Ipv4Addr, last: Ipv4Addr, taken: &Taken) -> Markup {
    let (first, last) = (u32::from(first), u32::from(last).max(u32::from(first)));
    let size = last - first + 1;
    // The smallest power of two that makes few enough cells.
    let block = size.div_ceil(CELLS_MAX).next_power_of_two();
    let cells = size.div_ceil(block);
    let rows = cells.div_ceil(COLUMNS);
    let (width, height) = (LEFT + COLUMNS * CELL, rows * CELL + 2);
    let last_row = cells - (rows - 1) * COLUMNS;
    html! {
        svg.pool-map viewBox={ "0 0 " (width) " " (height) } role="group" aria-label={ "Addresses " (Ipv4Addr::from(first)) " to " (Ipv4Addr::from(last)) } {
            defs {
                pattern #free width=(CELL) height=(CELL) patternUnits="userSpaceOnUse" x=(LEFT) {
                    rect.cell-free x="3.500" y="3.500" width="13" height="13" rx="1.500" {}
                }
            }
            rect fill="url(#free)" x=(LEFT) y="0" width=(COLUMNS * CELL) height=((rows - 1) * CELL) {}
            rect fill="url(#free)" x=(LEFT) y=((rows - 1) * CELL) width=(last_row * CELL) height=(CELL) {}
            @for row in 0..rows {
                text.row-name x=(LEFT - 6) y=(row * CELL + 14) text-anchor="end" { (row_name(first + row * COLUMNS * block)) }
            }
            @if block == 1 { (single(first, last, taken)) } @else { (blocks(first, last, block, taken)) }
        }
    }
}

/// The last two numbers: the first two are the same for all but the largest pools.
fn row_name(address: u32) -> String {
    let [_, _, c, d] = Ipv4Addr::from(address).octets();
    format!(".{c}.{d}")
}

fn corner(index: u32) -> String {
    format!("translate({} {})", LEFT + index % COLUMNS * CELL, index / COLUMNS * CELL)
}

fn single(first: u32, last: u32, taken: &Taken) -> Markup {
    html! {
        @for (address, (cell, who)) in taken.range(Ipv4Addr::from(first)..=Ipv4Addr::from(last)) {
            @let said = format!("{address} {}{}{who}", cell.word(), if who.is_empty() { "" } else { ": " });
            a href={ "#lease-" (address) } class={ "cell cell-" (cell.key()) } aria-label=(said) transform=(corner(u32::from(*address) - first)) {
                title { (said) }
                rect.cell-ground width=(CELL) height=(CELL) {}
                path fill-rule="evenodd" d=(cell.shape()) {}
            }
        }
    }
}

fn blocks(first: u32, last: u32, block: u32, taken: &Taken) -> Markup {
    let mut used: BTreeMap<u32, u32> = BTreeMap::new();
    for (address, (cell, _)) in taken.range(Ipv4Addr::from(first)..=Ipv4Addr::from(last)) {
        *used.entry((u32::from(*address) - first) / block).or_default() +=
            u32::from(*cell != Cell::Remembered);
    }
    html! {
        @for (index, count) in used.into_iter().filter(|(_, count)| *count > 0) {
            @let from = first + index * block;
            g.cell.cell-bound transform=(corner(index)) fill-opacity=(format!("{:.2}", 0.25 + 0.75 * f64::from(count) / f64::from(block))) {
                title { (Ipv4Addr::from(from)) " to " (Ipv4Addr::from(from.saturating_add(block - 1).min(last))) ": " (words::grouped(count.into())) " of " (block) " in use" }
                path d=(Cell::Bound.shape()) {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_has_its_cell_and_large_pools_have_blocks() {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let mut taken = Taken::new();
        taken.insert(address("10.0.0.33"), (Cell::Bound, "web1".to_owned()));
        taken.insert(address("10.0.9.9"), (Cell::Bound, "outside".to_owned()));
        let small = draw(address("10.0.0.1"), address("10.0.0.64"), &taken).into_string();
        assert!(small.contains("translate(74 20)") && small.contains("10.0.0.33 bound: web1"), "{small}");
        assert!(!small.contains("outside"));
        taken.insert(address("10.0.0.200"), (Cell::Quarantined, String::new()));
        let large = draw(address("10.0.0.0"), address("10.0.255.255"), &taken).into_string();
        assert!(large.contains("10.0.0.192 to 10.0.0.223: 1 of 32 in use"), "{large}");
        assert!(large.len() < 20_000);
    }
}
