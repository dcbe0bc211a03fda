//! The loop of the DHCP thread.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::boot::client::{Client, ClientClass};
use crate::boot::decision::{NothingToBoot, Standing};
use crate::clock::{Clock, Timestamp};
use crate::dhcp::address_book::AddressBook;
use crate::dhcp::lease::{BindingState, PoolUse};
use crate::dhcp::network::clones::Clones;
use crate::dhcp::network::outbound::{self, Outbound, Parcel};
use crate::dhcp::network::{Command, Nodes, SERVICE, step_of};
use crate::dhcp::server::{Answer, DhcpServer, Outcome, Received, ReplyKind, Report, Service, Silence};
use crate::dhcp::wire;
use crate::net::link::LinkWatch;
use crate::net::sys::{self, BATCH_MAX, Inbox};
use crate::net::{Bridge, MacAddr};
use crate::node::timeline::Happening;
use crate::store::{Change, CommitError, Store};
use crate::telemetry::Tally;

/// A DHCP request fits the Ethernet MTU; what exceeds this is none.
const DATAGRAM_BYTES_MAX: usize = 2048;

/// Replies that may wait for the disk: a quarter of a second's at full speed, so that a slow sync does not stop the
/// thread. With a stalled disk it stops receiving here, and clients ask again.
const PENDING_REPLIES_MAX: usize = 4096;

/// Least time between two receives. A wake-up of the thread costs more than the work on a message: a message that
/// comes right behind the last batch waits this long for company, one that comes alone is taken at once.
const RECEIVE_PERIOD: Duration = Duration::from_micros(250);

/// How long to wait for a bridge that is gone, in case its return went unnoticed; and after an error of a socket.
const RETRY: Duration = Duration::from_secs(1);

/// How long stopping waits for commits under way; a disk that takes longer than this is broken.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// What one receive asks of the disk, and what leaves once that is done.
#[derive(Default)]
struct Batch {
    /// Replies that rest on nothing new.
    ready: Vec<Parcel>,
    changes: Vec<Change>,
    parcels: Vec<Parcel>,
}

/// Which descriptors have something to say.
#[derive(Clone, Copy, Default)]
struct Ready {
    orders: bool,
    dhcp: bool,
    boot_server: bool,
    links: bool,
}

pub(super) struct Worker {
    pub(super) server: DhcpServer,
    pub(super) bridge: Bridge,
    /// Absent while the bridge is gone.
    pub(super) outbound: Option<Arc<Outbound>>,
    pub(super) registry: Arc<dyn Nodes>,
    pub(super) store: Arc<dyn Store>,
    pub(super) addresses: Arc<AddressBook>,
    pub(super) tally: Arc<Tally>,
    pub(super) clock: Clock,
    pub(super) orders: mpsc::Receiver<Command>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) waker: Arc<EventFd>,
    pub(super) watch: LinkWatch,
    pub(super) progress: Progress,
}

/// What the worker remembers between turns.
#[derive(Default)]
pub(super) struct Progress {
    received_at: Option<Instant>,
    /// Replies in batches handed to the store and not yet called back.
    pending: Arc<AtomicUsize>,
    /// Receives in a row that filled the inbox.
    full_batches: u32,
    /// Told to stop: every commit that ends is news.
    draining: Arc<AtomicBool>,
    /// A socket failed: leave it alone until then.
    muted_until: Option<Instant>,
    /// Said once, until it is up again.
    bridge_down: bool,
    /// Said once, until there is an address to give again.
    pool_exhausted: bool,
    /// Said once, until a commit succeeds; the store's thread takes it back.
    store_fails: Arc<AtomicBool>,
    /// Client identifiers granted so far.
    clones: Clones,
    /// Kinds of client already reported as having no loader; said once per configuration.
    without_loader: Vec<ClientClass>,
}

impl Worker {
    pub(super) fn run(mut self) {
        let mut inbox = Inbox::new(BATCH_MAX, DATAGRAM_BYTES_MAX);
        let mut ordered = true;
        loop {
            if ordered && self.obey() {
                break;
            }
            self.server.expire(self.clock.now());
            let ready = self.wait();
            ordered = ready.orders;
            if ready.links || self.outbound.is_none() {
                self.watch.clear();
                self.look_at_bridge();
            }
            let Some(outbound) = self.outbound.clone() else { continue };
            if ready.dhcp || ready.boot_server {
                self.let_gather();
            }
            if ready.dhcp {
                self.receive(&outbound, Service::Dhcp, &mut inbox);
            }
            if ready.boot_server {
                self.receive(&outbound, Service::BootServer, &mut inbox);
            }
        }
        self.drain();
    }

    /// Carries out what was ordered; true when told to stop.
    fn obey(&mut self) -> bool {
        let _ = self.waker.read();
        while let Ok(command) = self.orders.try_recv() {
            match command {
                Command::Leases(answer) => {
                    self.server.expire(self.clock.now());
                    let _ = answer.send(self.server.leases());
                }
                Command::PoolUse(answer) => {
                    self.server.expire(self.clock.now());
                    let _ = answer.send(self.server.pool_use());
                }
                Command::Reconfigure(settings) => {
                    self.server.reconfigure(*settings, self.clock.now());
                    self.progress.without_loader.clear();
                }
                Command::InUse(address) => self.server.in_use(address, self.clock.now()),
                Command::CommitFailed(failed) => self.take_back(&failed),
                Command::Stop => return true,
            }
        }
        false
    }

    fn wait(&self) -> Ready {
        let now = Instant::now();
        let muted = self.progress.muted_until.is_some_and(|until| now < until);
        let receiving = self.progress.pending.load(Ordering::SeqCst) < PENDING_REPLIES_MAX && !muted;
        let sockets = self.outbound.as_ref().filter(|_| receiving);
        let mut polled = vec![
            PollFd::new(self.waker.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.watch.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(outbound) = sockets {
            polled.push(PollFd::new(outbound.dhcp.as_fd(), PollFlags::POLLIN));
            polled.push(PollFd::new(outbound.boot_server.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut polled, self.timeout(muted)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                // Out of memory, at most; the loop goes on, at a walking pace.
                tracing::error!(reason = %error, "waiting for requests failed");
                thread::park_timeout(RETRY);
            }
        }
        let ready = |index: usize| {
            polled.get(index).and_then(PollFd::revents).is_some_and(|events| !events.is_empty())
        };
        Ready { orders: ready(0), links: ready(1), dhcp: ready(2), boot_server: ready(3) }
    }

    fn timeout(&self, muted: bool) -> PollTimeout {
        let until_expiry = self.server.next_deadline().map(|deadline| {
            // Expiry is bookkeeping: never more often than this.
            deadline.since(self.clock.now()).max(RETRY)
        });
        let until_retry = (muted || self.outbound.is_none()).then_some(RETRY);
        let earliest = until_expiry.into_iter().chain(until_retry).min();
        earliest
            .map_or(PollTimeout::NONE, |duration| PollTimeout::try_from(duration).unwrap_or(PollTimeout::MAX))
    }

    /// Opens the sockets anew if the device they belong to was replaced; says once when service stops and when it
    /// goes on.
    fn look_at_bridge(&mut self) {
        let bridge = &self.bridge.name;
        match (self.bridge.link(), &self.outbound) {
            (Some(link), Some(_)) => {
                if link.up == self.progress.bridge_down {
                    self.progress.bridge_down = !link.up;
                    match link.up {
                        true => tracing::info!(%bridge, "the bridge is up again"),
                        false => tracing::warn!(%bridge, "the bridge is down: no machine can boot"),
                    }
                }
                return;
            }
            (Some(_), None) => {}
            (None, _) => {
                if self.outbound.take().is_some() {
                    self.tally.count(SERVICE, "bridge-gone");
                    tracing::error!(%bridge, "the bridge is gone: no machine can boot until it is back");
                }
            }
        }
        // Missing, down, or without our address: all of it may still change, and each change wakes us.
        let Ok(found) = Bridge::find(&self.bridge.name, self.bridge.address) else { return };
        if let Ok(outbound) = Outbound::open(&found, &self.tally) {
            tracing::info!(%bridge, "the bridge is back");
            self.bridge = found;
            self.progress.bridge_down = false;
            self.outbound = Some(Arc::new(outbound));
        }
    }

    /// See [`RECEIVE_PERIOD`].
    fn let_gather(&mut self) {
        if let Some(rest) = self.progress.received_at.and_then(|at| RECEIVE_PERIOD.checked_sub(at.elapsed()))
        {
            thread::park_timeout(rest);
        }
        self.progress.received_at = Some(Instant::now());
    }

    fn receive(&mut self, outbound: &Arc<Outbound>, service: Service, inbox: &mut Inbox) {
        match sys::recv_batch(outbound.socket(service), inbox) {
            Ok(_) => self.progress.muted_until = None,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return;
            }
            Err(error) => {
                self.tally.count(SERVICE, "receive-failed");
                if self.progress.muted_until.is_none() {
                    tracing::error!(bridge = %self.bridge.name, reason = %error, "receiving failed");
                }
                self.progress.muted_until = Some(Instant::now() + RETRY);
                return;
            }
        }
        let now = self.clock.now();
        let mut batch = Batch::default();
        let mut room = self.room_for_strangers(inbox);
        for (arrival, bytes) in inbox.iter() {
            if arrival.truncated {
                self.tally.count(SERVICE, "oversized");
                continue;
            }
            if let Some(room) = &mut room
                && self.is_stranger_starting(bytes, now)
            {
                if *room == 0 {
                    self.tally.count(SERVICE, "shed");
                    continue;
                }
                *room -= 1;
            }
            let received =
                Received { bytes, source: arrival.source, destination: arrival.destination, service };
            let outcome = self.server.handle(&received, &*self.registry, now);
            self.watch_pool(&outcome);
            self.take_note(&outcome, now);
            self.tell_lacking_loader(&outcome);
            self.answer(outcome, service, &mut batch);
        }
        outbound.send(&std::mem::take(&mut batch.ready));
        self.submit(batch, outbound);
    }

    /// An empty pool is no error of any one request, and the operator's to mend.
    fn watch_pool(&mut self, outcome: &Outcome) {
        let exhausted = outcome.answer == Answer::Silence(Silence::PoolExhausted);
        if exhausted && !self.progress.pool_exhausted {
            let PoolUse { size, bound, offered, quarantined } = self.server.pool_use();
            tracing::warn!(
                size,
                bound,
                offered,
                quarantined,
                "no address is left for new machines: enlarge dhcp.pool, or shorten dhcp.lease"
            );
            self.progress.pool_exhausted = true;
        } else if self.progress.pool_exhausted && matches!(outcome.answer, Answer::Reply(_)) {
            let PoolUse { size, bound, offered, quarantined } = self.server.pool_use();
            self.progress.pool_exhausted = bound + offered + quarantined >= size;
        }
    }

    /// While requests queue up: how many strangers of this batch are offered an address. Otherwise `None`.
    ///
    /// Every message that waits in the kernel's queue keeps another out of it, and an offer whose REQUEST is lost there
    /// is work for nothing. So under overload as many exchanges are begun as are being finished, and a few more, should
    /// there be room; strangers left out ask again in seconds. Known nodes are not counted.
    fn room_for_strangers(&mut self, inbox: &Inbox) -> Option<usize> {
        /// Full batches in a row that are an overload and no burst: a rack switched on is fewer messages.
        const OVERLOAD_BATCHES: u32 = 16;
        /// Begun beyond those that finish.
        const MORE: usize = 4;
        let received = inbox.iter().count();
        self.progress.full_batches =
            if received < BATCH_MAX { 0 } else { self.progress.full_batches.saturating_add(1) };
        if self.progress.full_batches < OVERLOAD_BATCHES {
            return None;
        }
        let starting = inbox.iter().filter(|(_, bytes)| wire::discover_of(bytes).is_some()).count();
        Some(received - starting + MORE)
    }

    fn is_stranger_starting(&self, bytes: &[u8], now: Timestamp) -> bool {
        wire::discover_of(bytes)
            .is_some_and(|mac| matches!(self.registry.standing(MacAddr(mac), now), Standing::Stranger))
    }

    /// Tells the rest of the appliance what came of a request, before anybody on the wire knows.
    fn take_note(&mut self, outcome: &Outcome, now: Timestamp) {
        for change in &outcome.changes {
            match change {
                Change::PutBinding(binding) => match binding.state {
                    BindingState::Bound => {
                        self.addresses.set(binding.address, binding.mac);
                        if let Some(other) = self.progress.clones.note(binding) {
                            tracing::warn!(mac = %binding.mac, %other, "{} and {other} have the same client identifier: installed from one image? each has an address of its own", binding.mac);
                        }
                    }
                    BindingState::Released | BindingState::Quarantined => {
                        self.addresses.clear(binding.address)
                    }
                },
                Change::DropBinding { address } => self.addresses.clear(*address),
                Change::PutNode(_)
                | Change::DropNode(_)
                | Change::PutEvent(_)
                | Change::DropBoot { .. }
                | Change::PutSecret { .. }
                | Change::PutToken(_)
                | Change::DropToken(_)
                | Change::PutAudit(_)
                | Change::DropAuditBelow { .. } => {}
            }
        }
        let Some(report) = &outcome.report else { return };
        let mut has_timeline = report.known;
        if let Answer::Reply(reply) = &outcome.answer {
            // Grants came with the changes. What else names an address (port 4011, INFORM) has it from the client.
            if let (ReplyKind::Offer, Some(address)) = (reply.kind, reply.address) {
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
        if !report.known {
            self.registry.stranger(report.mac, step_of(outcome, report, now));
        }
        // Everything below allocates, and of most clients in a busy network nothing is kept.
        if !has_timeline {
            return;
        }
        let (answer, address, boot_file) = match &outcome.answer {
            Answer::Reply(reply) => {
                (Ok(reply.kind.as_str().to_owned()), reply.address, reply.boot_file.clone())
            }
            Answer::Silence(silence) => (Err(silence.as_str().to_owned()), None, None),
        };
        self.record(report, answer, address, boot_file, now);
    }

    /// A machine is here that cannot boot for want of a file. It asks again and again; one line will do.
    fn tell_lacking_loader(&mut self, outcome: &Outcome) {
        let lacks = |report: &&Report| report.nothing_to_boot == Some(NothingToBoot::NoLoader);
        let Some(report) = outcome.report.as_ref().filter(lacks) else { return };
        let told = &mut self.progress.without_loader;
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
        let Outcome { answer, changes, report } = outcome;
        let waits = !changes.is_empty();
        batch.changes.extend(changes);
        match answer {
            Answer::Silence(silence) => {
                self.tally.count(SERVICE, silence.as_str());
                outbound::log_silence(silence, report.as_ref());
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

    fn submit(&mut self, batch: Batch, outbound: &Arc<Outbound>) {
        if batch.changes.is_empty() && batch.parcels.is_empty() {
            return;
        }
        // A batch without replies waits as well.
        let weight = batch.parcels.len().max(1);
        self.progress.pending.fetch_add(weight, Ordering::SeqCst);
        let done = Done {
            weight,
            pending: Arc::clone(&self.progress.pending),
            draining: Arc::clone(&self.progress.draining),
            waker: Arc::clone(&self.waker),
        };
        let outbound = Arc::clone(outbound);
        let commands = self.commands.clone();
        let store_fails = Arc::clone(&self.progress.store_fails);
        self.store.submit(
            batch.changes.clone(),
            Box::new(move |result| match result {
                Ok(()) => {
                    if store_fails.swap(false, Ordering::Relaxed) {
                        tracing::info!("leases are stored again");
                    }
                    outbound.send(&batch.parcels);
                    drop(done);
                }
                Err(error) => {
                    let waker = Arc::clone(&done.waker);
                    let _ = commands.send(Command::CommitFailed(FailedBatch { batch, error, _done: done }));
                    let _ = waker.write(1);
                }
            }),
        );
    }

    /// Nobody was told of these grants, so they never were.
    fn take_back(&mut self, failed: &FailedBatch) {
        let FailedBatch { batch: Batch { ready: _, changes, parcels }, error, _done } = failed;
        let now = self.clock.now();
        self.server.forget(changes, now);
        if !self.progress.store_fails.swap(true, Ordering::Relaxed) {
            tracing::error!(reason = %error, "leases cannot be stored, so none is given");
        }
        self.tally.add(SERVICE, "not-durable", parcels.len() as u64);
        for report in parcels.iter().filter_map(|parcel| parcel.report.as_ref()) {
            self.record(report, Err("not-durable".to_owned()), None, None, now);
        }
    }

    /// Waits for commits under way; their replies leave meanwhile.
    fn drain(mut self) {
        let until = Instant::now() + DRAIN_MAX;
        self.progress.draining.store(true, Ordering::SeqCst);
        loop {
            self.obey();
            if self.progress.pending.load(Ordering::SeqCst) == 0 {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::error!("the store did not finish: some leases were neither stored nor given");
                return;
            }
            let mut polled = [PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        }
    }
}

/// Whether this client's lease is among the changes.
fn grants(changes: &[Change], mac: MacAddr) -> bool {
    changes.iter().any(|change| match change {
        Change::PutBinding(binding) => binding.state == BindingState::Bound && binding.mac == mac,
        Change::DropBinding { .. }
        | Change::PutNode(_)
        | Change::DropNode(_)
        | Change::PutEvent(_)
        | Change::DropBoot { .. }
        | Change::PutSecret { .. }
        | Change::PutToken(_)
        | Change::DropToken(_)
        | Change::PutAudit(_)
        | Change::DropAuditBelow { .. } => false,
    })
}

/// What the disk refused; it counts as pending until the server has forgotten it.
pub(super) struct FailedBatch {
    batch: Batch,
    error: CommitError,
    _done: Done,
}

/// One batch's weight among the pending; given back when its callback has run, or is dropped without.
struct Done {
    weight: usize,
    pending: Arc<AtomicUsize>,
    draining: Arc<AtomicBool>,
    waker: Arc<EventFd>,
}

impl Drop for Done {
    fn drop(&mut self) {
        let before = self.pending.fetch_sub(self.weight, Ordering::SeqCst);
        // The thread may be waiting for just that: to receive again, or to drain. Otherwise each commit would wake it
        // for nothing.
        if before >= PENDING_REPLIES_MAX || self.draining.load(Ordering::SeqCst) {
            let _ = self.waker.write(1);
        }
    }
}
