//! What the DHCP thread does with a message, but for sockets: the answer, who is told of it, and the wait for the disk.
//!
//! ```text
//!  bytes ─► DhcpServer ─┬─ nothing new ────────────────────────────► batch.ready
//!                       └─ changes ─► batch ─► store ─ durable ────► Post::send   (on the store's thread)
//!                                               └── failed ─► Desk::take_back, nothing new is promised
//! ```
//!
//! The thread brings datagrams and sends what is ready; a simulation brings its own, and a disk that fails.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::boot::client::{Client, ClientClass};
use crate::boot::decision::NothingToBoot;
use crate::clock::Timestamp;
use crate::config::DhcpMode;
use crate::dhcp::address_book::AddressBook;
use crate::dhcp::lease::table::StillStored;
use crate::dhcp::lease::{BindingState, PoolUse};
use crate::dhcp::network::clones::Clones;
use crate::dhcp::network::{Nodes, SERVICE, outbound, step_of};
use crate::dhcp::server::{
    Answer, DhcpServer, Directory, Outcome, Received, Reply, ReplyKind, Report, Service, Silence,
};
use crate::guard::Guard;
use crate::net::MacAddr;
use crate::node::timeline::Happening;
use crate::store::{Change, CommitError, LeaseChange, Store};
use crate::telemetry::Tally;

/// The word for an address that somebody uses without a lease: in counters, in timelines.
const IN_USE: &str = "address-in-use";

/// A reply on its way, and who asked for it.
#[derive(Clone, Debug)]
pub struct Parcel {
    pub reply: Reply,
    pub service: Service,
    pub report: Option<Report>,
    /// When it was decided on; a lease still has to reach the disk.
    pub decided_at: Instant,
}

/// Where replies leave.
pub trait Post: Send + Sync {
    fn send(&self, parcels: &[Parcel]);
}

/// What one receive asks of the disk, and what leaves once that is done.
#[derive(Debug, Default)]
pub struct Batch {
    /// Replies that rest on nothing new.
    pub ready: Vec<Parcel>,
    pub changes: Vec<Change>,
    pub parcels: Vec<Parcel>,
    /// Addresses to ask the wire for.
    pub ask: Vec<Ipv4Addr>,
}

/// A message that can be answered when the wire has been heard about an address: to be brought again then.
#[derive(Debug)]
pub struct PutAside {
    pub until: Ipv4Addr,
    pub report: Option<Report>,
}

impl Batch {
    /// How many replies wait for the disk with it. A batch without any waits as well.
    pub fn weight(&self) -> usize {
        self.parcels.len().max(1)
    }
}

/// What the disk refused.
#[derive(Debug)]
pub struct FailedBatch {
    batch: Batch,
    error: CommitError,
}

pub struct Desk {
    pub mode: DhcpMode,
    pub server: DhcpServer,
    pub registry: Arc<dyn Nodes>,
    pub store: Arc<dyn Store>,
    pub addresses: Arc<AddressBook>,
    pub tally: Arc<Tally>,
    pub guard: Arc<Guard>,
    pub said: Said,
}

/// What was said once, and is not repeated.
#[derive(Default)]
pub struct Said {
    /// Until there is an address to give again.
    pool_exhausted: bool,
    /// Until a commit succeeds; the store's thread takes it back.
    store_fails: Arc<AtomicBool>,
    /// Client identifiers granted so far: two machines with one are told of.
    clones: Clones,
    /// Kinds of client without a loader; once per configuration.
    without_loader: Vec<ClientClass>,
}

impl Desk {
    /// Answers one message: into the batch, to leave at once or when its changes are durable; unless the wire has to be
    /// asked first.
    #[must_use]
    pub fn handle(
        &mut self,
        received: &Received<'_>,
        directory: &dyn Directory,
        batch: &mut Batch,
        now: Timestamp,
    ) -> Option<PutAside> {
        let mut outcome = self.server.handle(received, directory, now);
        batch.ask.append(&mut outcome.ask);
        // Until the wire has been heard nothing has come of it that anybody need know.
        if let Some(until) = outcome.awaits {
            self.tally.count(SERVICE, Silence::Probing.as_str());
            return Some(PutAside { until, report: outcome.report });
        }
        self.watch_pool(&outcome);
        self.take_note(&outcome, now);
        self.tell_lacking_loader(&outcome);
        self.answer(outcome, received.service, batch);
        None
    }

    /// Another configuration may bring what was missing.
    pub fn reconfigured(&mut self) {
        self.said.without_loader.clear();
    }

    /// An empty pool is no error of any one request, and the operator's to mend.
    fn watch_pool(&mut self, outcome: &Outcome) {
        let exhausted = outcome.answer == Answer::Silence(Silence::PoolExhausted);
        if exhausted && !self.said.pool_exhausted {
            let PoolUse { size, bound, offered, quarantined } = self.server.pool_use();
            tracing::warn!(
                size,
                bound,
                offered,
                quarantined,
                "no address is left for new machines: enlarge dhcp.pool, or shorten dhcp.lease"
            );
            self.said.pool_exhausted = true;
        } else if self.said.pool_exhausted && matches!(outcome.answer, Answer::Reply(_)) {
            let PoolUse { size, bound, offered, quarantined } = self.server.pool_use();
            self.said.pool_exhausted = bound + offered + quarantined >= size;
        }
    }

    /// Who has which address, for those that meet machines by their address.
    fn note_addresses(&self, changes: &[Change]) {
        for change in changes {
            match change.of_lease() {
                Some(LeaseChange::Put(binding)) => match binding.state {
                    BindingState::Bound => self.addresses.set(binding.address, binding.mac),
                    BindingState::Released | BindingState::Quarantined => {
                        self.addresses.clear(binding.address)
                    }
                },
                Some(LeaseChange::Drop(address)) => self.addresses.clear(address),
                None => {}
            }
        }
    }

    /// Two machines that call themselves alike.
    fn tell_clones(&mut self, changes: &[Change]) {
        for change in changes {
            let Some(LeaseChange::Put(binding)) = change.of_lease() else { continue };
            if binding.state != BindingState::Bound {
                continue;
            }
            if let Some(other) = self.said.clones.note(binding) {
                tracing::warn!(mac = %binding.mac, %other, "{} and {other} have the same client identifier: installed from one image? each has an address of its own", binding.mac);
            }
        }
    }

    /// Tells the rest of the appliance what came of a request, before anybody on the wire knows.
    fn take_note(&mut self, outcome: &Outcome, now: Timestamp) {
        self.note_addresses(&outcome.changes);
        self.tell_clones(&outcome.changes);
        let Some(report) = &outcome.report else { return };
        // A stranger that was offered a boot file and goes on to take an address waits to be a node.
        let mut has_timeline = report.known || (report.elsewhere.is_some() && report.class.wants_boot());
        // A claim that becomes an entry only where it is not the kernel's word that counts.
        if let (Some(address), DhcpMode::Proxy) = (report.elsewhere, self.mode) {
            self.addresses.set(address, report.mac);
        }
        if let Answer::Reply(reply) = &outcome.answer {
            // Grants came with the changes. What else names an address (port 4011, INFORM) has it from the client.
            if let (ReplyKind::Offer | ReplyKind::Bootp, Some(address)) = (reply.kind, reply.address) {
                self.addresses.set(address, report.mac);
            }
            has_timeline |= report.class.wants_boot();
            if reply.kind != ReplyKind::Nak && report.class.wants_boot() {
                let client = Client { mac: report.mac, class: report.class, uuid: report.uuid };
                // An offer costs a client nothing and makes nobody a node, nor does an answer without a lease.
                match grants(&outcome.changes, report.mac) {
                    true => self.registry.granted(&client, now),
                    false => self.registry.seen(&client, now),
                }
            }
        }
        if let Some(server) = report.other_server {
            self.guard.chosen(server, report.mac, now);
        }
        if !report.known {
            self.registry.stranger(report.mac, step_of(outcome, report, now));
        }
        // Everything below allocates, and of most clients in a busy network nothing is kept.
        if !has_timeline {
            return;
        }
        let (answer, address, boot_file) = match &outcome.answer {
            Answer::Reply(reply) => {
                (Ok(reply.kind.as_str()), report.address(Some(reply)), reply.boot_file.clone())
            }
            Answer::Withheld(reply) => {
                (Err(reply.kind.withheld()), report.address(Some(reply)), reply.boot_file.clone())
            }
            Answer::Silence(silence) => (Err(silence.as_str()), report.address(None), None),
        };
        let answer = answer.map(str::to_owned).map_err(str::to_owned);
        self.record(report, answer, address, boot_file, now);
    }

    /// A station claims an address that was asked for. True if it is one that nobody is to be given.
    pub fn address_answered(
        &mut self,
        address: Ipv4Addr,
        station: MacAddr,
        batch: &mut Batch,
        now: Timestamp,
    ) -> bool {
        let changes = self.server.address_answered(address, station, now);
        let in_use = !changes.is_empty();
        if in_use {
            self.tally.count(SERVICE, IN_USE);
            tracing::warn!(
                %address, mac = %station,
                "an address of dhcp.pool is used without a lease and is set aside for an hour: give that machine a lease, or take the address out of the pool"
            );
            self.note_addresses(&changes);
            batch.changes.extend(changes);
        }
        in_use
    }

    /// The client's timeline says why its offer came later, and with another address.
    pub fn note_in_use(&self, report: &Report, address: Ipv4Addr, now: Timestamp) {
        self.record(report, Err(IN_USE.to_owned()), Some(address), None, now);
    }

    /// A machine is here that cannot boot for want of a file. It asks again and again; one line will do.
    fn tell_lacking_loader(&mut self, outcome: &Outcome) {
        let lacks = |report: &&Report| report.nothing_to_boot == Some(NothingToBoot::NoLoader);
        let Some(report) = outcome.report.as_ref().filter(lacks) else { return };
        let told = &mut self.said.without_loader;
        // As many as there are kinds of firmware, times two for iPXE on it.
        if told.contains(&report.class) {
            return;
        }
        told.push(report.class);
        let (mac, class) = (report.mac, report.class);
        match self.server.lacking_loader(class) {
            Some(file) => tracing::warn!(
                %mac, ?class, loader = %file.name,
                "a machine cannot boot, its loader is not installed: install package {}, or run `farrier image build loaders`, then reload",
                file.package
            ),
            None => {
                tracing::warn!(%mac, ?class, "a machine cannot boot, there is no loader for its firmware: [boot.loaders] can name one")
            }
        }
    }

    fn record(
        &self,
        report: &Report,
        answer: Result<String, String>,
        address: Option<Ipv4Addr>,
        boot_file: Option<String>,
        now: Timestamp,
    ) {
        let happening = Happening::Dhcp {
            port: report.mac,
            class: report.class,
            message: report.message.to_owned(),
            xid: report.xid,
            answer,
            address,
            boot_file,
            nothing_to_boot: report.nothing_to_boot,
            other_server: report.other_server,
        };
        self.registry.record(report.mac, happening, now);
    }

    /// Puts an answer into the batch: to leave at once if it rests on nothing new, else with its changes.
    fn answer(&self, outcome: Outcome, service: Service, batch: &mut Batch) {
        let Outcome { answer, changes, report, ask: _, awaits: _ } = outcome;
        let waits = !changes.is_empty();
        batch.changes.extend(changes);
        match answer {
            Answer::Silence(silence) => {
                self.tally.count(SERVICE, silence.as_str());
                outbound::log_silence(silence.as_str(), report.as_ref());
            }
            Answer::Withheld(reply) => {
                self.tally.count(SERVICE, reply.kind.withheld());
                outbound::log_silence(reply.kind.withheld(), report.as_ref());
            }
            Answer::Reply(reply) => {
                let parcel = Parcel { reply, service, report, decided_at: Instant::now() };
                if waits {
                    batch.parcels.push(parcel);
                } else {
                    batch.ready.push(parcel);
                }
            }
        }
    }

    /// Hands the batch to the store; its replies leave once it is durable. If it cannot be, `failed` runs on the store's
    /// thread, and has to bring what it is given to [`Desk::take_back`]; else it is dropped when the replies have left.
    pub fn submit(
        &mut self,
        mut batch: Batch,
        post: Arc<dyn Post>,
        now: Timestamp,
        failed: impl FnOnce(FailedBatch) + Send + 'static,
    ) {
        self.server.store_first(&mut batch.changes, now);
        let store_fails = Arc::clone(&self.said.store_fails);
        self.store.submit(
            batch.changes.clone(),
            Box::new(move |result| match result {
                Ok(()) => {
                    if store_fails.swap(false, Ordering::Relaxed) {
                        tracing::info!("leases are stored again");
                    }
                    post.send(&batch.parcels);
                    drop(failed);
                }
                Err(error) => failed(FailedBatch { batch, error }),
            }),
        );
    }

    /// Nobody was told of these grants, so they never were. Who holds a lease that is on disk is told what is left of it:
    /// with silence it would give its address up in the end, for a disk of ours that is full.
    pub fn take_back(&mut self, failed: &FailedBatch, post: &dyn Post, now: Timestamp) {
        let FailedBatch { batch: Batch { ready: _, changes, parcels, ask: _ }, error } = failed;
        let still_stored = self.server.forget(changes, now);
        if !self.said.store_fails.swap(true, Ordering::Relaxed) {
            tracing::error!(reason = %error, "leases cannot be stored: none is given or extended; those on disk are confirmed for as long as they last");
        }
        // What the store did not even take in fails ahead of what it has: nobody knows yet what will be on disk.
        let out_of_turn = matches!(error, CommitError::QueueFull { .. });
        let mut confirmed = Vec::new();
        for parcel in parcels {
            let left = left_of(parcel, &still_stored, now).filter(|_| !out_of_turn);
            match left.and_then(|left| parcel.reply.clone().without_extension(left)) {
                Some(reply) => confirmed.push(Parcel { reply, ..parcel.clone() }),
                None => {
                    self.tally.count(SERVICE, "not-durable");
                    if let Some(report) = &parcel.report {
                        self.record(report, Err("not-durable".to_owned()), None, None, now);
                    }
                }
            }
        }
        self.tally.add(SERVICE, "not-extended", confirmed.len() as u64);
        post.send(&confirmed);
    }
}

/// How long the lease that this reply would have extended lasts as it is on disk.
fn left_of(parcel: &Parcel, still_stored: &[StillStored], now: Timestamp) -> Option<Duration> {
    let (mac, address) = (parcel.report.as_ref()?.mac, parcel.reply.address?);
    let stored = still_stored.iter().find(|stored| stored.mac == mac && stored.address == address)?;
    Some(stored.until.since(now))
}

/// Whether this client's lease is among the changes.
fn grants(changes: &[Change], mac: MacAddr) -> bool {
    changes.iter().any(|change| match change.of_lease() {
        Some(LeaseChange::Put(binding)) => binding.state == BindingState::Bound && binding.mac == mac,
        Some(LeaseChange::Drop(_)) | None => false,
    })
}
