//! The operator plane: the HTTP API of operators and their monitoring.
//!
//! Two listeners, one set of documents. The Unix socket serves everything, to root and the appliance's own user
//! only. The loopback TCP listener serves health, metrics and status, read-only, and only under a loopback host
//! name, so that a web page in an operator's browser cannot read it by DNS rebinding. Nothing here is reachable
//! from the bridge.
//!
//! - [`api`]: the documents, shared with the CLI
//! - `routes`: path → handler; `nodes`: the handlers that read and change nodes
//! - `events`: the live event stream; `metrics`: Prometheus text
//! - `socket`: listeners, their bounds and who may connect
//! - [`problem`]: refusals as RFC 9457 documents; [`problems`]: what the appliance logged last

use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use listenfd::ListenFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::{Clock, Timestamp};
use crate::config::{Config, OperatorConfig};
use crate::dhcp::lease::{LeaseView, PoolUse};
use crate::node::registry::Registry;
use crate::operator::api::{BridgeStatus, ImageStatus, ServiceStatus, StoreStatus};
use crate::operator::problems::ProblemLog;
use crate::operator::socket::{Bounded, Peer, SocketFile};
use crate::telemetry::Tally;

pub mod api;
mod events;
mod metrics;
mod nodes;
pub mod problem;
pub mod problems;
mod routes;
mod socket;
#[cfg(test)]
mod tests;

pub use socket::SocketError;

/// Half of what a supervisor waits; the boot plane drains in the same second.
const STOP_WITHIN: Duration = Duration::from_millis(1000);

/// What the operator plane asks of the running appliance; the composition root answers.
pub trait ApplianceView: Send + Sync {
    fn bridge(&self) -> BridgeStatus;
    fn services(&self) -> Vec<ServiceStatus>;
    fn image(&self) -> ImageStatus;
    fn store(&self) -> StoreStatus;
    /// Bindings and offers, by address.
    fn leases(&self) -> Vec<LeaseView>;
    fn pool_use(&self) -> PoolUse;
}

pub struct OperatorParts {
    pub registry: Arc<Registry>,
    pub appliance: Arc<dyn ApplianceView>,
    pub tally: Arc<Tally>,
    pub problems: Arc<ProblemLog>,
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
}

impl Listeners {
    /// Uses what was handed over and opens the rest as configured.
    pub fn open(config: &OperatorConfig, handed: HandedOver) -> Result<Listeners, SocketError> {
        let (unix, file) = match handed.unix {
            Some(listener) => (listener, None),
            None => {
                let bound = socket::bind_unix(&config.socket)?;
                (bound.listener, Some(bound.file))
            }
        };
        let tcp = match (handed.tcp, config.listen) {
            (Some(listener), _) => Some(listener),
            (None, None) => None,
            (None, Some(address)) => Some(
                StdTcpListener::bind(address)
                    .map_err(|source| SocketError::Listen { address: address.to_string(), source })?,
            ),
        };
        let failed = |which| move |source| SocketError::HandedOver { which, source };
        unix.set_nonblocking(true).map_err(failed("Unix"))?;
        if let Some(tcp) = &tcp {
            tcp.set_nonblocking(true).map_err(failed("TCP"))?;
        }
        Ok(Listeners { unix, file, tcp })
    }

    /// Where the loopback listener really is; tests bind port 0.
    pub fn loopback_address(&self) -> Option<std::net::SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }
}

/// The running operator plane; stops when dropped, and in good order with [`OperatorHandle::stop`].
pub struct OperatorHandle {
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    _file: Option<SocketFile>,
}

/// Starts serving; must be called inside a tokio runtime.
pub fn start(parts: OperatorParts, listeners: Listeners) -> Result<OperatorHandle, SocketError> {
    let (stop, stopped) = watch::channel(false);
    let parts = Arc::new(parts);
    let failed = |which| move |source| SocketError::HandedOver { which, source };
    let unix = tokio::net::UnixListener::from_std(listeners.unix).map_err(failed("Unix"))?;
    let full =
        routes::full(Arc::clone(&parts), stopped.clone()).into_make_service_with_connect_info::<Peer>();
    let server = axum::serve(Bounded::new(unix), full).with_graceful_shutdown(until_stopped(stopped.clone()));
    let mut servers = vec![tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the operator socket stopped serving");
        }
    })];
    if let Some(tcp) = listeners.tcp {
        let tcp = tokio::net::TcpListener::from_std(tcp).map_err(failed("TCP"))?;
        let read_only = routes::read_only(parts).into_make_service();
        let server = axum::serve(Bounded::new(tcp), read_only).with_graceful_shutdown(until_stopped(stopped));
        servers.push(tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "operator.listen stopped serving");
            }
        }));
    }
    Ok(OperatorHandle { stop, servers, _file: listeners.file })
}

/// Resolves when told to stop, and when nobody is left who could tell.
async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

impl OperatorHandle {
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
