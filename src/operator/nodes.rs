//! Nodes over the API: list, show, register, replace, edit, approve, order, remove; their boots and ports.
//!
//! What changes a node is on disk before it is answered, and in the audit log; those calls wait on the store and run
//! on threads that may.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::Value;

use super::OperatorParts;
use super::access::Principal;
use super::answer;
use super::api::{NodeDetail, NodePatch, NodePut, OrderRequest, PortEntry, PortRequest, RegisterRequest};
use super::asked::{
    Asked, Conditions, Document, JsonBytes, NoQuery, NodeAndBoot, Reference, Segment, document, reference,
};
use super::idempotency::{Answer, Ticket};
use super::problem::{Problem, ProblemKind};
use super::routes::Shared;
use super::views::{self, BootFilter, PortFilter};
use crate::net::MacAddr;
use crate::net::mac::ParseMacError;
use crate::node::registry::{
    EditError, Expected, NewNode, NodeEdit, NodeFilter, NodeRef, OperatorError, RegisterError,
};
use crate::node::timeline::Boot;
use crate::node::{Node, NodeName};

pub(super) async fn list(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let filter = NodeFilter {
        state: asked.word("state")?,
        approved: asked.read("approved", "true or false")?,
        firmware: asked.word("firmware")?,
        labels: asked.read("label", "key=value, or key, with commas between")?.unwrap_or_default(),
        text: asked.text("q")?.map(|text| text.to_lowercase()).filter(|text| !text.is_empty()),
    };
    let paging = asked.paging()?;
    asked.finish()?;
    Ok(answer::listed(&asked, views::nodes(&parts, &filter, &paging)))
}

pub(super) async fn show(
    State(parts): State<Shared>,
    Reference(reference): Reference,
    _: NoQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let node = views::node(&parts, &reference).ok_or_else(|| no_node(&reference))?;
    answer::node_unless_known(&headers, &node)
}

pub(super) async fn boots(
    State(parts): State<Shared>,
    Reference(reference): Reference,
    mut asked: Asked,
) -> Result<Response, Problem> {
    let filter =
        BootFilter { enrolled: asked.read("enrolled", "true or false")?, stage: asked.word("stage")? };
    let paging = asked.paging()?;
    asked.finish()?;
    let node = found(&parts, &reference)?;
    Ok(answer::listed(&asked, views::boots(&parts, node.id, filter, &paging)))
}

pub(super) async fn boot(
    State(parts): State<Shared>,
    NodeAndBoot(reference, number): NodeAndBoot,
    _: NoQuery,
) -> Result<Json<Boot>, Problem> {
    let node = found(&parts, &reference)?;
    parts.registry.boot(node.id, number).map(Json).ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, format!("no boot {number} of {reference} is kept"))
            .way_out(format!("/api/v1/nodes/{reference}/boots lists those that are"))
    })
}

pub(super) async fn ports(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let node = asked.text("node")?.map(|text| reference(&text)).transpose()?;
    let node = node.map(|node| found(&parts, &node)).transpose()?.map(|node| node.id);
    let filter = PortFilter { node, reserved: asked.read("reserved", "true or false")? };
    let paging = asked.paging()?;
    asked.finish()?;
    Ok(answer::listed(&asked, views::ports(&parts, filter, &paging)))
}

pub(super) async fn port(
    State(parts): State<Shared>,
    Segment(text): Segment,
    _: NoQuery,
) -> Result<Json<PortEntry>, Problem> {
    let mac = mac(&text)?;
    views::port(&parts, mac).map(Json).ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, format!("no node has a port {mac}"))
            .way_out("/api/v1/ports lists those that are known")
    })
}

pub(super) fn mac(text: &str) -> Result<MacAddr, Problem> {
    text.parse()
        .map_err(|error: ParseMacError| Problem::new(ProblemKind::Invalid, error.to_string()).field("mac"))
}

pub(super) async fn register(
    State(parts): State<Shared>,
    principal: Principal,
    _: NoQuery,
    body: JsonBytes,
) -> Response {
    let JsonBytes { headers, bytes } = body;
    let (keys, who, request) = (Arc::clone(&parts.keys), principal.clone(), document(&bytes));
    keys.once(&principal, &headers, &bytes, |ticket| register_once(parts, who, request, ticket)).await
}

async fn register_once(
    parts: Shared,
    principal: Principal,
    request: Result<RegisterRequest, Problem>,
    ticket: Option<Ticket>,
) -> Result<Answer, Problem> {
    let request = request?;
    let new = NewNode { name: request.name, macs: ports_of(&parts, request.ports)?, quirks: request.quirks };
    waiting(parts, move |parts| {
        let (leases, now) = (parts.appliance.leases(), parts.clock.now());
        let mut answer = None;
        let node = parts.registry.register_with(new, now, |view| {
            let made = answer::new_node(&views::detail_of(view, &leases, now));
            let kept = made.as_ref().ok().zip(ticket.as_ref()).map(|(answer, ticket)| ticket.keep(answer));
            answer = Some(made);
            kept.into_iter().collect()
        })?;
        audit(parts, &principal, "node.register", None, Some(&node));
        answer.unwrap_or_else(|| answer::new_node(&views::node_detail(parts, &node)))
    })
    .await
}

/// What the page's form asks for.
pub(crate) async fn register_now(
    parts: Shared,
    principal: Principal,
    request: RegisterRequest,
) -> Result<NodeDetail, Problem> {
    let new = NewNode { name: request.name, macs: ports_of(&parts, request.ports)?, quirks: request.quirks };
    waiting(parts, move |parts| {
        let node = parts.registry.register(new, parts.clock.now())?;
        audit(parts, &principal, "node.register", None, Some(&node));
        Ok(views::node_detail(parts, &node))
    })
    .await
}

/// A name in the path makes the node of that name what the request says, be it new or not; anything else names a node
/// that must be there.
pub(super) async fn replace(
    State(parts): State<Shared>,
    principal: Principal,
    Reference(reference): Reference,
    Conditions(expected): Conditions,
    _: NoQuery,
    Document(request): Document<NodePut>,
) -> Result<Response, Problem> {
    let quirks = request.quirks;
    let macs = ports_of(&parts, request.ports)?;
    waiting(parts, move |parts| {
        let now = parts.clock.now();
        let edited = match &reference {
            NodeRef::Name(name) => {
                let new = NewNode { name: Some(name.clone()), macs, quirks };
                parts.registry.put(new, &expected, now)?
            }
            NodeRef::Id(_) | NodeRef::Mac(_) | NodeRef::Uuid(_) => {
                let edit =
                    NodeEdit { ports: Some(macs), approved: Some(true), quirks, ..NodeEdit::default() };
                parts.registry.edit(&reference, edit, &expected, now)?
            }
        };
        let created = edited.before.is_none();
        if edited.before.as_ref() != Some(&edited.node) {
            audit(parts, &principal, "node.replace", edited.before.as_ref(), Some(&edited.node));
        }
        let status = if created { StatusCode::CREATED } else { StatusCode::OK };
        answer::node(status, &views::node_detail(parts, &edited.node))
    })
    .await
}

pub(super) async fn patch(
    State(parts): State<Shared>,
    principal: Principal,
    Reference(reference): Reference,
    Conditions(expected): Conditions,
    _: NoQuery,
    Document(request): Document<NodePatch>,
) -> Result<Response, Problem> {
    let edit = NodeEdit {
        name: request.name,
        ports: request.ports.map(|ports| ports_of(&parts, ports)).transpose()?,
        approved: request.approved,
        next_boot: request.next_boot,
        quirks: request.quirks,
        labels: request.labels,
    };
    waiting(parts, move |parts| {
        let edited = parts.registry.edit(&reference, edit, &expected, parts.clock.now())?;
        if edited.before.as_ref() != Some(&edited.node) {
            audit(parts, &principal, "node.edit", edited.before.as_ref(), Some(&edited.node));
        }
        answer::node(StatusCode::OK, &views::node_detail(parts, &edited.node))
    })
    .await
}

pub(super) async fn approve(
    State(parts): State<Shared>,
    principal: Principal,
    Reference(reference): Reference,
    Conditions(expected): Conditions,
    _: NoQuery,
) -> Result<Response, Problem> {
    changed(parts, principal, "node.approve", reference, move |parts, reference| {
        parts.registry.approve_if(reference, &expected, parts.clock.now())
    })
    .await
}

pub(super) async fn order(
    State(parts): State<Shared>,
    principal: Principal,
    Reference(reference): Reference,
    Conditions(expected): Conditions,
    _: NoQuery,
    Document(request): Document<OrderRequest>,
) -> Result<Response, Problem> {
    changed(parts, principal, "node.order", reference, move |parts, reference| {
        parts.registry.order_if(reference, request.order, &expected, parts.clock.now())
    })
    .await
}

pub(super) async fn remove(
    State(parts): State<Shared>,
    principal: Principal,
    Reference(reference): Reference,
    Conditions(expected): Conditions,
    _: NoQuery,
) -> Result<Response, Problem> {
    let node = remove_now(parts, principal, reference, expected).await?;
    answer::node(StatusCode::OK, &node)
}

/// For the page as well.
pub(crate) async fn remove_now(
    parts: Shared,
    principal: Principal,
    reference: NodeRef,
    expected: Expected,
) -> Result<NodeDetail, Problem> {
    waiting(parts, move |parts| {
        let node = parts.registry.remove_if(&reference, &expected, parts.clock.now())?;
        audit(parts, &principal, "node.remove", Some(&node), None);
        Ok(views::node_detail(parts, &node))
    })
    .await
}

/// A change of a node that is there: made, noted and answered.
async fn changed(
    parts: Shared,
    principal: Principal,
    action: &'static str,
    reference: NodeRef,
    change: impl FnOnce(&OperatorParts, &NodeRef) -> Result<Node, OperatorError> + Send + 'static,
) -> Result<Response, Problem> {
    let node = change_now(parts, principal, action, reference, change).await?;
    answer::node(StatusCode::OK, &node)
}

/// For the page and for tasks as well.
pub(crate) async fn change_now<E: Into<Problem>>(
    parts: Shared,
    principal: Principal,
    action: &'static str,
    reference: NodeRef,
    change: impl FnOnce(&OperatorParts, &NodeRef) -> Result<Node, E> + Send + 'static,
) -> Result<NodeDetail, Problem> {
    waiting(parts, move |parts| {
        let before = parts.registry.find(&reference);
        let node = change(parts, &reference).map_err(Into::into)?;
        audit(parts, &principal, action, before.as_ref(), Some(&node));
        Ok(views::node_detail(parts, &node))
    })
    .await
}

/// Who did what to which node. An inventory is long, and no operator's doing: it is left out.
fn audit(
    parts: &OperatorParts,
    principal: &Principal,
    action: &'static str,
    before: Option<&Node>,
    after: Option<&Node>,
) {
    let shown = |node: &Node| -> Option<Value> {
        let node =
            Node { inventory: None, redeemed_token_at: None, redeemed_by: None, ..node.without_secrets() };
        serde_json::to_value(node).ok()
    };
    let subject = after
        .or(before)
        .map(|node| node.name.as_ref().map_or_else(|| node.id.to_string(), NodeName::to_string));
    let (before, after) = (before.and_then(shown), after.and_then(shown));
    parts.audit.record(principal, action, subject.unwrap_or_default(), before, after);
}

/// Runs what waits for the disk off the runtime's own threads.
pub(super) async fn waiting<T: Send + 'static>(
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

pub(crate) fn no_node(reference: &NodeRef) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("no node {reference}"))
        .way_out("`farrier node list` shows those that are known")
}

pub(super) fn found(parts: &OperatorParts, reference: &NodeRef) -> Result<Node, Problem> {
    parts.registry.find(reference).ok_or_else(|| no_node(reference))
}

fn ports_of(
    parts: &OperatorParts,
    ports: Vec<PortRequest>,
) -> Result<Vec<(MacAddr, Option<Ipv4Addr>)>, Problem> {
    for address in ports.iter().filter_map(|port| port.address) {
        check_reservable(parts, address)?;
    }
    Ok(ports.into_iter().map(|port| (port.mac, port.address)).collect())
}

/// The registry knows MACs and nodes; the subnet is the configuration's.
pub(super) fn check_reservable(parts: &OperatorParts, address: Ipv4Addr) -> Result<(), Problem> {
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

impl From<RegisterError> for Problem {
    fn from(error: RegisterError) -> Problem {
        let detail = error.to_string();
        match error {
            RegisterError::NoPort
            | RegisterError::TooManyPorts { .. }
            | RegisterError::NotAStation { .. }
            | RegisterError::PortTwice { .. } => Problem::new(ProblemKind::Invalid, detail).field("ports"),
            RegisterError::Labels(_) => Problem::new(ProblemKind::Invalid, detail).field("labels"),
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
            OperatorError::Changed { .. } => Problem::new(ProblemKind::PreconditionFailed, detail)
                .field("If-Match")
                .way_out("read it again, decide again, and send the ETag of that answer"),
            OperatorError::Store(source) => unavailable(&detail, &source),
        }
    }
}

impl From<EditError> for Problem {
    fn from(error: EditError) -> Problem {
        match error {
            EditError::Operator(error) => error.into(),
            EditError::Rule(error) => error.into(),
        }
    }
}

pub(super) fn unavailable(detail: &str, source: &crate::store::CommitError) -> Problem {
    Problem::new(ProblemKind::Unavailable, format!("{detail}: {source}"))
        .way_out("`farrier status` shows the state of the store")
}
