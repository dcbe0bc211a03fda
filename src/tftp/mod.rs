//! TFTP, the protocol every boot ROM speaks: files to read, none to write.
//!
//! - [`wire`]: datagrams ↔ values. RFC 1350, the options of RFC 2347 (`blksize` RFC 2348, `timeout` and `tsize`
//!   RFC 2349, `windowsize` RFC 7440)
//! - [`transfer`]: one transfer as a state machine; no socket, no clock
//! - [`netascii`]: text mode, converted as it is sent
//! - [`admission`]: who may start a transfer, and how many
//! - `session`, `sessions`: a transfer and its peer; all of them, found by peer and by deadline
//! - `ports`, `outbox`: the sockets all transfers share, and what waits to leave by one
//! - `refusal`: what a request comes to, other than a transfer
//! - [`network`]: one thread, port 69 of the bridge and the transfers' ports
//!
//! What is served is decided elsewhere: a [`FileSource`] turns a name into bytes that stay as they are while the
//! transfer lasts. Nothing here builds a path, and a write request touches nothing.
//!
//! Silence is deliberate and counted: requests from outside the bridge's subnet, beyond a limit, or repeated while
//! their transfer runs get no answer. A boot ROM that hears nothing asks again, one that hears an error gives up.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::net::pace::Pace;
use crate::node::timeline::FileOutcome;

pub mod admission;
pub mod netascii;
pub mod network;
mod outbox;
mod ports;
mod refusal;
mod session;
mod sessions;
pub mod transfer;
pub mod wire;

/// Where the bytes come from. Called on the TFTP thread: it must answer from memory, without waiting.
pub trait FileSource: Send + Sync {
    /// `name` is what the client wrote, byte for byte, at most [`wire::NAME_LEN_MAX`] bytes.
    fn open(&self, peer: SocketAddrV4, name: &[u8]) -> Result<Opened, NotServed>;

    /// Called exactly once for each [`Opened`], when its transfer has ended.
    fn finished(&self, report: TransferReport);
}

/// A file as it is at this moment; a replacement does not change a running transfer.
#[derive(Clone, Debug)]
pub struct Opened {
    pub bytes: Bytes,
    /// Handed back in [`TransferReport::ticket`]; means nothing here.
    pub ticket: u64,
    pub restraint: Restraint,
}

/// What this peer gets less of than everybody.
#[derive(Clone, Debug, Default)]
pub struct Restraint {
    pub blksize_max: Option<u16>,
    pub windowsize_max: Option<u16>,
    /// Shared by all that is sent to it, by whatever protocol.
    pub pace: Option<Arc<Pace>>,
}

/// Why a name is not served. The client hears "file not found", unless it is only too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    NotFound,
    /// A name outside the namespace: `..`, NUL, too long.
    Refused,
    /// What it rests on is on its way to the disk: no answer, so that the client asks again.
    NotYet,
}

/// How one transfer went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferReport {
    pub peer: SocketAddrV4,
    /// The name asked for, with anything but printable ASCII escaped.
    pub name: String,
    pub ticket: u64,
    /// Size of the file.
    pub size: u64,
    /// Bytes of the file the client acknowledged.
    pub sent: u64,
    pub took: Duration,
    pub outcome: FileOutcome,
    /// Datagrams sent more than once.
    pub retransmissions: u32,
    pub blksize: u16,
    pub windowsize: u16,
}
