//! The operator plane's listeners: who may connect, and how many at once.
//!
//! The Unix socket is made under a temporary name, given its mode, and renamed into place: there is no moment at
//! which somebody else could connect, and none at which the path is missing. A socket left behind by a crash is
//! replaced only when nobody answers on it.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections one listener serves at once; further ones wait in the kernel's backlog.
pub(super) const CONNECTIONS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "operator.socket: {path} already has an appliance that answers: stop it, or give this one another operator.socket"
    )]
    InUse { path: String },
    #[error(
        "operator.socket: {path} exists and is no socket: remove it, or choose another path for operator.socket"
    )]
    NotASocket { path: String },
    #[error("operator.socket: {path} cannot be {what}: check that its directory exists and is writable")]
    Path { path: String, what: &'static str, source: io::Error },
    #[error(
        "operator.listen: {address} cannot be listened on: choose a free port for operator.listen, or \"off\""
    )]
    Listen { address: String, source: io::Error },
    #[error(
        "the handed-over {which} socket cannot be used: the supervisor must pass a listening stream socket"
    )]
    HandedOver { which: &'static str, source: io::Error },
}

/// A bound Unix socket and the file that names it; the file goes when we do.
pub(super) struct BoundSocket {
    pub(super) listener: StdUnixListener,
    pub(super) file: SocketFile,
}

pub(super) struct SocketFile {
    path: PathBuf,
    device_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Only if the path is still ours: another appliance may have replaced it.
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.device_inode);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens the socket: directory 0755 if it is missing, socket 0660.
pub(super) fn bind_unix(path: &Path) -> Result<BoundSocket, SocketError> {
    let shown = path.display().to_string();
    let failed =
        |what: &'static str| move |source: io::Error| SocketError::Path { path: shown.clone(), what, source };
    refuse_if_taken(path)?;
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        std::fs::create_dir_all(directory).map_err(failed.clone()("created"))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory, mode).map_err(failed.clone()("created"))?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let bound = || -> io::Result<BoundSocket> {
        let listener = StdUnixListener::bind(&temporary)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o660))?;
        listener.set_nonblocking(true)?;
        std::fs::rename(&temporary, path)?;
        let metadata = std::fs::symlink_metadata(path)?;
        let device_inode = (metadata.dev(), metadata.ino());
        Ok(BoundSocket { listener, file: SocketFile { path: path.to_owned(), device_inode } })
    };
    bound().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        failed("bound")(error)
    })
}

fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.display().to_string() });
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // Answered, or not ours to judge (permission denied): somebody may live there.
        Ok(_) | Err(_) => Err(SocketError::InUse { path: path.display().to_string() }),
    }
}

/// User at the other end of a Unix connection, as the kernel vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) uid: Option<u32>,
}

impl Peer {
    /// Root, or the user the appliance runs as.
    pub(super) fn is_operator(self) -> bool {
        self.uid.is_some_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw())
    }
}

impl Connected<IncomingStream<'_, Bounded<UnixListener>>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded<UnixListener>>) -> Self {
        Peer { uid: stream.io().stream.peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

/// A listener that serves at most [`CONNECTIONS_MAX`] connections at once.
pub(super) struct Bounded<L> {
    inner: L,
    permits: Arc<Semaphore>,
}

impl<L> Bounded<L> {
    pub(super) fn new(inner: L) -> Self {
        Bounded { inner, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Permitted<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed; without a permit the connection would only go uncounted.
        let permit = self.permits.clone().acquire_owned().await.ok();
        let (stream, address) = self.inner.accept().await;
        (Permitted { stream, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

/// A connection together with its place among the [`CONNECTIONS_MAX`].
pub(super) struct Permitted<S> {
    stream: S,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Permitted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Permitted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
