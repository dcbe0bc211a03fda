//! `/events`: what happens on the bridge, newest first, as it happens.

use std::cmp::Reverse;
use std::collections::HashMap;

use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use crate::bridge_log::event::BridgeEvent;
use crate::cli::text::{self, Tone};
use crate::cli::timeline::{Line, describe, describe_bridge};
use crate::clock::Timestamp;
use crate::node::NodeId;
use crate::node::timeline::{Happening, TimelineEvent};
use crate::page::layout::{self, Live, Tab};
use crate::page::visitor::Visitor;
use crate::page::{Shared, words};

/// What one looks through; a filter finds more of what it lets pass.
const SHOWN_MAX: usize = 200;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// A part of the node's name, MAC or the event's text.
    #[serde(default)]
    q: String,
    #[serde(default)]
    kind: String,
    /// Only what went wrong.
    #[serde(default)]
    trouble: String,
}

const KINDS: [(&str, &str); 8] = [
    ("dhcp", "addresses (DHCP)"),
    ("file", "files"),
    ("script", "scripts"),
    ("agent", "agent"),
    ("install", "installs"),
    ("state", "changes of state"),
    ("operator", "operators' doings"),
    ("bridge", "the bridge itself"),
];

fn kind(happening: &Happening) -> &'static str {
    match happening {
        Happening::Dhcp { .. } | Happening::OtherServer { .. } => "dhcp",
        Happening::File { .. } => "file",
        Happening::Script { .. } | Happening::Profile { .. } => "script",
        Happening::Agent { .. } | Happening::AgentRefused { .. } => "agent",
        Happening::Install { .. } => "install",
        Happening::State { .. }
        | Happening::BootLoop { .. }
        | Happening::PortConflict { .. }
        | Happening::ApplianceStarted => "state",
        Happening::OrderGiven { .. }
        | Happening::Approved
        | Happening::QuirksSet { .. }
        | Happening::Registered
        | Happening::Edited { .. }
        | Happening::Removed { .. } => "operator",
    }
}

pub(super) async fn show(
    State(parts): State<Shared>,
    visitor: Visitor,
    Query(wanted): Query<Wanted>,
) -> Response {
    let names: HashMap<NodeId, String> =
        parts.rows().into_iter().map(|row| (row.node.id, words::title_of(&row.node))).collect();
    let of_nodes = parts.recent.newest_first();
    let of_bridge = parts.operator.bridge_log.events();
    let total = of_nodes.len() + of_bridge.len();
    let mut shown: Vec<Shown> = of_nodes
        .iter()
        .map(|event| Shown::of_node(event, &names))
        .chain(of_bridge.iter().rev().map(|event| Shown::of_bridge(event)))
        .filter(|shown| wanted.lets_pass(shown))
        .collect();
    // Stable: what happened in one millisecond stays in its order.
    shown.sort_by_key(|shown| Reverse(shown.at));
    shown.truncate(SHOWN_MAX);
    let body = html! {
        div.page-head {
            h1 { "Events" }
            button #pause.button type="button" aria-pressed="false" hidden { "Pause" }
        }
        (filters(&wanted))
        section #feed.panel aria-label="Events, newest first" data-live {
            @if shown.is_empty() {
                p.empty {
                    @if total == 0 { "Nothing has happened since the appliance started. Each message of a machine on the bridge appears here." }
                    @else { "No event of the last " (words::grouped(total as u64)) " passes this filter. " a href="/events" { "Show all" } "." }
                }
            } @else {
                div.table-scroll tabindex="0" role="region" aria-label="Table of events" {
                    table.grid.events {
                        thead { tr { th scope="col" { "Time" } th scope="col" { "Node" } th scope="col" { "What" } th scope="col" { "Detail" } th.number-cell scope="col" { "Bytes" } th.number-cell scope="col" { "Took" } } }
                        tbody {
                            @for shown in &shown { (row(shown)) }
                        }
                    }
                }
            }
        }
    };
    layout::page(&visitor, Tab::Events, "Events", Live::Everything, body)
}

/// A row.
struct Shown {
    id: String,
    at: Timestamp,
    kind: &'static str,
    /// The node's page, if it has one.
    node: Option<NodeId>,
    name: String,
    line: Line,
}

impl Shown {
    fn of_node(event: &TimelineEvent, names: &HashMap<NodeId, String>) -> Shown {
        Shown {
            id: format!("e-{}-{}-{}", event.node, event.boot, event.sequence),
            at: event.at,
            kind: kind(&event.happening),
            node: names.contains_key(&event.node).then_some(event.node),
            name: name_of(names, event),
            line: describe(&event.happening),
        }
    }

    fn of_bridge(event: &BridgeEvent) -> Shown {
        Shown {
            id: format!("b-{}", event.sequence),
            at: event.at,
            kind: "bridge",
            node: None,
            name: "the bridge".to_owned(),
            line: describe_bridge(event),
        }
    }
}

impl Wanted {
    fn lets_pass(&self, Shown { kind, line, name, .. }: &Shown) -> bool {
        let trouble = match line.tone {
            Tone::Attention | Tone::Bad => true,
            Tone::Plain | Tone::Good | Tone::Heading => false,
        };
        (self.kind.is_empty() || *kind == self.kind)
            && (self.trouble.is_empty() || trouble)
            && self.q.split_whitespace().all(|word| {
                let word = word.to_lowercase();
                name.contains(&word)
                    || format!("{} {}", line.what, line.detail).to_lowercase().contains(&word)
            })
    }
}

fn name_of(names: &HashMap<NodeId, String>, event: &TimelineEvent) -> String {
    if let Happening::Removed { name, port } = &event.happening {
        let port = || port.map(|port| port.to_string());
        return name.as_ref().map(ToString::to_string).or_else(port).unwrap_or_default();
    }
    names.get(&event.node).cloned().unwrap_or_else(|| "removed".to_owned())
}

fn filters(wanted: &Wanted) -> Markup {
    html! {
        form #filters.filters method="get" action="/events" role="search" data-submit-on-input {
            div.field {
                label for="q" { "Search" }
                input #q type="search" name="q" value=(wanted.q) placeholder="node, file, word" autocomplete="off" maxlength="200";
            }
            div.field {
                label for="kind" { "Kind" }
                select #kind name="kind" {
                    option value="" { "every kind" }
                    @for (key, word) in KINDS { option value=(key) selected[wanted.kind == key] { (word) } }
                }
            }
            div.field.check {
                input #trouble type="checkbox" name="trouble" value="1" checked[!wanted.trouble.is_empty()];
                label for="trouble" { "Only what went wrong" }
            }
            button.button type="submit" { "Filter" }
        }
    }
}

fn row(Shown { id, at, node, name, line, .. }: &Shown) -> Markup {
    html! {
        tr id=(id) class=(tone_class(line.tone)) {
            td { (words::clock(*at)) }
            td { @if let Some(node) = node { a href={ "/nodes/" (node) } { (name) } } @else { (words::wire(name)) } }
            th scope="row" { (words::wire(&line.what)) }
            td.detail { (words::sentence(&line.detail)) }
            td.number-cell { (line.bytes.map(text::bytes).unwrap_or_default()) }
            td.number-cell { (line.took.map(text::duration).unwrap_or_default()) }
        }
    }
}

/// Trouble has a mark before its word, not a colour alone.
pub(super) fn tone_class(tone: Tone) -> &'static str {
    match tone {
        Tone::Plain | Tone::Heading => "tone-plain",
        Tone::Good => "tone-good",
        Tone::Attention => "tone-attention",
        Tone::Bad => "tone-bad",
    }
}
