//! `handle(message, what we know, now) → Outcome`: RFC 2131 §4.3 as a function of state, input and time.
//!
//! ```text
//!  bytes ─ wire ─ request ─┬─ DISCOVER ── choose an address ── OFFER, held in memory
//!                          ├─ REQUEST ─── its state (§4.3.2) ─ ACK with changes, NAK, or silence
//!                          ├─ DECLINE, RELEASE ─────────────── changes, never an answer
//!                          ├─ INFORM ───────────────────────── ACK without a lease
//!                          └─ port 4011 ────────────────────── ACK with boot data only
//! ```
//!
//! The caller makes [`Outcome::changes`] durable, [with what comes before them](DhcpServer::store_first), before
//! [`Outcome::answer`] leaves; offers carry none. If the commit
//! fails it calls [`DhcpServer::forget`] and drops the answer, unless that confirms a lease which is on disk all the
//! same: then it says for how long, and extends nothing.
//!
//! [`DhcpMode`] says how much of this is ours. As a proxy (PXE 2.1 §2.2) we add boot data to what another server says:
//! a DISCOVER of a boot client gets an OFFER without an address, port 4011 is answered, everything else is silence
//! (`proxy`). Observing, all of it is decided as a server would, and [`Answer::Withheld`]. In both, what clients say of
//! the addresses they have from elsewhere is remembered (`elsewhere`).
//!
//! Deviations from the RFC, all deliberate: a client is its MAC and not its client identifier (firmware, iPXE and the
//! operating system of one machine present three different ones), unless `identity = "client-id"`; an authoritative
//! server gives an unknown client the address it remembers, if that is free; a lease time asked for is ignored.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use uuid::Uuid;

use crate::boot::client::ClientClass;
use crate::boot::decision::{self, BootPlan, NothingToBoot, RefusedBoot, Standing, UnknownPolicy};
use crate::boot::loader::{LoaderFile, LoaderTable};
use crate::clock::Timestamp;
use crate::config::{Config, DhcpMode, Identity, PoolRange, StrangerLimits};
use crate::dhcp::lease::table::{Availability, LeaseTable, StillStored};
use crate::dhcp::lease::{Binding, ClientKey, LeaseView, PoolUse};
use crate::dhcp::request::{MessageKind, Relay, Request};
use crate::dhcp::server::declines::Declines;
use crate::dhcp::server::elsewhere::Elsewhere;
use crate::dhcp::server::handling::Visit;
use crate::dhcp::server::probes::Probes;
use crate::dhcp::server::restart::Carried;
use crate::dhcp::server::strangers::Strangers;
use crate::dhcp::wire::Message;
use crate::net::MacAddr;
use crate::store::Change;

mod declines;
mod elsewhere;
mod handling;
mod probes;
mod proxy;
mod restart;
mod silence;
mod strangers;

pub use probes::PROBE_WAIT;
pub use silence::Silence;

/// What the server needs to know of nodes; the registry answers.
pub trait Directory {
    fn standing(&self, mac: MacAddr, now: Timestamp) -> Standing;
    /// Whom an operator fixed this address for.
    fn reserved_for(&self, address: Ipv4Addr) -> Option<MacAddr>;
    /// The port of the bridge this MAC was last heard behind; asked for strangers, where ports are counted.
    fn behind(&self, _mac: MacAddr) -> Option<u32> {
        None
    }
}

/// The part of the configuration that DHCP answers from, with what is derived from it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub mode: DhcpMode,
    /// Our address, which is also the server identifier, and the subnet.
    pub network: Ipv4Network,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub pool: PoolRange,
    pub lease: Duration,
    pub unknown: UnknownPolicy,
    pub identity: Identity,
    pub authoritative: bool,
    pub bootp: bool,
    pub strangers: StrangerLimits,
    pub loaders: Arc<LoaderTable>,
}

impl Settings {
    pub fn new(config: &Config, loaders: Arc<LoaderTable>) -> Settings {
        Settings {
            mode: config.dhcp.mode,
            network: config.network.address,
            gateway: config.network.gateway,
            dns: config.network.dns.clone(),
            pool: config.dhcp.pool,
            lease: config.dhcp.lease,
            unknown: config.dhcp.unknown,
            identity: config.dhcp.identity,
            authoritative: config.dhcp.authoritative,
            bootp: config.dhcp.bootp,
            strangers: config.dhcp.strangers,
            loaders,
        }
    }

    pub fn server(&self) -> Ipv4Addr {
        self.network.ip()
    }

    /// Whether clients behind this relay agent are on our subnet: only there do we have addresses to give.
    fn serves(&self, relay: &Relay<'_>) -> bool {
        // Not our own address: an answer to ourselves helps nobody.
        let on_our_subnet = |address: Ipv4Addr| {
            self.network.contains(address)
                && address != self.network.network()
                && address != self.network.broadcast()
                && address != self.server()
        };
        on_our_subnet(relay.agent) && relay.link.is_none_or(|link| self.network.contains(link))
    }

    /// An address of the subnet that a client may have: not the network's own, the broadcast's, ours or the gateway's.
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        self.network.contains(address)
            && address != self.network.network()
            && address != self.network.broadcast()
            && address != self.server()
            && Some(address) != self.gateway
    }
}

/// One datagram as it came in.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// UDP payload, by the UDP length: Ethernet padding is not part of it.
    pub bytes: &'a [u8],
    pub source: SocketAddrV4,
    /// Where it was sent: 255.255.255.255 or our address. Tells rebinding from renewing.
    pub destination: Ipv4Addr,
    pub service: Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Port 67.
    Dhcp,
    /// Port 4011, PXE 2.1 §2.2.4.
    BootServer,
}

/// What came of one datagram.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub answer: Answer,
    /// Must be durable before the answer leaves.
    pub changes: Vec<Change>,
    /// Who asked and what; absent if the bytes did not say.
    pub report: Option<Report>,
    /// Addresses to ask the wire for; each is to end in `address_answered` or, after [`PROBE_WAIT`], `address_silent`.
    pub ask: Vec<Ipv4Addr>,
    /// The datagram is to be handled again once this one is settled. The answer is [`Silence::Probing`] until then.
    pub awaits: Option<Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Reply(Reply),
    /// What a server would have answered; it does not leave, for we only observe.
    Withheld(Reply),
    Silence(Silence),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub kind: ReplyKind,
    pub bytes: Vec<u8>,
    pub destination: Destination,
    /// The address this reply grants or promises.
    pub address: Option<Ipv4Addr>,
    pub boot_file: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    Offer,
    Ack,
    Nak,
    /// RFC 951: an address without an end.
    Bootp,
}

impl ReplyKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ReplyKind::Offer => "offer",
            ReplyKind::Ack => "ack",
            ReplyKind::Nak => "nak",
            ReplyKind::Bootp => "bootp-reply",
        }
    }

    /// The reason of a silence that would have been this.
    pub fn withheld(self) -> &'static str {
        match self {
            ReplyKind::Offer => "would-offer",
            ReplyKind::Ack => "would-ack",
            ReplyKind::Nak => "would-nak",
            ReplyKind::Bootp => "would-bootp-reply",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// ff:ff:ff:ff:ff:ff and 255.255.255.255, port 68.
    Broadcast,
    /// A client that answers ARP at this address.
    Unicast(SocketAddrV4),
    /// A client that does not have its address yet: a frame to its MAC, without ARP, port 68.
    Frame { mac: MacAddr, address: Ipv4Addr },
}

/// Who asked for what: the subject of a timeline event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub mac: MacAddr,
    pub class: ClientClass,
    pub uuid: Option<Uuid>,
    /// The directory knows this MAC: somebody has a timeline for it.
    pub known: bool,
    /// `discover`, `request`, …
    pub message: &'static str,
    pub xid: u32,
    /// Why a client that wants to boot is told nothing to boot.
    pub nothing_to_boot: Option<NothingToBoot>,
    /// The server it chose, if another was.
    pub other_server: Option<Ipv4Addr>,
    /// The address that this message says it has, or takes, from another server; never set while we are the server.
    pub elsewhere: Option<Ipv4Addr>,
}

impl Report {
    /// The address this exchange is about: the one we gave, or the one another server gave.
    pub fn address(&self, reply: Option<&Reply>) -> Option<Ipv4Addr> {
        reply.and_then(|reply| reply.address).or(self.elsewhere)
    }
}

impl Outcome {
    fn silent(silence: Silence) -> Outcome {
        Outcome {
            answer: Answer::Silence(silence),
            changes: Vec::new(),
            report: None,
            ask: Vec::new(),
            awaits: None,
        }
    }
}

#[derive(Debug)]
pub struct DhcpServer {
    settings: Settings,
    table: LeaseTable,
    declines: Declines,
    elsewhere: Elsewhere,
    probes: Probes,
    strangers: Strangers,
    /// Bindings that were set to the clock, and are to be stored that way.
    carried: Carried,
    /// Another server answers on the bridge, and until it is quiet we do not.
    held: bool,
}

impl DhcpServer {
    /// A server that knows these bindings and has been told the time all along.
    pub fn new(settings: Settings, bindings: Vec<Binding>, now: Timestamp) -> DhcpServer {
        let table = LeaseTable::new(settings.pool, bindings, now);
        DhcpServer {
            settings,
            table,
            declines: Declines::default(),
            elsewhere: Elsewhere::default(),
            probes: Probes::default(),
            strangers: Strangers::default(),
            carried: Carried::default(),
            held: false,
        }
    }

    /// A server that was down, for a time that nobody knows: the clock may have been set meanwhile.
    pub fn restarted(settings: Settings, bindings: Vec<Binding>, now: Timestamp) -> DhcpServer {
        let carried = restart::set_to_clock(&bindings, settings.lease, now);
        let mut server = DhcpServer::new(settings, bindings, now);
        for binding in &carried {
            server.table.carry_over(binding, now);
        }
        server.carried = Carried::new(&carried);
        server
    }

    /// Bindings whose times were moved at the start, because nobody could renew them or the clock was set, and are not
    /// stored yet.
    pub fn carried_over(&self) -> usize {
        self.carried.waiting()
    }

    /// From now on addresses that are fresh to a client are asked for on the wire: the caller can.
    pub fn ask_the_wire(&mut self) {
        self.probes.enable();
    }

    /// Takes new settings. Bindings outside the new pool are not renewed any more.
    pub fn reconfigure(&mut self, settings: Settings, now: Timestamp) {
        self.table.set_pool(settings.pool, now);
        self.settings = settings;
    }

    /// Whether to answer nobody from now on, or everybody again (`dhcp.on_rival = "hold"`).
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    pub fn handle(&mut self, received: &Received<'_>, directory: &dyn Directory, now: Timestamp) -> Outcome {
        self.expire(now);
        let message = match Message::parse(received.bytes) {
            Ok(message) => message,
            Err(error) => return Outcome::silent(error.into()),
        };
        let request = match Request::read(&message) {
            Ok(request) => request,
            Err(silence) => return Outcome::silent(silence),
        };
        if request.relay.is_some_and(|relay| !self.settings.serves(&relay)) {
            return Outcome::silent(Silence::Relayed);
        }
        let standing = directory.standing(request.mac, now);
        let plan = decision::decide(request.class, &standing, self.settings.unknown, &self.settings.loaders);
        let key = match (self.settings.identity, request.client_id) {
            // RFC 2132 §9.14: shorter than two bytes is not an identifier.
            (Identity::ClientId, Some(id)) if id.len() >= 2 => ClientKey::ClientId(id.to_vec()),
            (Identity::ClientId, Some(_) | None) | (Identity::Mac, _) => ClientKey::Mac(request.mac),
        };
        let nothing_to_boot = plan.nothing().filter(|_| request.class.wants_boot());
        let visit = Visit { request: &request, received, standing: &standing, plan, key, directory, now };
        let elsewhere = self.note_elsewhere(&visit);
        let mut changes = Vec::new();
        let mut ask = Vec::new();
        let answer = match (self.answer(&visit, &mut changes, &mut ask), self.settings.mode) {
            (Ok(reply), DhcpMode::Server | DhcpMode::Proxy) => Answer::Reply(reply),
            (Ok(reply), DhcpMode::Observe) => {
                // Nobody is told, so nothing was granted.
                self.table.forget(&changes, now);
                changes.clear();
                Answer::Withheld(reply)
            }
            (Err(Silence::OtherServer), DhcpMode::Observe) => Answer::Silence(Silence::AddressElsewhere),
            (Err(silence), _) => Answer::Silence(silence),
        };
        let report = Report {
            mac: request.mac,
            class: request.class,
            uuid: request.uuid,
            known: matches!(standing, Standing::Known(_)),
            message: request.kind.as_str(),
            xid: message.xid(),
            nothing_to_boot,
            other_server: request.server.filter(|server| {
                let elsewhere = [Silence::OtherServer, Silence::AddressElsewhere].map(Answer::Silence);
                elsewhere.contains(&answer) && *server != self.settings.server()
            }),
            elsewhere,
        };
        let awaits = match answer {
            Answer::Silence(Silence::Probing) => self.table.offered(&visit.key, now),
            Answer::Silence(_) | Answer::Withheld(_) | Answer::Reply(_) => None,
        };
        Outcome { answer, changes, report: Some(report), ask, awaits }
    }

    fn answer(
        &mut self,
        visit: &Visit<'_>,
        changes: &mut Vec<Change>,
        ask: &mut Vec<Ipv4Addr>,
    ) -> Result<Reply, Silence> {
        let refused = match &visit.plan {
            BootPlan::Refuse(RefusedBoot::UnknownMac) => Err(Silence::UnknownMac),
            BootPlan::Loader { .. } | BootPlan::Script | BootPlan::AddressOnly(_) if self.held => {
                Err(Silence::RivalOnBridge)
            }
            BootPlan::Loader { .. } | BootPlan::Script | BootPlan::AddressOnly(_) => Ok(()),
        };
        if visit.request.asks_boot_server(visit.received.service) {
            return refused.and_then(|()| self.boot_server(visit));
        }
        if self.settings.mode == DhcpMode::Proxy {
            return refused.and_then(|()| self.proxy(visit));
        }
        match visit.request.kind {
            MessageKind::Discover => refused.and_then(|()| self.discover(visit, ask)),
            MessageKind::Request => refused.and_then(|()| self.request(visit, changes)),
            // Giving an address back is always welcome.
            MessageKind::Decline => Err(self.decline(visit, changes)),
            MessageKind::Release => Err(self.release(visit, changes)),
            MessageKind::Inform => refused.and_then(|()| self.inform(visit)),
            MessageKind::Bootp => refused.and_then(|()| self.bootp(visit)),
        }
    }

    /// Nobody answered for this address within [`PROBE_WAIT`].
    pub fn address_silent(&mut self, address: Ipv4Addr, now: Timestamp) {
        self.probes.silent(address, now);
    }

    /// A station claims an address that was asked for. What that changes must be durable like any other change; empty
    /// if the station may have it: it is the client's own, that came back without a record.
    pub fn address_answered(&mut self, address: Ipv4Addr, station: MacAddr, now: Timestamp) -> Vec<Change> {
        let Some(whom) = self.probes.answered(address) else { return Vec::new() };
        if whom.as_ref().is_some_and(|(_, mac)| *mac == station) {
            self.probes.settle(address, now);
            return Vec::new();
        }
        let squatter = ClientKey::Mac(station);
        if let Some((key, _)) = whom.filter(|(key, _)| self.table.live_binding(key, now).is_none()) {
            self.table.withdraw_offer(&key, now);
        }
        // Given to a client since it was asked for: that client's own check decides.
        if self.table.availability(address, &squatter, now) != Availability::Free {
            return Vec::new();
        }
        vec![self.table.quarantine(address, &squatter, station, now)]
    }

    /// These changes are about to be stored: what has to be stored before them is put in front.
    pub fn store_first(&mut self, changes: &mut Vec<Change>, now: Timestamp) {
        self.carried.ride_with(changes, &self.table, now);
    }

    /// The commit of these changes failed and nobody was told of them. What is left of earlier promises may be told
    /// ([`Reply::without_extension`]).
    pub fn forget(&mut self, changes: &[Change], now: Timestamp) -> Vec<StillStored> {
        self.carried.missed(changes);
        self.table.forget(changes, now)
    }

    /// The client at this address is at work (TFTP, HTTP) though it may never have requested its offer: Raspberry Pi
    /// ROMs do not.
    pub fn in_use(&mut self, address: Ipv4Addr, now: Timestamp) {
        self.table.keep_offer(address, now);
    }

    /// Takes note of what has ended. Cheap, bounded, and also done with each message; worth calling at
    /// [`DhcpServer::next_deadline`] only to keep [`DhcpServer::pool_use`] exact while nobody asks.
    pub fn expire(&mut self, now: Timestamp) {
        let _more = self.table.expire(now);
        self.declines.expire(now);
        self.probes.expire(now);
    }

    /// The file whose absence leaves clients of this class without a loader.
    pub fn lacking_loader(&self, class: ClientClass) -> Option<&LoaderFile> {
        self.settings.loaders.lacking(class)
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.table.next_deadline()
    }

    /// Bindings and standing offers, by address; where another server gives the addresses, those heard of.
    pub fn leases(&self) -> Vec<LeaseView> {
        match self.settings.mode {
            DhcpMode::Server => self.table.views(),
            DhcpMode::Proxy | DhcpMode::Observe => self.elsewhere.views(self.settings.lease),
        }
    }

    /// All zero where another server gives the addresses.
    pub fn pool_use(&self) -> PoolUse {
        match self.settings.mode {
            DhcpMode::Server => self.table.pool_use(),
            DhcpMode::Proxy | DhcpMode::Observe => PoolUse::default(),
        }
    }
}

#[cfg(test)]
mod tests;
