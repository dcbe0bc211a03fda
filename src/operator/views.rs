//! The documents, made from the running appliance: the API sends them as JSON, the page draws them.
//!
//! Nothing here waits for the disk, and nothing holds the registry for longer than one turn.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::api::{
    BlobEntry, BootSummary, Counter, DhcpStatus, Health, ImageEntry, LeaseEntry, NodeDetail, NodeSummary,
    Page, PoolStatus, PortEntry, PortSummary, ReservationEntry, ReservationSource, RivalStatus, Status,
    TransfersStatus,
};
use super::{OperatorParts, tasks};
use crate::clock::Timestamp;
use crate::config::BridgeName;
use crate::dhcp::lease::{LeaseState, LeaseView};
use crate::guard::rivals::{Kind, Rival};
use crate::image::library::{Blob, Library};
use crate::net::MacAddr;
use crate::node::inventory::{TEXT_MAX, clean_text};
use crate::node::registry::{NodeCursor, NodeFilter, NodeRef, NodeView};
use crate::node::state::ProvisionState;
use crate::node::timeline::{Boot, BootProgress, Stage};
use crate::node::{Node, NodeId};

/// Items on a page unless the request says otherwise.
pub const PAGE_DEFAULT: usize = 100;
/// Items on the largest page: a list of all nodes of a large site in ten requests, none of which takes long.
pub const PAGE_MAX: usize = 1000;

/// The states a status lists even when no node is in them, so that a scraper sees each series from the start.
const STATES: [ProvisionState; 15] = ProvisionState::ALL;

/// Bindings and offers at one moment.
#[derive(Debug, Default)]
pub struct Leases {
    /// In order of address.
    pub by_address: Vec<LeaseView>,
    /// Places in `by_address` of what each MAC holds or has offered.
    of_mac: HashMap<MacAddr, usize>,
}

impl Leases {
    pub fn new(by_address: Vec<LeaseView>) -> Leases {
        let holds = |lease: &LeaseView| match lease.state {
            LeaseState::Offered | LeaseState::Bound | LeaseState::Elsewhere => true,
            LeaseState::Released | LeaseState::Quarantined => false,
        };
        let places = by_address.iter().enumerate().filter(|(_, lease)| holds(lease));
        let of_mac = places.map(|(place, lease)| (lease.mac, place)).collect();
        Leases { by_address, of_mac }
    }

    /// What a MAC holds now; an offer counts, since some ROMs never go further.
    pub fn held_by(&self, mac: MacAddr, now: Timestamp) -> Option<Ipv4Addr> {
        let lease = self.by_address.get(*self.of_mac.get(&mac)?)?;
        (lease.expires_at > now).then_some(lease.address)
    }
}

/// Where a page begins, and how long it is; `after` is what the page before called `next`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paging<C> {
    pub after: Option<C>,
    pub limit: usize,
}

impl<C> Default for Paging<C> {
    fn default() -> Self {
        Paging { after: None, limit: PAGE_DEFAULT }
    }
}

pub fn nodes(parts: &OperatorParts, filter: &NodeFilter, paging: &Paging<NodeCursor>) -> Page<NodeSummary> {
    let (leases, now) = (parts.appliance.leases(), parts.clock.now());
    let shown = |view: &NodeView<'_>| summary_of(view, &leases, now);
    let (items, next) = parts.registry.page(paging.after, paging.limit, filter, shown);
    Page { items, next: next.map(|cursor| cursor.to_string()) }
}

/// Every node, page after page.
pub fn all_nodes(parts: &OperatorParts, filter: &NodeFilter) -> Vec<NodeSummary> {
    let (leases, now) = (parts.appliance.leases(), parts.clock.now());
    let shown = |view: &NodeView<'_>| summary_of(view, &leases, now);
    parts.registry.page(None, usize::MAX, filter, shown).0
}

pub fn node(parts: &OperatorParts, reference: &NodeRef) -> Option<NodeDetail> {
    let found = parts.registry.find(reference)?;
    Some(node_detail(parts, &found))
}

pub fn node_summary(parts: &OperatorParts, node: &Node) -> NodeSummary {
    let (leases, now) = (parts.appliance.leases(), parts.clock.now());
    let port = |port: &crate::node::Port| PortSummary {
        mac: port.mac,
        reserved: port.reserved,
        address: leases.held_by(port.mac, now),
    };
    let ports = node.ports.iter().map(port).collect();
    let boot = parts.registry.newest_boot(node.id).map(boot_summary);
    summary(node, node.approved, ports, boot)
}

pub fn node_detail(parts: &OperatorParts, node: &Node) -> NodeDetail {
    NodeDetail {
        summary: node_summary(parts, node),
        uuid: node.uuid,
        created_at: node.created_at,
        inventory: node.inventory.clone(),
        quirks: node.quirks,
        task: tasks::of(&parts.registry, node.id, node),
        version: node.version,
    }
}

/// The same of a node that is being looked at.
pub fn detail_of(view: &NodeView<'_>, leases: &Leases, now: Timestamp) -> NodeDetail {
    NodeDetail {
        summary: summary_of(view, leases, now),
        uuid: view.node.uuid,
        created_at: view.node.created_at,
        inventory: view.node.inventory.clone(),
        quirks: view.node.quirks,
        task: tasks::detail(view.node, &view.install()),
        version: view.node.version,
    }
}

fn summary_of(view: &NodeView<'_>, leases: &Leases, now: Timestamp) -> NodeSummary {
    let port = |port: &crate::node::Port| PortSummary {
        mac: port.mac,
        reserved: view.reserved(port.mac),
        address: leases.held_by(port.mac, now),
    };
    let ports = view.node.ports.iter().map(port).collect();
    summary(view.node, view.approved, ports, view.newest_boot().map(boot_summary))
}

fn summary(node: &Node, approved: bool, ports: Vec<PortSummary>, boot: Option<BootSummary>) -> NodeSummary {
    NodeSummary {
        id: node.id,
        name: node.name.clone(),
        ports,
        state: node.state,
        approved,
        origin: node.origin,
        firmware: node.firmware,
        next_boot: node.next_boot,
        order: node.order,
        failure: node.failure.clone(),
        labels: node.labels.clone(),
        last_seen_at: node.last_seen_at,
        enrolled_at: node.enrolled_at,
        boot,
    }
}

fn boot_summary(progress: BootProgress) -> BootSummary {
    let BootProgress { number, started_at, stage, stage_at, enrolled, stopped_at } = progress;
    BootSummary { number, started_at, stage, stage_at, enrolled, stopped_at }
}

/// Which boots of a node a list is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootFilter {
    pub enrolled: Option<bool>,
    /// The stage it ended at, or is at.
    pub stage: Option<Stage>,
}

/// Boots of a node, oldest first; a cursor is the number of the last one shown.
pub fn boots(parts: &OperatorParts, id: NodeId, filter: BootFilter, paging: &Paging<u32>) -> Page<Boot> {
    let passes = |boot: &Boot| {
        paging.after.is_none_or(|after| boot.number > after)
            && filter.enrolled.is_none_or(|enrolled| boot.enrolled == enrolled)
            && filter.stage.is_none_or(|stage| boot.stage == Some(stage))
    };
    let boots = parts.registry.boots(id).into_iter().filter(passes);
    page(boots, paging.limit, |boot| boot.number.to_string())
}

/// Which leases a list is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseFilter {
    pub state: Option<LeaseState>,
    pub mac: Option<MacAddr>,
}

/// Leases in order of address; a cursor is the address of the last one shown.
pub fn leases(parts: &OperatorParts, filter: &LeaseFilter, paging: &Paging<Ipv4Addr>) -> Page<LeaseEntry> {
    let leases = parts.appliance.leases();
    let passes = |lease: &&LeaseView| {
        paging.after.is_none_or(|after| lease.address > after)
            && filter.state.is_none_or(|state| lease.state == state)
            && filter.mac.is_none_or(|mac| lease.mac == mac)
    };
    let chosen = page(leases.by_address.iter().filter(passes), paging.limit, |l| l.address.to_string());
    let macs: Vec<MacAddr> = chosen.items.iter().map(|lease| lease.mac).collect();
    let mut owners = parts.registry.owners(&macs).into_iter();
    chosen.map(|lease| LeaseEntry {
        address: lease.address,
        mac: lease.mac,
        node_name: owners.next().flatten().and_then(|(_, name)| name),
        hostname: lease.hostname.clone(),
        state: lease.state,
        granted_at: lease.granted_at,
        expires_at: lease.expires_at,
    })
}

/// Which ports a list is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFilter {
    pub node: Option<NodeId>,
    /// Whether an address is kept for it.
    pub reserved: Option<bool>,
}

/// Ports in order of MAC, which is the cursor.
pub fn ports(parts: &OperatorParts, filter: PortFilter, paging: &Paging<MacAddr>) -> Page<PortEntry> {
    let (leases, now) = (parts.appliance.leases(), parts.clock.now());
    let passes = |view: &NodeView<'_>, mac: MacAddr| {
        filter.node.is_none_or(|node| view.node.id == node)
            && filter.reserved.is_none_or(|reserved| view.reserved(mac).is_some() == reserved)
    };
    let (items, next) = parts.registry.ports(paging.after, paging.limit, |view, mac| {
        passes(view, mac).then(|| port_entry(view, mac, &leases, now))
    });
    Page { items, next: next.map(|mac| mac.dashed()) }
}

pub fn port(parts: &OperatorParts, mac: MacAddr) -> Option<PortEntry> {
    let (leases, now) = (parts.appliance.leases(), parts.clock.now());
    let id = parts.registry.find(&NodeRef::Mac(mac))?.id;
    parts.registry.look(id, |view| port_entry(view, mac, &leases, now))
}

fn port_entry(view: &NodeView<'_>, mac: MacAddr, leases: &Leases, now: Timestamp) -> PortEntry {
    PortEntry {
        mac,
        node: view.node.id,
        node_name: view.node.name.clone(),
        reserved: view.reserved(mac),
        address: leases.held_by(mac, now),
    }
}

/// Reservations in order of address, which is the cursor.
pub fn reservations(
    parts: &OperatorParts,
    mac: Option<MacAddr>,
    paging: &Paging<Ipv4Addr>,
) -> Page<ReservationEntry> {
    let all = parts.registry.reservations();
    let passes = |(address, (owner, _)): &(&Ipv4Addr, &(MacAddr, bool))| {
        paging.after.is_none_or(|after| **address > after) && mac.is_none_or(|mac| *owner == mac)
    };
    let chosen = page(all.iter().filter(passes), paging.limit, |(address, _)| address.to_string());
    let macs: Vec<MacAddr> = chosen.items.iter().map(|(_, (mac, _))| *mac).collect();
    let mut owners = parts.registry.owners(&macs).into_iter();
    chosen.map(|(address, (mac, by_operator))| {
        let (node, node_name) = owners.next().flatten().map_or((None, None), |(id, name)| (Some(id), name));
        let source =
            if *by_operator { ReservationSource::Operator } else { ReservationSource::Configuration };
        ReservationEntry { address: *address, mac: *mac, node, node_name, source }
    })
}

/// The first `limit` items, and the cursor of the last of them if there are more.
pub(super) fn page<T>(
    mut items: impl Iterator<Item = T>,
    limit: usize,
    cursor: impl Fn(&T) -> String,
) -> Page<T> {
    let shown: Vec<T> = items.by_ref().take(limit).collect();
    let more = items.next().is_some();
    let next = shown.last().filter(|_| more).map(cursor);
    Page { items: shown, next }
}

pub fn pool(parts: &OperatorParts) -> PoolStatus {
    let pool = parts.config.load().dhcp.pool;
    let used = parts.appliance.pool_use();
    PoolStatus {
        first: pool.first,
        last: pool.last,
        size: used.size.into(),
        bound: used.bound.into(),
        offered: used.offered.into(),
        quarantined: used.quarantined.into(),
    }
}

/// Text for people, JSON and metrics all come from this one document.
pub fn status(parts: &OperatorParts) -> Status {
    let (tftp, http) = parts.tally.transfers();
    let census = parts.registry.census();
    let mut by_state = BTreeMap::from(STATES.map(|state| (state, 0)));
    by_state.extend(census.by_state);
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
        dhcp: DhcpStatus {
            mode: parts.config.load().dhcp.mode,
            other_servers: parts.appliance.other_servers(),
        },
        rivals: parts.appliance.rivals(),
        pool: pool(parts),
        nodes: by_state,
        waiting_for_approval: census.waiting_for_approval,
        image: parts.appliance.image(),
        store: parts.appliance.store(),
        process: parts.appliance.process(),
        transfers: TransfersStatus { tftp, http },
        problems: parts.problems.snapshot(),
        counters: parts.tally.snapshot().into_iter().map(counter).collect(),
    }
}

/// Whether machines can be booted, and what is told of that is durable; if not, why.
pub fn readiness(parts: &OperatorParts) -> Health {
    let bridge = parts.appliance.bridge();
    let stopped: Vec<String> =
        parts.appliance.services().into_iter().filter(|service| !service.running).map(|s| s.name).collect();
    let (store, image) = (parts.appliance.store(), parts.appliance.image());
    let reason = if let Some(error) = store.last_error {
        Some(format!(
            "degraded: store: {error}: no address is given out that is not on disk: make room at {}",
            store.path
        ))
    } else if !bridge.up {
        let why = bridge.reason.unwrap_or_else(|| "it is down".to_owned());
        Some(format!("degraded: bridge {}: {why}", bridge.name))
    } else if let Some(objection) = bridge.objection {
        Some(format!("degraded: {objection}"))
    } else if let Some(rival) = parts.appliance.rivals().first() {
        let held = if rival.holding { "; nobody is answered until it is quiet" } else { "" };
        Some(format!("degraded: {}{held}: {}", rival.headline(), rival.way_out))
    } else if !stopped.is_empty() {
        Some(format!("degraded: not running: {}", stopped.join(", ")))
    } else if !image.present {
        Some(format!(
            "degraded: no deploy image of profile `{0}`: machines get an address and a script, and no kernel; `farrier image build deploy --profile {0}`, then reload",
            image.profile
        ))
    } else {
        let problem = parts.tls.as_ref().and_then(|tls| tls.problem());
        problem.map(|problem| format!("degraded: {problem}"))
    };
    Health { ok: reason.is_none(), reason }
}

/// Another server as operators see it.
pub fn rival(rival: Rival, bridge: &BridgeName, held: bool) -> RivalStatus {
    let way_out = rival.way_out(bridge);
    RivalStatus {
        kind: rival.kind,
        address: rival.address,
        mac: rival.mac,
        port: rival.port,
        evidence: rival.evidence,
        first_at: rival.first_at,
        last_at: rival.last_at,
        heard: rival.heard,
        client: rival.client,
        process: rival.process,
        way_out,
        holding: held && rival.kind == Kind::Dhcp,
    }
}

/// Deploy images by profile; those that are damaged stand among them, with the reason.
pub fn images(library: &Library, in_use: &str) -> Vec<ImageEntry> {
    let profiles = library.profiles();
    let whole = profiles.iter().map(|profile| {
        let name = &profile.manifest.profile;
        let blob = |blob: &Blob, part: &str| BlobEntry {
            digest: blob.digest.to_string(),
            bytes: blob.size,
            modified_at: blob.modified,
            used_by: vec![format!("{name}/{part}")],
        };
        ImageEntry {
            profile: name.clone(),
            in_use: name == in_use,
            served: true,
            damage: None,
            kernel: Some(blob(&profile.kernel, "kernel")),
            ramdisk: Some(blob(&profile.ramdisk, "ramdisk")),
            arguments: profile.manifest.arguments.clone(),
            built_from: profile.manifest.built_from.clone(),
        }
    });
    let damaged = library.damage().into_iter().map(|damage| {
        let file = damage.path.file_stem().unwrap_or_default().to_string_lossy();
        let profile = clean_text(&file, TEXT_MAX);
        ImageEntry {
            in_use: profile == in_use,
            profile,
            served: false,
            damage: Some(format!(
                "{}: {}",
                clean_text(&damage.path.display().to_string(), 256),
                damage.reason
            )),
            kernel: None,
            ramdisk: None,
            arguments: Vec::new(),
            built_from: BTreeMap::new(),
        }
    });
    let mut images: Vec<ImageEntry> = whole.chain(damaged).collect();
    images.sort_by(|a, b| a.profile.cmp(&b.profile));
    images
}

/// Blobs by digest, each with everything that names it.
pub fn blobs(images: &[ImageEntry]) -> Vec<BlobEntry> {
    let mut blobs: BTreeMap<&str, BlobEntry> = BTreeMap::new();
    for blob in images.iter().flat_map(|image| image.kernel.iter().chain(&image.ramdisk)) {
        match blobs.get_mut(blob.digest.as_str()) {
            Some(known) => known.used_by.extend(blob.used_by.iter().cloned()),
            None => {
                blobs.insert(&blob.digest, blob.clone());
            }
        }
    }
    blobs.into_values().collect()
}
