//! The listener of the boot plane: who may connect, how many at once, and how it all ends.
//!
//! Silence here is a closed connection, counted under its reason: a peer from outside the bridge's subnet, or with
//! too many connections open. When all connections are taken nobody is refused; newcomers wait in the kernel's queue.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::bootplane::connection::{self, Closed};
use crate::bootplane::limits::Limits;
use crate::bootplane::metadata::Door;
use crate::bootplane::service::BootService;
use crate::bootplane::workers::Workers;
use crate::telemetry::{Level, Taken, Tally};

/// Pause after `accept` failed for want of descriptors or memory: both come back when connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub struct BootPlaneParts {
    /// Only peers from here are served: the bridge's subnet.
    pub subnet: Ipv4Network,
    /// `169.254.169.254`, if it is served.
    pub link_local: Option<std::net::TcpListener>,
    pub service: Arc<BootService>,
    pub tally: Arc<Tally>,
    pub limits: Limits,
}

/// Owns the boot plane's tasks; dropping it cuts every connection.
#[derive(Debug)]
pub struct BootPlaneHandle {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    /// Taken by `stop`.
    task: Option<JoinHandle<()>>,
}

/// Starts serving `listener`: connections are accepted on the tokio runtime this is called from and served by
/// workers of their own.
pub fn start(listener: std::net::TcpListener, mut parts: BootPlaneParts) -> io::Result<BootPlaneHandle> {
    let listening = |listener: std::net::TcpListener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let link_local = parts.link_local.take().map(listening).transpose()?;
    let listener = listening(listener)?;
    let address = listener.local_addr()?;
    let listener = Listeners { bridge: listener, link_local };
    let (stop, stopping) = watch::channel(false);
    let task = tokio::spawn(run(listener, Workers::start()?, parts, stopping));
    Ok(BootPlaneHandle { address, stop, task: Some(task) })
}

impl BootPlaneHandle {
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more, lets answers under way finish for as long as the limit says, then cuts them.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for BootPlaneHandle {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Every door of the boot plane.
struct Listeners {
    bridge: TcpListener,
    link_local: Option<TcpListener>,
}

impl Listeners {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, Door)> {
        let Some(link_local) = &self.link_local else {
            return self.bridge.accept().await.map(|(socket, peer)| (socket, peer, Door::Bridge));
        };
        tokio::select! {
            accepted = self.bridge.accept() => accepted.map(|(socket, peer)| (socket, peer, Door::Bridge)),
            accepted = link_local.accept() => accepted.map(|(socket, peer)| (socket, peer, Door::LinkLocal)),
        }
    }
}

async fn run(listener: Listeners, workers: Workers, parts: BootPlaneParts, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(parts.limits.connections));
    let peers = Arc::new(PeerSlots::default());
    let open = parts.tally.level("http", "connections", parts.limits.connections as u64);
    let stopping = stop.clone();
    // Dropped when this task is, which ends every connection.
    let mut connections = JoinSet::new();
    loop {
        // Ended connections are taken out as they end, so that the set holds live ones only.
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        let taken_on =
            accepted.and_then(|(socket, peer, door, slot)| match admit(peer, slot, &peers, &open, &parts) {
                Some(admission) => {
                    let serve = serve(admission, door, stopping.clone(), &parts);
                    workers.serve(socket, &mut connections, serve)
                }
                None => Ok(()),
            });
        if let Err(error) = taken_on {
            parts.tally.count("http", "accept-failed");
            tracing::warn!(%error, "boot plane cannot accept");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(parts.limits.stop, all_ended).await.is_err() {
        parts.tally.add("http", "cut-at-stop", connections.len() as u64);
        connections.shutdown().await;
    }
}

async fn accept(
    listener: &Listeners,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, Door, OwnedSemaphorePermit)> {
    // A slot first: without one the connection stays in the kernel's queue.
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (socket, peer, door) = listener.accept().await?;
    Ok((socket, peer, door, slot))
}

/// A peer's right to a connection, given back when dropped.
struct Admission {
    peer: Ipv4Addr,
    _slot: OwnedSemaphorePermit,
    peer_slot: PeerSlot,
    _open: Taken,
}

fn admit(
    peer: SocketAddr,
    slot: OwnedSemaphorePermit,
    peers: &Arc<PeerSlots>,
    open: &Arc<Level>,
    parts: &BootPlaneParts,
) -> Option<Admission> {
    let refuse = |reason| {
        parts.tally.count("http", reason);
        tracing::debug!(ip = %peer.ip(), reason, "connection refused");
        None
    };
    let Some(address) = connection::ipv4_of(peer).filter(|ip| parts.subnet.contains(*ip)) else {
        return refuse("off-subnet");
    };
    let (peer_slot, made_room) = PeerSlots::take(peers, address, parts.limits.connections_per_peer);
    if made_room {
        parts.tally.count("http", "too-many-connections");
        tracing::debug!(ip = %address, "its oldest connection is closed to make room");
    }
    Some(Admission { peer: address, _slot: slot, peer_slot, _open: open.take(1) })
}

/// What is to be done with the connection, once a worker has it.
fn serve(
    admission: Admission,
    door: Door,
    stop: watch::Receiver<bool>,
    parts: &BootPlaneParts,
) -> impl FnOnce(TcpStream, Arc<Semaphore>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + use<> {
    let (service, tally, limits) = (Arc::clone(&parts.service), Arc::clone(&parts.tally), parts.limits);
    move |socket, turns| {
        Box::pin(async move {
            let (peer, leave) = (admission.peer, Arc::clone(&admission.peer_slot.leave));
            let answer = |line, request| {
                let service = Arc::clone(&service);
                async move { service.answer(peer, door, line, request).await }
            };
            let ended = |closed: Closed| {
                // First: who sees a connection counted as ended may open the next.
                drop(admission);
                tally.count("http", closed.as_str());
                match closed {
                    Closed::Orderly => {}
                    Closed::Broken | Closed::Overdue(_) => {
                        tracing::debug!(ip = %peer, reason = closed.as_str(), "connection closed");
                    }
                }
            };
            tokio::select! {
                () = connection::serve(socket, turns, &limits, stop, answer, ended) => {}
                () = leave.notified() => {}
            }
        })
    }
}

/// Open connections per address, oldest first. Holds only addresses that have any, so the subnet bounds it.
#[derive(Debug, Default)]
struct PeerSlots {
    open: Mutex<HashMap<Ipv4Addr, VecDeque<Arc<Notify>>>>,
}

struct PeerSlot {
    peers: Arc<PeerSlots>,
    peer: Ipv4Addr,
    /// Told when the connection has to make room; also what tells it from others.
    leave: Arc<Notify>,
}

impl PeerSlots {
    /// A place for one more, if need be that of the oldest. A machine that lost power never closes what it had open,
    /// and asks again at once: it must not be kept waiting by its own dead connections.
    fn take(peers: &Arc<PeerSlots>, peer: Ipv4Addr, limit: usize) -> (PeerSlot, bool) {
        let mut open = peers.open.lock().unwrap_or_else(PoisonError::into_inner);
        let places = open.entry(peer).or_default();
        let oldest = if places.len() >= limit { places.pop_front() } else { None };
        if let Some(oldest) = &oldest {
            oldest.notify_one();
        }
        let leave = Arc::new(Notify::new());
        places.push_back(Arc::clone(&leave));
        (PeerSlot { peers: Arc::clone(peers), peer, leave }, oldest.is_some())
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = open.get_mut(&self.peer) {
            places.retain(|place| !Arc::ptr_eq(place, &self.leave));
            if places.is_empty() {
                open.remove(&self.peer);
            }
        }
    }
}
