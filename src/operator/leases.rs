//! Addresses over the API: leases, pool use, reservations.

use std::net::Ipv4Addr;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::OperatorParts;
use super::access::Principal;
use super::answer;
use super::api::{PoolStatus, ReservationEntry, ReservationPut};
use super::asked::{Asked, Document, NoQuery, Segment};
use super::nodes::{check_reservable, waiting};
use super::problem::{Problem, ProblemKind};
use super::routes::Shared;
use super::views::{self, LeaseFilter, Paging};
use crate::net::MacAddr;
use crate::node::Port;
use crate::node::registry::{Expected, NodeEdit, NodeRef};

pub(super) async fn list(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let filter = LeaseFilter { state: asked.word("state")?, mac: asked.read("mac", "a MAC address")? };
    let paging = asked.paging()?;
    asked.finish()?;
    Ok(answer::listed(&asked, views::leases(&parts, &filter, &paging)))
}

pub(super) async fn pool(State(parts): State<Shared>, _: NoQuery) -> Json<PoolStatus> {
    Json(views::pool(&parts))
}

pub(super) async fn reservations(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let mac = asked.read("mac", "a MAC address")?;
    let paging = asked.paging()?;
    asked.finish()?;
    Ok(answer::listed(&asked, views::reservations(&parts, mac, &paging)))
}

pub(super) async fn reservation(
    State(parts): State<Shared>,
    Segment(text): Segment,
    _: NoQuery,
) -> Result<Json<ReservationEntry>, Problem> {
    let address = address(&text)?;
    entry(&parts, address).map(Json).ok_or_else(|| none_at(address))
}

pub(super) async fn reserve(
    State(parts): State<Shared>,
    principal: Principal,
    Segment(text): Segment,
    _: NoQuery,
    Document(request): Document<ReservationPut>,
) -> Result<Json<ReservationEntry>, Problem> {
    let address = address(&text)?;
    check_reservable(&parts, address)?;
    waiting(parts, move |parts| {
        let before = entry(parts, address);
        set(parts, request.mac, Some(address))?;
        let after = entry(parts, address).ok_or_else(|| none_at(address))?;
        if before.as_ref() != Some(&after) {
            let (before, now) = (before.map(|entry| json!(entry)), json!(after));
            parts.audit.record(&principal, "reservation.set", address.to_string(), before, Some(now));
        }
        Ok(Json(after))
    })
    .await
}

pub(super) async fn free(
    State(parts): State<Shared>,
    principal: Principal,
    Segment(text): Segment,
    _: NoQuery,
) -> Result<Json<ReservationEntry>, Problem> {
    let address = address(&text)?;
    waiting(parts, move |parts| {
        let before = entry(parts, address).ok_or_else(|| none_at(address))?;
        match before.source {
            super::api::ReservationSource::Operator => set(parts, before.mac, None)?,
            super::api::ReservationSource::Configuration => {
                let detail = format!("{address} is kept for {} by the configuration", before.mac);
                return Err(Problem::new(ProblemKind::Conflict, detail)
                    .field("address")
                    .way_out("take the dhcp.reservation out of the configuration, and reload"));
            }
        }
        parts.audit.record(&principal, "reservation.free", address.to_string(), Some(json!(before)), None);
        Ok(Json(before))
    })
    .await
}

/// Gives a known port this address, or none; its node's other ports stay as they are.
fn set(parts: &OperatorParts, mac: MacAddr, address: Option<Ipv4Addr>) -> Result<(), Problem> {
    /// Between the look and the edit somebody else may edit the node; then it is looked at again.
    const TRIES: usize = 8;
    for _ in 0..TRIES {
        let reference = NodeRef::Mac(mac);
        let node = parts.registry.find(&reference).ok_or_else(|| {
            Problem::new(ProblemKind::Conflict, format!("{mac} is a port of no node"))
                .field("body.mac")
                .way_out("register the node first: POST /api/v1/nodes takes its address as well")
        })?;
        // What the configuration keeps for a port stays the configuration's.
        let fixed = parts.registry.reservations();
        let by_operator = |at: &Ipv4Addr| fixed.get(at).is_some_and(|(_, by_operator)| *by_operator);
        let kept = |port: &Port| if port.mac == mac { address } else { port.reserved.filter(by_operator) };
        let ports = node.ports.iter().map(|port| (port.mac, kept(port)));
        let edit = NodeEdit { ports: Some(ports.collect()), ..NodeEdit::default() };
        match parts.registry.edit(
            &reference,
            edit,
            &Expected::Versions(vec![node.version]),
            parts.clock.now(),
        ) {
            Ok(_) => return Ok(()),
            Err(error) => {
                let problem = Problem::from(error);
                if problem.kind != ProblemKind::PreconditionFailed {
                    return Err(problem);
                }
            }
        }
    }
    Err(Problem::new(ProblemKind::Unavailable, format!("the node of {mac} changes all the time; try again")))
}

fn entry(parts: &OperatorParts, address: Ipv4Addr) -> Option<ReservationEntry> {
    let before = u32::from(address).checked_sub(1).map(Ipv4Addr::from);
    let page = views::reservations(parts, None, &Paging { after: before, limit: 1 });
    page.items.into_iter().next().filter(|entry| entry.address == address)
}

fn address(text: &str) -> Result<Ipv4Addr, Problem> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
        Problem::new(ProblemKind::Invalid, format!("`{shown}` is not an IPv4 address"))
            .field("address")
            .way_out("write it as 192.168.2.20")
    })
}

fn none_at(address: Ipv4Addr) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("{address} is kept for nobody"))
        .way_out("/api/v1/reservations lists those that are")
}
