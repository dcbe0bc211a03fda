//! The operators' page: every document rendered here, as HTML, with nothing to build.
//!
//! A page is a pure function of what the operator plane knows at this moment; reloading is always right, and
//! JavaScript only saves the reload: it fetches the same page's `?fragment=main` when something happened and lays it
//! over the one shown. Every interpolation is escaped by maud, and text from the wire passes
//! [`words::inert`](crate::cli::text::inert) before that, so that it neither is markup nor turns the line around.
//!
//! - `layout`: the frame every page stands in; `assets`: style, scripts and icon, embedded
//! - `words`: times, sizes, states as elements; `fleet`: nodes as the pages see them
//! - `overview` and `bridge`: the drawn picture, the numbers, what needs the operator
//! - `nodes`, `register`, `actions`: the list, and everything that changes something
//! - `node`, `verdict`, `chart`, `inventory`, `console`: one machine; `chart` is its boot in time
//! - `images`, `leases` and `pool_map`, `events`, `status`
//! - `problem`: refusals in the same frame

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::operator::{OperatorParts, access};
use crate::page::recent::Recent;
use crate::page::throughput::Throughput;

mod actions;
mod assets;
mod bridge;
mod chart;
mod console;
mod events;
mod fleet;
mod images;
mod inventory;
mod layout;
mod leases;
mod node;
mod nodes;
mod overview;
mod pool_map;
mod problem;
mod recent;
mod register;
mod source;
mod status;
mod task;
mod throughput;
mod verdict;
mod visitor;
mod words;

/// What pages are rendered from.
pub struct PageParts {
    pub(crate) operator: Arc<OperatorParts>,
    recent: Arc<Recent>,
    throughput: Throughput,
}

pub use problem::as_pages;

pub(crate) type Shared = Arc<PageParts>;

/// All pages. Must be called inside a tokio runtime: recent events are kept from now on.
pub fn router<S>(operator: Arc<OperatorParts>) -> Router<S> {
    let recent = Recent::follow(operator.registry.subscribe());
    let parts = Arc::new(PageParts { operator, recent, throughput: Throughput::default() });
    let looking = Router::new()
        .route("/", get(overview::show))
        .route("/nodes", get(nodes::show))
        .route("/nodes/{ref}", get(node::show))
        .route("/images", get(images::show))
        .route("/leases", get(leases::show))
        .route("/events", get(events::show))
        .route("/status", get(status::show));
    let changing = Router::new()
        .route("/nodes/register", get(register::show).post(register::submit))
        .route("/nodes/approve", post(actions::approve))
        .route("/nodes/{ref}/order", post(actions::order))
        .route("/nodes/{ref}/deploy", get(task::form).post(task::deploy))
        .route("/nodes/{ref}/abort", post(task::abort))
        .route("/nodes/{ref}/release", post(task::release))
        .route("/nodes/{ref}/unrescue", post(task::unrescue))
        .route("/nodes/{ref}/remove", get(actions::confirm_removal).post(actions::remove));
    access::viewer(looking)
        .merge(access::operator(changing))
        .route("/assets/{name}", get(assets::show))
        .with_state(parts)
}
