//! The drawn picture: the bridge, the appliance on it, and each machine on its cable.
//!
//! Each tile draws its own piece of the bridge, so that the rail goes on through as many rows as the window makes of
//! them, at any width, with text that keeps its size. Few machines have their names, many are small, and of very
//! many only those are drawn that want attention or move; the others are counted.

use maud::{Markup, html};

use crate::operator::api::{BridgeStatus, ServiceStatus};
use crate::page::fleet::{Condition, Row};
use crate::page::{nodes, words};

/// With more than this, tiles have no names.
const NAMED_MAX: usize = 60;
/// With more than this, tiles that want nothing are counted instead of drawn.
const DRAWN_MAX: usize = 400;

pub(super) fn draw(bridge: &BridgeStatus, services: &[ServiceStatus], rows: &[Row]) -> Markup {
    let small = rows.len() > NAMED_MAX;
    let (drawn, counted) = choose(rows);
    html! {
        div class={ "fabric" @if small { " is-small" } } {
            (appliance(bridge, services))
            ul.machines aria-label="Machines on the bridge" {
                @for row in drawn {
                    li { (tile(row, small)) }
                }
                @for (condition, count) in counted {
                    li.crowd { (crowd(condition, count)) }
                }
            }
            @if rows.is_empty() {
                p.fabric-empty {
                    "No machine has been seen on " b { (bridge.name) } " yet. Switch one on with network boot first in its boot order, or "
                    a href="/nodes/register" { "register its MAC address" } " beforehand."
                }
            }
        }
    }
}

/// Which rows are drawn, and how many of each condition are only counted.
fn choose(rows: &[Row]) -> (Vec<&Row>, Vec<(Condition, u64)>) {
    let mut drawn: Vec<&Row> = rows.iter().collect();
    drawn.sort_by(|a, b| nodes::by_name(a, b));
    if rows.len() <= DRAWN_MAX {
        return (drawn, Vec::new());
    }
    // Those that want somebody, or move, first; a picture of everything shows nothing.
    drawn.sort_by_key(|row| (row.moving.is_none() && !wants_attention(row.condition), row.condition));
    let rest = drawn.split_off(DRAWN_MAX.min(drawn.len()) / 2);
    let count = |condition| rest.iter().filter(|row| row.condition == condition).count() as u64;
    let counted =
        Condition::ALL.map(|condition| (condition, count(condition))).into_iter().filter(|(_, n)| *n > 0);
    (drawn, counted.collect())
}

fn wants_attention(condition: Condition) -> bool {
    match condition {
        Condition::Failed
        | Condition::Stuck
        | Condition::Waiting
        | Condition::Booting
        | Condition::Installing => true,
        Condition::Inspecting | Condition::Enrolled | Condition::Active | Condition::New => false,
    }
}

fn appliance(bridge: &BridgeStatus, services: &[ServiceStatus]) -> Markup {
    html! {
        div.appliance {
            svg.appliance-box viewBox="0 0 148 62" width="148" height="62" aria-hidden="true" {
                rect.chassis x="1.500" y="1.500" width="145" height="58" rx="7" {}
                path.shoe d="M25 43c-4.500-5-6.500-9-6.500-13a11 10 0 0 1 22 0c0 4-2 8-6.500 13" {}
                text.chassis-name x="52" y="28" { "farrier" }
                @for (index, service) in services.iter().take(6).enumerate() {
                    circle class={ "lamp" @if service.running { " is-on" } } cx=(56 + index * 14) cy="44" r="4" {}
                }
            }
            div.appliance-words {
                p.appliance-name { b { (bridge.name) } " " span.mono { (bridge.address) } }
                ul.services {
                    @for service in services {
                        li class=(if service.running { "is-on" } else { "is-off" }) title=(service.listens) {
                            span.lamp aria-hidden="true" {}
                            (service.name) @if !service.running { " is down" }
                        }
                    }
                }
            }
        }
    }
}

fn tile(row: &Row, small: bool) -> Markup {
    let name = words::title_of(&row.node);
    let address = row.address().map_or_else(|| "no address".to_owned(), |address| address.to_string());
    let progress = row.progress();
    let state =
        format!("{}{}{}", row.condition.word(), if progress.is_empty() { "" } else { ", " }, progress);
    let said = format!("{name}, {address}: {}", crate::cli::text::inert(&state));
    let moving = row.moving.map(|stage| format!(" moves-{}", words::stage_title(stage).to_lowercase()));
    html! {
        a class={ "tile is-" (row.condition.key()) (moving.unwrap_or_default()) } id={ "tile-" (row.node.id) }
            href={ "/nodes/" (row.node.id) } title=(said) aria-label=[small.then_some(&said)] {
            @if small { (small_box(row)) } @else {
                (large_box(row))
                span class={ "tile-name" @if row.node.name.is_none() { " is-mac" } } { (name) }
                span.tile-address { (address) }
                span.visually-hidden { (words::sentence(&state)) }
            }
        }
    }
}

/// The cable, and on it what is under way.
fn cable(row: &Row, x: u32, length: u32) -> Markup {
    html! {
        path.cable d={ "M" (x) " 0V" (length) } {}
        @if row.moving.is_some() { path.flow d={ "M" (x) " 0V" (length) } {} }
    }
}

fn small_box(row: &Row) -> Markup {
    html! {
        svg viewBox="0 0 34 40" width="34" height="40" aria-hidden="true" {
            (cable(row, 17, 14))
            rect.box x="4" y="14" width="26" height="24" rx="4" {}
            svg x="10" y="19" width="14" height="14" { (row.condition.glyph()) }
        }
    }
}

fn large_box(row: &Row) -> Markup {
    html! {
        svg viewBox="0 0 132 92" width="132" height="92" aria-hidden="true" {
            (cable(row, 66, 26))
            rect.box x="2" y="26" width="128" height="62" rx="7" {}
            path.bay d="M104 34h16M104 39h16M104 44h16" {}
            svg x="11" y="34" width="14" height="14" { (row.condition.glyph()) }
            text.tile-word x="31" y="46" { (short(row)) }
        }
    }
}

/// What fits into the box: where it is while it moves, else its condition.
fn short(row: &Row) -> &'static str {
    match (row.moving, row.condition) {
        (Some(stage), _) => words::stage_title(stage),
        (None, Condition::Waiting) => "waiting",
        (None, Condition::New) => "new",
        (
            None,
            Condition::Failed
            | Condition::Stuck
            | Condition::Booting
            | Condition::Inspecting
            | Condition::Installing
            | Condition::Enrolled
            | Condition::Active,
        ) => row.condition.word(),
    }
}

fn crowd(condition: Condition, count: u64) -> Markup {
    html! {
        a class={ "tile crowd is-" (condition.key()) } href={ "/nodes?condition=" (condition.key()) } {
            (condition.glyph())
            b { (words::grouped(count)) } " more " (condition.word())
        }
    }
}
