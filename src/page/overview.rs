//! `/`: the picture, the numbers that matter, and what needs the operator now.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use crate::cli::text;
use crate::config::DhcpMode;
use crate::operator::api::{ReportedProblem, RivalStatus, Severity, Status};
use crate::page::fleet::{Condition, Row, census};
use crate::page::layout::{self, Live, Tab};
use crate::page::visitor::Visitor;
use crate::page::{PageParts, Shared, bridge, nodes, source, words};

/// Rows of one kind of trouble that are listed; the rest is one line with a link.
const LISTED_MAX: usize = 8;
/// Problems of the log shown here; all of them are on the status page.
const PROBLEMS_SHOWN: usize = 4;
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn show(State(parts): State<Shared>, visitor: Visitor) -> Response {
    let rows = parts.rows();
    let status = source::status(&parts.operator);
    let body = html! {
        h1.visually-hidden { "Overview" }
        (numbers(&parts, &status, &rows))
        div.overview {
            (needs(&visitor, &parts, &status, &rows))
            section #bridge.panel aria-labelledby="bridge-title" data-live {
                div.panel-head {
                    h2 #bridge-title { "Bridge" }
                    (legend(&rows))
                }
                (bridge::draw(&status.bridge, &status.services, &rows))
            }
        }
    };
    layout::page(&visitor, Tab::Overview, "Overview", Live::Everything, body)
}

fn legend(rows: &[Row]) -> Markup {
    html! {
        ul.legend {
            @for (condition, count) in census(rows).into_iter().filter(|(_, count)| *count > 0) {
                li {
                    a href={ "/nodes?condition=" (condition.key()) } {
                        (condition.glyph()) b { (words::grouped(count)) } " " (condition.word())
                    }
                }
            }
        }
    }
}

fn numbers(parts: &PageParts, status: &Status, rows: &[Row]) -> Markup {
    let now = parts.now();
    let count = |condition| rows.iter().filter(|row| row.condition == condition).count() as u64;
    let enrolled = count(Condition::Enrolled) + count(Condition::Active) + count(Condition::Installing);
    let troubled = count(Condition::Failed) + count(Condition::Stuck);
    let today = rows
        .iter()
        .filter(|row| row.node.boot.as_ref().is_some_and(|boot| now.since(boot.started_at) <= DAY))
        .count() as u64;
    let sent: u64 = status.counters.iter().filter(|c| c.outcome == "bytes").map(|c| c.count).sum();
    let rates = parts.throughput.note(now, sent);
    let under_way = status.transfers.tftp + status.transfers.http;
    let pool = &status.pool;
    let taken = pool.bound + pool.offered + pool.quarantined;
    html! {
        section #numbers.numbers aria-label="Numbers" data-live {
            (number("Enrolled", &words::grouped(enrolled), &format!("of {}", words::plural(rows.len() as u64, "node", "nodes")), "/nodes?condition=enrolled,installing,active", share_bar(rows)))
            (number("Booted, last 24 h", &words::grouped(today), if today == 1 { "machine" } else { "machines" }, "/nodes?sort=boot&dir=desc", html! {}))
            (number("Failed or stuck", &words::grouped(troubled), if troubled == 0 { "nothing to do" } else { "need a look" }, "/nodes?condition=failed,stuck", html! {}))
            @if status.dhcp.mode == DhcpMode::Proxy {
                (number("Pool", "none", "as a proxy: another server gives the addresses", "/leases", html! {}))
            } @else {
                (number("Pool in use", &format!("{} %", percent(taken, pool.size)), &format!("{} of {}", words::grouped(taken), words::plural(pool.size, "address", "addresses")), "/leases", meter(taken, pool.size)))
            }
            (number(&if under_way > 0 { format!("Sending, {}", words::plural(under_way, "transfer", "transfers")) } else { "Sent".to_owned() }, &rates.now.map_or_else(|| text::bytes(sent), words::per_second), &if rates.now.is_some() { format!("{} since start", text::bytes(sent)) } else { "since start".to_owned() }, "/status", sparkline(&rates.course)))
        }
    }
}

fn number(label: &str, value: &str, unit: &str, link: &str, picture: Markup) -> Markup {
    html! {
        a.number href=(link) {
            span.number-label { (label) }
            span.number-value { (value) }
            span.number-unit { (unit) }
            (picture)
        }
    }
}

/// Nodes by condition as one bar.
fn share_bar(rows: &[Row]) -> Markup {
    let total = rows.len().max(1) as f64;
    let mut from = 0.0;
    let mut parts = Vec::new();
    for (condition, count) in census(rows).into_iter().rev().filter(|(_, count)| *count > 0) {
        let width = count as f64 * 100.0 / total;
        parts.push((condition, from, width));
        from += width;
    }
    html! {
        svg.bar width="100%" height="6" aria-hidden="true" {
            rect.bar-ground width="100%" height="6" rx="3" {}
            @for (condition, from, width) in parts {
                rect class={ "fill-" (condition.key()) } x={ (fixed(from)) "%" } width={ (fixed(width)) "%" } height="6" {}
            }
        }
    }
}

pub(super) fn meter(used: u64, size: u64) -> Markup {
    html! {
        svg.bar width="100%" height="6" aria-hidden="true" {
            rect.bar-ground width="100%" height="6" rx="3" {}
            rect class=(if percent(used, size) >= 90 { "fill-failed" } else { "fill-accent" })
                width={ (percent(used, size)) "%" } height="6" rx="3" {}
        }
    }
}

fn sparkline(course: &[f64]) -> Markup {
    let most = course.iter().copied().fold(1.0, f64::max);
    html! {
        svg.spark viewBox="0 0 100 16" preserveAspectRatio="none" width="100%" height="16" aria-hidden="true" {
            @if course.len() > 1 {
                @let step = 100.0 / (course.len() - 1) as f64;
                @let points = course.iter().enumerate().map(|(index, rate)| format!("{},{}", fixed(index as f64 * step), fixed(15.0 - rate / most * 14.0))).collect::<Vec<_>>().join(" ");
                polyline points=(points) {}
            }
        }
    }
}

pub(super) fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (part * 100).div_ceil(whole).min(100) }
}

pub(super) fn fixed(number: f64) -> String {
    format!("{number:.2}")
}

/// What is wrong or waits, each with what to do.
fn needs(visitor: &Visitor, parts: &PageParts, status: &Status, rows: &[Row]) -> Markup {
    let of = |wanted: Condition| rows.iter().filter(|row| row.condition == wanted).collect::<Vec<&Row>>();
    let (failed, stuck, waiting) = (of(Condition::Failed), of(Condition::Stuck), of(Condition::Waiting));
    let down: Vec<_> = status.services.iter().filter(|service| !service.running).collect();
    let problems: Vec<&ReportedProblem> = status.problems.iter().rev().take(PROBLEMS_SHOWN).collect();
    let calm = status.rivals.is_empty()
        && status.bridge.up
        && status.bridge.objection.is_none()
        && failed.is_empty()
        && stuck.is_empty()
        && waiting.is_empty()
        && down.is_empty()
        && problems.is_empty()
        && status.image.present
        && status.store.last_error.is_none();
    html! {
        section #needs.panel.needs aria-labelledby="needs-title" data-live {
            div.panel-head { h2 #needs-title { "Needs you" } }
            @if calm {
                p.calm { (Condition::Enrolled.glyph()) " Nothing. Every service runs, no machine waits or stands still." }
            }
            ul.need-list {
                @if !status.bridge.up {
                    li.need.is-bad { p { b { "Bridge " (status.bridge.name) " is down: " } (words::wire(status.bridge.reason.as_deref().unwrap_or("no link"))) } a.button href="/status" { "Status" } }
                }
                @if let Some(objection) = &status.bridge.objection {
                    li.need.is-bad { p { b { "Not a network of its own: " } (words::sentence(objection)) } a.button href="/status" { "Status" } }
                }
                @for rival in &status.rivals { (rival_told(rival)) }
                @for service in down {
                    li.need.is-bad { p { b { (service.name) } " is not running: " (service.listens) } a.button href="/status" { "Status" } }
                }
                @if let Some(error) = &status.store.last_error {
                    li.need.is-bad { p { b { "Nothing can be stored: " } (words::sentence(error)) } a.button href="/status" { "Status" } }
                }
                @if !status.image.present {
                    li.need.is-bad {
                        p { b { "No deploy image" } " of profile " code { (status.image.profile) } ": machines get an address and a script, and no kernel." }
                        a.button href="/images" { "Images" }
                    }
                }
            }
            @if !waiting.is_empty() { (strangers(visitor, parts, &waiting)) }
            (troubled(parts, "failed", Condition::Failed, &failed))
            (troubled(parts, "stand still", Condition::Stuck, &stuck))
            @if !problems.is_empty() {
                h3 { "Logged problems" }
                ul.need-list { @for problem in problems { (logged(problem, parts)) } }
            }
        }
    }
}

/// Somebody else who answers, and what to do about it.
pub(super) fn rival_told(rival: &RivalStatus) -> Markup {
    html! {
        li.need.is-bad {
            p {
                b { (words::sentence(&rival.headline())) }
                @if let Some(port) = &rival.port { " Behind port " code { (words::wire(port)) } "." }
                @if rival.holding { " Nobody is answered until it is quiet." }
                " To mend it: " (words::sentence(&rival.way_out)) "."
            }
            @if let Some(client) = rival.client { a.button href={ "/nodes/" (client) } { "Whom it answered" } }
        }
    }
}

fn strangers(visitor: &Visitor, parts: &PageParts, waiting: &[&Row]) -> Markup {
    html! {
        form method="post" action="/nodes/approve" {
            (visitor.form_fields())
            input type="hidden" name="back" value="/";
            div.need-head {
                h3 { (words::plural(waiting.len() as u64, "stranger waits", "strangers wait")) " for approval" }
                @if visitor.may_change {
                    button.button.primary type="submit" { "Approve selected" }
                }
            }
            ul.need-list {
                @for row in waiting.iter().take(LISTED_MAX) {
                    li.need {
                        label {
                            @if visitor.may_change {
                                input type="checkbox" name="node" value=(row.node.id) id={ "stranger-" (row.node.id) };
                            }
                            (Condition::Waiting.glyph())
                            span.mono { (words::title_of(&row.node)) }
                        }
                        span.quiet { (nodes::firmware_word(&row.node)) " · seen " (words::ago_or_never(row.node.last_seen_at, parts.now())) }
                        a href={ "/nodes/" (row.node.id) } { "Look" span.visually-hidden { " at " (words::title_of(&row.node)) } }
                    }
                }
            }
        }
        (more(waiting.len(), "/nodes?condition=waiting"))
    }
}

fn troubled(parts: &PageParts, what: &str, condition: Condition, rows: &[&Row]) -> Markup {
    html! {
        @if !rows.is_empty() {
            h3 { (words::plural(rows.len() as u64, "machine", "machines")) " " (if rows.len() == 1 && what == "stand still" { "stands still" } else { what }) }
            ul.need-list {
                @for row in rows.iter().take(LISTED_MAX) {
                    li.need {
                        span.need-name { (condition.glyph()) a href={ "/nodes/" (row.node.id) } { (words::title_of(&row.node)) } }
                        @let why = row.node.failure.clone().unwrap_or_else(|| row.progress());
                        span { (words::sentence(&why)) }
                        span.quiet { (words::ago_or_never(row.node.last_seen_at, parts.now())) }
                    }
                }
            }
            (more(rows.len(), &format!("/nodes?condition={}", condition.key())))
        }
    }
}

fn more(count: usize, link: &str) -> Markup {
    html! {
        @if count > LISTED_MAX {
            p.more { a href=(link) { "All " (words::grouped(count as u64)) } }
        }
    }
}

pub(super) fn logged(problem: &ReportedProblem, parts: &PageParts) -> Markup {
    let (word, condition) = match problem.severity {
        Severity::Error => ("error", Condition::Failed),
        Severity::Warning => ("warning", Condition::Stuck),
    };
    html! {
        li.need {
            span.need-kind { (condition.glyph()) " " (word) }
            span { (words::sentence(&problem.message)) }
            span.quiet { (words::ago(problem.at, parts.now())) }
        }
    }
}
