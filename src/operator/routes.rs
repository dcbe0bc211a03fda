//! The route table, and who may use it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::watch;

use super::api::{Counter, Health, LeaseEntry, PoolStatus, Status};
use super::problem::{Problem, ProblemKind};
use super::socket::Peer;
use super::{OperatorParts, events, metrics, nodes};
use crate::node::NodeName;
use crate::node::state::ProvisionState;

/// No document of ours comes near; a larger body is no request but an attack on memory.
pub(super) const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The states a status lists even when no node is in them, so that a scraper sees each series from the start.
const STATES: [ProvisionState; 4] = [
    ProvisionState::Enroll,
    ProvisionState::Inspecting,
    ProvisionState::InspectFailed,
    ProvisionState::Manageable,
];

/// A commit takes milliseconds; a request that takes this long holds a place others need.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(super) type Shared = Arc<OperatorParts>;
pub(super) type Json<T> = axum::Json<T>;

/// The Unix socket's routes.
pub(super) fn full(parts: Shared, stopped: watch::Receiver<bool>) -> Router {
    let watchers = events::Watchers::new(stopped);
    Router::new()
        .merge(monitoring())
        .route("/api/v1/nodes", get(nodes::list).post(nodes::register))
        .route("/api/v1/nodes/{ref}", get(nodes::show).delete(nodes::remove))
        .route("/api/v1/nodes/{ref}/approve", post(nodes::approve))
        .route("/api/v1/nodes/{ref}/order", post(nodes::order))
        .route("/api/v1/nodes/{ref}/boots", get(nodes::boots))
        .route("/api/v1/leases", get(leases))
        .route("/api/v1/events", get(events::stream).layer(axum::Extension(watchers)))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(operators_only))
        .with_state(parts)
}

/// The loopback listener's routes.
pub(super) fn read_only(parts: Shared) -> Router {
    monitoring()
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(0))
        .layer(middleware::from_fn(loopback_names_only))
        .with_state(parts)
}

fn monitoring() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .route("/api/v1/status", get(status))
}

async fn operators_only(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    if peer.is_operator() {
        return bounded(request, next).await;
    }
    Problem::new(ProblemKind::Forbidden, "only root and the appliance's own user may use this socket")
        .way_out("run the command with sudo")
        .into_response()
}

/// Answers what is announced as too large before it arrives, and what does not arrive in time.
async fn bounded(request: Request, next: Next) -> Response {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if announced.and_then(|length| length.parse().ok()).is_some_and(|length: usize| length > BODY_BYTES_MAX) {
        let detail = format!("a body has at most {BODY_BYTES_MAX} bytes");
        return Problem::new(ProblemKind::TooLarge, detail).into_response();
    }
    match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!(
                "not done within {} s: the body did not arrive, or the store is stuck",
                ANSWER_WITHIN.as_secs()
            );
            Problem::new(ProblemKind::Unavailable, detail).into_response()
        }
    }
}

async fn loopback_names_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if host.is_some_and(is_loopback_name) {
        return bounded(request, next).await;
    }
    Problem::new(ProblemKind::Forbidden, "this listener answers under loopback host names only")
        .field("Host")
        .way_out("ask for localhost, 127.0.0.1 or [::1]")
        .into_response()
}

/// `localhost`, 127.0.0.0/8 or `[::1]`, with or without a port.
fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => {
            return rest.split_once(']').is_some_and(|(address, port)| address == "::1" && is_port(port));
        }
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

async fn no_such_path() -> Problem {
    Problem::new(ProblemKind::NotFound, "no such path here")
}

async fn wrong_method() -> Problem {
    Problem::new(ProblemKind::MethodNotAllowed, "this path exists, but not for this method")
}

/// Alive: this program answers.
async fn healthz() -> Json<Health> {
    axum::Json(Health { ok: true, reason: None })
}

/// Ready: every service runs, and machines can be booted.
async fn readyz(State(parts): State<Shared>) -> Response {
    let stopped: Vec<String> =
        parts.appliance.services().into_iter().filter(|service| !service.running).map(|s| s.name).collect();
    let (store, image) = (parts.appliance.store(), parts.appliance.image());
    let reason = match (stopped.is_empty(), store.last_error, image.present) {
        (false, _, _) => Some(format!("not running: {}", stopped.join(", "))),
        (true, Some(error), _) => Some(format!("store: {error}")),
        (true, None, false) => Some(format!(
            "degraded: no deploy image of profile `{0}`: machines get an address and a script, and no kernel; `farrier image build deploy --profile {0}`, then reload",
            image.profile
        )),
        (true, None, true) => None,
    };
    let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(Health { ok: reason.is_none(), reason })).into_response()
}

async fn metrics_text(State(parts): State<Shared>) -> Response {
    let media_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (media_type, metrics::render(&whole_status(&parts))).into_response()
}

async fn status(State(parts): State<Shared>) -> Json<Status> {
    axum::Json(whole_status(&parts))
}

/// Text for people, JSON and metrics all come from this one document.
fn whole_status(parts: &OperatorParts) -> Status {
    let census = parts.registry.census();
    let mut by_state = BTreeMap::from(STATES.map(|state| (state, 0)));
    by_state.extend(census.by_state);
    let pool = parts.config.load().dhcp.pool;
    let used = parts.appliance.pool_use();
    let counter = |(service, outcome, count): (&str, &str, u64)| Counter {
        service: service.to_owned(),
        outcome: outcome.to_owned(),
        count,
    };
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: parts.started_at,
        uptime_secs: parts.clock.uptime().as_secs(),
        bridge: parts.appliance.bridge(),
        services: parts.appliance.services(),
        pool: PoolStatus {
            first: pool.first,
            last: pool.last,
            size: used.size.into(),
            bound: used.bound.into(),
            offered: used.offered.into(),
            quarantined: used.quarantined.into(),
        },
        nodes: by_state,
        waiting_for_approval: census.waiting_for_approval,
        image: parts.appliance.image(),
        store: parts.appliance.store(),
        problems: parts.problems.snapshot(),
        counters: parts.tally.snapshot().into_iter().map(counter).collect(),
    }
}

async fn leases(State(parts): State<Shared>) -> Json<Vec<LeaseEntry>> {
    let mut names: BTreeMap<_, Option<NodeName>> = BTreeMap::new();
    for node in parts.registry.nodes() {
        names.extend(node.ports.iter().map(|port| (port.mac, node.name.clone())));
    }
    let entry = |lease: crate::dhcp::lease::LeaseView| LeaseEntry {
        address: lease.address,
        mac: lease.mac,
        node_name: names.get(&lease.mac).cloned().flatten(),
        hostname: lease.hostname,
        state: lease.state,
        granted_at: lease.granted_at,
        expires_at: lease.expires_at,
    };
    axum::Json(parts.appliance.leases().into_iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_ours() {
        for host in ["localhost", "LOCALHOST:8067", "127.0.0.1:8067", "127.9.9.9", "[::1]", "[::1]:8067"] {
            assert!(is_loopback_name(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "10.0.0.1",
            "[::2]",
            "[::1].x",
        ] {
            assert!(!is_loopback_name(host), "{host}");
        }
    }
}
