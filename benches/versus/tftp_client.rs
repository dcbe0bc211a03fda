//! A lean TFTP client that is one or a thousand machines, and compares every byte.
//!
//! Alone it polls its socket as edk2 and iPXE poll their NIC: no firmware sleeps while it waits for a block. A crowd
//! shares a few sockets and moves many datagrams by one call, so that the cores are the servers', and sleeps.
//!
//! After four seconds of silence a client says its last word again (edk2's time-out); otherwise it leaves retransmission
//! to the server.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use farrier::net::sys::{self, Inbox, Outgoing};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use crate::bed::{Machine, SERVER};

const PATIENCE: Duration = Duration::from_secs(4);
/// How often the clients of a crowd look at their clocks.
const TICK: Duration = Duration::from_millis(100);
const SLOT: usize = 1500;
/// Times it looks for a datagram before it looks at the clock.
const LOOKS: u32 = 1000;
/// A socket of the crowd stands for a hundred machines.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
const REQUESTS: SocketAddrV4 = SocketAddrV4::new(SERVER, 69);

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
    /// All that arrived in order and as it should be, of whole files or not.
    pub bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Running,
    Exact,
    Failed,
}

#[derive(Clone, Copy)]
enum Word {
    Request,
    Ack([u8; 4]),
}

/// One client, without its socket.
struct Session<'a> {
    fetch: Fetch<'a>,
    /// The server's port for this transfer, once known.
    server: Option<SocketAddrV4>,
    blksize: usize,
    windowsize: u16,
    /// Whole blocks received in order.
    blocks: u64,
    bytes: u64,
    since_ack: u16,
    /// Has told of a gap; the rest of the window is stale.
    told_of_gap: bool,
    last_word: Word,
    standing: Standing,
}

fn request(fetch: &Fetch<'_>) -> Vec<u8> {
    let mut request = vec![0, 1];
    let (blksize, windowsize) = (fetch.blksize.to_string(), fetch.windowsize.to_string());
    let mut words = vec![fetch.name, "octet", "blksize", &blksize];
    if fetch.windowsize > 1 {
        words.extend(["windowsize", &windowsize]);
    }
    for word in words {
        request.extend_from_slice(word.as_bytes());
        request.push(0);
    }
    request
}

impl<'a> Session<'a> {
    fn new(fetch: Fetch<'a>) -> Session<'a> {
        Session {
            fetch,
            server: None,
            blksize: 512,
            windowsize: 1,
            blocks: 0,
            bytes: 0,
            since_ack: 0,
            told_of_gap: false,
            last_word: Word::Request,
            standing: Standing::Running,
        }
    }

    /// Takes a datagram; what to answer, if anything.
    fn handle(&mut self, from: SocketAddrV4, datagram: &[u8]) -> Option<[u8; 4]> {
        if self.standing != Standing::Running || from != *self.server.get_or_insert(from) {
            return None;
        }
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
                Some(self.acknowledge())
            }
            [0, 3, high, low, data @ ..] => self.handle_data(u16::from_be_bytes([*high, *low]), data),
            [0, 5, ..] => {
                self.standing = Standing::Failed;
                None
            }
            _ => None,
        }
    }

    fn acknowledge(&mut self) -> [u8; 4] {
        let [high, low] = (self.blocks as u16).to_be_bytes();
        self.last_word = Word::Ack([0, 4, high, low]);
        self.since_ack = 0;
        [0, 4, high, low]
    }

    fn handle_data(&mut self, block: u16, data: &[u8]) -> Option<[u8; 4]> {
        if block != (self.blocks as u16).wrapping_add(1) {
            // Repeat what is in order: once per gap, and whenever the window's last block says that nobody heard it.
            let tells = !self.told_of_gap || block == self.blocks as u16;
            self.told_of_gap |= tells;
            return tells.then(|| self.acknowledge());
        }
        self.told_of_gap = false;
        let offset = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        if self.fetch.content.get(offset..offset + data.len()) != Some(data) {
            self.standing = Standing::Failed;
            return None;
        }
        self.blocks += 1;
        self.bytes += data.len() as u64;
        self.since_ack += 1;
        let last = data.len() < self.blksize;
        if last {
            let whole = offset + data.len() == self.fetch.content.len();
            self.standing = if whole { Standing::Exact } else { Standing::Failed };
        }
        (last || self.since_ack >= self.windowsize).then(|| self.acknowledge())
    }
}

/// One client, as quick as it can be, on the core that [`apart`] keeps free.
pub fn fetch_one(machine: &Machine, fetch: Fetch<'_>) -> Fetched {
    let socket = machine.udp_socket(machine.address, 0);
    on_cores(|core, last| core == last, || fetch_alone(&socket, fetch))
}

/// Starts a server that shares no core with the one client, as two machines share none. Left to itself the scheduler
/// puts both now on one core and now on two, where a wake-up costs several times as much, and one server's luck is
/// compared with the other's.
pub fn apart<T>(start: impl FnOnce() -> T) -> T {
    on_cores(|core, last| core != last || last == 0, start)
}

/// Runs `body`, and the processes it starts, on some of the cores this thread may use; `last` is the last of them.
fn on_cores<T>(wanted: impl Fn(usize, usize) -> bool, body: impl FnOnce() -> T) -> T {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this).expect("the cores we may use");
    let usable = || (0..CpuSet::count()).filter(|core| all.is_set(*core).unwrap_or(false));
    let last = usable().next_back().expect("one core at least");
    let mut some = CpuSet::new();
    for core in usable().filter(|core| wanted(*core, last)) {
        some.set(core).expect("it is in the other set");
    }
    sched_setaffinity(this, &some).expect("a part of what we may use");
    let result = body();
    sched_setaffinity(this, &all).expect("where it was before");
    result
}

fn fetch_alone(socket: &UdpSocket, fetch: Fetch<'_>) -> Fetched {
    let mut session = Session::new(fetch);
    let request = request(&fetch);
    let mut buffer = [0; SLOT];
    let began = Instant::now();
    let mut heard_at = began;
    let _ = socket.send_to(&request, REQUESTS);
    let mut looks = 0;
    while session.standing == Standing::Running {
        if let Ok((length, SocketAddr::V4(from))) = socket.recv_from(&mut buffer) {
            let connected = session.server.is_some();
            let answer = session.handle(from, &buffer[..length]);
            if !connected {
                let _ = socket.connect(from);
            }
            if let Some(answer) = answer {
                let _ = socket.send(&answer);
            }
            looks = 0;
            continue;
        }
        looks += 1;
        if looks == 1 {
            heard_at = Instant::now();
        } else if looks % LOOKS == 0 {
            if began.elapsed() >= fetch.deadline {
                break;
            }
            if heard_at.elapsed() >= PATIENCE {
                looks = 0;
                let _ = match session.last_word {
                    Word::Request => socket.send_to(&request, REQUESTS),
                    Word::Ack(ack) => socket.send(&ack),
                };
            }
        }
    }
    let exact = usize::from(session.standing == Standing::Exact);
    let seconds = began.elapsed().as_secs_f64();
    Fetched { seconds, exact, failed: 1 - exact, bytes: session.bytes }
}

/// A client of a crowd: who it is, and when it last heard something.
struct Member<'a> {
    session: Session<'a>,
    socket: usize,
    address: Ipv4Addr,
    heard_at: Instant,
}

struct Crowd<'a> {
    members: Vec<Member<'a>>,
    /// Members of each socket by their address.
    by_address: Vec<HashMap<Ipv4Addr, usize>>,
    sockets: Vec<UdpSocket>,
    request: Vec<u8>,
    running: usize,
}

/// As many clients at once as there are addresses; an address may appear more than once.
pub fn fetch_many(machine: &Machine, addresses: &[Ipv4Addr], fetch: Fetch<'_>) -> Fetched {
    let began = Instant::now();
    let mut crowd = Crowd::new(machine, addresses, fetch, began);
    let began = Instant::now();
    for member in 0..crowd.members.len() {
        crowd.say_last_word(member, began);
    }
    let mut inbox = Inbox::new(sys::BATCH_MAX, SLOT);
    let mut ticked = began;
    while crowd.running > 0 && began.elapsed() < fetch.deadline {
        let mut received = 0;
        for socket in 0..crowd.sockets.len() {
            received += crowd.receive(socket, &mut inbox);
        }
        if received == 0 {
            let mut waiting: Vec<PollFd<'_>> =
                crowd.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
            let _ = poll(&mut waiting, PollTimeout::try_from(TICK).unwrap_or(PollTimeout::MAX));
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            crowd.remind(ticked);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let exact = crowd.members.iter().filter(|member| member.session.standing == Standing::Exact).count();
    let bytes = crowd.members.iter().map(|member| member.session.bytes).sum();
    Fetched { seconds, exact, failed: crowd.members.len() - exact, bytes }
}

impl<'a> Crowd<'a> {
    fn new(machine: &Machine, addresses: &[Ipv4Addr], fetch: Fetch<'a>, now: Instant) -> Crowd<'a> {
        let mut by_address: Vec<HashMap<Ipv4Addr, usize>> = Vec::new();
        let mut members = Vec::with_capacity(addresses.len());
        for (number, address) in addresses.iter().enumerate() {
            // The n-th client of an address is on the n-th socket.
            let taken = by_address.iter().position(|there| !there.contains_key(address));
            let socket = taken.unwrap_or_else(|| {
                by_address.push(HashMap::new());
                by_address.len() - 1
            });
            by_address[socket].insert(*address, number);
            members.push(Member { session: Session::new(fetch), socket, address: *address, heard_at: now });
        }
        let sockets = by_address.iter().map(|_| {
            let socket = machine.udp_socket(Ipv4Addr::UNSPECIFIED, 0);
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).expect("which address it was sent to");
            setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES).expect("we are root here");
            setsockopt(&socket, sockopt::SndBufForce, &QUEUE_BYTES).expect("we are root here");
            socket
        });
        let sockets = sockets.collect();
        Crowd { running: members.len(), members, by_address, sockets, request: request(&fetch) }
    }

    fn say_last_word(&mut self, member: usize, now: Instant) {
        let member = &mut self.members[member];
        member.heard_at = now;
        let from = (member.address, 0);
        let (payload, to) = match (&member.session.last_word, member.session.server) {
            (Word::Ack(ack), Some(server)) => (ack.as_slice(), server),
            (Word::Request | Word::Ack(_), _) => (self.request.as_slice(), REQUESTS),
        };
        sys::send_batch(&self.sockets[member.socket], &[Outgoing { payload, to, from }]);
    }

    /// Takes what has arrived at a socket, and answers.
    fn receive(&mut self, socket: usize, inbox: &mut Inbox) -> usize {
        let Ok(received) = sys::recv_batch(&self.sockets[socket], inbox) else { return 0 };
        let now = Instant::now();
        let mut answers = Vec::with_capacity(received);
        for (arrival, datagram) in inbox.iter() {
            let Some(number) = self.by_address[socket].get(&arrival.destination) else { continue };
            let member = &mut self.members[*number];
            let before = member.session.standing;
            member.heard_at = now;
            if let Some(answer) = member.session.handle(arrival.source, datagram) {
                answers.push((answer, arrival.source, (arrival.destination, 0)));
            }
            if before == Standing::Running && member.session.standing != Standing::Running {
                self.running -= 1;
            }
        }
        let outgoing: Vec<Outgoing<'_>> = answers
            .iter()
            .map(|(answer, to, from)| Outgoing { payload: answer, to: *to, from: *from })
            .collect();
        sys::send_batch(&self.sockets[socket], &outgoing);
        received
    }

    /// Has those speak who have heard nothing for too long.
    fn remind(&mut self, now: Instant) {
        for number in 0..self.members.len() {
            let member = &self.members[number];
            let silent = now.duration_since(member.heard_at) >= PATIENCE;
            if silent && member.session.standing == Standing::Running {
                self.say_last_word(number, now);
            }
        }
    }
}
