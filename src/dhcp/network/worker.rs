//! The loop of the DHCP thread.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::boot::decision::Standing;
use crate::clock::{Clock, Timestamp};
use crate::config::DhcpMode;
use crate::dhcp::network::desk::{Batch, Desk, Post};
use crate::dhcp::network::outbound::Outbound;
use crate::dhcp::network::overload::Overload;
use crate::dhcp::network::questions::Questions;
use crate::dhcp::network::{Command, Nodes, SERVICE, open_ear};
use crate::dhcp::rivals::Rivals;
use crate::dhcp::server::{Directory, Received, Service};
use crate::dhcp::wire;
use crate::guard::Guard;
use crate::net::link::{LinkWatch, Netlink};
use crate::net::overheard::Ear;
use crate::net::sys::{self, BATCH_MAX, Inbox};
use crate::net::{Bridge, MacAddr, ports};

mod probing;

/// A DHCP request fits the Ethernet MTU; what exceeds this is none.
const DATAGRAM_BYTES_MAX: usize = 2048;

/// Replies that may wait for the disk: a quarter of a second's at full speed, so that a slow sync does not stop the
/// thread. With a stalled disk it stops receiving here, and clients ask again.
const PENDING_REPLIES_MAX: usize = 4096;

/// Least time between two receives. A wake-up of the thread costs more than the work on a message, and replies to one
/// relay agent leave together: a message that comes right behind the last batch waits this long for company, one that
/// comes alone is taken at once.
const RECEIVE_PERIOD: Duration = Duration::from_millis(1);

/// Batches taken from a socket before orders and the other socket have their turn: as a rule all that is queued. What stays
/// there while more gathers would overflow the queue, and a REQUEST lost in it is an offer made for nothing.
const TURN_BATCHES: u32 = 8;

/// How long to wait for a bridge that is gone, in case its return went unnoticed; and after an error of a socket.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// How long stopping waits for commits under way; a disk that takes longer than this is broken.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Which descriptors have something to say.
#[derive(Clone, Copy, Default)]
struct Ready {
    orders: bool,
    dhcp: bool,
    boot_server: bool,
    links: bool,
    ear: bool,
}

pub(super) struct Worker {
    pub(super) desk: Desk,
    pub(super) bridge: Bridge,
    pub(super) outbound: Arc<Outbound>,
    /// The device the sockets are tied to was deleted.
    pub(super) bridge_gone: bool,
    /// Absent where we are the server.
    pub(super) ear: Option<Ear>,
    pub(super) rivals: Rivals,
    pub(super) guard: Arc<Guard>,
    pub(super) clock: Clock,
    pub(super) orders: mpsc::Receiver<Command>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) waker: Arc<EventFd>,
    pub(super) watch: LinkWatch,
    pub(super) netlink: Netlink,
    pub(super) progress: Progress,
    pub(super) questions: Questions,
}

/// What the worker remembers between turns.
#[derive(Default)]
pub(super) struct Progress {
    received_at: Option<Instant>,
    /// Replies in batches handed to the store and not yet called back.
    pending: Arc<AtomicUsize>,
    overload: Overload,
    /// Told to stop: every commit that ends is news.
    draining: Arc<AtomicBool>,
    /// A socket failed: leave it alone until then.
    pub(super) muted_until: Option<Instant>,
    /// Said once, until it is up again.
    bridge_down: bool,
}

impl Worker {
    pub(super) fn run(mut self) {
        let mut inbox = Inbox::new(BATCH_MAX, DATAGRAM_BYTES_MAX);
        let mut ordered = true;
        loop {
            if ordered && self.obey() {
                break;
            }
            self.desk.server.expire(self.clock.now());
            let ready = self.wait();
            ordered = ready.orders;
            if ready.links || self.bridge_gone {
                self.watch.clear();
                let before = self.bridge.mac;
                self.look_at_bridge();
                if self.bridge.mac != before {
                    self.announce(before);
                }
            }
            if ready.ear {
                self.listen();
            }
            if self.bridge_gone {
                continue;
            }
            let outbound = Arc::clone(&self.outbound);
            if ready.dhcp || ready.boot_server {
                self.let_gather();
            }
            if ready.dhcp {
                self.receive(&outbound, Service::Dhcp, &mut inbox);
            }
            if ready.boot_server {
                self.receive(&outbound, Service::BootServer, &mut inbox);
            }
            self.settle_questions(&outbound);
        }
        self.drain();
    }

    /// Carries out what was ordered; true when told to stop.
    fn obey(&mut self) -> bool {
        let _ = self.waker.read();
        while let Ok(command) = self.orders.try_recv() {
            match command {
                Command::Leases(answer) => {
                    self.desk.server.expire(self.clock.now());
                    let _ = answer.send(self.desk.server.leases());
                }
                Command::PoolUse(answer) => {
                    self.desk.server.expire(self.clock.now());
                    let _ = answer.send(self.desk.server.pool_use());
                }
                Command::OtherServers(answer) => {
                    let _ = answer.send(self.rivals.servers().to_vec());
                }
                Command::Reconfigure(settings) => {
                    self.desk.server.reconfigure(*settings, self.clock.now());
                    self.desk.reconfigured();
                }
                Command::InUse(address) => self.desk.server.in_use(address, self.clock.now()),
                Command::CommitFailed(failed, _done) => {
                    self.desk.take_back(&failed, &*self.outbound, self.clock.now());
                }
                Command::Stop => return true,
            }
        }
        false
    }

    fn wait(&self) -> Ready {
        let now = Instant::now();
        let muted = self.progress.muted_until.is_some_and(|until| now < until);
        let receiving = self.has_room() && !muted;
        let mut polled = vec![
            PollFd::new(self.waker.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.watch.as_fd(), PollFlags::POLLIN),
        ];
        let serving = receiving && !self.bridge_gone;
        if serving {
            for service in [Service::Dhcp, Service::BootServer] {
                polled.push(PollFd::new(self.outbound.socket(service).as_fd(), PollFlags::POLLIN));
            }
            // Who answers nobody's question need not wake us.
            if !self.questions.is_empty() {
                polled.push(PollFd::new(self.outbound.arp.as_fd(), PollFlags::POLLIN));
            }
        }
        let ear = self.ear.as_ref().filter(|_| !muted && !self.bridge_gone).map(|ear| {
            polled.push(PollFd::new(ear.as_fd(), PollFlags::POLLIN));
            polled.len() - 1
        });
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
        let (dhcp, boot_server) = (serving && ready(2), serving && ready(3));
        Ready { orders: ready(0), links: ready(1), dhcp, boot_server, ear: ear.is_some_and(ready) }
    }

    fn timeout(&self, muted: bool) -> PollTimeout {
        let until_expiry = self.desk.server.next_deadline().map(|deadline| {
            // Expiry is bookkeeping: never more often than this.
            deadline.since(self.clock.now()).max(RETRY)
        });
        let until_retry = (muted || self.bridge_gone).then_some(RETRY);
        let until_answer = (!self.bridge_gone).then(|| self.questions.due_in()).flatten();
        let earliest = until_expiry.into_iter().chain(until_retry).chain(until_answer).min();
        earliest
            .map_or(PollTimeout::NONE, |duration| PollTimeout::try_from(duration).unwrap_or(PollTimeout::MAX))
    }

    /// Moves the sockets if the device they belong to was replaced; says once when service stops and when it
    /// goes on.
    fn look_at_bridge(&mut self) {
        let bridge = &self.bridge.name;
        match (self.bridge.link(), self.bridge_gone) {
            (Some(link), false) => {
                self.bridge.mac = link.mac.unwrap_or(self.bridge.mac);
                if link.up == self.progress.bridge_down {
                    self.progress.bridge_down = !link.up;
                    match link.up {
                        true => tracing::info!(%bridge, "the bridge is up again"),
                        false => tracing::warn!(%bridge, "the bridge is down: no machine can boot"),
                    }
                }
                return;
            }
            (Some(_), true) => {}
            (None, gone) => {
                if !gone {
                    self.bridge_gone = true;
                    self.desk.tally.count(SERVICE, "bridge-gone");
                    tracing::error!(%bridge, "the bridge is gone: no machine can boot until it is back");
                }
            }
        }
        // Missing, down, or without our address: all of it may still change, and each change wakes us.
        let Ok(found) = self.bridge.again() else { return };
        let moved =
            self.outbound.moved_to(&found).and_then(|moved| Ok((moved, open_ear(&found, self.desk.mode)?)));
        match moved {
            Ok((outbound, ear)) => {
                tracing::info!(%bridge, "the bridge is back");
                self.bridge = found;
                self.bridge_gone = false;
                self.progress.bridge_down = false;
                self.outbound = Arc::new(outbound);
                self.ear = ear;
            }
            Err(error) => {
                let reason = &error as &dyn std::error::Error;
                tracing::error!(%bridge, reason, "DHCP cannot return to the bridge");
            }
        }
    }

    /// A bridge that was given no MAC has its ports' lowest, so that a port that comes or goes may change it, and one that
    /// is made anew has another. Whoever knew us would go on sending to the old one until the entry ages, half a minute of
    /// a download's time.
    fn announce(&self, before: MacAddr) {
        let Bridge { name, mac, .. } = &self.bridge;
        self.desk.tally.count(SERVICE, "mac-changed");
        tracing::warn!(
            bridge = %name, %before, now = %mac,
            "the bridge's MAC has changed, as it does with its ports: `ip link set {name} address {mac}` keeps this one"
        );
        if self.desk.mode != DhcpMode::Observe {
            self.outbound.arp.announce(*mac, self.bridge.ip());
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

    /// Serves what is queued at the socket of this service.
    fn receive(&mut self, outbound: &Arc<Outbound>, service: Service, inbox: &mut Inbox) {
        for number in 0..TURN_BATCHES {
            if !self.has_room() || !self.fill(inbox, outbound.socket(service)) {
                return;
            }
            if number == 0 {
                self.progress.overload.turn_begins(inbox.is_full());
            }
            self.serve_batch(outbound, service, inbox, number);
            if !inbox.is_full() {
                return;
            }
        }
    }

    /// Whether replies that wait for the disk leave room for others.
    fn has_room(&self) -> bool {
        self.progress.pending.load(Ordering::SeqCst) < PENDING_REPLIES_MAX
    }

    /// True if something has come.
    fn fill(&mut self, inbox: &mut Inbox, socket: &UdpSocket) -> bool {
        match sys::recv_batch(socket, inbox) {
            Ok(_) => {
                self.progress.muted_until = None;
                true
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                false
            }
            Err(error) => {
                self.desk.tally.count(SERVICE, "receive-failed");
                if self.progress.muted_until.is_none() {
                    tracing::error!(bridge = %self.bridge.name, reason = %error, "receiving failed");
                }
                self.progress.muted_until = Some(Instant::now() + RETRY);
                false
            }
        }
    }

    /// `number` counts the batches of this turn.
    fn serve_batch(&mut self, outbound: &Arc<Outbound>, service: Service, inbox: &Inbox, number: u32) {
        let now = self.clock.now();
        self.desk.server.hold(self.guard.holds());
        let mut batch = Batch::default();
        let mut room = self.progress.overload.room_for_strangers(number, || {
            inbox.iter().filter(|(_, bytes)| wire::discover_of(bytes).is_none()).count()
        });
        for (arrival, bytes) in inbox.iter() {
            if arrival.truncated {
                self.desk.tally.count(SERVICE, "oversized");
                continue;
            }
            if self.guard.is_own_probe(bytes) {
                self.desk.tally.count(SERVICE, "own-probe");
                continue;
            }
            if let Some(room) = &mut room
                && self.is_stranger_starting(bytes, now)
            {
                if *room == 0 {
                    self.desk.tally.count(SERVICE, "shed");
                    continue;
                }
                *room -= 1;
            }
            let received =
                Received { bytes, source: arrival.source, destination: arrival.destination, service };
            self.serve(&received, now, &mut batch);
        }
        self.dispatch(batch, outbound);
    }

    fn serve(&mut self, received: &Received<'_>, now: Timestamp, batch: &mut Batch) {
        let registry = &*Arc::clone(&self.desk.registry);
        let ground = Ground { registry, netlink: &self.netlink, bridge: self.bridge.index };
        if let Some(put_aside) = self.desk.handle(received, &ground, batch, now) {
            self.questions.hold(put_aside.until, received, put_aside.report);
        }
    }

    /// What need not wait leaves; the rest goes to the store.
    fn dispatch(&mut self, mut batch: Batch, outbound: &Arc<Outbound>) {
        self.questions.ask(&outbound.arp, self.bridge.mac, &std::mem::take(&mut batch.ask));
        outbound.send(&std::mem::take(&mut batch.ready));
        self.submit(batch, outbound);
    }

    fn is_stranger_starting(&self, bytes: &[u8], now: Timestamp) -> bool {
        wire::discover_of(bytes)
            .is_some_and(|mac| matches!(self.desk.registry.standing(MacAddr(mac), now), Standing::Stranger))
    }

    fn submit(&mut self, batch: Batch, outbound: &Arc<Outbound>) {
        if batch.changes.is_empty() && batch.parcels.is_empty() {
            return;
        }
        let weight = batch.weight();
        self.progress.pending.fetch_add(weight, Ordering::SeqCst);
        let done = Done {
            weight,
            pending: Arc::clone(&self.progress.pending),
            draining: Arc::clone(&self.progress.draining),
            waker: Arc::clone(&self.waker),
        };
        let commands = self.commands.clone();
        let post = Arc::clone(outbound);
        let now = self.clock.now();
        self.desk.submit(batch, post, now, move |failed| {
            let waker = Arc::clone(&done.waker);
            let _ = commands.send(Command::CommitFailed(failed, done));
            let _ = waker.write(1);
        });
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

/// The registry, and what the kernel knows of the bridge.
struct Ground<'a> {
    registry: &'a dyn Nodes,
    netlink: &'a Netlink,
    bridge: u32,
}

impl Directory for Ground<'_> {
    fn standing(&self, mac: MacAddr, now: Timestamp) -> Standing {
        self.registry.standing(mac, now)
    }

    fn reserved_for(&self, address: Ipv4Addr) -> Option<MacAddr> {
        self.registry.reserved_for(address)
    }

    fn behind(&self, mac: MacAddr) -> Option<u32> {
        ports::behind(self.netlink, self.bridge, mac).ok().flatten()
    }
}

/// One batch's weight among the pending; given back when its replies have left, when the server has forgotten what
/// failed, or when the store dropped it without a word.
pub(super) struct Done {
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
