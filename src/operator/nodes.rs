//! Nodes over the API: list, show, register, approve, order, remove.
//!
//! What changes a node is on disk before it is answered; those calls wait on the store and run on threads that may.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::OperatorParts;
use super::api::{BootSummary, NodeDetail, NodeSummary, OrderRequest, PortSummary, RegisterRequest};
use super::problem::{Problem, ProblemKind};
use super::routes::{BODY_BYTES_MAX, Json, Shared};
use crate::dhcp::lease::{LeaseState, LeaseView};
use crate::net::MacAddr;
use crate::node::Node;
use crate::node::registry::{NewNode, NodeRef, OperatorError, RegisterError};
use crate::node::timeline::{Boot, BootProgress};

pub(super) async fn list(State(parts): State<Shared>) -> Json<Vec<NodeSummary>> {
    let held = addresses(&parts);
    axum::Json(parts.registry.nodes().iter().map(|node| summary(&parts, node, &held)).collect())
}

pub(super) async fn show(
    State(parts): State<Shared>,
    Path(text): Path<String>,
) -> Result<Json<NodeDetail>, Problem> {
    let node = found(&parts, &text)?;
    Ok(axum::Json(detail(&parts, node)))
}

pub(super) async fn boots(
    State(parts): State<Shared>,
    Path(text): Path<String>,
) -> Result<Json<Vec<Boot>>, Problem> {
    let node = found(&parts, &text)?;
    Ok(axum::Json(parts.registry.boots(node.id)))
}

pub(super) async fn register(
    State(parts): State<Shared>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let request: RegisterRequest = document(body)?;
    for address in request.ports.iter().filter_map(|port| port.address) {
        check_reservable(&parts, address)?;
    }
    let macs = request.ports.into_iter().map(|port| (port.mac, port.address)).collect();
    let new = NewNode { name: request.name, macs };
    let detail = waiting(parts, move |parts| {
        let node = parts.registry.register(new, parts.clock.now())?;
        Ok(detail(parts, node))
    })
    .await?;
    Ok((StatusCode::CREATED, axum::Json(detail)).into_response())
}

pub(super) async fn approve(
    State(parts): State<Shared>,
    Path(text): Path<String>,
) -> Result<Json<NodeDetail>, Problem> {
    let reference = reference(&text)?;
    waiting(parts, move |parts| {
        let node = parts.registry.approve(&reference, parts.clock.now())?;
        Ok(axum::Json(detail(parts, node)))
    })
    .await
}

pub(super) async fn order(
    State(parts): State<Shared>,
    Path(text): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<NodeDetail>, Problem> {
    let reference = reference(&text)?;
    let request: OrderRequest = document(body)?;
    waiting(parts, move |parts| {
        let node = parts.registry.order(&reference, request.order, parts.clock.now())?;
        Ok(axum::Json(detail(parts, node)))
    })
    .await
}

pub(super) async fn remove(
    State(parts): State<Shared>,
    Path(text): Path<String>,
) -> Result<Json<NodeDetail>, Problem> {
    let reference = reference(&text)?;
    waiting(parts, move |parts| {
        let node = parts.registry.remove(&reference, parts.clock.now())?;
        Ok(axum::Json(detail(parts, node)))
    })
    .await
}

/// Runs what waits for the disk off the runtime's own threads.
async fn waiting<T: Send + 'static>(
    parts: Shared,
    work: impl FnOnce(&OperatorParts) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(move || work(&parts)).await;
    done.unwrap_or_else(|_| {
        Err(Problem::new(
            ProblemKind::Unavailable,
            "the request failed inside the appliance; its log says why",
        ))
    })
}

fn reference(text: &str) -> Result<NodeRef, Problem> {
    text.parse().map_err(|error| {
        Problem::new(ProblemKind::Invalid, format!("{error}"))
            .field("ref")
            .way_out("name a node by its name, MAC address, id or SMBIOS UUID")
    })
}

fn found(parts: &OperatorParts, text: &str) -> Result<Node, Problem> {
    let reference = reference(text)?;
    parts.registry.find(&reference).ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, format!("no node {reference}"))
            .way_out("`farrier node list` shows those that are known")
    })
}

fn document<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(ProblemKind::TooLarge, format!("a body has at most {BODY_BYTES_MAX} bytes"))
        }
        _ => Problem::new(ProblemKind::Invalid, rejection.body_text()),
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        Problem::new(ProblemKind::Invalid, format!("the body is not the document wanted: {error}"))
            .field("body")
    })
}

/// The registry knows MACs and nodes; the subnet is the configuration's.
fn check_reservable(parts: &OperatorParts, address: Ipv4Addr) -> Result<(), Problem> {
    let config = parts.config.load();
    let subnet = config.network.address;
    let net = format!("{}/{}", subnet.network(), subnet.prefix());
    let refused = |detail: String| {
        let way_out = format!("choose another address of {net}");
        Err(Problem::new(ProblemKind::Invalid, detail).field("ports.address").way_out(way_out))
    };
    if !subnet.contains(address) {
        return refused(format!("{address} lies outside the bridge's subnet {net}"));
    }
    if address == subnet.network() || address == subnet.broadcast() {
        return refused(format!("{address} is the network or broadcast address of {net}"));
    }
    if address == subnet.ip() || Some(address) == config.network.gateway {
        return refused(format!("{address} is the appliance's own address or the gateway"));
    }
    Ok(())
}

/// What each MAC holds now; an offer counts, since some ROMs never go further.
fn addresses(parts: &OperatorParts) -> HashMap<MacAddr, Ipv4Addr> {
    let now = parts.clock.now();
    let holds = |lease: &LeaseView| match lease.state {
        LeaseState::Offered | LeaseState::Bound => lease.expires_at > now,
        LeaseState::Released | LeaseState::Quarantined => false,
    };
    parts.appliance.leases().into_iter().filter(holds).map(|lease| (lease.mac, lease.address)).collect()
}

fn summary(parts: &OperatorParts, node: &Node, held: &HashMap<MacAddr, Ipv4Addr>) -> NodeSummary {
    let port = |port: &crate::node::Port| PortSummary {
        mac: port.mac,
        reserved: port.reserved,
        address: held.get(&port.mac).copied(),
    };
    NodeSummary {
        id: node.id,
        name: node.name.clone(),
        ports: node.ports.iter().map(port).collect(),
        state: node.state,
        approved: node.approved,
        origin: node.origin,
        firmware: node.firmware,
        next_boot: node.next_boot,
        order: node.order,
        failure: node.failure.clone(),
        last_seen_at: node.last_seen_at,
        enrolled_at: node.enrolled_at,
        boot: newest_boot(parts, node),
    }
}

fn newest_boot(parts: &OperatorParts, node: &Node) -> Option<BootSummary> {
    let BootProgress { number, started_at, stage, stage_at, enrolled, stopped_at } =
        parts.registry.newest_boot(node.id)?;
    Some(BootSummary { number, started_at, stage, stage_at, enrolled, stopped_at })
}

fn detail(parts: &OperatorParts, node: Node) -> NodeDetail {
    NodeDetail {
        summary: summary(parts, &node, &addresses(parts)),
        uuid: node.uuid,
        created_at: node.created_at,
        inventory: node.inventory,
        version: node.version,
    }
}

impl From<RegisterError> for Problem {
    fn from(error: RegisterError) -> Problem {
        let detail = error.to_string();
        match error {
            RegisterError::NoPort
            | RegisterError::TooManyPorts { .. }
            | RegisterError::NotAStation { .. }
            | RegisterError::PortTwice { .. } => Problem::new(ProblemKind::Invalid, detail).field("ports"),
            RegisterError::PortTaken { .. } => Problem::new(ProblemKind::Conflict, detail).field("ports.mac"),
            RegisterError::NameTaken { .. } => Problem::new(ProblemKind::Conflict, detail).field("name"),
            RegisterError::AddressTaken { .. } => {
                Problem::new(ProblemKind::Conflict, detail).field("ports.address")
            }
            RegisterError::Full { .. } => Problem::new(ProblemKind::Conflict, detail),
            RegisterError::NoRandomness => Problem::new(ProblemKind::Unavailable, detail),
            RegisterError::Store(source) => unavailable(&detail, &source),
        }
    }
}

impl From<OperatorError> for Problem {
    fn from(error: OperatorError) -> Problem {
        let detail = error.to_string();
        match error {
            OperatorError::NotFound { .. } => Problem::new(ProblemKind::NotFound, detail),
            OperatorError::Ambiguous { .. } => Problem::new(ProblemKind::Conflict, detail).field("ref"),
            OperatorError::InConfiguration { .. } => Problem::new(ProblemKind::Conflict, detail),
            OperatorError::Store(source) => unavailable(&detail, &source),
        }
    }
}

fn unavailable(detail: &str, source: &crate::store::CommitError) -> Problem {
    Problem::new(ProblemKind::Unavailable, format!("{detail}: {source}"))
        .way_out("`farrier status` shows the state of the store")
}
