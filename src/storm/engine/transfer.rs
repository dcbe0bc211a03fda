//! One transfer of one machine over the kernel's sockets, bound to the machine's own address.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Socket, Type};

use crate::net::sys;
use crate::storm::firmware::{HttpManners, Manners};
use crate::storm::http::Exchange;
use crate::storm::machine::{Fetch, Fetched, Trouble};
use crate::storm::tftp::{Datagram, Download};

/// Read (or dropped) by one call.
pub const BUFFER: usize = 1 << 20;
/// Calls in one turn: a fast server must not keep the loop to itself.
const CALLS: usize = 2;
const DATAGRAMS: usize = 64;
/// Bytes of a body that have to wait before we are told of them: to look at each packet costs more than to count it.
const BODY_WORTH_A_LOOK: u64 = 256 * 1024;

/// A connection that may be used again.
pub struct Spare {
    server: SocketAddrV4,
    stream: TcpStream,
}

pub struct Transfer {
    address: Ipv4Addr,
    token: Token,
    work: Work,
}

enum Work {
    Tftp { socket: UdpSocket, download: Download },
    Http(Box<Http>),
}

struct Http {
    stream: TcpStream,
    server: SocketAddrV4,
    exchange: Exchange,
    manners: &'static HttpManners,
    stall_at: Instant,
    /// As the socket has it: it is ready from so many bytes on.
    ready_from: u64,
    /// The connection has served an earlier request.
    kept: bool,
}

/// What a turn has led to.
pub enum Moved {
    Waiting,
    MoreToRead,
    /// A kept connection turned out to be closed.
    Lonely,
    Done(Result<Fetched, Trouble>),
}

impl Transfer {
    /// Starts the transfer; datagrams to send come with it.
    pub fn start(
        fetch: Fetch,
        manners: &'static Manners,
        address: Ipv4Addr,
        spare: Option<Spare>,
        token: Token,
        registry: &Registry,
        now: Instant,
    ) -> Result<(Transfer, Vec<Datagram>), Trouble> {
        let mut out = Vec::new();
        let work = match fetch {
            Fetch::Tftp { server, name, probe, keep } => {
                let socket = udp_socket(address, token, registry).map_err(|_| Trouble::NoSocket)?;
                let download = Download::start(&manners.tftp, server, &name, probe, keep, now, &mut out);
                Work::Tftp { socket, download }
            }
            Fetch::Http { method, url, bearer, body, keep } => {
                let manners = &manners.http;
                let exchange =
                    Exchange::new(method, &url, manners.user_agent, bearer.as_deref(), &body, keep);
                let (stream, kept) = match spare.filter(|spare| spare.server == url.server) {
                    Some(spare) => (spare.stream, true),
                    None => (connect(address, url.server, token, registry)?, false),
                };
                let stall_at = now + Duration::from_millis(manners.stall);
                let server = url.server;
                let mut http = Http { stream, server, exchange, manners, stall_at, ready_from: 1, kept };
                if kept {
                    // A connection that is ready already will not say so again. Trouble shows when the answer is read.
                    let _ = http.write();
                }
                Work::Http(Box::new(http))
            }
        };
        Ok((Transfer { address, token, work }, out))
    }

    pub fn deadline(&self) -> Instant {
        match &self.work {
            Work::Tftp { download, .. } => download.deadline(),
            Work::Http(http) => http.stall_at,
        }
    }

    pub fn is_over_http(&self) -> bool {
        matches!(self.work, Work::Http(_))
    }

    pub fn resends(&self) -> u32 {
        match &self.work {
            Work::Tftp { download, .. } => download.resends,
            Work::Http(_) => 0,
        }
    }

    pub fn into_spare(self) -> Option<Spare> {
        match self.work {
            Work::Tftp { .. } => None,
            Work::Http(http) => Some(Spare { server: http.server, stream: http.stream }),
        }
    }

    /// A datagram the kernel does not take is lost, as on any wire.
    pub fn send(&self, port: u16, payload: &[u8]) {
        if let Work::Tftp { socket, download } = &self.work {
            let _ = socket.send_to(payload, SocketAddr::V4(SocketAddrV4::new(*download.server().ip(), port)));
        }
    }

    /// The deadline has passed.
    pub fn wake(&mut self, now: Instant, out: &mut Vec<Datagram>) -> Moved {
        match &mut self.work {
            Work::Tftp { download, .. } => done_or_waiting(download.wake(now, out).map(file)),
            Work::Http(http) if now >= http.stall_at => {
                // There may be some bytes, too few to have been told of.
                match http.work(&mut [0; 4096], now) {
                    Moved::Waiting if now >= http.stall_at => {}
                    moved => return moved,
                }
                let begun = http.exchange.moved() > 0 || http.stream.peer_addr().is_ok();
                Moved::Done(Err(if begun { Trouble::HttpStalled } else { Trouble::NoConnection }))
            }
            Work::Http(_) => Moved::Waiting,
        }
    }

    pub fn reconnect(&mut self, registry: &Registry, now: Instant) -> Result<(), Trouble> {
        if let Work::Http(http) = &mut self.work {
            http.stream = connect(self.address, http.server, self.token, registry)?;
            http.exchange.restart();
            http.kept = false;
            http.ready_from = 1;
            http.stall_at = now + Duration::from_millis(http.manners.stall);
        }
        Ok(())
    }

    pub fn work(
        &mut self,
        buffer: &mut [u8],
        now: Instant,
        lost: &mut dyn FnMut() -> bool,
        out: &mut Vec<Datagram>,
    ) -> Moved {
        match &mut self.work {
            Work::Tftp { socket, download } => {
                for _ in 0..DATAGRAMS {
                    let (length, from) = match socket.recv_from(buffer) {
                        Ok((length, SocketAddr::V4(from))) => (length, from),
                        Ok((_, SocketAddr::V6(_))) => continue,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Moved::Waiting,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        // Nobody listens there; firmware does not hear of that, and waits.
                        Err(_) => continue,
                    };
                    if lost() {
                        continue;
                    }
                    if let Some(outcome) = download.handle(from, &buffer[..length], now, out) {
                        return Moved::Done(outcome.map(Fetched::File));
                    }
                }
                Moved::MoreToRead
            }
            Work::Http(http) => http.work(buffer, now),
        }
    }
}

fn file(outcome: Result<crate::storm::tftp::Received, Trouble>) -> Result<Fetched, Trouble> {
    outcome.map(Fetched::File)
}

fn done_or_waiting(outcome: Option<Result<Fetched, Trouble>>) -> Moved {
    outcome.map_or(Moved::Waiting, Moved::Done)
}

impl Http {
    fn work(&mut self, buffer: &mut [u8], now: Instant) -> Moved {
        if let Err(error) = self.write() {
            return self.broken(&error);
        }
        for _ in 0..CALLS {
            let outcome = match self.exchange.discardable() {
                Some(left) => self.discard(left, buffer),
                None => self.stream.read(buffer),
            };
            match outcome {
                Ok(0) => return self.broken(&io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok(length) => {
                    self.stall_at = now + Duration::from_millis(self.manners.stall);
                    let answer = match self.exchange.discardable() {
                        Some(_) => self.exchange.discarded(length as u64),
                        None => self.exchange.feed(&buffer[..length]),
                    };
                    self.look_from(self.exchange.discardable().unwrap_or(1).min(BODY_WORTH_A_LOOK));
                    if let Some(answer) = answer {
                        return Moved::Done(answer.map(Fetched::Answer));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Moved::Waiting,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Still connecting.
                Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => return Moved::Waiting,
                Err(error) => return self.broken(&error),
            }
        }
        Moved::MoreToRead
    }

    /// An answer's last bytes are always worth a look: this is never more than what is still to come.
    fn look_from(&mut self, bytes: u64) {
        let bytes = bytes.max(1);
        // What cannot be had is a socket that is ready oftener.
        if self.ready_from != bytes
            && usize::try_from(bytes).is_ok_and(|bytes| sys::ready_from(&self.stream, bytes).is_ok())
        {
            self.ready_from = bytes;
        }
    }

    /// TCP's `MSG_TRUNC`: taken off the queue, and copied nowhere.
    fn discard(&self, left: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        recv(self.stream.as_raw_fd(), &mut buffer[..length], flags).map_err(io::Error::from)
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.exchange.pending().is_empty() {
            match self.stream.write(self.exchange.pending()) {
                Ok(written) => self.exchange.wrote(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn broken(&self, error: &io::Error) -> Moved {
        if self.kept && self.exchange.moved() == 0 {
            return Moved::Lonely;
        }
        let refused = matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut
        );
        Moved::Done(Err(if refused { Trouble::NoConnection } else { Trouble::HttpBroken }))
    }
}

fn udp_socket(address: Ipv4Addr, token: Token, registry: &Registry) -> io::Result<UdpSocket> {
    let mut socket = UdpSocket::bind(SocketAddr::from((address, 0)))?;
    registry.register(&mut socket, token, Interest::READABLE)?;
    Ok(socket)
}

fn connect(
    address: Ipv4Addr,
    server: SocketAddrV4,
    token: Token,
    registry: &Registry,
) -> Result<TcpStream, Trouble> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((address, 0)).into())?;
        Ok(socket)
    };
    let socket = open().map_err(|_| Trouble::NoSocket)?;
    match socket.connect(&SocketAddr::V4(server).into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
            return Err(Trouble::NoConnection);
        }
        Ok(()) | Err(_) => {}
    }
    let mut stream = TcpStream::from_std(socket.into());
    registry
        .register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
        .map_err(|_| Trouble::NoSocket)?;
    Ok(stream)
}
