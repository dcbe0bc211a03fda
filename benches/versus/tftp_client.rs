//! A lean TFTP client that is one or a thousand machines, and compares every byte.
//!
//! It waits as firmware does: after four seconds of silence it says its last word again (edk2's time-out), and
//! otherwise leaves retransmission to the server.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use farrier::net::sys::{self, Inbox};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::bed::{Machine, SERVER};

const PATIENCE: Duration = Duration::from_secs(4);
/// How often the clients of a crowd look at their clocks.
const TICK: Duration = Duration::from_millis(100);
const SLOT: usize = 1500;

#[derive(Clone, Copy)]
pub struct Fetch<'a> {
    pub name: &'a str,
    pub blksize: u16,
    /// 1: the option is not sent.
    pub windowsize: u16,
    pub content: &'a [u8],
    pub deadline: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Fetched {
    pub seconds: f64,
    pub exact: usize,
    /// Clients that got wrong bytes, an error, or not the whole file in time.
    pub failed: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Running,
    Exact,
    Failed,
}

struct Session<'a> {
    fetch: Fetch<'a>,
    socket: UdpSocket,
    /// The server's port for this transfer, once known.
    connected: bool,
    blksize: usize,
    windowsize: u16,
    /// Whole blocks received in order.
    blocks: u64,
    since_ack: u16,
    /// Has told of a gap; the rest of the window is stale.
    told_of_gap: bool,
    last_word: Vec<u8>,
    heard_at: Instant,
    standing: Standing,
}

impl<'a> Session<'a> {
    fn start(fetch: Fetch<'a>, socket: UdpSocket) -> Session<'a> {
        let mut request = vec![0, 1];
        let (blksize, windowsize) = (fetch.blksize.to_string(), fetch.windowsize.to_string());
        for word in [fetch.name, "octet", "blksize", &blksize] {
            request.extend_from_slice(word.as_bytes());
            request.push(0);
        }
        if fetch.windowsize > 1 {
            for word in ["windowsize", &windowsize] {
                request.extend_from_slice(word.as_bytes());
                request.push(0);
            }
        }
        let _ = socket.send_to(&request, SocketAddrV4::new(SERVER, 69));
        Session {
            fetch,
            socket,
            connected: false,
            blksize: 512,
            windowsize: 1,
            blocks: 0,
            since_ack: 0,
            told_of_gap: false,
            last_word: request,
            heard_at: Instant::now(),
            standing: Standing::Running,
        }
    }

    fn say_again(&mut self) {
        self.heard_at = Instant::now();
        if self.connected {
            let _ = self.socket.send(&self.last_word);
        } else {
            let _ = self.socket.send_to(&self.last_word, SocketAddrV4::new(SERVER, 69));
        }
    }

    fn acknowledge(&mut self) {
        let block = (self.blocks as u16).to_be_bytes();
        self.last_word = vec![0, 4, block[0], block[1]];
        self.since_ack = 0;
        let _ = self.socket.send(&self.last_word);
    }

    fn handle(&mut self, datagram: &[u8]) {
        self.heard_at = Instant::now();
        match datagram {
            [0, 6, options @ ..] if self.blocks == 0 => {
                let mut words = options.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word));
                while let (Some(key), Some(value)) = (words.next(), words.next()) {
                    match (key.to_ascii_lowercase().as_str(), value.parse::<u16>()) {
                        ("blksize", Ok(size)) => self.blksize = usize::from(size),
                        ("windowsize", Ok(size)) => self.windowsize = size,
                        _ => {}
                    }
                }
                self.acknowledge();
            }
            [0, 3, high, low, data @ ..] => self.handle_data(u16::from_be_bytes([*high, *low]), data),
            [0, 5, ..] => self.standing = Standing::Failed,
            _ => {}
        }
    }

    fn handle_data(&mut self, block: u16, data: &[u8]) {
        if block != (self.blocks as u16).wrapping_add(1) {
            // Repeat what is in order: once per gap, and whenever the window's last block says that nobody heard it.
            if !self.told_of_gap || block == self.blocks as u16 {
                self.told_of_gap = true;
                self.acknowledge();
            }
            return;
        }
        self.told_of_gap = false;
        let offset = usize::try_from(self.blocks).unwrap_or(usize::MAX) * self.blksize;
        if self.fetch.content.get(offset..offset + data.len()) != Some(data) {
            self.standing = Standing::Failed;
            return;
        }
        self.blocks += 1;
        self.since_ack += 1;
        let last = data.len() < self.blksize;
        if last || self.since_ack >= self.windowsize {
            self.acknowledge();
        }
        if last {
            let whole = offset + data.len() == self.fetch.content.len();
            self.standing = if whole { Standing::Exact } else { Standing::Failed };
        }
    }

    /// Takes what has arrived.
    fn receive(&mut self, inbox: &mut Inbox, buffer: &mut [u8]) {
        if !self.connected {
            let Ok((length, from)) = self.socket.recv_from(buffer) else { return };
            self.connected = self.socket.connect(from).is_ok();
            self.handle(&buffer[..length]);
        } else if self.windowsize > 1 {
            if sys::recv_batch(&self.socket, inbox).is_err() {
                return;
            }
            for (_, datagram) in inbox.iter() {
                if self.standing == Standing::Running {
                    self.handle(datagram);
                }
            }
        } else if let Ok(length) = self.socket.recv(buffer) {
            self.handle(&buffer[..length]);
        }
    }
}

/// One client, as quick as it can be.
pub fn fetch_one(machine: &Machine, fetch: Fetch<'_>) -> Fetched {
    let mut session = Session::start(fetch, machine.udp_socket(machine.address, 0));
    let mut inbox = Inbox::new(sys::BATCH_MAX, SLOT);
    let mut buffer = [0; SLOT];
    let began = Instant::now();
    while session.standing == Standing::Running && began.elapsed() < fetch.deadline {
        let mut waiting = [PollFd::new(session.socket.as_fd(), PollFlags::POLLIN)];
        let left = PATIENCE.saturating_sub(session.heard_at.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // The socket's copy of the descriptor ends here, so that the session can be changed below.
        let ready = poll(&mut waiting, timeout).is_ok_and(|count| count > 0);
        if ready {
            session.receive(&mut inbox, &mut buffer);
        } else if session.heard_at.elapsed() >= PATIENCE {
            session.say_again();
        }
    }
    let exact = usize::from(session.standing == Standing::Exact);
    Fetched { seconds: began.elapsed().as_secs_f64(), exact, failed: 1 - exact }
}

/// As many clients at once as there are addresses; an address may appear more than once.
pub fn fetch_many(machine: &Machine, addresses: &[Ipv4Addr], fetch: Fetch<'_>) -> Fetched {
    let sockets: Vec<UdpSocket> = addresses.iter().map(|address| machine.udp_socket(*address, 0)).collect();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll");
    for (number, socket) in sockets.iter().enumerate() {
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, number as u64)).expect("room in it");
    }
    let mut inbox = Inbox::new(sys::BATCH_MAX, SLOT);
    let mut buffer = [0; SLOT];
    let mut events = [EpollEvent::empty(); 256];
    let began = Instant::now();
    let mut sessions: Vec<Session<'_>> =
        sockets.into_iter().map(|socket| Session::start(fetch, socket)).collect();
    let mut running = sessions.len();
    let mut ticked = Instant::now();
    while running > 0 && began.elapsed() < fetch.deadline {
        let timeout = EpollTimeout::try_from(TICK).unwrap_or(EpollTimeout::NONE);
        let count = epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in &events[..count] {
            let session = &mut sessions[event.data() as usize];
            if session.standing != Standing::Running {
                let _ = session.socket.recv(&mut buffer);
                continue;
            }
            session.receive(&mut inbox, &mut buffer);
            if session.standing != Standing::Running {
                running -= 1;
            }
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            let silent = |session: &&mut Session<'_>| {
                session.standing == Standing::Running && session.heard_at.elapsed() >= PATIENCE
            };
            sessions.iter_mut().filter(silent).for_each(Session::say_again);
        }
    }
    let exact = sessions.iter().filter(|session| session.standing == Standing::Exact).count();
    Fetched { seconds: began.elapsed().as_secs_f64(), exact, failed: sessions.len() - exact }
}
