//! Verdicts and explanations over the API: gathers what they rest on and hands it to the pure functions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use axum::Json;
use axum::extract::State;

use super::OperatorParts;
use super::asked::{Asked, Reference};
use super::problem::{Problem, ProblemKind};
use super::routes::Shared;
use crate::boot::profile::rules::Subject;
use crate::boot::profile::runs::Fence;
use crate::clock::Timestamp;
use crate::explain::profiles::ProfileKnowledge;
use crate::explain::{Dialogue, Knowledge, Machine};
use crate::net::MacAddr;
use crate::node::registry::{NodeRef, StrangerTrace};
use crate::node::timeline::{Boot, Happening};
use crate::node::verdict::{self, BridgeView, Case, Surroundings, Verdict};

/// `GET /api/v1/nodes/{ref}/why`; a MAC need not be a node's.
pub(super) async fn why(
    State(parts): State<Shared>,
    Reference(reference): Reference,
    mut asked: Asked,
) -> Result<Json<Verdict>, Problem> {
    let boot = asked.read("boot", "the number of a boot")?;
    let at = asked.word("at")?;
    asked.finish()?;
    verdict(&parts, &reference, boot, at).map(Json)
}

/// `GET /api/v1/explain?mac=&firmware=`
pub(super) async fn explain(
    State(parts): State<Shared>,
    mut asked: Asked,
) -> Result<Json<Dialogue>, Problem> {
    let mac: Option<MacAddr> = asked.read("mac", "a MAC address")?;
    let firmware: Option<Machine> = asked.word("firmware")?;
    let bytes = asked.read("bytes", "true or false")?.unwrap_or(false);
    asked.finish()?;
    let missing = |name: &'static str| {
        Problem::new(ProblemKind::Invalid, format!("{name} is missing"))
            .field(name)
            .way_out("ask as in /api/v1/explain?mac=52:54:00:12:34:56&firmware=uefi")
    };
    let mac = mac.ok_or_else(|| missing("mac"))?;
    let firmware = firmware.ok_or_else(|| missing("firmware"))?;
    if !mac.is_station() {
        let wrong = format!("{mac} is a group address or all zero: no machine has it");
        return Err(Problem::new(ProblemKind::Invalid, wrong).field("mac"));
    }
    let config = parts.config.load_full();
    let knowledge = Knowledge {
        config: &config,
        loaders: parts.appliance.loader_table(),
        leases: parts.appliance.leases().by_address.clone(),
        directory: &*parts.registry,
        name: parts.registry.name_of(mac),
        image: parts.appliance.deploy_image(),
        profiles: profiles_for(&parts, mac),
        now: parts.clock.now(),
    };
    Ok(Json(crate::explain::explain(mac, firmware, bytes, &knowledge)))
}

fn profiles_for(parts: &OperatorParts, mac: MacAddr) -> ProfileKnowledge {
    let Some(desk) = parts.appliance.boot_profiles() else { return ProfileKnowledge::default() };
    let list = desk.rules();
    let fences = |fence: &dyn Fn(crate::boot::profile::rules::RuleNumber) -> Fence| {
        list.rules().iter().map(|rule| (rule.clone(), fence(rule.number))).collect()
    };
    let of_node = parts.registry.look_at(mac, |node, boot| ProfileKnowledge {
        id: Some(node.id),
        name: node.name.clone(),
        uuid: node.uuid,
        ports: node.ports.clone(),
        labels: node.labels.clone(),
        // As of its next boot: what runs in this one is over by then.
        rules: match node.has_open_task() {
            // An open task outranks every profile.
            true => Vec::new(),
            false => fences(&|rule| desk.fence(rule, &Subject::of(node), boot.saturating_add(1))),
        },
        profiles: Vec::new(),
        installer: node.installer().cloned(),
    });
    let stranger = || ProfileKnowledge { rules: fences(&|_| Fence::Armed), ..ProfileKnowledge::default() };
    let profiles = desk.library().boot_profiles();
    ProfileKnowledge {
        profiles: profiles.iter().map(|served| served.profile.clone()).collect(),
        ..of_node.unwrap_or_else(stranger)
    }
}

/// Why the machine is where it is; the newest boot if none is named.
pub fn verdict(
    parts: &OperatorParts,
    reference: &NodeRef,
    number: Option<u32>,
    at: Option<Timestamp>,
) -> Result<Verdict, Problem> {
    let node = parts.registry.find(reference);
    let mac = match reference {
        NodeRef::Mac(mac) => Some(*mac),
        NodeRef::Id(_) | NodeRef::Name(_) | NodeRef::Uuid(_) => None,
    };
    if node.is_none() && mac.is_none() {
        return Err(Problem::new(ProblemKind::NotFound, format!("no node {reference}"))
            .way_out("`farrier node list` shows those that are known; any machine can be named by its MAC"));
    }
    let boots = node.as_ref().map(|node| parts.registry.boots(node.id)).unwrap_or_default();
    let at = at.unwrap_or_else(|| parts.clock.now());
    let started = |boot: &&Boot| boot.number != 0 && boot.started_at <= at;
    let boot = match number {
        Some(number) => {
            let found = boots.iter().filter(started).find(|boot| boot.number == number);
            Some(found.ok_or_else(|| no_such_boot(number, &boots))?)
        }
        None => boots.iter().rfind(started),
    };
    let overtaken_at = boot
        .and_then(|boot| boots.iter().filter(started).find(|later| later.number > boot.number))
        .map(|later| later.started_at);
    let port = mac.or_else(|| node.as_ref().and_then(|node| node.ports.first()).map(|port| port.mac));
    let trace = port.and_then(|mac| parts.registry.trace(mac));
    let around = surroundings(parts, at, port, boot, trace.as_ref());
    let case = Case {
        node: node.as_ref(),
        mac,
        boot,
        overtaken_at,
        outside: boots.iter().find(|boot| boot.number == 0),
        trace: trace.as_ref(),
    };
    Ok(verdict::of(&case, &around))
}

fn no_such_boot(number: u32, boots: &[Boot]) -> Problem {
    let kept: Vec<String> =
        boots.iter().filter(|boot| boot.number != 0).map(|boot| boot.number.to_string()).collect();
    let way_out = match kept.is_empty() {
        true => "the machine never booted; ask without a boot number".to_owned(),
        false => format!("these are kept: {}", kept.join(", ")),
    };
    Problem::new(ProblemKind::NotFound, format!("no boot {number}")).field("boot").way_out(way_out)
}

fn surroundings(
    parts: &OperatorParts,
    now: Timestamp,
    port: Option<MacAddr>,
    boot: Option<&Boot>,
    trace: Option<&StrangerTrace>,
) -> Surroundings {
    let config = parts.config.load();
    let premises = parts.appliance.premises(port);
    let status = parts.appliance.bridge();
    let servers = other_servers(boot, trace).into_iter();
    Surroundings {
        now,
        started_at: parts.started_at,
        mode: config.dhcp.mode,
        unknown: config.dhcp.unknown,
        call_deadline: config.boot.call_deadline,
        bridge: BridgeView { name: status.name, address: status.address, fault: premises.fault },
        ports: premises.ports,
        outages: parts.bridge_log.outages(),
        servers: servers
            .filter_map(|server| Some((server, mac_of(parts, server)?)))
            .collect::<BTreeMap<_, _>>(),
        pool: parts.appliance.pool_use(),
        loaders: parts.appliance.loader_table(),
        profile: config.boot.profile.clone(),
        kernel_altered: parts.appliance.kernel_altered(),
        fetching: port.and_then(|mac| parts.registry.fetching(mac)),
    }
}

/// Where the other server's frames come from: the guard heard them, or the kernel talked to it.
fn mac_of(parts: &OperatorParts, server: Ipv4Addr) -> Option<MacAddr> {
    let heard = parts.appliance.rivals().into_iter().find(|rival| rival.address == IpAddr::V4(server));
    heard.and_then(|rival| rival.mac).or_else(|| parts.appliance.neighbour(server))
}

fn other_servers(boot: Option<&Boot>, trace: Option<&StrangerTrace>) -> BTreeSet<Ipv4Addr> {
    let told = boot.into_iter().flat_map(|boot| &boot.events).filter_map(|event| match &event.happening {
        Happening::Dhcp { other_server, .. } => *other_server,
        Happening::OtherServer { server, .. } => Some(*server),
        Happening::File { .. }
        | Happening::Script { .. }
        | Happening::Profile { .. }
        | Happening::Agent { .. }
        | Happening::AgentRefused { .. }
        | Happening::OrderGiven { .. }
        | Happening::State { .. }
        | Happening::Approved
        | Happening::QuirksSet { .. }
        | Happening::Registered
        | Happening::Edited { .. }
        | Happening::Removed { .. }
        | Happening::BootLoop { .. }
        | Happening::PortConflict { .. }
        | Happening::Install { .. }
        | Happening::ApplianceStarted => None,
    });
    told.chain(trace.into_iter().flat_map(|trace| &trace.steps).filter_map(|step| step.other_server))
        .collect()
}
