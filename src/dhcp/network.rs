//! The DHCP thread: bridge-bound sockets, one [`DhcpServer`], and replies that wait for the disk.
//!
//! ```text
//!  67 ──┐                       ┌─ OFFER, NAK ───────────────────────► outbound
//!       ├─ batch ─► DhcpServer ─┤
//!  4011 ┘                       └─ ACK + changes ─► store ─ durable ─► outbound   (on the store's thread)
//!                                                     └── failed ─► DhcpServer::forget, nothing is sent
//! ```
//!
//! Everything one receive brings is one batch for the store, so that under load many leases share one sync. A grant
//! always carries its whole binding, so a repeated request waits for a commit of its own.
//!
//! Nothing on the network ends this thread. A bridge that is deleted leaves the sockets deaf; they are moved to the next
//! bridge of that name once it carries our address.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::boot::client::Client;
use crate::boot::decision::Standing;
use crate::boot::loader::LoaderTable;
use crate::clock::{Clock, Timestamp};
use crate::config::{BridgeName, Config, DhcpMode};
use crate::dhcp::address_book::AddressBook;
use crate::dhcp::lease::{Binding, BindingState, LeaseView, PoolUse};
use crate::dhcp::rivals::{OtherServer, Rivals};
use crate::dhcp::server::{Answer, DhcpServer, Directory, Outcome, Report, Settings};
use crate::guard::Guard;
use crate::guard::process::LocalServer;
use crate::net::link::{LinkWatch, Netlink};
use crate::net::overheard::Ear;
use crate::net::tap::Reach;
use crate::net::{Bridge, MacAddr};
use crate::node::registry::{Registry, TraceStep};
use crate::node::timeline::Happening;
use crate::store::Store;
use crate::telemetry::Tally;

mod clones;
pub mod desk;
mod listening;
mod outbound;
mod overload;
mod questions;
mod recently;
mod relays;
mod worker;

use desk::{Desk, FailedBatch, Said};
pub use outbound::Doors;
use outbound::Outbound;
use questions::Questions;
use recently::Recently;
use worker::{Done, Progress, Worker};

/// The word for this service in counters.
const SERVICE: &str = "dhcp";

/// What the DHCP thread asks the node registry, and tells it.
pub trait Nodes: Directory + Send + Sync {
    /// A client that wants to boot gets an answer.
    fn seen(&self, client: &Client, now: Timestamp);
    /// A client that wants to boot gets the address it requested.
    fn granted(&self, client: &Client, now: Timestamp);
    /// A message of this MAC, and what came of it; of strangers, those are remembered that got an answer lately.
    fn record(&self, mac: MacAddr, happening: Happening, now: Timestamp);
    /// A message of a MAC that is no node: nothing durable comes of it, but it can be asked about.
    fn stranger(&self, _mac: MacAddr, _step: TraceStep) {}
}

/// What a stranger's trace keeps of one message.
fn step_of(outcome: &Outcome, report: &Report, now: Timestamp) -> TraceStep {
    let (answer, address) = match &outcome.answer {
        Answer::Reply(reply) => (Ok(reply.kind.as_str()), report.address(Some(reply))),
        Answer::Withheld(reply) => (Err(reply.kind.withheld()), report.address(Some(reply))),
        Answer::Silence(silence) => (Err(silence.as_str()), report.address(None)),
    };
    let Report { class, message, xid, other_server, .. } = *report;
    TraceStep { at: now, class, message, xid, answer, address, other_server }
}

impl Nodes for Registry {
    fn seen(&self, client: &Client, now: Timestamp) {
        let _whose = Registry::seen(self, client, now);
    }

    fn granted(&self, client: &Client, now: Timestamp) {
        let _whose = Registry::granted(self, client, now);
    }

    fn record(&self, mac: MacAddr, happening: Happening, now: Timestamp) {
        Registry::record(self, mac, happening, now);
    }

    fn stranger(&self, mac: MacAddr, step: TraceStep) {
        Registry::stranger(self, mac, step);
    }
}

impl Directory for Registry {
    fn standing(&self, mac: MacAddr, now: Timestamp) -> Standing {
        Registry::standing(self, mac, now)
    }

    fn reserved_for(&self, address: Ipv4Addr) -> Option<MacAddr> {
        Registry::reserved_for(self, address)
    }
}

pub struct DhcpParts<N = Registry> {
    pub bridge: Bridge,
    pub config: Arc<Config>,
    pub loaders: Arc<LoaderTable>,
    pub bindings: Vec<Binding>,
    pub registry: Arc<N>,
    pub store: Arc<dyn Store>,
    pub addresses: Arc<AddressBook>,
    pub tally: Arc<Tally>,
    /// Whom to tell of other servers, and whom to ask whether to answer at all.
    pub guard: Arc<Guard>,
    pub clock: Clock,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("UDP port {port} on {bridge} is taken: {}", taken_by(holder.as_deref(), *port))]
    PortTaken { bridge: BridgeName, port: u16, holder: Option<Box<LocalServer>>, source: io::Error },
    #[error(
        "{what} on {bridge} is not permitted: run as root or with the capabilities CAP_NET_BIND_SERVICE and CAP_NET_RAW"
    )]
    NotPermitted { bridge: BridgeName, what: String, source: io::Error },
    #[error("{what} on {bridge} cannot be opened")]
    Unavailable { bridge: BridgeName, what: String, source: io::Error },
    #[error("the DHCP thread cannot be started")]
    Thread { source: io::Error },
}

fn taken_by(holder: Option<&LocalServer>, port: u16) -> String {
    match holder {
        Some(LocalServer { pid, program, way_out, .. }) => {
            format!("{program} (pid {pid}) holds it, another DHCP server of this host: {way_out}")
        }
        None => format!(
            "another DHCP server runs here; `ss -lunp sport = :{port}` names it, stop it or keep it off this bridge"
        ),
    }
}

enum Command {
    Leases(mpsc::SyncSender<Vec<LeaseView>>),
    PoolUse(mpsc::SyncSender<PoolUse>),
    OtherServers(mpsc::SyncSender<Vec<OtherServer>>),
    Reconfigure(Box<Settings>),
    InUse(Ipv4Addr),
    /// From the store's thread: this was not made durable, and its parcels were not sent. It counts as pending until
    /// the server has forgotten it.
    CommitFailed(FailedBatch, Done),
    Stop,
}

/// Owns the DHCP thread; stops it when dropped.
pub struct DhcpHandle {
    commands: mpsc::Sender<Command>,
    waker: Arc<EventFd>,
    recently: Recently,
    started: Instant,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl DhcpHandle {
    /// Bindings and standing offers, by address; empty once stopped.
    pub fn leases(&self) -> Vec<LeaseView> {
        let (answer, leases) = mpsc::sync_channel(1);
        self.tell(Command::Leases(answer));
        leases.recv().unwrap_or_default()
    }

    /// How full the pool is; all zero once stopped.
    pub fn pool_use(&self) -> PoolUse {
        let (answer, pool_use) = mpsc::sync_channel(1);
        self.tell(Command::PoolUse(answer));
        pool_use.recv().unwrap_or_default()
    }

    /// Other DHCP servers heard; none is listened for while we are the server there, and none known once stopped.
    pub fn other_servers(&self) -> Vec<OtherServer> {
        let (answer, servers) = mpsc::sync_channel(1);
        self.tell(Command::OtherServers(answer));
        servers.recv().unwrap_or_default()
    }

    /// Takes over a new configuration, except for the bridge and our address on it, and what part we play there.
    pub fn reconfigure(&self, config: &Config, loaders: Arc<LoaderTable>) {
        self.tell(Command::Reconfigure(Box::new(Settings::new(config, loaders))));
    }

    /// The client at this address fetches files: its offer is in use, requested or not.
    pub fn in_use(&self, address: Ipv4Addr) {
        // Asked for each fetch; a message and a wake-up for each would cost more than the fetch of a script.
        if self.recently.is_news(address, self.started.elapsed().as_secs()) {
            self.tell(Command::InUse(address));
        }
    }

    /// Stops receiving, lets commits under way finish and their replies leave, and ends the thread.
    pub fn stop(&self) {
        self.tell(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn tell(&self, command: Command) {
        // A thread that has stopped needs telling nothing.
        let _ = self.commands.send(command);
        let _ = self.waker.write(1);
    }
}

impl Drop for DhcpHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ears for other servers, where somebody else is the server.
fn open_ear(bridge: &Bridge, mode: DhcpMode) -> Result<Option<Ear>, BindError> {
    let reach = match mode {
        DhcpMode::Server => return Ok(None),
        // Who takes which address is known from requests and from ARP: not worth a look at every frame.
        DhcpMode::Proxy => Reach::Ours,
        DhcpMode::Observe => Reach::Everything,
    };
    Ear::open(bridge, reach).map(Some).map_err(|source| {
        let (bridge, what) = (bridge.name.clone(), "a packet socket".to_owned());
        match source.kind() {
            io::ErrorKind::PermissionDenied => BindError::NotPermitted { bridge, what, source },
            _ => BindError::Unavailable { bridge, what, source },
        }
    })
}

/// Opens the sockets and starts the thread.
pub fn start<N: Nodes + 'static>(parts: DhcpParts<N>) -> Result<DhcpHandle, BindError> {
    start_at(Doors::open(&parts.bridge)?, parts)
}

/// Starts the thread with sockets that are open already.
pub fn start_at<N: Nodes + 'static>(doors: Doors, parts: DhcpParts<N>) -> Result<DhcpHandle, BindError> {
    let DhcpParts { bridge, config, loaders, bindings, registry, store, addresses, tally, guard, clock } =
        parts;
    let system = |source| BindError::Thread { source };
    let mode = config.dhcp.mode;
    let outbound = Arc::new(Outbound::new(&bridge, doors, &tally)?);
    let ear = open_ear(&bridge, mode)?;
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let waker = Arc::new(EventFd::from_flags(flags).map_err(|errno| system(errno.into()))?);
    let watch = LinkWatch::open().map_err(system)?;
    if let Some(delay) = bridge.link().and_then(|link| link.spanning_tree_delay) {
        tracing::warn!(
            bridge = %bridge.name,
            delay_secs = delay.as_secs(),
            "spanning tree keeps new ports silent for longer than boot ROMs ask: `ip link set {} type bridge stp_state 0`",
            bridge.name
        );
    }
    let (commands, orders) = mpsc::channel();
    // Leases of a time when we gave the addresses say nothing of who has them now.
    if mode == DhcpMode::Server {
        for binding in bindings.iter().filter(|binding| binding.state == BindingState::Bound) {
            addresses.set(binding.address, binding.mac);
        }
    }
    let mut server = DhcpServer::restarted(Settings::new(&config, loaders), bindings, clock.now());
    if mode == DhcpMode::Server && server.carried_over() > 0 {
        tracing::info!(
            leases = server.carried_over(),
            "nobody could renew leases since the last was given, or the clock was set: what was left of each then is left of it now"
        );
    }
    // Who gives no addresses asks nobody for them; an observer is not heard at all.
    if mode == DhcpMode::Server {
        server.ask_the_wire();
    }
    let worker = Worker {
        desk: Desk {
            mode,
            server,
            registry,
            store,
            addresses,
            tally,
            guard: Arc::clone(&guard),
            said: Said::default(),
        },
        bridge,
        outbound,
        bridge_gone: false,
        ear,
        rivals: Rivals::default(),
        guard,
        clock,
        orders,
        commands: commands.clone(),
        waker: Arc::clone(&waker),
        watch,
        netlink: Netlink::default(),
        progress: Progress::default(),
        questions: Questions::default(),
    };
    let thread = thread::Builder::new()
        .name("dhcp".to_owned())
        .spawn(move || {
            // A lease is not to wait for a page that is rendered.
            crate::net::sys::run_before_others();
            worker.run();
        })
        .map_err(system)?;
    Ok(DhcpHandle {
        commands,
        waker,
        recently: Recently::default(),
        started: Instant::now(),
        thread: Mutex::new(Some(thread)),
    })
}
