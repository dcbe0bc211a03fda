//! `/nodes/{ref}`: one machine: why it is where it is, its boots in time, what is in it, what can be done.

use axum::extract::{Path, Query, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use crate::boot::decision::NextBoot;
use crate::boot::quirks::Quirks;
use crate::cli::text;
use crate::cli::timeline::describe;
use crate::net::MacAddr;
use crate::node::Origin;
use crate::node::state::Order;
use crate::node::timeline::{Boot, TimelineEvent};
use crate::operator::api::NodeDetail;
use crate::page::fleet::{Condition, Row};
use crate::page::layout::{self, Live, Tab};
use crate::page::visitor::Visitor;
use crate::page::{
    PageParts, Shared, chart, console, events, inventory, nodes, problem, source, task, verdict, words,
};

#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    boot: String,
    #[serde(default)]
    done: String,
}

pub(super) async fn show(
    State(parts): State<Shared>,
    Path(reference): Path<String>,
    visitor: Visitor,
    Query(wanted): Query<Wanted>,
) -> Response {
    let node = match source::node(&parts.operator, &reference) {
        Ok(node) => node,
        Err(refused) => return problem::page(refused),
    };
    let boots = source::boots(&parts.operator, node.summary.id);
    let said = console_of(&parts, &node).await;
    let row = Row::new(node.summary.clone(), parts.now(), parts.deadline());
    let newest = boots.iter().rev().find(|boot| boot.number > 0);
    let chosen = match wanted.boot.parse::<u32>() {
        Ok(number) => boots.iter().find(|boot| boot.number == number).or(newest),
        Err(_) => newest,
    };
    let title = words::title_of(&node.summary);
    let id = node.summary.id.to_string();
    let body = html! {
        (nodes::done_note(&wanted.done))
        (head(&visitor, &parts, &node, &row, &title))
        section #verdict.panel aria-labelledby="verdict-title" data-live { (why(&parts, &node, &row, chosen)) }
        (task::panel(&parts, &node))
        section #boots.panel aria-labelledby="boots-title" data-live {
            div.panel-head {
                h2 #boots-title { "Boots" }
                (selector(&node, &boots, chosen))
            }
            @match chosen {
                Some(boot) => (chart::draw(boot)),
                None => p.empty { "It has not booted yet. Switch it on with network boot first in its boot order: each step appears here as it happens." },
            }
        }
        @if let Some(boot) = chosen {
            section #boot-events.panel aria-labelledby="events-title" data-live {
                h2 #events-title { "Events of boot " (boot.number) }
                (boot_events(boot))
            }
        }
        @if let Some(said) = &said {
            section #console.panel aria-labelledby="console-title" data-live {
                h2 #console-title { "Console" }
                @if said.is_empty() {
                    p.empty { "Nothing is logged of its serial console yet." }
                } @else {
                    pre.script tabindex="0" role="region" aria-label="Console" { (text::inert_lines(said)) }
                }
            }
        }
        div.columns {
            section #inventory.panel aria-labelledby="inventory-title" data-live {
                h2 #inventory-title { "Inventory" }
                @match &node.inventory {
                    Some(found) => (inventory::show(found)),
                    None => p.empty { "Its agent has not called yet: the inventory comes with the first boot of the deploy ramdisk." },
                }
            }
            div.stack {
                section #record.panel aria-labelledby="record-title" data-live {
                    h2 #record-title { "Record" }
                    (record(&parts, &node))
                }
                section #script.panel aria-labelledby="script-title" data-live {
                    h2 #script-title { "Boot script" }
                    (script(&parts, &node))
                }
                @if let Some(outside) = boots.iter().find(|boot| boot.number == 0) {
                    section #outside.panel aria-labelledby="outside-title" data-live {
                        h2 #outside-title { "Outside any boot" }
                        (boot_events(outside))
                    }
                }
            }
        }
    };
    layout::page_of(&visitor, Tab::Nodes, &title, Live::Everything, Some(&id), body)
}

/// The end of its console's log, read off the runtime's threads; `None` where no consoles are logged.
async fn console_of(parts: &PageParts, node: &NodeDetail) -> Option<String> {
    let directory = parts.operator.config.load().operator.consoles.clone()?;
    let ports: Vec<MacAddr> = node.summary.ports.iter().map(|port| port.mac).collect();
    let tail = tokio::task::spawn_blocking(move || console::tail(&directory, &ports)).await;
    Some(tail.ok().flatten().unwrap_or_default())
}

fn head(visitor: &Visitor, parts: &PageParts, node: &NodeDetail, row: &Row, title: &str) -> Markup {
    let id = node.summary.id;
    html! {
        div #node-head.page-head data-live {
            div {
                p.crumb { a href="/nodes" { "Nodes" } " /" }
                h1 { (title) }
                p.under-title {
                    (row.condition.badge())
                    @if let Some(address) = row.address() { span.mono { (address) } }
                    @if let (Some(mac), true) = (row.mac(), node.summary.name.is_some()) { span.mono { (mac) } }
                    span { (nodes::firmware_word(&node.summary)) }
                    span.quiet { "seen " (words::ago_or_never(node.summary.last_seen_at, parts.now())) }
                }
            }
            @if visitor.may_change {
                div.actions {
                    @if row.condition == Condition::Waiting {
                        form method="post" action="/nodes/approve" {
                            (visitor.form_fields())
                            input type="hidden" name="node" value=(id);
                            input type="hidden" name="back" value={ "/nodes/" (id) };
                            button.button.primary type="submit" { "Approve" }
                        }
                    }
                    (task::actions(visitor, node))
                    form.order method="post" action={ "/nodes/" (id) "/order" } {
                        (visitor.form_fields())
                        label.visually-hidden for="order" { "Order" }
                        select #order name="order" {
                            option value="reboot" { "Reboot to ramdisk" }
                            option value="power-off" { "Power off" }
                            option value="local-boot" { "Boot from local disk" }
                        }
                        button.button type="submit" { "Give order" }
                    }
                    a.button.danger-text href={ "/nodes/" (id) "/remove" } { "Remove…" }
                }
            }
        }
    }
}

/// Why it is where it is, what tells so, and what to do.
fn why(parts: &PageParts, node: &NodeDetail, row: &Row, boot: Option<&Boot>) -> Markup {
    let found = source::verdict(&parts.operator, node.summary.id, boot.map(|boot| boot.number));
    html! {
        h2 #verdict-title.visually-hidden { "Verdict" }
        @if let Some(found) = &found { (verdict::show(found)) }
        @if let Some(order) = node.summary.order {
            p.quiet { "The order “" (order) "” waits for its agent's next heartbeat." }
        }
        @if row.condition == Condition::Waiting && found.is_none() {
            p.quiet { "It waits at its screen for an operator's approval." }
        }
    }
}

fn selector(node: &NodeDetail, boots: &[Boot], chosen: Option<&Boot>) -> Markup {
    let numbered: Vec<&Boot> = boots.iter().rev().filter(|boot| boot.number > 0).collect();
    html! {
        @if numbered.len() > 1 {
            nav.boot-selector aria-label="Boots" {
                ul {
                    @for (index, boot) in numbered.iter().enumerate() {
                        @let link = if index == 0 { format!("/nodes/{}", node.summary.id) } else { format!("/nodes/{}?boot={}", node.summary.id, boot.number) };
                        li {
                            a href=(link) aria-current=[(chosen.map(|c| c.number) == Some(boot.number)).then_some("true")] title=(words::full(boot.started_at)) {
                                (if boot.enrolled { Condition::Enrolled } else if index == 0 { Condition::Booting } else { Condition::Stuck }.glyph())
                                " #" (boot.number)
                                span.visually-hidden { (if boot.enrolled { " enrolled" } else { " not enrolled" }) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn boot_events(boot: &Boot) -> Markup {
    html! {
        div.table-scroll.tall tabindex="0" role="region" aria-label={ "Events of boot " (boot.number) } {
            table.grid.events {
                thead { tr { th.number-cell scope="col" { "Time" } th scope="col" { "What" } th scope="col" { "Detail" } th.number-cell scope="col" { "Bytes" } th.number-cell scope="col" { "Took" } th.number-cell scope="col" { "Rate" } } }
                tbody { @for event in &boot.events { (event_row(boot, event)) } }
            }
        }
    }
}

fn event_row(boot: &Boot, event: &TimelineEvent) -> Markup {
    let line = describe(&event.happening);
    let passed = event.at.since(boot.started_at);
    html! {
        tr class=(events::tone_class(line.tone)) {
            td.number-cell {
                time datetime=(event.at) title=(words::full(event.at)) {
                    @if boot.number == 0 { (words::full(event.at)) } @else { "+" (format!("{:.3}", passed.as_secs_f64())) " s" }
                }
            }
            th scope="row" { (words::wire(&line.what)) }
            td.detail { (words::sentence(&line.detail)) }
            td.number-cell { (line.bytes.map(text::bytes).unwrap_or_default()) }
            td.number-cell { (line.took.map(text::duration).unwrap_or_default()) }
            td.number-cell { (line.bytes.zip(line.took).and_then(|(bytes, took)| words::rate(bytes, took)).unwrap_or_default()) }
        }
    }
}

fn record(parts: &PageParts, node: &NodeDetail) -> Markup {
    let now = parts.now();
    let origin = match node.summary.origin {
        Origin::Registered => "registered by an operator",
        Origin::Seen => "seen netbooting",
    };
    let next = match node.summary.next_boot {
        NextBoot::Ramdisk => "deploy ramdisk",
        NextBoot::LocalDisk => "local disk",
    };
    let order = node.summary.order.map(|order: Order| order.to_string()).unwrap_or_default();
    html! {
        dl.facts {
            (inventory::fact("State", &node.summary.state.to_string()))
            (inventory::fact("Approved", if node.summary.approved { "yes" } else { "no" }))
            (inventory::fact("Known since it was", origin))
            (inventory::fact("Next netboot", next))
            (inventory::fact("Order", &order))
            @if node.quirks != Quirks::default() { (inventory::fact("Quirks", &node.quirks.summary())) }
            @if !node.summary.labels.is_empty() { div { dt { "Labels" } dd { (nodes::labels(&node.summary)) } } }
            div { dt { "First seen" } dd { (words::ago(node.created_at, now)) } }
            div { dt { "Enrolled" } dd { (words::ago_or_never(node.summary.enrolled_at, now)) } }
            div { dt { "Id" } dd.mono { (node.summary.id) } }
            @if let Some(uuid) = node.uuid { div { dt { "SMBIOS UUID" } dd.mono { (uuid) } } }
        }
        h3 { "Ports" }
        div.table-scroll tabindex="0" role="region" aria-label="Ports" {
            table.grid {
                thead { tr { th scope="col" { "MAC" } th scope="col" { "Address" } th scope="col" { "Reserved" } } }
                tbody {
                    @for port in &node.summary.ports {
                        tr {
                            th.mono scope="row" { (port.mac) }
                            td.mono { (text::or_dash(port.address)) }
                            td.mono { (text::or_dash(port.reserved)) }
                        }
                    }
                }
            }
        }
    }
}

fn script(parts: &PageParts, node: &NodeDetail) -> Markup {
    let Some(mac) = node.summary.ports.first().map(|port| port.mac) else {
        return html! { p.quiet { "It has no port." } };
    };
    let rendered = source::script(&parts.operator, mac);
    html! {
        p.quiet { "What iPXE is given if it asks now; the token is made anew each time." }
        pre.script tabindex="0" role="region" aria-label="Boot script" { (text::inert_lines(&rendered)) }
    }
}
