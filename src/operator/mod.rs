//! The operator plane: the HTTP API of operators, the page, and their monitoring.
//!
//! Two listeners, one set of routes. The Unix socket serves root, the appliance's own user and a group; TCP serves
//! whoever brings a token, on loopback or with TLS. Who may what is decided in [`access`], before any handler.
//! Nothing here is reachable from the bridge.
//!
//! - [`api`]: the documents, shared with the CLI
//! - [`access`]: who may; [`audit`]: who did what
//! - [`views`]: the documents, made from the running appliance
//! - [`endpoints`]: the table of routes, each with what is told of it; [`openapi`]: the document made of it
//! - `routes`: the table as a router behind the gate; `pace`: the share of the processors it may take
//! - `nodes`, `leases`, `images`, `monitoring`: handlers; `asked`: what a request says, `answer`: how it is answered
//! - `profiles`: boot profiles, and the rules that assign them
//! - `roster`: import and export of whole lists
//! - [`idempotency`]: a repeated POST is done once
//! - [`why`]: verdicts, and the dialogue a machine would have
//! - `events`: the live event stream; `metrics`: Prometheus text
//! - `socket`: the Unix socket and its peers; [`tls`]: certificates; `serve`: connections and their bounds
//! - [`problem`]: refusals as RFC 9457 documents; [`problems`]: what the appliance logged last

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use listenfd::ListenFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::boot::loader::LoaderTable;
use crate::bootplane::profiles::ProfileDesk;
use crate::bridge_log::BridgeLog;
use crate::bridge_log::event::BridgeFault;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::dhcp::lease::PoolUse;
use crate::dhcp::rivals::OtherServer;
use crate::explain::DeployImage;
use crate::image::digest::Digest;
use crate::net::MacAddr;
use crate::net::ports::BridgePort;
use crate::node::registry::Registry;
use crate::operator::access::names::Names;
use crate::operator::access::{Access, Door};
use crate::operator::api::{
    BridgeStatus, DiskImageEntry, ImageEntry, ImageStatus, ProcessStatus, RivalStatus, ServiceStatus,
    StoreStatus,
};
use crate::operator::audit::AuditLog;
use crate::operator::idempotency::Keys;
use crate::operator::problems::ProblemLog;
use crate::operator::serve::Served;
use crate::operator::socket::{Group, SocketFile};
use crate::operator::tls::Tls;
use crate::operator::views::Leases;
use crate::telemetry::Tally;

pub mod access;
mod answer;
pub mod api;
pub(crate) mod asked;
pub mod audit;
pub mod endpoints;
mod events;
pub mod idempotency;
mod images;
mod leases;
mod metrics;
mod monitoring;
pub(crate) mod nodes;
pub mod openapi;
mod pace;
pub mod problem;
pub mod problems;
pub(crate) mod profiles;
mod roster;
mod routes;
mod serve;
mod socket;
pub mod sparing;
pub(crate) mod tasks;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod views;
pub mod why;

pub use socket::SocketError;

/// Half of what a supervisor waits; the boot plane drains in the same second.
const STOP_WITHIN: Duration = Duration::from_millis(1000);

/// What the operator plane asks of the running appliance; the composition root answers.
pub trait ApplianceView: Send + Sync {
    fn bridge(&self) -> BridgeStatus;
    fn services(&self) -> Vec<ServiceStatus>;
    fn image(&self) -> ImageStatus;
    fn store(&self) -> StoreStatus;
    /// Who the program is, and what it may do.
    fn process(&self) -> ProcessStatus {
        ProcessStatus::default()
    }
    /// Bindings and offers, of this moment or of a moment ago.
    fn leases(&self) -> Arc<Leases>;
    fn pool_use(&self) -> PoolUse;

    /// DHCP servers heard beside us, where we are not the server.
    fn other_servers(&self) -> Vec<OtherServer> {
        Vec::new()
    }

    /// Who else answers on the bridge.
    fn rivals(&self) -> Vec<RivalStatus> {
        Vec::new()
    }
    /// The disk images that can be installed, by name.
    fn disk_images(&self) -> Vec<DiskImageEntry> {
        Vec::new()
    }

    /// A disk image by its name, if it is whole.
    fn disk_image(&self, _name: &str) -> Option<WantedImage> {
        None
    }

    /// Keeps a disk image from being removed, until no task needs it any more.
    fn pin_image(&self, _manifest: Digest) -> Result<(), String> {
        Ok(())
    }

    /// Deploy images, whole or damaged, by profile.
    fn images(&self) -> Vec<ImageEntry>;

    /// The bridge, its ports, and which of them this MAC was heard behind.
    fn premises(&self, _mac: Option<MacAddr>) -> Premises {
        Premises { fault: None, ports: Vec::new() }
    }

    /// The MAC of a station on the bridge, if it is known.
    fn neighbour(&self, _address: Ipv4Addr) -> Option<MacAddr> {
        None
    }

    /// Whether the kernel that machines boot was changed after it was signed.
    fn kernel_altered(&self) -> bool {
        false
    }

    /// The loaders that can be served.
    fn loader_table(&self) -> Arc<LoaderTable> {
        Arc::new(LoaderTable::built_in())
    }

    /// Who boots which profile; absent where nothing is served to boot.
    fn boot_profiles(&self) -> Option<Arc<ProfileDesk>> {
        None
    }

    /// The deploy image that is served, if there is one.
    fn deploy_image(&self) -> Option<DeployImage> {
        None
    }
}

/// What a deployment has to know of its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedImage {
    pub manifest: Digest,
    /// Size of the manifest's blob.
    pub manifest_bytes: u64,
    /// Size of the disk it makes.
    pub bytes: u64,
}

/// What the kernel tells of the bridge.
#[derive(Clone, Debug)]
pub struct Premises {
    /// Why nothing can be served there, if nothing can.
    pub fault: Option<BridgeFault>,
    pub ports: Vec<BridgePort>,
}

pub struct OperatorParts {
    pub registry: Arc<Registry>,
    pub appliance: Arc<dyn ApplianceView>,
    pub tally: Arc<Tally>,
    pub problems: Arc<ProblemLog>,
    pub access: Arc<Access>,
    pub audit: Arc<AuditLog>,
    pub bridge_log: Arc<BridgeLog>,
    /// Answers that are given again to who sends the same request again.
    pub keys: Arc<Keys>,
    pub tls: Option<Arc<Tls>>,
    pub config: Arc<ArcSwap<Config>>,
    pub clock: Clock,
    pub started_at: Timestamp,
}

/// Listening sockets opened by somebody else before we started: systemd, or the lab on the host's side.
#[derive(Debug, Default)]
pub struct HandedOver {
    pub unix: Option<StdUnixListener>,
    pub tcp: Option<StdTcpListener>,
}

impl HandedOver {
    /// Takes what `LISTEN_FDS` names: at most one Unix and one TCP listener.
    pub fn from_environment() -> Result<HandedOver, SocketError> {
        let mut passed = ListenFd::from_env();
        let mut handed = HandedOver::default();
        for index in 0..passed.len() {
            if handed.unix.is_none()
                && let Ok(Some(listener)) = passed.take_unix_listener(index)
            {
                handed.unix = Some(listener);
                continue;
            }
            let tcp = passed.take_tcp_listener(index);
            let tcp = tcp.map_err(|source| SocketError::HandedOver { which: "operator", source })?;
            handed.tcp = handed.tcp.or(tcp);
        }
        Ok(handed)
    }
}

/// The operator plane's sockets, open.
pub struct Listeners {
    unix: StdUnixListener,
    /// Absent when the socket was handed over: whoever made the file removes it.
    file: Option<SocketFile>,
    tcp: Option<StdTcpListener>,
    tls: Option<Arc<Tls>>,
    door: Door,
}

impl Listeners {
    /// Uses what was handed over and opens the rest as configured.
    pub fn open(config: &Config, handed: HandedOver) -> Result<Listeners, SocketError> {
        let operator = &config.operator;
        let group = operator.group.as_deref().map(Group::find).transpose()?;
        let tcp = match (handed.tcp, operator.listen) {
            (Some(listener), _) => Some(listener),
            (None, None) => None,
            (None, Some(address)) => Some(
                StdTcpListener::bind(address)
                    .map_err(|source| SocketError::Listen { address: address.to_string(), source })?,
            ),
        };
        let failed = |which| move |source| SocketError::HandedOver { which, source };
        let address = tcp.as_ref().map(StdTcpListener::local_addr).transpose().map_err(failed("TCP"))?;
        let tls = match (&operator.tls, address) {
            (Some(tls), Some(address)) => {
                Some(Arc::new(Tls::load(tls, &config.store.path, address, &operator.names)?))
            }
            (None, Some(address)) => {
                check_plain(address)?;
                None
            }
            (_, None) => None,
        };
        let (unix, file) = match handed.unix {
            Some(listener) => (listener, None),
            None => {
                let bound = socket::bind_unix(&operator.socket, group.as_ref())?;
                (bound.listener, Some(bound.file))
            }
        };
        unix.set_nonblocking(true).map_err(failed("Unix"))?;
        if let Some(tcp) = &tcp {
            tcp.set_nonblocking(true).map_err(failed("TCP"))?;
        }
        let door = Door {
            group: group.map(|group| group.gid),
            names: Names::new(address.map(|address| address.ip()), &operator.names),
            address,
            public_name: operator.names.first().cloned(),
            tls: tls.is_some(),
            metrics_open: operator.metrics_open,
        };
        Ok(Listeners { unix, file, tcp, tls, door })
    }

    /// Where TCP really is; tests bind port 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.door.address
    }

    /// What the access layer has to know of these listeners.
    pub fn door(&self) -> Door {
        self.door.clone()
    }

    /// Writes a certificate that was made just now into the state directory, which is there by now.
    pub fn keep_certificate(&self) -> Result<(), SocketError> {
        self.tls.as_deref().map_or(Ok(()), Tls::keep).map_err(SocketError::from)
    }

    /// The certificate operators are served with by TCP.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.clone()
    }

    /// Where the page is.
    pub fn page(&self) -> Option<PageAddress> {
        self.door.address.map(|address| PageAddress { address, tls: self.tls.clone() })
    }
}

/// Where the page is, for people: its address, and the fingerprint their browser should show now.
pub struct PageAddress {
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
}

impl fmt::Display for PageAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PageAddress { address, tls } = self;
        let Some(tls) = tls else { return write!(formatter, "http://{address}") };
        let kind = if tls.is_self_signed() { "self-signed certificate" } else { "certificate" };
        write!(formatter, "https://{address}, {kind} SHA-256 {}", tls.fingerprint())
    }
}

/// Without TLS only this host may listen in. The configuration says so of `operator.listen`; a listener that was handed
/// over may be anywhere.
fn check_plain(address: SocketAddr) -> Result<(), SocketError> {
    if address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(SocketError::Plain { address: address.to_string() })
}

/// The running operator plane; stops when dropped, and in good order with [`OperatorHandle::stop`].
pub struct OperatorHandle {
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    tls: Option<Arc<Tls>>,
    _file: Option<SocketFile>,
}

/// Starts serving; must be called inside a tokio runtime.
pub fn start(parts: OperatorParts, listeners: Listeners) -> Result<OperatorHandle, SocketError> {
    let (stop, stopped) = watch::channel(false);
    let parts = Arc::new(parts);
    let failed = |which| move |source| SocketError::HandedOver { which, source };
    let unix = tokio::net::UnixListener::from_std(listeners.unix).map_err(failed("Unix"))?;
    let bridge = parts.config.load().network.address;
    let router = routes::all(Arc::clone(&parts), stopped.clone());
    let served =
        || Served { router: router.clone(), stopped: stopped.clone(), tally: Arc::clone(&parts.tally) };
    let mut servers = vec![tokio::spawn(serve::unix(unix, served()))];
    if let Some(tcp) = listeners.tcp {
        let tcp = tokio::net::TcpListener::from_std(tcp).map_err(failed("TCP"))?;
        let tls = listeners.tls.clone();
        servers.push(tokio::spawn(serve::tcp(tcp, tls, bridge, served())));
    }
    if let Some(tls) = &listeners.tls {
        servers.push(tokio::spawn(follow_certificate(Arc::clone(tls), stopped)));
    }
    Ok(OperatorHandle { stop, servers, tls: listeners.tls, _file: listeners.file })
}

/// Looks at the certificate's files from time to time.
async fn follow_certificate(tls: Arc<Tls>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(tls::LOOK_EVERY) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let looking = Arc::clone(&tls);
        // Files may be on a disk that is slow.
        let _ = tokio::task::spawn_blocking(move || looking.look()).await;
    }
}

impl OperatorHandle {
    /// Takes the certificate from its files again, if there is one.
    pub fn read_certificate(&self) {
        if let Some(tls) = &self.tls {
            tls.read_again();
        }
    }

    /// Answers what is under way, ends event streams, and is gone within a second.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let deadline = tokio::time::Instant::now() + STOP_WITHIN;
        for mut server in self.servers.drain(..) {
            if tokio::time::timeout_at(deadline, &mut server).await.is_err() {
                server.abort();
            }
        }
    }
}

impl Drop for OperatorHandle {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}
