//! The TFTP thread: port 69 of the bridge, the transfers' ports, one `epoll`.
//!
//! One thread, because a packet costs a share of two system calls and little else: it saturates a link long before a
//! core, and nothing needs a lock. Readiness is level-triggered, which saves the read that finds nothing; hence `epoll`
//! itself and not a portable wrapper.

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::net::bridge::Bridge;
use crate::net::link::LinkWatch;
use crate::net::sys::{self, Inbox, Outgoing};
use crate::node::timeline::{FileOutcome, aborted};
use crate::telemetry::Tally;
use crate::tftp::FileSource;
use crate::tftp::admission::{Admission, SESSIONS_MAX, Silence};
use crate::tftp::ports::{Lookout, PORTS, Ports};
use crate::tftp::refusal::{Refusal, refuse_operation, refuse_source};
use crate::tftp::session::{Begun, Session, log, outcome_word};
use crate::tftp::sessions::{SessionKey, Sessions};
use crate::tftp::transfer::{Limits, Transfer};
use crate::tftp::wire::{self, ErrorCode};

const PORT: u16 = 69;
/// The word our counters stand under.
const SERVICE: &str = "tftp";
/// Requests taken from port 69 before transfers have their turn.
const REQUEST_BATCH: usize = 32;
/// Datagrams taken from one of the transfers' ports before the others have their turn.
const TRANSFER_BATCH: usize = sys::BATCH_MAX;
/// More than a request may be; what is longer is refused by its first bytes.
const REQUEST_SLOT_LEN: usize = 1024;
/// ACK and ERROR; what is longer is cut.
const DATAGRAM_LEN_MAX: usize = 600;
/// Events taken from the kernel at once: there are no more.
const EVENTS_MAX: usize = PORTS + 3;
/// IPv4, UDP and TFTP headers before a block: a block is never fragmented.
const HEADERS_LEN: u32 = 32;
/// What every Ethernet carries.
const MTU_DEFAULT: u32 = 1500;
/// More would overrun a client's receive queue (208 KiB on Linux, less in a ROM). ROMs themselves ask for 4 to 16
/// (edk2: 4), so the cap is for who knows what it asks for: tools that want a large image in few round trips.
const WINDOWSIZE_MAX: u16 = 64;
/// A request seen again within this time is a repetition, afterwards a new start.
const REPETITION_WINDOW: Duration = Duration::from_secs(5);
/// With no more transfers than this, the next ACK is awaited awake: see [`Lookout`].
const LOOKOUT_SESSIONS_MAX: usize = 2;
/// Only if the client has been answering so quickly: a virtual machine beside us, or a very quick one.
const LOOKOUT_PATIENCE: Duration = Duration::from_micros(100);
/// Then requests and deadlines have their turn.
const LOOKOUT_TURNS: usize = 64;

const LISTENER: u64 = u64::MAX;
const WAKER: u64 = u64::MAX - 1;
const LINKS: u64 = u64::MAX - 2;

/// The running server; stops when dropped.
pub struct TftpHandle {
    stopping: Arc<AtomicBool>,
    waker: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl TftpHandle {
    /// Tells every client that its transfer ends, reports them, and returns when the thread has ended.
    pub fn stop(self) {}
}

impl Drop for TftpHandle {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Fails only if the counter overflows, that is never.
        let _ = self.waker.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The sockets; binding port 69 and long queues take privileges, serving does not.
pub struct Doors {
    listener: UdpSocket,
    ports: Ports,
}

impl Doors {
    pub fn open(bridge: &Bridge) -> io::Result<Doors> {
        Ok(Doors { listener: bridge.udp_socket(PORT)?, ports: Ports::open(bridge)? })
    }
}

/// Serves until the handle is stopped.
pub fn start(
    bridge: Bridge,
    doors: Doors,
    files: Arc<dyn FileSource>,
    tally: Arc<Tally>,
) -> io::Result<TftpHandle> {
    let Doors { listener, ports } = doors;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let waker = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let stopping = Arc::new(AtomicBool::new(false));
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    epoll.add(waker.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKER))?;
    let watch = LinkWatch::open()?;
    epoll.add(watch.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, LINKS))?;
    for (index, port) in ports.iter().enumerate() {
        epoll.add(port.socket(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
    }
    let server = Server {
        admission: Admission::new(bridge.address, tally.level(SERVICE, "sessions", SESSIONS_MAX as u64)),
        bridge,
        watch,
        files,
        tally,
        listener,
        epoll,
        sessions: Sessions::default(),
        ports,
        lookout: Lookout::default(),
    };
    let stop_signal = Arc::clone(&stopping);
    let thread = std::thread::Builder::new().name("tftp".to_owned()).spawn(move || {
        sys::run_like_others();
        server.run(&stop_signal);
    })?;
    Ok(TftpHandle { stopping, waker, thread: Some(thread) })
}

struct Server {
    bridge: Bridge,
    watch: LinkWatch,
    files: Arc<dyn FileSource>,
    tally: Arc<Tally>,
    listener: UdpSocket,
    epoll: Epoll,
    admission: Admission,
    sessions: Sessions,
    ports: Ports,
    lookout: Lookout,
}

impl Server {
    fn run(mut self, stopping: &AtomicBool) {
        let mut requests = Inbox::new(REQUEST_BATCH, REQUEST_SLOT_LEN);
        let mut datagrams = Inbox::new(TRANSFER_BATCH, DATAGRAM_LEN_MAX);
        let mut buffer = [0; DATAGRAM_LEN_MAX];
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        while !stopping.load(Ordering::Relaxed) {
            let count = match self.epoll.wait(&mut events, self.patience()) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => {
                    tracing::error!(%error, "epoll failed, TFTP ends");
                    break;
                }
            };
            for event in &events[..count] {
                match event.data() {
                    WAKER => {}
                    LISTENER => self.handle_requests(&mut requests),
                    LINKS => self.handle_links(),
                    index => {
                        let latest = self.handle_port(index as usize, &mut datagrams);
                        self.look_out(index as usize, latest, &mut buffer);
                    }
                }
            }
            self.handle_deadlines();
            self.tally.tftp_transfers(self.sessions.len());
        }
        self.finish_all();
    }

    /// How long there is nothing to do unless something arrives; rounded up, or the last millisecond would be spun away.
    fn patience(&self) -> EpollTimeout {
        let Some(deadline) = self.sessions.next_deadline() else { return EpollTimeout::NONE };
        let micros = deadline.saturating_duration_since(Instant::now()).as_micros();
        // No deadline is further away than a transfer may stand still.
        EpollTimeout::from(u16::try_from(micros.div_ceil(1000)).unwrap_or(u16::MAX))
    }

    /// A bridge that was deleted and made anew has our name and another index: our ports move to it, and the transfers
    /// that are still waiting go on.
    fn handle_links(&mut self) {
        self.watch.clear();
        if self.bridge.link().is_some() {
            return;
        }
        // Missing, down, or without our address: all of it may still change, and each change wakes us.
        let Ok(found) = self.bridge.again() else { return };
        let moved = self.ports.iter().try_for_each(|port| found.rebind(port.socket()));
        match moved.and_then(|()| found.rebind(&self.listener)) {
            Ok(()) => {
                tracing::info!(bridge = %found.name, "TFTP is back on the bridge");
                self.bridge = found;
            }
            Err(error) => tracing::error!(bridge = %found.name, %error, "TFTP cannot return to the bridge"),
        }
    }

    /// Returns the session served last.
    fn handle_port(&mut self, index: usize, inbox: &mut Inbox) -> Option<SessionKey> {
        if self.ports.get_mut(index).receive(inbox) == 0 {
            return None;
        }
        let now = Instant::now();
        let mut latest = None;
        for (arrival, datagram) in inbox.iter() {
            latest = self.handle_datagram(index, arrival.source, datagram, now);
        }
        self.ports.get_mut(index).flush();
        latest
    }

    /// While few transfers run and the one served last has a quick client, answers it without going to sleep in between.
    fn look_out(&mut self, index: usize, mut latest: Option<SessionKey>, buffer: &mut [u8]) {
        for _ in 0..LOOKOUT_TURNS {
            if !latest.is_some_and(|key| self.expects_quick_answer(key)) {
                return;
            }
            let port = self.ports.get_mut(index);
            let Some((length, source)) = self.lookout.receive(port, buffer, LOOKOUT_PATIENCE) else { return };
            latest = self.handle_datagram(index, source, &buffer[..length], Instant::now());
            self.ports.get_mut(index).flush();
        }
    }

    fn expects_quick_answer(&mut self, key: SessionKey) -> bool {
        self.sessions.len() <= LOOKOUT_SESSIONS_MAX
            && self
                .sessions
                .get_mut(key)
                .and_then(|session| session.transfer().round_trip())
                .is_some_and(|round_trip| round_trip <= LOOKOUT_PATIENCE)
    }

    /// Returns the session it belongs to.
    fn handle_datagram(
        &mut self,
        index: usize,
        source: SocketAddrV4,
        datagram: &[u8],
        now: Instant,
    ) -> Option<SessionKey> {
        let key = self.sessions.find(source);
        if let Some(key) = key
            && let Some(session) = self.sessions.get_mut(key).filter(|session| session.port_index() == index)
        {
            session.handle_datagram(datagram, now, self.ports.get_mut(index));
            self.settle(key);
            return Some(key);
        }
        self.tally.count(SERVICE, "unknown-tid");
        // Who is being served, or was until now, may have sent it before. It might take an ERROR for the answer to its
        // next request.
        let late = key.is_some() || self.sessions.has_departed(source);
        if !late && self.admission.is_node(source) {
            self.refuse_stray(index, source, datagram);
        }
        None
    }

    /// RFC 1350 §4: a wrong TID is told so and the transfer goes on. An ERROR is never answered.
    fn refuse_stray(&mut self, index: usize, source: SocketAddrV4, datagram: &[u8]) {
        let is_error = matches!(wire::parse_datagram(datagram), Some(wire::Datagram::Error { .. }));
        if !is_error {
            let refusal = wire::emit_error(ErrorCode::UnknownTransferId, "unknown transfer ID");
            self.ports.get_mut(index).push_datagram(source, refusal);
        }
    }

    fn handle_deadlines(&mut self) {
        if self.sessions.next_deadline().is_none() {
            return;
        }
        let now = Instant::now();
        while let Some(key) = self.sessions.due(now) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.handle_timeout(now, self.ports.get_mut(session.port_index()));
            }
            self.settle(key);
        }
        self.ports.flush();
    }

    /// After anything that may have ended a transfer or moved its deadline.
    fn settle(&mut self, key: SessionKey) {
        match self.sessions.get_mut(key) {
            Some(session) if session.is_finished() => self.finish(key, None),
            Some(_) => self.sessions.arm(key),
            None => {}
        }
    }

    fn finish(&mut self, key: SessionKey, outcome: Option<FileOutcome>) {
        let Some(session) = self.sessions.remove(key) else { return };
        self.admission.session_ended(session.peer());
        let report = session.into_report(outcome, Instant::now());
        self.tally.count(SERVICE, outcome_word(&report.outcome));
        self.tally.add(SERVICE, "bytes", report.sent);
        self.tally.add(SERVICE, "retransmissions", report.retransmissions.into());
        log(&report);
        self.files.finished(report);
    }

    fn finish_all(&mut self) {
        for key in self.sessions.keys() {
            if let Some(session) = self.sessions.get_mut(key) {
                session.refuse("the server is stopping", self.ports.get_mut(session.port_index()));
            }
            self.finish(key, Some(FileOutcome::Aborted(aborted::STOPPED.to_owned())));
        }
        self.ports.flush();
    }

    fn handle_requests(&mut self, inbox: &mut Inbox) {
        if let Err(error) = sys::recv_batch(&self.listener, inbox) {
            if error.kind() != io::ErrorKind::WouldBlock {
                tracing::warn!(%error, "cannot receive requests");
            }
            return;
        }
        let now = Instant::now();
        for (arrival, datagram) in inbox.iter() {
            let result = if arrival.destination == self.bridge.ip() {
                self.handle_request(arrival.source, datagram, now)
            } else {
                Err(Silence::Broadcast.into())
            };
            match result {
                Ok(()) => {}
                Err(Refusal::Silence(silence)) => {
                    self.tally.count(SERVICE, silence.as_str());
                    tracing::debug!(peer = %arrival.source, reason = silence.as_str(), "TFTP request not answered");
                }
                Err(Refusal::Error(code, message, word)) => {
                    self.tally.count(SERVICE, word);
                    self.send_error(arrival.source, code, message);
                }
            }
        }
        self.ports.flush();
    }

    /// From port 69 itself: a client that asks for a dozen missing names costs no sockets.
    fn send_error(&self, to: SocketAddrV4, code: ErrorCode, message: &str) {
        let payload = wire::emit_error(code, message);
        let from = (self.bridge.ip(), self.bridge.index);
        for result in sys::send_batch(&self.listener, &[Outgoing { payload: &payload, to, from }]) {
            if let Err(error) = result {
                tracing::debug!(peer = %to, %error, "cannot send");
            }
        }
    }

    fn handle_request(&mut self, peer: SocketAddrV4, datagram: &[u8], now: Instant) -> Result<(), Refusal> {
        self.admission.admit_request(peer, now)?;
        let request = wire::parse_request(datagram)?;
        refuse_operation(&request)?;
        if let Some(key) = self.sessions.find(peer) {
            self.handle_request_of_known_peer(key, datagram, now)?;
        }
        self.admission.admit_session(peer)?;
        let opened = self.files.open(peer, request.name).map_err(refuse_source)?;
        let limits = self.limits().within(&opened.restraint);
        let transfer = Transfer::new(&request, &limits, opened.bytes, now).paced(opened.restraint.pace);
        let port_index = self.ports.next_index();
        let begun = Begun {
            peer,
            port_index,
            transfer,
            request: datagram,
            name: request.name.escape_ascii().to_string(),
            ticket: opened.ticket,
            now,
        };
        self.sessions.insert(Session::start(begun, self.ports.get_mut(port_index)));
        self.admission.session_started(peer, now);
        Ok(())
    }

    /// `Err`: the request only repeats the one being answered. `Ok`: the client has turned to something else, and its
    /// previous transfer is over.
    fn handle_request_of_known_peer(
        &mut self,
        key: SessionKey,
        datagram: &[u8],
        now: Instant,
    ) -> Result<(), Silence> {
        let Some(session) = self.sessions.get_mut(key) else { return Ok(()) };
        if session.answers(datagram) && now < session.started_at() + REPETITION_WINDOW {
            session.handle_repeated_request(now, self.ports.get_mut(session.port_index()));
            self.sessions.arm(key);
            return Err(Silence::RepeatedRequest);
        }
        self.finish(key, None);
        Ok(())
    }

    fn limits(&self) -> Limits {
        let mtu = self.bridge.link().map_or(MTU_DEFAULT, |link| link.mtu);
        let blksize_max = u16::try_from(mtu.saturating_sub(HEADERS_LEN)).unwrap_or(u16::MAX);
        Limits {
            blksize_max: blksize_max.clamp(wire::BLKSIZE_MIN as u16, wire::BLKSIZE_MAX as u16),
            windowsize_max: WINDOWSIZE_MAX,
        }
    }
}
