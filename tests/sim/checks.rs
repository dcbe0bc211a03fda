//! What must hold after every step, whatever the network, the disk and the power did. (Timelines are looked at every
//! [`TIMELINES_EVERY`] steps and at the end: each look copies all of them, and they grow by an event a step at most.)
//!
//! - no two clients use one address at once
//! - an ACK leaves only after its lease was synced, or for what is left of a synced one; and a call's 200 only after its node was
//! - after a start, every lease that a client was told of and still uses is known, for as long as it was told
//! - no datagram ends without an answer or a named reason; who boots and is answered has an event that says so
//! - what is queued, kept and counted stays within its bounds

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use farrier::clock::Timestamp;
use farrier::dhcp::lease::LeaseState;
use farrier::dhcp::network::desk::Parcel;
use farrier::dhcp::server::{ReplyKind, Report};
use farrier::net::MacAddr;
use farrier::node::Node;
use farrier::node::registry::{NodeRef, TIMELINE_EVENTS_MAX};
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{BOOTS_MAX, EVENTS_PER_BOOT_MAX, Happening};

use crate::appliance::Appliance;
use crate::disk::{Disk, QUEUE_MAX};

/// How long a reply may have waited for the disk, at the most, since it was decided on.
const WAITED_MAX: Duration = Duration::from_secs(60);
/// Steps.
pub const TIMELINES_EVERY: u64 = 64;
const OPTION_REQUESTED_ADDRESS: u8 = 50;
const OPTION_LEASE_TIME: u8 = 51;

/// An address in use: by whom, and until when in true time, whatever the appliance's clock says.
#[derive(Clone, Copy, Debug)]
struct Use {
    mac: MacAddr,
    until: u64,
}

#[derive(Default)]
pub struct Checks {
    uses: BTreeMap<Ipv4Addr, Use>,
    pub acks: u64,
    pub most_waiting: usize,
}

/// The lease time of a reply, in milliseconds.
pub fn lease_of(bytes: &[u8]) -> Option<u64> {
    let secs = option(bytes, OPTION_LEASE_TIME)?.try_into().ok()?;
    Some(u64::from(u32::from_be_bytes(secs)) * 1000)
}

fn option(bytes: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut options = bytes.get(240..)?;
    loop {
        match options {
            [0, rest @ ..] => options = rest,
            [255, ..] | [] | [_] => return None,
            [code, length, rest @ ..] => {
                let (data, rest) = rest.split_at_checked(usize::from(*length))?;
                if *code == wanted {
                    return Some(data);
                }
                options = rest;
            }
        }
    }
}

impl Checks {
    /// A reply leaves.
    pub fn reply(
        &mut self,
        appliance: &Appliance,
        disk: &Disk,
        parcel: &Parcel,
        waited: bool,
        now: Timestamp,
    ) -> Result<(), String> {
        let reply = &parcel.reply;
        let Some(report) = &parcel.report else { return Err("a reply to nobody".to_owned()) };
        let lease = lease_of(&reply.bytes);
        if let (ReplyKind::Ack, Some(address), Some(lease)) = (reply.kind, reply.address, lease) {
            self.acks += 1;
            // What left without waiting confirms what is on disk, to the second.
            let slack = if waited { WAITED_MAX } else { Duration::ZERO };
            let until = now.plus(Duration::from_millis(lease)).minus(slack);
            if !disk.held(address, report.mac, until) {
                return Err(format!(
                    "an ACK of {address} for {} left, and its lease is not on disk",
                    report.mac
                ));
            }
        }
        if report.class.wants_boot() {
            has_event(appliance, report)?;
        }
        Ok(())
    }

    pub fn takes(&mut self, mac: MacAddr, address: Ipv4Addr, until: u64, now: u64) -> Result<(), String> {
        if let Some(other) = self.uses.get(&address).filter(|it| it.mac != mac && it.until > now) {
            return Err(format!("{address} is used by {} and by {mac}", other.mac));
        }
        self.gives_up(mac);
        self.uses.insert(address, Use { mac, until });
        Ok(())
    }

    /// A client sends a message. One that asks for another address does not use the one it had.
    pub fn sends(&mut self, mac: MacAddr, bytes: &[u8]) {
        if let Some(wanted) = option(bytes, OPTION_REQUESTED_ADDRESS) {
            self.uses.retain(|address, it| it.mac != mac || address.octets() == *wanted);
        }
    }

    pub fn gives_up(&mut self, mac: MacAddr) {
        self.uses.retain(|_, it| it.mac != mac);
    }

    /// The appliance has just started. `wall_of`: its clock at a true time.
    pub fn nothing_acknowledged_is_lost(
        &self,
        appliance: &Appliance,
        now: u64,
        wall_of: impl Fn(u64) -> Timestamp,
    ) -> Result<(), String> {
        let leases = appliance.desk.server.leases();
        for (address, held) in self.uses.iter().filter(|(_, it)| it.until > now) {
            let known = leases.iter().any(|lease| {
                lease.address == *address
                    && lease.mac == held.mac
                    && lease.state == LeaseState::Bound
                    && lease.expires_at.plus(WAITED_MAX) >= wall_of(held.until)
            });
            if !known {
                let told: Vec<_> = leases.iter().filter(|lease| lease.address == *address).collect();
                return Err(format!(
                    "{} uses {address} by an ACK until {}, and a start does not know it: {told:?}",
                    held.mac,
                    wall_of(held.until)
                ));
            }
        }
        Ok(())
    }

    /// The client has its 200 for the inventory.
    pub fn enrolled(&self, appliance: Option<&Appliance>, disk: &Disk, mac: MacAddr) -> Result<(), String> {
        self.inventory_is_on_disk(disk, mac)?;
        let node = appliance.and_then(|it| it.registry.find(&NodeRef::Mac(mac)));
        match node {
            Some(node) if node.inventory.is_none() => {
                Err(format!("{mac} enrolled, its node has no inventory"))
            }
            None if appliance.is_some() => Err(format!("{mac} enrolled, and is no node")),
            Some(_) | None => Ok(()),
        }
    }

    pub fn inventory_is_on_disk(&self, disk: &Disk, mac: MacAddr) -> Result<(), String> {
        let nodes = disk.snapshot().nodes;
        let node = nodes.iter().find(|node| node.ports.iter().any(|port| port.mac == mac));
        match node {
            Some(node) if node.inventory.is_some() && node.enrolled_at.is_some() => Ok(()),
            Some(_) | None => Err(format!("{mac} was told 200, and its inventory is not on disk")),
        }
    }

    /// Nothing is in flight: disk and memory say the same.
    pub fn memory_is_on_disk(&self, appliance: &Appliance, disk: &Disk) -> Result<(), String> {
        // Heartbeats and repeated DISCOVERs move `last_seen_at` in memory only, as documented.
        let told = |node: &Node| Node { last_seen_at: None, version: 0, ..node.clone() };
        let stored = disk.snapshot();
        for node in appliance.registry.nodes() {
            let on_disk = stored.nodes.iter().find(|it| it.id == node.id).map(told);
            // The policy's approval is no fact of the node.
            let on_disk = on_disk.map(|it| Node { approved: node.approved, ..it });
            if on_disk.as_ref() != Some(&told(&node)) {
                return Err(format!("{:?} is on disk as {on_disk:?}", told(&node)));
            }
            if node.state != ProvisionState::Manageable && node.inventory.is_some() {
                return Err(format!("all are served, and {} is {:?}", node.id, node.state));
            }
            let events = stored.events.iter().filter(|event| event.node == node.id).count();
            let boots = appliance.registry.boots(node.id);
            let in_memory: usize = boots.iter().map(|boot| boot.events.len()).sum();
            if events != in_memory {
                return Err(format!("{} has {in_memory} events in memory and {events} on disk", node.id));
            }
        }
        Ok(())
    }

    pub fn bounds(&self, appliance: &Appliance, disk: &Disk) -> Result<(), String> {
        let usage = appliance.desk.server.pool_use();
        if usage.bound + usage.offered + usage.quarantined > usage.size {
            return Err(format!("more than all addresses are taken: {usage:?}"));
        }
        let most = self.most_waiting.max(disk.most_waiting());
        if most > QUEUE_MAX {
            return Err(format!("{most} batches waited"));
        }
        if appliance.transfers() > 0 && appliance.tftp_deadline().is_none() {
            return Err("a TFTP transfer waits for nothing".to_owned());
        }
        Ok(())
    }

    pub fn timelines(&self, appliance: &Appliance) -> Result<(), String> {
        let mut events = 0;
        for node in appliance.registry.nodes() {
            let boots = appliance.registry.boots(node.id);
            if boots.len() > BOOTS_MAX + 1 || boots.iter().any(|boot| boot.events.len() > EVENTS_PER_BOOT_MAX)
            {
                return Err(format!("the timeline of {} has {} boots", node.id, boots.len()));
            }
            events += boots.iter().map(|boot| boot.events.len()).sum::<usize>();
        }
        if events > TIMELINE_EVENTS_MAX {
            return Err(format!("{events} events are kept"));
        }
        Ok(())
    }
}

/// Whether the timeline of who was answered shows this exchange. A stranger has none until its REQUEST is granted.
fn has_event(appliance: &Appliance, report: &Report) -> Result<(), String> {
    let Some(node) = appliance.registry.find(&NodeRef::Mac(report.mac)) else {
        return match appliance.registry.trace(report.mac) {
            Some(_) => Ok(()),
            None => Err(format!("{} was answered, and nothing is remembered of it", report.mac)),
        };
    };
    let boots = appliance.registry.boots(node.id);
    let shown = boots.iter().rev().any(|boot| {
        // Repeated chatter is counted, not kept.
        boot.unrecorded > 0
            || boot
                .events
                .iter()
                .any(|event| matches!(&event.happening, Happening::Dhcp { xid, .. } if *xid == report.xid))
    });
    if shown {
        Ok(())
    } else {
        Err(format!("{} was answered ({:08x}), no event says so", report.mac, report.xid))
    }
}
