//! The appliance without sockets, threads and clock: its cores, put together as `appliance.rs` of the product does it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use farrier::boot::loader::LoaderTable;
use farrier::bootplane::agent_calls::{AgentCalls, InstallParts};
use farrier::bootplane::content::{BootContent, ContentParts, ScriptSettings, Ticket};
use farrier::bootplane::profiles::ProfileDesk;
use farrier::clock::{Clock, Timestamp};
use farrier::config::{DhcpMode, OnRival};
use farrier::dhcp::address_book::AddressBook;
use farrier::dhcp::lease::BindingState;
use farrier::dhcp::network::desk::{Batch, Desk, FailedBatch, Parcel, Post, Said};
use farrier::dhcp::server::{DhcpServer, Received, Service, Settings};
use farrier::guard::Guard;
use farrier::image::library::{Library, Manifest};
use farrier::image::loaders::Loaders;
use farrier::node::registry::{NodeRef, Registry, RegistrySettings};
use farrier::node::timeline::{FileOutcome, Transport};
use farrier::node::token::TokenKey;
use farrier::storm::http::{Answer, Method};
use farrier::telemetry::Tally;
use farrier::tftp::transfer::{Limits, Transfer, Transmit};
use farrier::tftp::wire::{self, ErrorCode};

use crate::disk::{Disk, Progress};

pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const TFTP_PORT: u16 = 69;
/// Loaders are cut to a few blocks: what is installed here must not change what a seed does.
const LOADER_BYTES: usize = 5000;
const IMAGE_BYTES: usize = 9000;
/// Transfers keep to ports of their own.
const FIRST_TID: u16 = 20_000;

/// Files that all seeds serve.
pub struct Shelf {
    loaders: Loaders,
    library: Arc<Library>,
    _folder: tempfile::TempDir,
}

pub static SHELF: LazyLock<Shelf> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let table = LoaderTable::built_in();
    for file in table.files() {
        let place = folder.path().join("loaders").join(file.path.strip_prefix("/").unwrap_or(&file.path));
        std::fs::create_dir_all(place.parent().unwrap_or(Path::new("/"))).expect("a folder");
        std::fs::write(place, vec![7; LOADER_BYTES]).expect("a file");
    }
    let library = Library::open(folder.path()).expect("a library");
    let image = vec![9; IMAGE_BYTES];
    let manifest = Manifest {
        profile: "vm".to_owned(),
        kernel: library.add(&mut image.as_slice()).expect("a kernel"),
        ramdisk: library.add(&mut &image[1..]).expect("a ramdisk"),
        arguments: Vec::new(),
        built_from: BTreeMap::new(),
    };
    library.publish(&manifest).expect("a profile");
    Shelf { loaders: Loaders::read(table, folder.path()), library: Arc::new(library), _folder: folder }
});

/// Replies that have left, and leases that could not be stored; the simulation takes both out after each step.
#[derive(Default)]
pub struct Outbox {
    pub sent: Mutex<Vec<(Parcel, bool)>>,
    pub failed: Mutex<Vec<(FailedBatch, usize)>>,
    /// Replies that wait for the disk.
    pub waiting: AtomicUsize,
}

/// Replies out of memory, and those that waited for the disk.
struct Hatch {
    outbox: Arc<Outbox>,
    waited: bool,
}

impl Post for Hatch {
    fn send(&self, parcels: &[Parcel]) {
        let mut sent = self.outbox.sent.lock().expect("the outbox");
        sent.extend(parcels.iter().map(|parcel| (parcel.clone(), self.waited)));
        if self.waited {
            self.outbox.waiting.fetch_sub(parcels.len(), Ordering::Relaxed);
        }
    }
}

/// A call that may wait for the disk, on a thread of its own. The simulation lets one run until it waits, and takes
/// its answer with the sync that its batch was in: threads are how calls are written, not how they are scheduled.
pub struct Call<T> {
    thread: thread::JoinHandle<T>,
}

impl<T> Call<T> {
    pub fn end(self) -> T {
        self.thread.join().expect("a call does not panic")
    }
}

pub enum Begun<T> {
    Done(T),
    Waits(Call<T>),
}

struct Serving {
    transfer: Transfer,
    request: Vec<u8>,
    ticket: Ticket,
    tid: u16,
    began: Instant,
}

pub struct Appliance {
    pub desk: Desk,
    pub registry: Arc<Registry>,
    pub tally: Arc<Tally>,
    pub outbox: Arc<Outbox>,
    disk: Arc<Disk>,
    content: Arc<BootContent>,
    agents: Arc<AgentCalls>,
    transfers: BTreeMap<SocketAddrV4, Serving>,
    next_tid: u16,
    /// DHCP datagrams taken in.
    pub received: u64,
    pub sent: u64,
    in_use: Arc<Mutex<Vec<Ipv4Addr>>>,
}

impl Appliance {
    pub fn start(
        disk: &Arc<Disk>,
        settings: Settings,
        registry: RegistrySettings,
        now: Timestamp,
    ) -> Appliance {
        let mut snapshot = disk.snapshot();
        let bindings = std::mem::take(&mut snapshot.bindings);
        let key = TokenKey::from_bytes([7; 32]);
        let store: Arc<Disk> = Arc::clone(disk);
        let registry = Arc::new(Registry::new(Arc::clone(&store) as _, snapshot, registry, key));
        let leased = bindings.iter().filter(|binding| binding.is_live(now)).map(|binding| binding.mac);
        registry.started(leased, now);
        let addresses = Arc::new(AddressBook::default());
        for binding in bindings.iter().filter(|binding| binding.state == BindingState::Bound) {
            addresses.set(binding.address, binding.mac);
        }
        let tally = Arc::new(Tally::default());
        let in_use: Arc<Mutex<Vec<Ipv4Addr>>> = Arc::default();
        let clock = Clock::start();
        let content = Arc::new(BootContent::new(ContentParts {
            settings: ScriptSettings { server: SERVER, profile: "vm".to_owned(), arguments: Vec::new() },
            loaders: SHELF.loaders.clone(),
            library: Arc::clone(&SHELF.library),
            profiles: Arc::new(ProfileDesk::new(
                Vec::new(),
                Arc::clone(&SHELF.library),
                Arc::clone(&store) as _,
            )),
            registry: Arc::clone(&registry),
            addresses: Arc::clone(&addresses),
            in_use: {
                let in_use = Arc::clone(&in_use);
                Arc::new(move |address| in_use.lock().expect("addresses").push(address))
            },
            tally: Arc::clone(&tally),
            clock,
        }));
        let agents = AgentCalls::new(
            Arc::clone(&registry),
            Arc::clone(&addresses),
            Arc::clone(&tally),
            clock,
            InstallParts::none(),
        );
        let server = DhcpServer::restarted(settings, bindings, now);
        let desk = Desk {
            mode: DhcpMode::Server,
            guard: Arc::new(Guard::new(OnRival::Warn).expect("randomness")),
            server,
            registry: Arc::clone(&registry) as _,
            store: store as _,
            addresses,
            tally: Arc::clone(&tally),
            said: Said::default(),
        };
        Appliance {
            desk,
            registry,
            tally,
            outbox: Arc::default(),
            disk: Arc::clone(disk),
            content,
            agents: Arc::new(agents),
            transfers: BTreeMap::new(),
            next_tid: FIRST_TID,
            received: 0,
            sent: 0,
            in_use,
        }
    }

    // --- DHCP ---------------------------------------------------------------------------------------------------------

    /// What the DHCP thread does with one receive.
    pub fn dhcp(&mut self, datagrams: &[(Vec<u8>, SocketAddrV4, Ipv4Addr)], now: Timestamp) {
        for address in std::mem::take(&mut *self.in_use.lock().expect("addresses")) {
            self.desk.server.in_use(address, now);
        }
        let mut batch = Batch::default();
        let directory = Arc::clone(&self.desk.registry);
        for (bytes, source, destination) in datagrams {
            let received =
                Received { bytes, source: *source, destination: *destination, service: Service::Dhcp };
            self.received += 1;
            let put_aside = self.desk.handle(&received, &*directory, &mut batch, now);
            assert!(put_aside.is_none(), "no wire to ask");
        }
        let hatch = |waited| Arc::new(Hatch { outbox: Arc::clone(&self.outbox), waited });
        hatch(false).send(&std::mem::take(&mut batch.ready));
        if batch.changes.is_empty() && batch.parcels.is_empty() {
            return;
        }
        let outbox = Arc::clone(&self.outbox);
        let parcels = batch.parcels.len();
        outbox.waiting.fetch_add(parcels, Ordering::Relaxed);
        self.desk.submit(batch, hatch(true), now, move |failed| {
            outbox.failed.lock().expect("the outbox").push((failed, parcels));
        });
    }

    /// Leases that could not be stored are forgotten, as the thread does when it is told.
    pub fn take_back(&mut self, now: Timestamp) {
        let failed = std::mem::take(&mut *self.outbox.failed.lock().expect("the outbox"));
        let hatch = Hatch { outbox: Arc::clone(&self.outbox), waited: false };
        for (failed, parcels) in failed {
            self.desk.take_back(&failed, &hatch, now);
            self.outbox.waiting.fetch_sub(parcels, Ordering::Relaxed);
        }
    }

    /// Invariant 3: how many datagrams of DHCP neither were answered nor have a named reason for silence, nor wait.
    pub fn unaccounted(&self) -> i64 {
        // What was confirmed without being extended was sent as well.
        let silences = |row: &&_| matches!(row, ("dhcp", reason, _) if *reason != "not-extended");
        let silent: u64 = self.tally.snapshot().iter().filter(silences).map(|row| row.2).sum();
        let waiting = self.outbox.waiting.load(Ordering::Relaxed) as u64;
        self.received as i64 - (silent + self.sent + waiting) as i64
    }

    // --- TFTP ---------------------------------------------------------------------------------------------------------

    /// A datagram to port 69 or to a transfer's port; what is sent in turn.
    pub fn tftp(
        &mut self,
        from: SocketAddrV4,
        port: u16,
        bytes: &[u8],
        now: Instant,
        wall: Timestamp,
    ) -> Vec<(u16, Vec<u8>)> {
        if port != TFTP_PORT {
            let Some(serving) = self.transfers.get_mut(&from).filter(|it| it.tid == port) else {
                return Vec::new();
            };
            serving.transfer.handle_datagram(bytes, now);
            return self.flush(from, now, wall);
        }
        let Ok(request) = wire::parse_request(bytes) else { return Vec::new() };
        if let Some(serving) = self.transfers.get_mut(&from).filter(|it| it.request == bytes) {
            serving.transfer.handle_repeated_request(now);
            return self.flush(from, now, wall);
        }
        self.end_transfer(from, now, wall);
        let Ok(served) = self.content.open(*from.ip(), request.name, Transport::Tftp, wall) else {
            return vec![(TFTP_PORT, wire::emit_error(ErrorCode::FileNotFound, "not found"))];
        };
        let limits = Limits { blksize_max: 1468, windowsize_max: 64 };
        self.content.began(&served.ticket, wall);
        let content = served.bytes.slice(..served.bytes.len().min(LOADER_BYTES));
        let transfer = Transfer::new(&request, &limits, content, now);
        let tid = self.next_tid;
        self.next_tid = self.next_tid.wrapping_add(1).max(FIRST_TID);
        let serving = Serving { transfer, request: bytes.to_vec(), ticket: served.ticket, tid, began: now };
        self.transfers.insert(from, serving);
        self.flush(from, now, wall)
    }

    pub fn tftp_deadline(&self) -> Option<Instant> {
        self.transfers.values().filter_map(|serving| serving.transfer.next_deadline()).min()
    }

    pub fn tftp_timers(&mut self, now: Instant, wall: Timestamp) -> Vec<(SocketAddrV4, u16, Vec<u8>)> {
        let due: Vec<SocketAddrV4> = self
            .transfers
            .iter()
            .filter(|(_, serving)| serving.transfer.next_deadline().is_some_and(|at| at <= now))
            .map(|(peer, _)| *peer)
            .collect();
        let mut sent = Vec::new();
        for peer in due {
            if let Some(serving) = self.transfers.get_mut(&peer) {
                serving.transfer.handle_timeout(now);
            }
            sent.extend(self.flush(peer, now, wall).into_iter().map(|(port, bytes)| (peer, port, bytes)));
        }
        sent
    }

    pub fn transfers(&self) -> usize {
        self.transfers.len()
    }

    fn flush(&mut self, peer: SocketAddrV4, now: Instant, wall: Timestamp) -> Vec<(u16, Vec<u8>)> {
        let mut sent = Vec::new();
        let Some(serving) = self.transfers.get_mut(&peer) else { return sent };
        while let Some(transmit) = serving.transfer.poll_transmit() {
            match transmit {
                Transmit::OptionAck(bytes) => sent.push((serving.tid, bytes.to_vec())),
                Transmit::Blocks(burst) => sent.extend(
                    burst.segments().map(|(header, data)| (serving.tid, [&header[..], data].concat())),
                ),
            }
        }
        if serving.transfer.outcome().is_some() {
            self.end_transfer(peer, now, wall);
        }
        sent
    }

    fn end_transfer(&mut self, peer: SocketAddrV4, now: Instant, wall: Timestamp) {
        let Some(Serving { transfer, ticket, began, .. }) = self.transfers.remove(&peer) else { return };
        let outcome = transfer.outcome().cloned().unwrap_or_else(|| transfer.outcome_if_abandoned());
        let took = now.saturating_duration_since(began);
        self.content.finished(&ticket, transfer.acknowledged(), took, outcome, wall);
    }

    // --- HTTP ---------------------------------------------------------------------------------------------------------

    /// GET or HEAD. The ticket goes back by [`Appliance::fetched`] when the last byte has left.
    pub fn get(
        &self,
        peer: Ipv4Addr,
        method: Method,
        path: &str,
        now: Timestamp,
    ) -> (Answer, Option<Ticket>) {
        let answer = |status, length: usize, content: &[u8]| Answer {
            status,
            length: length as u64,
            retry_after: None,
            content: content.to_vec(),
            keep_alive: true,
        };
        match self.content.open(peer, path.as_bytes(), Transport::Http, now) {
            Err(_) => (answer(404, 0, &[]), None),
            Ok(served) if method == Method::Head => {
                self.content.finished(&served.ticket, 0, Duration::ZERO, FileOutcome::Probe, now);
                (answer(200, served.bytes.len().min(LOADER_BYTES), &[]), None)
            }
            Ok(served) => {
                self.content.began(&served.ticket, now);
                let content = served.bytes.slice(..served.bytes.len().min(LOADER_BYTES));
                (answer(200, content.len(), &content), Some(served.ticket))
            }
        }
    }

    pub fn fetched(&self, ticket: &Ticket, outcome: FileOutcome, now: Timestamp) {
        self.content.finished(ticket, ticket.size, Duration::from_millis(5), outcome, now);
    }

    /// An agent's call.
    pub fn post(
        &self,
        peer: Ipv4Addr,
        path: &str,
        bearer: Option<String>,
        body: Vec<u8>,
        now: Timestamp,
    ) -> Begun<Answer> {
        let (agents, path) = (Arc::clone(&self.agents), path.to_owned());
        self.begin(move || {
            let plain = agents.answer_read(peer, &path, bearer, &body, now);
            let retry_after = plain.headers.get("retry-after").and_then(|it| it.to_str().ok()?.parse().ok());
            Answer {
                status: plain.status.as_u16(),
                length: plain.body.len() as u64,
                retry_after,
                content: plain.body.to_vec(),
                keep_alive: true,
            }
        })
    }

    /// An operator's approval; whether it was told to have happened.
    pub fn approve(&self, node: NodeRef, now: Timestamp) -> Begun<bool> {
        let registry = Arc::clone(&self.registry);
        self.begin(move || registry.approve(&node, now).is_ok())
    }

    fn begin<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> Begun<T> {
        let (sender, progress) = channel();
        self.disk.watch_calls(Some(sender.clone()));
        let thread = thread::spawn(move || {
            let result = call();
            let _ = sender.send(Progress::Ended);
            result
        });
        let first = progress.recv().expect("a call hands something in, or ends");
        self.disk.watch_calls(None);
        let call = Call { thread };
        match first {
            Progress::Ended => Begun::Done(call.end()),
            Progress::Submitted => {
                // Calls hand in under the registry's lock; who gets it next finds all of it handed in.
                let _ = self.registry.census();
                Begun::Waits(call)
            }
        }
    }
}
