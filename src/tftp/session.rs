//! A live transfer and its socket.
//!
//! Every transfer has a port of its own (its TID, RFC 1350 §4) on our address. The socket is not connected, so that a
//! datagram from the wrong TID reaches us and is told so (ERROR 5); a connected one would leave that to the kernel's
//! ICMP, and would let a forged ICMP end a transfer.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::net::bridge::Bridge;
use crate::node::timeline::FileOutcome;
use crate::tftp::TransferReport;
use crate::tftp::transfer::{BURST_SEGMENTS_MAX, Burst, Transfer, Transmit};
use crate::tftp::wire::{self, DATA_HEADER_LEN, ERROR_MESSAGE_LEN_MAX, ErrorCode};

/// Datagrams taken from one transfer before the others have their turn.
const RECEIVE_TURN_MAX: usize = 16;
/// The kernel cuts whatever leaves a segmenting socket, OACK and ERROR too: both must fit one segment. The longest OACK
/// (all four options, 20 digits of `tsize`) is shorter than the longest ERROR.
const SEGMENT_LEN_MIN: usize = DATA_HEADER_LEN + ERROR_MESSAGE_LEN_MAX + 1;

pub struct Session {
    socket: UdpSocket,
    peer: SocketAddrV4,
    /// `peer` as the kernel takes it, converted once.
    destination: SockAddr,
    transfer: Transfer,
    /// The request as it came, to recognise its repetition.
    request: Box<[u8]>,
    name: String,
    ticket: u64,
    started_at: Instant,
    /// The kernel cuts a burst into datagrams for us.
    segmenting: bool,
    /// The earliest deadline the server has been told of.
    pub armed_at: Option<Instant>,
}

/// What a session is made of, besides its socket.
pub struct Begun<'a> {
    pub peer: SocketAddrV4,
    pub transfer: Transfer,
    pub request: &'a [u8],
    pub name: String,
    pub ticket: u64,
    pub now: Instant,
}

impl Begun<'_> {
    /// The report of a transfer that could not begin.
    pub fn into_report_unsent(self, reason: String) -> TransferReport {
        TransferReport {
            peer: self.peer,
            ticket: self.ticket,
            size: self.transfer.size(),
            sent: 0,
            took: Duration::ZERO,
            outcome: FileOutcome::Aborted(reason),
            retransmissions: 0,
            blksize: self.transfer.blksize(),
            windowsize: self.transfer.windowsize(),
            name: self.name,
        }
    }
}

impl Session {
    pub fn start(socket: UdpSocket, begun: Begun<'_>) -> Self {
        let Begun { peer, transfer, request, name, ticket, now } = begun;
        let segment = usize::from(transfer.blksize()) + DATA_HEADER_LEN;
        // Refused by kernels before 4.18; then each datagram is a call of its own.
        let segmenting = transfer.windowsize() > 1
            && segment >= SEGMENT_LEN_MIN
            && setsockopt(&socket, sockopt::UdpGsoSegment, &(segment as i32)).is_ok();
        let mut session = Self {
            socket,
            peer,
            destination: SockAddr::from(peer),
            transfer,
            request: request.into(),
            name,
            ticket,
            started_at: now,
            segmenting,
            armed_at: None,
        };
        session.transmit();
        session
    }

    pub fn peer(&self) -> SocketAddrV4 {
        self.peer
    }

    pub fn transfer(&self) -> &Transfer {
        &self.transfer
    }

    pub fn is_finished(&self) -> bool {
        self.transfer.outcome().is_some()
    }

    /// Whether `request` is the one this transfer answers.
    pub fn answers(&self, request: &[u8]) -> bool {
        *self.request == *request
    }

    pub fn started_at(&self) -> Instant {
        self.started_at
    }

    pub fn handle_repeated_request(&mut self, now: Instant) {
        self.transfer.handle_repeated_request(now);
        self.transmit();
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        self.transfer.handle_timeout(now);
        self.transmit();
    }

    /// Receives what is there and sends what it calls for. With `eager`, asks the socket again after each answer: a
    /// client on a quick network has replied by then, and a call to wait for it is saved.
    ///
    /// Returns how many datagrams came from a wrong TID.
    pub fn handle_readable(
        &mut self,
        buffer: &mut [u8],
        eager: bool,
        is_node: impl Fn(SocketAddrV4) -> bool,
    ) -> u64 {
        let mut strays = 0;
        let turn = if eager { RECEIVE_TURN_MAX } else { 1 };
        for _ in 0..turn {
            let (length, source) = match self.socket.recv_from(buffer) {
                Ok((length, SocketAddr::V4(source))) => (length, source),
                // Nothing left, or an error of the network that the timer deals with.
                Ok((_, SocketAddr::V6(_))) | Err(_) => break,
            };
            let datagram = &buffer[..length];
            if source == self.peer {
                self.transfer.handle_datagram(datagram, Instant::now());
                self.transmit();
                if self.is_finished() {
                    break;
                }
            } else {
                strays += 1;
                if is_node(source) {
                    self.refuse_stray(datagram, source);
                }
            }
        }
        strays
    }

    /// RFC 1350 §4: a wrong TID is told so and the transfer goes on. An ERROR is never answered.
    fn refuse_stray(&self, datagram: &[u8], source: SocketAddrV4) {
        let is_error = matches!(wire::parse_datagram(datagram), Some(wire::Datagram::Error { .. }));
        if !is_error {
            let refusal = wire::emit_error(ErrorCode::UnknownTransferId, "unknown transfer ID");
            // Best effort; whoever sent it is not ours to serve.
            let _ = self.socket.send_to(&refusal, source);
        }
    }

    /// A datagram the kernel does not take now is a lost datagram: the timer sends it again.
    fn transmit(&mut self) {
        let Self { socket, destination, transfer, segmenting, .. } = self;
        let socket = SockRef::from(&*socket);
        while let Some(transmit) = transfer.poll_transmit() {
            match transmit {
                Transmit::OptionAck(oack) => drop(socket.send_to(oack, destination)),
                Transmit::Blocks(burst) => send_burst(&socket, destination, burst, segmenting),
            }
        }
    }

    /// Tells the client that this ends here, and why.
    pub fn refuse(&self, message: &str) {
        let _ = self.socket.send_to(&wire::emit_error(ErrorCode::Undefined, message), self.peer);
    }

    /// `outcome`: if the transfer did not finish by itself.
    pub fn into_report(self, outcome: Option<FileOutcome>, now: Instant) -> TransferReport {
        let finished = self.transfer.outcome().cloned();
        let unfinished = || outcome.unwrap_or_else(|| self.transfer.outcome_if_abandoned());
        TransferReport {
            peer: self.peer,
            ticket: self.ticket,
            size: self.transfer.size(),
            sent: self.transfer.acknowledged(),
            took: now.saturating_duration_since(self.started_at),
            outcome: finished.unwrap_or_else(unfinished),
            retransmissions: self.transfer.retransmissions(),
            blksize: self.transfer.blksize(),
            windowsize: self.transfer.windowsize(),
            name: self.name,
        }
    }
}

/// The whole burst in one call where the kernel cuts it (`UDP_SEGMENT`), straight from the file's memory.
fn send_burst(socket: &SockRef<'_>, destination: &SockAddr, burst: Burst<'_>, segmenting: &mut bool) {
    let count = burst.headers.len();
    if *segmenting && count > 1 {
        let mut slices = [IoSlice::new(&[]); 2 * BURST_SEGMENTS_MAX];
        for (pair, (header, data)) in slices.chunks_exact_mut(2).zip(burst.segments()) {
            pair[0] = IoSlice::new(header);
            pair[1] = IoSlice::new(data);
        }
        match socket.send_to_vectored(&slices[..2 * count], destination) {
            Ok(_) => return,
            Err(error) if cannot_segment(&error) => {
                *segmenting = false;
                // Without it the option would refuse every datagram larger than itself.
                let _ = setsockopt(&**socket, sockopt::UdpGsoSegment, &0);
            }
            Err(_) => return,
        }
    }
    for (header, data) in burst.segments() {
        if socket.send_to_vectored(&[IoSlice::new(header), IoSlice::new(data)], destination).is_err() {
            return;
        }
    }
}

/// The device cannot checksum (EIO), or the path became narrower than a block (EINVAL, EMSGSIZE).
fn cannot_segment(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP))
}

/// A socket for one transfer: our address, a free port, this bridge only.
pub fn transfer_socket(bridge: &Bridge) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(bridge.name.0.as_bytes()))?;
    socket.bind(&SockAddr::from(SocketAddrV4::new(bridge.ip(), 0)))?;
    Ok(socket.into())
}
