//! `/status`: the appliance itself: what runs, what is stored where, what it counted, what it complained of.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use crate::cli::text;
use crate::config::DhcpMode;
use crate::operator::api::{Counter, PoolStatus, Status};
use crate::page::fleet::Condition;
use crate::page::layout::{self, Live, Tab};
use crate::page::visitor::Visitor;
use crate::page::{Shared, inventory, overview, source, words};

pub(super) async fn show(State(parts): State<Shared>, visitor: Visitor) -> Response {
    let status = source::status(&parts.operator);
    let body = html! {
        div.page-head { h1 { "Status" } }
        div.columns {
            section #appliance.panel aria-labelledby="appliance-title" data-live {
                h2 #appliance-title { "Appliance" }
                dl.facts {
                    (inventory::fact("Version", &status.version))
                    div { dt { "Started" } dd { (words::ago(status.started_at, parts.now())) } }
                    (inventory::fact("Bridge", &format!("{}, {}", status.bridge.name, status.bridge.address)))
                    div { dt { "Its MAC" } dd.mono { (status.bridge.mac) } }
                    (inventory::fact("Store", &status.store.path))
                    (inventory::fact("Store's last error", status.store.last_error.as_deref().unwrap_or("none")))
                    (inventory::fact("Deploy image", &format!("{}, {}", status.image.profile, if status.image.present { "served" } else { "missing" })))
                    (inventory::fact("Pool", &pool(&status)))
                }
            }
            section #services.panel aria-labelledby="services-title" data-live {
                h2 #services-title { "Services" }
                (services(&status))
            }
        }
        @if !status.rivals.is_empty() {
            section #rivals.panel aria-labelledby="rivals-title" data-live {
                h2 #rivals-title { "Who else answers on the bridge" }
                ul.need-list { @for rival in &status.rivals { (overview::rival_told(rival)) } }
            }
        }
        section #problems.panel aria-labelledby="problems-title" data-live {
            h2 #problems-title { "Logged problems" }
            @if status.problems.is_empty() { p.quiet { "None since the appliance started." } } @else {
                ul.need-list { @for problem in status.problems.iter().rev() { (overview::logged(problem, &parts)) } }
            }
        }
        section #counters.panel aria-labelledby="counters-title" data-live {
            h2 #counters-title { "Counted since the start" }
            @if status.counters.is_empty() { p.quiet { "Nothing was asked of it yet." } } @else { (counters(&status.counters)) }
        }
    };
    layout::page(&visitor, Tab::Status, "Status", Live::Slowly, body)
}

fn pool(status: &Status) -> String {
    let PoolStatus { first, last, size, bound, offered, quarantined } = &status.pool;
    match status.dhcp.mode {
        DhcpMode::Proxy => "none: as a proxy, farrier gives out no addresses".to_owned(),
        DhcpMode::Server | DhcpMode::Observe => {
            format!(
                "{first} to {last}, {bound} bound, {offered} offered, {quarantined} quarantined of {size}"
            )
        }
    }
}

fn services(status: &Status) -> Markup {
    html! {
        div.table-scroll tabindex="0" role="region" aria-label="Services" {
            table.grid {
                thead { tr { th scope="col" { "Service" } th scope="col" { "Runs" } th scope="col" { "Where" } } }
                tbody {
                    @for service in &status.services {
                        tr {
                            th scope="row" { (service.name) }
                            td { (if service.running { Condition::Enrolled } else { Condition::Failed }.glyph()) (if service.running { " yes" } else { " no" }) }
                            td { (words::wire(&service.listens)) }
                        }
                    }
                }
            }
        }
    }
}

/// One list for each service, side by side.
fn counters(counters: &[Counter]) -> Markup {
    let mut services: Vec<&str> = counters.iter().map(|counter| counter.service.as_str()).collect();
    services.dedup();
    html! {
        div.counter-groups {
            @for service in services {
                div {
                    h3 { (service) }
                    dl.counts {
                        @for counter in counters.iter().filter(|counter| counter.service == service) {
                            div { dt { (counter.outcome) } dd { @if counter.outcome == "bytes" { (text::bytes(counter.count)) } @else { (words::grouped(counter.count)) } } }
                        }
                    }
                }
            }
        }
    }
}
