//! The frame: head, skip link, navigation, the place for what is said aloud, and the footer.

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use crate::page::visitor::Visitor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tab {
    Overview,
    Nodes,
    Images,
    Leases,
    Events,
    Status,
    None,
}

const TABS: [(Tab, &str, &str); 6] = [
    (Tab::Overview, "/", "Overview"),
    (Tab::Nodes, "/nodes", "Nodes"),
    (Tab::Images, "/images", "Images"),
    (Tab::Leases, "/leases", "Leases"),
    (Tab::Events, "/events", "Events"),
    (Tab::Status, "/status", "Status"),
];

/// How the page is kept up to date while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Live {
    /// When any node does something, and every few seconds.
    Everything,
    /// Every few seconds: nothing on it is told by an event.
    Slowly,
    Not,
}

/// The whole page, or what is inside `main` if only that is asked for.
pub(super) fn page(visitor: &Visitor, tab: Tab, title: &str, live: Live, body: Markup) -> Response {
    page_of(visitor, tab, title, live, None, body)
}

/// A page about one node: only that node's events concern it.
pub(super) fn page_of(
    visitor: &Visitor,
    tab: Tab,
    title: &str,
    live: Live,
    node: Option<&str>,
    body: Markup,
) -> Response {
    let markup = if visitor.fragment { body } else { frame(Some(visitor), tab, title, live, node, body) };
    // Another operator's change must not be hidden by a page kept.
    ([(header::CACHE_CONTROL, "no-store")], Html(markup.into_string())).into_response()
}

/// A page nobody in particular asked for.
pub(super) fn bare(tab: Tab, title: &str, body: Markup) -> Html<String> {
    Html(frame(None, tab, title, Live::Not, None, body).into_string())
}

fn frame(
    visitor: Option<&Visitor>,
    tab: Tab,
    title: &str,
    live: Live,
    node: Option<&str>,
    body: Markup,
) -> Markup {
    let live = match live {
        Live::Everything => Some("events"),
        Live::Slowly => Some("poll"),
        Live::Not => None,
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · farrier" }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/page.css";
                script src="/assets/theme.js" {}
                script src="/assets/live.js" defer {}
            }
            body data-live=[live] data-node=[node] {
                a.skip href="#main" { "Skip to content" }
                header.top {
                    a.brand href="/" { (mark()) span { "farrier" } }
                    nav aria-label="Pages" {
                        ul {
                            @for (which, path, name) in TABS {
                                li {
                                    a href=(path) aria-current=[(which == tab).then_some("page")] { (name) }
                                }
                            }
                        }
                    }
                    div.top-end {
                        span #connection .connection role="status" {}
                        button #theme .ghost type="button" hidden { "Theme" }
                        @if let Some(visitor) = visitor.filter(|visitor| visitor.may_leave) {
                            form method="post" action="/logout" {
                                (visitor.form_fields())
                                button.ghost type="submit" title={ "You are " (visitor.name) } { "Log out" }
                            }
                        }
                    }
                }
                main #main tabindex="-1" { (body) }
                div #announcer .visually-hidden aria-live="polite" {}
            }
        }
    }
}

/// A horseshoe.
fn mark() -> Markup {
    html! {
        svg viewBox="0 0 24 24" width="22" height="22" aria-hidden="true" {
            path fill="none" stroke="currentColor" stroke-width="3.2" stroke-linecap="round"
                d="M7 21c-3-4-4.500-7.500-4.500-11a9.500 8 0 0 1 19 0c0 3.500-1.500 7-4.500 11" {}
            path fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round"
                d="M12 2v1.800M6.300 4.600l.9 1.300M17.700 4.600l-.9 1.300" class="mark-nails" {}
        }
    }
}
