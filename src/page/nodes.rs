//! `/nodes`: every node in a table that sorts, filters and pages on the server.

use std::cmp::Ordering;
use std::fmt::Write as _;

use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use crate::operator::api::NodeSummary;
use crate::page::fleet::{Condition, Row, census};
use crate::page::layout::{self, Live, Tab};
use crate::page::visitor::Visitor;
use crate::page::{PageParts, Shared, words};

/// Rows of one page: some hundred are laid out in no time, and searched with the eye.
const ROWS_PER_PAGE: usize = 200;

/// What the list was asked for; every field may be absent, and nonsense is as good as absent.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    q: String,
    /// Keys of conditions, with commas between.
    #[serde(default)]
    condition: String,
    #[serde(default)]
    firmware: String,
    #[serde(default)]
    sort: String,
    #[serde(default)]
    dir: String,
    #[serde(default)]
    page: String,
    /// What was done before the list was shown again.
    #[serde(default)]
    done: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Name,
    Condition,
    Address,
    Mac,
    Firmware,
    Boot,
    Seen,
}

impl Column {
    const ALL: [(Column, &'static str, &'static str); 7] = [
        (Column::Condition, "condition", "State"),
        (Column::Name, "name", "Node"),
        (Column::Address, "address", "Address"),
        (Column::Mac, "mac", "MAC"),
        (Column::Firmware, "firmware", "Firmware"),
        (Column::Boot, "boot", "Newest boot"),
        (Column::Seen, "seen", "Last seen"),
    ];

    fn of(key: &str) -> Column {
        Column::ALL
            .into_iter()
            .find(|(_, name, _)| *name == key)
            .map_or(Column::Condition, |(column, ..)| column)
    }

    fn compare(self, a: &Row, b: &Row) -> Ordering {
        let first = match self {
            Column::Name => by_name(a, b),
            Column::Condition => a.condition.cmp(&b.condition),
            Column::Address => {
                (a.address().is_none(), a.address()).cmp(&(b.address().is_none(), b.address()))
            }
            Column::Mac => a.mac().cmp(&b.mac()),
            Column::Firmware => firmware_word(&a.node).cmp(&firmware_word(&b.node)),
            Column::Boot => started(a).cmp(&started(b)),
            Column::Seen => a.node.last_seen_at.cmp(&b.node.last_seen_at),
        };
        first.then_with(|| by_name(a, b)).then_with(|| a.mac().cmp(&b.mac()))
    }
}

/// Names before MACs, and node9 before node10.
pub(super) fn by_name(a: &Row, b: &Row) -> Ordering {
    let key = |row: &Row| row.node.name.as_ref().map(|name| natural(name.as_str()));
    let (a_key, b_key) = (key(a), key(b));
    (a_key.is_none(), a_key, a.mac()).cmp(&(b_key.is_none(), b_key, b.mac()))
}

fn started(row: &Row) -> Option<crate::clock::Timestamp> {
    row.node.boot.as_ref().map(|boot| boot.started_at)
}

/// Text with its numbers as numbers, each filled up to the longest there is.
fn natural(text: &str) -> String {
    let mut key = String::with_capacity(text.len() + 16);
    let mut digits = String::new();
    for letter in text.chars().chain(std::iter::once('\0')) {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        if !digits.is_empty() {
            let _ = write!(key, "{digits:0>20}");
            digits.clear();
        }
        key.push(letter);
    }
    key
}

pub(super) fn firmware_word(node: &NodeSummary) -> String {
    node.firmware.map_or_else(|| "unknown firmware".to_owned(), |firmware| firmware.to_string())
}

impl Wanted {
    fn conditions(&self) -> Vec<Condition> {
        self.condition.split(',').filter_map(Condition::from_key).collect()
    }

    fn column(&self) -> Column {
        Column::of(&self.sort)
    }

    fn descending(&self) -> bool {
        self.dir == "desc"
    }

    fn matches(&self, row: &Row) -> bool {
        let conditions = self.conditions();
        let fits = (conditions.is_empty() || conditions.contains(&row.condition))
            && (self.firmware.is_empty() || firmware_word(&row.node) == self.firmware);
        fits && self.q.split_whitespace().all(|word| contains(row, &word.to_ascii_lowercase()))
    }

    /// The query of a link that changes one thing; the first page is shown anew.
    fn link(&self, key: &str, value: &str) -> String {
        let mut link = String::from("/nodes?");
        let fields = [
            ("q", &self.q),
            ("condition", &self.condition),
            ("firmware", &self.firmware),
            ("sort", &self.sort),
            ("dir", &self.dir),
        ];
        let mut put = |name: &str, text: &str| {
            if !text.is_empty() {
                let _ = write!(link, "{name}={}&", encoded(text));
            }
        };
        for (name, text) in fields {
            put(name, if name == key { value } else { text });
        }
        if key == "page" {
            put("page", value);
        }
        link.trim_end_matches(['&', '?']).to_owned()
    }
}

fn contains(row: &Row, word: &str) -> bool {
    let node = &row.node;
    node.name.as_ref().is_some_and(|name| name.as_str().contains(word))
        || node.ports.iter().any(|port| {
            port.mac.to_string().contains(word)
                || port.address.or(port.reserved).is_some_and(|address| address.to_string().contains(word))
        })
        || row.condition.word().contains(word)
        || node.labels.mention(word)
        || node.id.to_string().starts_with(word)
}

/// Everything but letters and digits as `%xx`.
pub(super) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~,".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

pub(super) async fn show(
    State(parts): State<Shared>,
    visitor: Visitor,
    Query(wanted): Query<Wanted>,
) -> Response {
    let rows = parts.rows();
    let total = rows.len();
    let by_condition = census(&rows);
    let mut firmwares: Vec<String> = rows.iter().map(|row| firmware_word(&row.node)).collect();
    firmwares.sort();
    firmwares.dedup();
    let mut found: Vec<Row> = rows.into_iter().filter(|row| wanted.matches(row)).collect();
    let column = wanted.column();
    found.sort_by(|a, b| {
        let order = column.compare(a, b);
        if wanted.descending() { order.reverse() } else { order }
    });
    let pages = found.len().div_ceil(ROWS_PER_PAGE).max(1);
    let page = wanted.page.parse::<usize>().unwrap_or(1).clamp(1, pages);
    let shown = found.iter().skip((page - 1) * ROWS_PER_PAGE).take(ROWS_PER_PAGE);
    let body = html! {
        div.page-head {
            h1 { "Nodes" }
            @if visitor.may_change { a.button.primary href="/nodes/register" { "Register a node" } }
        }
        (done_note(&wanted.done))
        (filters(&wanted, &by_condition, &firmwares))
        form #list method="post" action="/nodes/approve" data-live {
            (visitor.form_fields())
            input type="hidden" name="back" value=(wanted.link("", ""));
            div.list-head {
                p #found role="status" {
                    @if found.len() == total { (words::plural(total as u64, "node", "nodes")) }
                    @else { (words::grouped(found.len() as u64)) " of " (words::plural(total as u64, "node", "nodes")) }
                }
                @if visitor.may_change && found.iter().any(|row| row.condition == Condition::Waiting) {
                    button.button type="submit" { "Approve selected" }
                }
            }
            @if found.is_empty() { (nothing(total)) } @else { (table(&parts, &visitor, &wanted, shown)) }
            (pager(&wanted, page, pages))
        }
    };
    layout::page(&visitor, Tab::Nodes, "Nodes", Live::Everything, body)
}

pub(super) fn done_note(done: &str) -> Markup {
    let text = match done.split_once(':') {
        Some(("approved", count)) if count.parse::<u64>().is_ok() => {
            format!("Approved {}.", words::plural(count.parse().unwrap_or_default(), "node", "nodes"))
        }
        _ => match done {
            "registered" => "Registered. It boots the deploy ramdisk the next time it netboots.".to_owned(),
            "ordered" => "The order waits for the agent's next heartbeat.".to_owned(),
            "deploy" => "Its next netboot installs it; at once, if its agent waits.".to_owned(),
            "abort" => "Aborted. What was written is not undone.".to_owned(),
            "release" => "Released: it is available.".to_owned(),
            "unrescue" => "It leaves its rescue ramdisk.".to_owned(),
            "removed" => "Removed, with its timeline.".to_owned(),
            "approved" => {
                "Approved. It goes on by itself, within seconds if it waits at its screen.".to_owned()
            }
            _ => return html! {},
        },
    };
    html! { p.note role="status" { (Condition::Enrolled.glyph()) " " (text) } }
}

fn filters(wanted: &Wanted, census: &[(Condition, u64)], firmwares: &[String]) -> Markup {
    let chosen = wanted.conditions();
    html! {
        form #filters.filters method="get" action="/nodes" role="search" data-submit-on-input {
            div.field {
                label for="q" { "Search" }
                input #q type="search" name="q" value=(wanted.q) placeholder="name, MAC, address, label" autocomplete="off" maxlength="200";
            }
            div.field {
                label for="condition" { "State" }
                select #condition name="condition" {
                    option value="" { "every state" }
                    @if chosen.len() > 1 {
                        option value=(wanted.condition) selected { (chosen.iter().map(|c| c.word()).collect::<Vec<_>>().join(" or ")) }
                    }
                    @for (condition, count) in census {
                        option value=(condition.key()) selected[chosen == [*condition]] { (condition.word()) " (" (words::grouped(*count)) ")" }
                    }
                }
            }
            div.field {
                label for="firmware" { "Firmware" }
                select #firmware name="firmware" {
                    option value="" { "every firmware" }
                    @for firmware in firmwares {
                        option value=(firmware) selected[*firmware == wanted.firmware] { (firmware) }
                    }
                }
            }
            @if !wanted.sort.is_empty() { input type="hidden" name="sort" value=(wanted.sort); }
            @if !wanted.dir.is_empty() { input type="hidden" name="dir" value=(wanted.dir); }
            button.button type="submit" { "Filter" }
        }
    }
}

fn nothing(total: usize) -> Markup {
    html! {
        div.empty {
            @if total == 0 {
                p { "No node is known. A machine appears here when it netboots on the bridge; " a href="/nodes/register" { "register its MAC" } " to name it before." }
            } @else {
                p { "No node matches. " a href="/nodes" { "Show all of them" } "." }
            }
        }
    }
}

fn table<'a>(
    parts: &PageParts,
    visitor: &Visitor,
    wanted: &Wanted,
    rows: impl Iterator<Item = &'a Row>,
) -> Markup {
    let now = parts.now();
    html! {
        div.table-scroll tabindex="0" role="region" aria-label="Table of nodes" {
            table.grid {
                thead {
                    tr {
                        @if visitor.may_change {
                            th.pick scope="col" { input #pick-all type="checkbox" aria-label="Select all strangers shown" data-pick-all="node" hidden; }
                        }
                        @for (column, key, title) in Column::ALL { (heading(wanted, column, key, title)) }
                    }
                }
                tbody {
                    @for row in rows {
                        tr #{ "row-" (row.node.id) } {
                            @if visitor.may_change {
                                td.pick {
                                    @if row.condition == Condition::Waiting {
                                        input type="checkbox" name="node" value=(row.node.id) id={ "pick-" (row.node.id) } aria-label={ "Select " (words::title_of(&row.node)) };
                                    }
                                }
                            }
                            td { (row.condition.badge()) }
                            th scope="row" {
                                a href={ "/nodes/" (row.node.id) } { (words::title_of(&row.node)) }
                                (labels(&row.node))
                            }
                            td.mono { (row.address().map(|address| address.to_string()).unwrap_or_default()) }
                            td.mono {
                                (row.mac().map(|mac| mac.to_string()).unwrap_or_default())
                                @if row.node.ports.len() > 1 { span.quiet { " +" (row.node.ports.len() - 1) } }
                            }
                            td { (firmware_word(&row.node)) }
                            td { (newest(row)) }
                            td { (words::ago_or_never(row.node.last_seen_at, now)) }
                        }
                    }
                }
            }
        }
    }
}

/// What it is labelled with; each finds those that are labelled alike.
pub(super) fn labels(node: &NodeSummary) -> Markup {
    html! {
        @if !node.labels.is_empty() {
            span.labels {
                @for (key, value) in node.labels.iter() {
                    @let label = format!("{key}={value}");
                    " " a.label href={ "/nodes?q=" (encoded(&label)) } { (label) }
                }
            }
        }
    }
}

fn heading(wanted: &Wanted, column: Column, key: &str, title: &str) -> Markup {
    let sorted = wanted.column() == column;
    let down = wanted.descending();
    let order = sorted.then_some(if down { "descending" } else { "ascending" });
    let next = if sorted && !down { "desc" } else { "" };
    let link = Wanted { sort: key.to_owned(), dir: next.to_owned(), ..wanted.clone() }.link("", "");
    html! {
        th scope="col" aria-sort=[order] {
            a.sort href=(link) { (title) span.sort-mark aria-hidden="true" { @if sorted { (if down { "▾" } else { "▴" }) } } }
        }
    }
}

fn newest(row: &Row) -> Markup {
    let Some(boot) = &row.node.boot else { return html! { span.quiet { "none" } } };
    let line = row.progress();
    html! {
        span.quiet { "#" (boot.number) " " }
        @if boot.enrolled { "enrolled" } @else { (words::wire(&line)) }
    }
}

fn pager(wanted: &Wanted, page: usize, pages: usize) -> Markup {
    html! {
        @if pages > 1 {
            nav.pager aria-label="Pages of the list" {
                @if page > 1 { a.button rel="prev" href=(wanted.link("page", &(page - 1).to_string())) { "Previous" } }
                span { "Page " (page) " of " (pages) }
                @if page < pages { a.button rel="next" href=(wanted.link("page", &(page + 1).to_string())) { "Next" } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_people_count() {
        let mut names = ["node10", "node9", "node1", "a2b10", "a2b9"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["a2b9", "a2b10", "node1", "node9", "node10"]);
    }

    #[test]
    fn links_carry_the_filter_and_nothing_else() {
        let wanted = Wanted {
            q: "a b&c=<d>".to_owned(),
            sort: "mac".to_owned(),
            page: "3".to_owned(),
            ..Wanted::default()
        };
        assert_eq!(wanted.link("dir", "desc"), "/nodes?q=a%20b%26c%3D%3Cd%3E&sort=mac&dir=desc");
        assert_eq!(wanted.link("page", "4"), "/nodes?q=a%20b%26c%3D%3Cd%3E&sort=mac&page=4");
        assert_eq!(Wanted::default().link("", ""), "/nodes");
    }
}
