//! The TFTP thread: port 69 of the bridge, a socket per transfer, one `epoll`.
//!
//! One thread, because a packet costs two system calls and little else: it saturates a link long before a core, and
//! nothing needs a lock. Readiness is level-triggered, which saves the read that finds nothing; hence `epoll` itself
//! and not a portable wrapper.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::net::bridge::Bridge;
use crate::net::link::LinkWatch;
use crate::net::sys::{self, Inbox, Outgoing};
use crate::node::timeline::FileOutcome;
use crate::telemetry::Tally;
use crate::tftp::admission::{Admission, SESSIONS_MAX, Silence};
use crate::tftp::session::{Begun, Session, transfer_socket};
use crate::tftp::sessions::{SessionKey, Sessions};
use crate::tftp::transfer::{Limits, Transfer};
use crate::tftp::wire::{self, ErrorCode, Mode, Operation, RequestError};
use crate::tftp::{FileSource, TransferReport};

pub const PORT: u16 = 69;
/// The word our counters stand under.
const SERVICE: &str = "tftp";
/// Requests taken from port 69 before transfers have their turn.
const REQUEST_BATCH: usize = 32;
/// More than a request may be; what is longer is refused by its first bytes.
const REQUEST_SLOT_LEN: usize = 1024;
/// ACK and ERROR; what is longer is cut.
const DATAGRAM_LEN_MAX: usize = 600;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;
/// IPv4, UDP and TFTP headers before a block: a block is never fragmented.
const HEADERS_LEN: u32 = 32;
/// What every Ethernet carries.
const MTU_DEFAULT: u32 = 1500;
/// More would overrun a client's receive queue (208 KiB on Linux, less in a ROM). ROMs themselves ask for 4 to 16
/// (edk2: 4), so the cap is for who knows what it asks for: tools that want a large image in few round trips.
const WINDOWSIZE_MAX: u16 = 64;
/// A request seen again within this time is a repetition, afterwards a new start.
const REPETITION_WINDOW: Duration = Duration::from_secs(5);
/// Descriptors for everything that is not a transfer.
const OTHER_DESCRIPTORS: u64 = 1024;

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

/// Binds port 69 of the bridge and serves until the handle is stopped.
pub fn start(bridge: Bridge, files: Arc<dyn FileSource>, tally: Arc<Tally>) -> io::Result<TftpHandle> {
    raise_descriptor_limit();
    let listener = bridge.udp_socket(PORT)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let waker = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let stopping = Arc::new(AtomicBool::new(false));
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    epoll.add(waker.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKER))?;
    let watch = LinkWatch::open()?;
    epoll.add(watch.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, LINKS))?;
    let server = Server {
        admission: Admission::new(bridge.address),
        bridge,
        watch,
        files,
        tally,
        listener,
        epoll,
        sessions: Sessions::default(),
    };
    let stop_signal = Arc::clone(&stopping);
    let thread =
        std::thread::Builder::new().name("tftp".to_owned()).spawn(move || server.run(&stop_signal))?;
    Ok(TftpHandle { stopping, waker, thread: Some(thread) })
}

/// A socket per transfer needs more descriptors than the usual soft limit of 1024. As many as the hard limit allows;
/// beyond that requests are met with silence, as at any other limit.
fn raise_descriptor_limit() {
    let wanted = SESSIONS_MAX as u64 + OTHER_DESCRIPTORS;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)
    {
        tracing::warn!(soft, wanted, %error, "limit of open files stays low");
    }
}

struct Server {
    bridge: Bridge,
    watch: LinkWatch,
    files: Arc<dyn FileSource>,
    tally: Arc<Tally>,
    listener: std::net::UdpSocket,
    epoll: Epoll,
    admission: Admission,
    sessions: Sessions,
}

/// What a request comes to, other than a transfer.
enum Refusal {
    Silence(Silence),
    Error(ErrorCode, &'static str, /* counted as */ &'static str),
}

impl From<Silence> for Refusal {
    fn from(silence: Silence) -> Self {
        Refusal::Silence(silence)
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::NotARequest => Refusal::Silence(Silence::NotARequest),
            RequestError::NameTooLong => NOT_FOUND,
            RequestError::Malformed | RequestError::TooLong => {
                Refusal::Error(ErrorCode::IllegalOperation, "malformed request", "malformed")
            }
            RequestError::UnknownMode => {
                Refusal::Error(ErrorCode::IllegalOperation, "unknown transfer mode", "mode-refused")
            }
        }
    }
}

/// One text whatever the reason, so that nothing can be learnt from it.
const NOT_FOUND: Refusal = Refusal::Error(ErrorCode::FileNotFound, "file not found", "not-found");

impl Server {
    fn run(mut self, stopping: &AtomicBool) {
        let mut inbox = Inbox::new(REQUEST_BATCH, REQUEST_SLOT_LEN);
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
                    LISTENER => self.handle_requests(&mut inbox),
                    LINKS => self.handle_links(),
                    key => self.handle_readable(SessionKey::from_u64(key), &mut buffer, count == 1),
                }
            }
            self.handle_deadlines();
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

    /// A bridge that was deleted and made anew has our name and another index: port 69 moves to it. Transfers over the
    /// old one end by their own timers.
    fn handle_links(&mut self) {
        self.watch.clear();
        if self.bridge.link().is_some() {
            return;
        }
        // Missing, down, or without our address: all of it may still change, and each change wakes us.
        let Ok(found) = Bridge::find(&self.bridge.name, self.bridge.address) else { return };
        match found.rebind(&self.listener) {
            Ok(()) => {
                tracing::info!(bridge = %found.name, "TFTP is back on the bridge");
                self.bridge = found;
            }
            Err(error) => tracing::error!(bridge = %found.name, %error, "TFTP cannot return to the bridge"),
        }
    }

    fn handle_readable(&mut self, key: SessionKey, buffer: &mut [u8], eager: bool) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let admission = &self.admission;
        let strays = session.handle_readable(buffer, eager, |source| admission.is_node(source));
        if strays > 0 {
            self.tally.add(SERVICE, "unknown-tid", strays);
        }
        self.settle(key);
    }

    fn handle_deadlines(&mut self) {
        if self.sessions.next_deadline().is_none() {
            return;
        }
        let now = Instant::now();
        while let Some(key) = self.sessions.due(now) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.handle_timeout(now);
            }
            self.settle(key);
        }
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
                session.refuse("the server is stopping");
            }
            self.finish(key, Some(FileOutcome::Aborted("the server stopped".to_owned())));
        }
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
        match (request.operation, request.mode) {
            (Operation::Read, Mode::Octet | Mode::Netascii) => {}
            (Operation::Write, _) => {
                return Err(Refusal::Error(
                    ErrorCode::IllegalOperation,
                    "this server is read-only",
                    "write-refused",
                ));
            }
            (Operation::Read, Mode::Mail) => {
                return Err(Refusal::Error(
                    ErrorCode::IllegalOperation,
                    "mail is not supported",
                    "mode-refused",
                ));
            }
        }
        if let Some(key) = self.sessions.find(peer) {
            self.handle_request_of_known_peer(key, datagram, now)?;
        }
        self.admission.admit_session(peer)?;
        let opened = self.files.open(peer, request.name).map_err(|_| NOT_FOUND)?;
        let transfer = Transfer::new(&request, &self.limits(), opened.bytes, now);
        let begun = Begun {
            peer,
            transfer,
            request: datagram,
            name: request.name.escape_ascii().to_string(),
            ticket: opened.ticket,
            now,
        };
        self.begin(begun)
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
            session.handle_repeated_request(now);
            self.sessions.arm(key);
            return Err(Silence::RepeatedRequest);
        }
        self.finish(key, None);
        Ok(())
    }

    fn begin(&mut self, begun: Begun<'_>) -> Result<(), Refusal> {
        let (peer, now) = (begun.peer, begun.now);
        let key = self.sessions.next_key();
        let event = EpollEvent::new(EpollFlags::EPOLLIN, key.to_u64());
        let socket = transfer_socket(&self.bridge)
            .and_then(|socket| self.epoll.add(&socket, event).map(|()| socket).map_err(io::Error::from));
        match socket {
            Ok(socket) => {
                self.sessions.insert(Session::start(socket, begun));
                self.admission.session_started(peer, now);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%peer, %error, "no socket for a transfer");
                self.files.finished(begun.into_report_unsent(error.to_string()));
                Err(Silence::NoSocket.into())
            }
        }
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

fn outcome_word(outcome: &FileOutcome) -> &'static str {
    match outcome {
        FileOutcome::Complete => "complete",
        FileOutcome::Probe => "probe",
        FileOutcome::Range => "range",
        FileOutcome::NotFound => "not-found",
        FileOutcome::Aborted(_) => "aborted",
    }
}

fn log(report: &TransferReport) {
    tracing::debug!(
        peer = %report.peer,
        name = report.name,
        size = report.size,
        sent = report.sent,
        took = ?report.took,
        outcome = ?report.outcome,
        retransmissions = report.retransmissions,
        "TFTP transfer ended"
    );
}
