//! The serving loop of both listeners: how many connections at once, how long each may dawdle, and how it all ends.
//!
//! A connection without a place waits in the kernel's backlog. A handshake, a request's head and a reader that takes
//! nothing each have their time; a request's body and its answer have theirs in `access`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ipnetwork::Ipv4Network;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;

use super::socket::{CONNECTIONS_MAX, Peer, UnixPeer};
use super::tls::Tls;
use crate::telemetry::Tally;

/// A request's head, and the pause before the next one on the same connection.
const HEAD_WITHIN: Duration = Duration::from_secs(20);
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A reader that takes nothing for this long is gone, or holds a place on purpose.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// A cookie, a token and what browsers add have a few kilobytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Pause after `accept` failed for want of descriptors or memory: both come back when connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What one listener serves, and to whom.
pub(super) struct Served {
    pub(super) router: Router,
    pub(super) stopped: watch::Receiver<bool>,
    pub(super) tally: Arc<Tally>,
}

/// Serves the Unix socket until told to stop; then finishes what is under way.
pub(super) async fn unix(listener: UnixListener, served: Served) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    while let Some((accepted, place)) = next(listener.accept(), &places, &served, &mut connections).await {
        let peer = accepted.and_then(|(stream, _)| Ok((UnixPeer::of(&stream)?, stream)));
        match peer {
            Ok((peer, stream)) => {
                connections.spawn(serve(stream, Peer::Unix(peer), served.clone_for_one(), place));
            }
            Err(error) => cannot_accept(&error, &served.tally).await,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves TCP, with TLS if there is a certificate. Machines of the bridge are not served: nothing that can change the
/// appliance is reachable from there, whatever address it is asked under.
pub(super) async fn tcp(listener: TcpListener, tls: Option<Arc<Tls>>, bridge: Ipv4Network, served: Served) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    while let Some((accepted, place)) = next(listener.accept(), &places, &served, &mut connections).await {
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                cannot_accept(&error, &served.tally).await;
                continue;
            }
        };
        if is_on_bridge(address, bridge) {
            served.tally.count("operator", "from-the-bridge");
            continue;
        }
        // Events are small and are to be seen at once.
        let _ = stream.set_nodelay(true);
        let (peer, served) = (Peer::Tcp(address), served.clone_for_one());
        match tls.clone() {
            None => drop(connections.spawn(serve(stream, peer, served, place))),
            Some(tls) => drop(connections.spawn(async move {
                match tokio::time::timeout(HANDSHAKE_WITHIN, tls.acceptor().accept(stream)).await {
                    Ok(Ok(stream)) => serve(stream, peer, served, place).await,
                    Ok(Err(_)) | Err(_) => served.tally.count("operator", "handshake-failed"),
                }
            })),
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// An address of the bridge's subnet is a machine's. The appliance's own comes from this host.
fn is_on_bridge(peer: SocketAddr, bridge: Ipv4Network) -> bool {
    match peer.ip().to_canonical() {
        IpAddr::V4(address) => bridge.contains(address) && address != bridge.ip(),
        IpAddr::V6(_) => false,
    }
}

/// The next connection with a place for it; none when it is time to stop.
async fn next<T>(
    accepting: impl Future<Output = io::Result<T>>,
    places: &Arc<Semaphore>,
    served: &Served,
    connections: &mut JoinSet<()>,
) -> Option<(io::Result<T>, OwnedSemaphorePermit)> {
    let mut stopped = served.stopped.clone();
    let mut accepting = pin!(async {
        // A place first: without one the connection stays in the kernel's backlog. The semaphore is never closed.
        let place = Arc::clone(places).acquire_owned().await.ok()?;
        Some((accepting.await, place))
    });
    loop {
        // Ended connections are taken out as they end, so that the set holds live ones only.
        tokio::select! {
            accepted = &mut accepting => return accepted,
            _ = stopped.wait_for(|stop| *stop) => return None,
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn cannot_accept(error: &io::Error, tally: &Tally) {
    tally.count("operator", "accept-failed");
    tracing::warn!(%error, "the operator plane cannot accept");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

impl Served {
    fn clone_for_one(&self) -> Served {
        let Served { router, stopped, tally } = self;
        Served { router: router.clone(), stopped: stopped.clone(), tally: Arc::clone(tally) }
    }
}

async fn serve<S>(stream: S, peer: Peer, served: Served, place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _place = place;
    let router = TowerToHyperService::new(served.router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES_MAX);
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(Patient::new(stream, STALLED_AFTER)), service));
    let mut stopped = served.stopped;
    tokio::select! {
        // How it ended is the peer's business.
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A stream whose patience with a reader ends some time after it took the last byte.
struct Patient<S> {
    stream: S,
    patience: Duration,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Patient { stream, patience, stalled: None }
    }

    fn judge<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.patience)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up() {
        let patience = Duration::from_millis(50);
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut patient = Patient::new(ours, patience);
        // A reader that takes something, however late, is waited for.
        patient.write_all(&[0; 16]).await.unwrap();
        let mut taken = [0; 16];
        let (written, _) = tokio::join!(patient.write_all(&[0; 16]), theirs.read_exact(&mut taken));
        written.unwrap();
        let started = tokio::time::Instant::now();
        let error = patient.write_all(&[0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= patience);
    }

    #[test]
    fn machines_of_the_bridge_are_known_by_their_address() {
        let bridge: Ipv4Network = "192.168.2.2/24".parse().unwrap();
        let on = |address: &str| is_on_bridge(SocketAddr::new(address.parse().unwrap(), 1), bridge);
        assert!(on("192.168.2.77") && on("::ffff:192.168.2.77"));
        assert!(!on("192.168.2.2") && !on("127.0.0.1") && !on("192.168.3.1") && !on("::1"));
    }
}
