//! The ports our transfers speak from: a few sockets, shared by all of them.
//!
//! RFC 1350 §4 has each side choose a TID so that the same is unlikely twice in succession; what tells transfers apart is
//! the pair. Ours are taken in turn from [`PORTS`], and a peer's own port does the rest. A socket for each transfer
//! would cost a call to receive and a call to send for every block, whereas these move many blocks by one call of each.
//!
//! The sockets are not connected, so that a datagram from the wrong TID reaches us and is told so (ERROR 5), and a
//! forged ICMP message cannot end a transfer.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::net::bridge::Bridge;
use crate::net::sys::{self, Inbox};
use crate::tftp::outbox::Outbox;
use crate::tftp::transfer::Transmit;

/// So many transfers begin before a port is used again; and a queue that overflows concerns one in so many of them.
pub const PORTS: usize = 8;
/// An ACK takes 768 bytes of the kernel's memory: more than every session of a port may have on its way.
const RECEIVE_QUEUE_BYTES: usize = 1024 * 1024;
/// What may wait for a slow link: a few windows of 64 blocks.
const SEND_QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Another program that needs this core gets it when we look around; then we had better sleep.
const INTERRUPTION: Duration = Duration::from_micros(400);
/// We sleep for so many times what it took: who needs the core for good costs us a ninth of ours at most, and a hypervisor
/// that took it for a moment does not cost us what we gain.
const REST_PER_INTERRUPTION: u32 = 8;

pub struct Ports {
    ports: Vec<Port>,
    turn: usize,
}

pub struct Port {
    socket: UdpSocket,
    outbox: Outbox,
}

impl Ports {
    /// On our address and this bridge, wherever the kernel has room.
    pub fn open(bridge: &Bridge) -> io::Result<Ports> {
        let ports = (0..PORTS).map(|_| Port::open(bridge)).collect::<io::Result<_>>()?;
        Ok(Ports { ports, turn: 0 })
    }

    /// The port for the next transfer.
    pub fn next_index(&mut self) -> usize {
        self.turn = (self.turn + 1) % self.ports.len();
        self.turn
    }

    pub fn iter(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter()
    }

    /// `index` is what [`Self::next_index`] gave out.
    pub fn get_mut(&mut self, index: usize) -> &mut Port {
        &mut self.ports[index]
    }

    /// Sends what waits at any of them.
    pub fn flush(&mut self) {
        self.ports.iter_mut().for_each(Port::flush);
    }
}

impl Port {
    fn open(bridge: &Bridge) -> io::Result<Port> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(bridge.name.0.as_bytes()))?;
        // Past net.core.rmem_max and wmem_max only with CAP_NET_ADMIN; without it, as far as the system allows.
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_QUEUE_BYTES)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_QUEUE_BYTES))?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_QUEUE_BYTES)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &SEND_QUEUE_BYTES))?;
        sys::never_fragment(&socket)?;
        socket.bind(&SockAddr::from(SocketAddrV4::new(bridge.ip(), 0)))?;
        Ok(Port { socket: socket.into(), outbox: Outbox::default() })
    }

    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    pub fn push(&mut self, to: SocketAddrV4, transmit: Transmit) {
        self.outbox.push(&self.socket, to, transmit);
    }

    pub fn push_datagram(&mut self, to: SocketAddrV4, datagram: Vec<u8>) {
        self.outbox.push_datagram(&self.socket, to, datagram);
    }

    pub fn flush(&mut self) {
        self.outbox.flush(&self.socket);
    }

    /// What is queued, as much as the inbox holds. An error of the network is left to the transfers' timers.
    pub fn receive(&self, inbox: &mut Inbox) -> usize {
        sys::recv_batch(&self.socket, inbox).unwrap_or(0)
    }
}

/// Waits awake for a reply that is due at once.
///
/// Lock-step is a ping-pong: to sleep and be woken takes longer than all the rest, by tens of microseconds on a virtual
/// machine. While waiting, the core is offered to whoever wants it; if somebody keeps it, sleeping is the quicker way
/// to get it back, because the kernel lets sleepers go first.
#[derive(Debug, Default)]
pub struct Lookout {
    not_before: Option<Instant>,
}

impl Lookout {
    /// The next datagram, if it comes within `patience`.
    pub fn receive(
        &mut self,
        port: &Port,
        buffer: &mut [u8],
        patience: Duration,
    ) -> Option<(usize, SocketAddrV4)> {
        let began = Instant::now();
        if self.not_before.is_some_and(|not_before| began < not_before) {
            return None;
        }
        let mut looked_at = began;
        loop {
            match port.socket.recv_from(buffer) {
                Ok((length, SocketAddr::V4(source))) => return Some((length, source)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok((_, SocketAddr::V6(_))) | Err(_) => return None,
            }
            thread::yield_now();
            let now = Instant::now();
            let away = now.duration_since(looked_at);
            if away > INTERRUPTION {
                self.not_before = Some(now + away * REST_PER_INTERRUPTION);
                return None;
            }
            if now.duration_since(began) > patience {
                return None;
            }
            looked_at = now;
        }
    }
}
