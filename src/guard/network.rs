//! The guard's thread: it listens to what others answer, asks now and then, and tells.
//!
//! It sees frames through packet sockets bound to the bridge, behind filters of the kernel: of all that passes only what
//! comes from UDP port 67, and router advertisements, is ever copied to us. The bridge is put into promiscuous mode for
//! it, for an answer from one port to another is none of the bridge's own business otherwise.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use socket2::Socket;

use crate::bridge_log::BridgeLog;
use crate::bridge_log::event::BridgeHappening;
use crate::clock::{Clock, Timestamp};
use crate::guard::probe::{self, Schedule};
use crate::guard::rivals::{Kind, News, Rival};
use crate::guard::sighting::{self, Own};
use crate::guard::{Guard, process};
use crate::net::frame::{Delivery, FrameSender};
use crate::net::link::LinkWatch;
use crate::net::sys::{self, Frame};
use crate::net::tap::{Reach, Test};
use crate::net::{Bridge, MacAddr, ports, tap};
use crate::telemetry::Tally;

/// The word for this service in counters.
const SERVICE: &str = "guard";
const FRAME_BYTES_MAX: usize = 2048;
/// Frames of one kind looked at before the others get their turn.
const FRAMES_PER_TURN: usize = 256;
/// Frames looked at in a second: more are a flood, and tell nothing that the first did not.
const FRAMES_PER_SECOND: usize = 4096;
/// How long to wait for a bridge that is gone, in case its return went unnoticed; and how often gone rivals are looked for.
const RETRY: Duration = Duration::from_secs(1);

/// Stops the guard when dropped.
pub struct GuardHandle {
    guard: Arc<Guard>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for GuardHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(waker) = &self.guard.waker {
            let _ = waker.write(1);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts listening and asking on the bridge.
pub fn start(
    bridge: Bridge,
    guard: Arc<Guard>,
    log: Arc<BridgeLog>,
    tally: Arc<Tally>,
    clock: Clock,
) -> io::Result<GuardHandle> {
    let watch = LinkWatch::open()?;
    // Opened here, so that a lack of permission ends the start and does not go unnoticed.
    let ears = Ears::open(&bridge)?;
    let stop = Arc::new(AtomicBool::new(false));
    let worker = Worker {
        bridge,
        guard: Arc::clone(&guard),
        log,
        tally,
        clock,
        watch,
        stop: Arc::clone(&stop),
        looked: 0,
        solicited_at: None,
    };
    let thread = thread::Builder::new().name("guard".to_owned()).spawn(move || worker.run(ears))?;
    Ok(GuardHandle { guard, stop, thread: Some(thread) })
}

/// The sockets.
struct Ears {
    dhcp: Socket,
    routers: Socket,
    voice: FrameSender,
    index: u32,
    mac: MacAddr,
}

impl Ears {
    fn open(bridge: &Bridge) -> io::Result<Ears> {
        // A BOOTREPLY: what relay agents ask comes from that port as well, and each of their requests would wake us.
        let replies = [Test::Udp, Test::UdpFrom(&[67]), Test::UdpPayload { at: 0, is: 2 }];
        let open = |ethertype, tests: &[Test<'_>]| {
            tap::open(bridge.index, ethertype, &tap::filter(ethertype, tests), Reach::Everything)
        };
        Ok(Ears {
            dhcp: open(libc::ETH_P_IP, &replies)?,
            routers: open(libc::ETH_P_IPV6, &[Test::Icmpv6(probe::ROUTER_ADVERTISEMENT)])?,
            voice: FrameSender::open_from(bridge, Ipv4Addr::UNSPECIFIED)?,
            index: bridge.index,
            mac: bridge.link().and_then(|link| link.mac).unwrap_or(bridge.mac),
        })
    }
}

struct Worker {
    bridge: Bridge,
    guard: Arc<Guard>,
    log: Arc<BridgeLog>,
    tally: Arc<Tally>,
    clock: Clock,
    watch: LinkWatch,
    stop: Arc<AtomicBool>,
    /// Frames looked at in this second.
    looked: usize,
    /// When routers were asked last.
    solicited_at: Option<Instant>,
}

impl Worker {
    fn run(mut self, ears: Ears) {
        let mut ears = Some(ears);
        let mut schedule = Schedule::new(Instant::now());
        let mut second = Instant::now();
        let mut failed = false;
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            if now.duration_since(second) >= Duration::from_secs(1) {
                (second, self.looked) = (now, 0);
            }
            if let Some(ears) = &ears {
                self.listen(ears);
                if schedule.due(now) {
                    self.solicit(ears, now);
                    failed = !self.ask(ears);
                    let alarmed = failed || self.guard.lock().any_dhcp();
                    schedule.asked(now, alarmed);
                }
            }
            self.with_rivals(|rivals, at| rivals.expire(at));
            if self.tell() {
                schedule.alarmed(Instant::now());
            }
            if self.wait(ears.as_ref(), schedule.next_at(), second) {
                self.watch.clear();
                self.follow(&mut ears);
                schedule.links_changed(Instant::now());
                if failed && ears.is_some() {
                    // Down until now, most likely: what is there has to be found out anew.
                    schedule = Schedule::new(Instant::now());
                }
            }
        }
    }

    /// Waits for frames, news or links; true if links changed, or the bridge is missing and worth a look.
    fn wait(&self, ears: Option<&Ears>, next_at: Instant, second: Instant) -> bool {
        let mut polled: Vec<BorrowedFd<'_>> = vec![self.watch.as_fd()];
        polled.extend(self.guard.waker.as_ref().map(AsFd::as_fd));
        let flooded = self.looked >= FRAMES_PER_SECOND;
        if let Some(ears) = ears.filter(|_| !flooded) {
            polled.extend([ears.dhcp.as_fd(), ears.routers.as_fd()]);
        }
        let mut until = next_at;
        if flooded {
            until = until.min(second + Duration::from_secs(1));
        }
        if ears.is_none() || !self.guard.lock().list().is_empty() {
            until = until.min(Instant::now() + RETRY);
        }
        let patience =
            until.saturating_duration_since(Instant::now()).saturating_add(Duration::from_millis(1));
        let mut polled: Vec<PollFd<'_>> =
            polled.into_iter().map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
        match poll(&mut polled, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(reason = %error, "waiting for other servers failed");
                thread::park_timeout(RETRY);
            }
        }
        if let Some(waker) = &self.guard.waker {
            let _ = waker.read();
        }
        let links = polled.first().and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
        links || ears.is_none()
    }

    /// A bridge made anew has another index, and its MAC may change with its ports.
    fn follow(&self, ears: &mut Option<Ears>) {
        match (self.bridge_now(), ears.as_mut()) {
            (Some(link), Some(open)) => open.mac = link.mac.unwrap_or(open.mac),
            (_, _) => *ears = None,
        }
        if ears.is_none()
            && let Ok(found) = self.bridge.again()
        {
            match Ears::open(&found) {
                Ok(open) => *ears = Some(open),
                Err(error) => {
                    tracing::warn!(bridge = %found.name, reason = %error, "other DHCP servers are not looked for");
                }
            }
        }
    }

    fn bridge_now(&self) -> Option<crate::net::link::Link> {
        self.bridge.link()
    }

    fn listen(&mut self, ears: &Ears) {
        let own = Own { mac: ears.mac, probe: self.guard.probe.unwrap_or(ears.mac) };
        let mut frame = [0; FRAME_BYTES_MAX];
        for socket in [&ears.dhcp, &ears.routers] {
            for _ in 0..FRAMES_PER_TURN {
                let length = match recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                    Ok(length) => length,
                    Err(Errno::EINTR) => continue,
                    // Nothing waits; or the device is down or gone, which the next look at it tells.
                    Err(_) => break,
                };
                self.looked += 1;
                if let Some(heard) = sighting::of_frame(&frame[..length], own) {
                    if !heard.harmless {
                        self.tally.count(SERVICE, heard.evidence.as_str());
                    }
                    self.guard.hear(&heard, self.clock.now());
                }
            }
        }
    }

    /// Asks routers to show themselves: beside each DISCOVER, but once a minute where those are sent to see a server leave.
    fn solicit(&mut self, ears: &Ears, now: Instant) {
        let lately = self.solicited_at.is_some_and(|at| now.duration_since(at) < probe::INTERVAL);
        if lately && self.guard.lock().any_dhcp() {
            return;
        }
        let frame = probe::solicitation(ears.mac);
        let ethertype = libc::ETH_P_IPV6 as u16;
        let frame = Frame { packet: &frame, to: probe::ALL_ROUTERS, ethertype, interface: ears.index };
        let sent = sys::send_frames(&ears.routers, &[frame]).pop().unwrap_or(Ok(()));
        self.tally.count(SERVICE, if sent.is_ok() { "solicited" } else { "solicit-failed" });
        self.solicited_at = sent.is_ok().then_some(now).or(self.solicited_at);
    }

    /// True if the question left.
    fn ask(&self, ears: &Ears) -> bool {
        let Some(mac) = self.guard.probe else { return true };
        self.with_rivals(|rivals, at| rivals.probed(at));
        let mut xid = [0; 4];
        // Any number will do: answers are known by the MAC.
        let _ = getrandom::fill(&mut xid);
        let payload = probe::message(mac, u32::from_be_bytes(xid));
        let question = Delivery {
            to: MacAddr::BROADCAST,
            destination: SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
            source_port: 68,
            payload: &payload,
        };
        let sent = ears.voice.send_batch(&[question]).pop().unwrap_or(Ok(()));
        self.tally.count(SERVICE, if sent.is_ok() { "probed" } else { "probe-failed" });
        sent.is_ok()
    }

    fn with_rivals(&self, change: impl FnOnce(&mut super::Rivals, Timestamp)) {
        let mut rivals = self.guard.lock();
        change(&mut rivals, self.clock.now());
        self.guard.decide(&rivals);
    }

    /// Finds out and tells what is new; true if a DHCP server has appeared.
    fn tell(&self) -> bool {
        let news = self.guard.lock().take_news();
        let mut appeared = false;
        for news in news {
            match news {
                News::Appeared(kind, address) => {
                    let mac = self.guard.lock().find(kind, address).and_then(|rival| rival.mac);
                    let port = mac.and_then(|mac| self.port_of(mac));
                    let process = process::find(address, &self.bridge.name);
                    let Some(rival) = self.guard.lock().identify((kind, address), port, process) else {
                        continue;
                    };
                    appeared |= kind == Kind::Dhcp;
                    self.tally.count(SERVICE, "rival-appeared");
                    self.warn(&rival);
                    let Rival { mac, port, .. } = rival;
                    self.log.record(
                        BridgeHappening::RivalAppeared { kind, address, mac, port },
                        self.clock.now(),
                    );
                }
                News::Gone(rival) => {
                    self.tally.count(SERVICE, "rival-gone");
                    let Rival { kind, address, mac, first_at, .. } = rival;
                    self.log.record(
                        BridgeHappening::RivalGone { kind, address, mac, first_at },
                        self.clock.now(),
                    );
                    tracing::info!(%address, mac = mac.map(tracing::field::display), kind = kind.as_str(), "gone quiet: the bridge is ours again as far as it goes");
                }
            }
        }
        appeared
    }

    fn warn(&self, rival: &Rival) {
        let Rival { kind, address, mac, .. } = rival;
        let mac = mac.map(tracing::field::display);
        let port = rival.port.as_deref();
        let held = self.guard.holds();
        let (what, bridge) = (kind.described(), &self.bridge.name);
        let way_out = rival.way_out(bridge);
        match &rival.process {
            Some(process) => tracing::error!(
                %bridge, %address, mac, port, pid = process.pid, program = process.program,
                configuration = process.configuration.as_deref(), held,
                "{what} answers on the bridge, and it runs on this host: {way_out}"
            ),
            None => tracing::error!(
                %bridge, %address, mac, port, held, "{what} answers on the bridge: {way_out}"
            ),
        }
    }

    fn port_of(&self, mac: MacAddr) -> Option<String> {
        let link = self.bridge_now()?;
        let ports = ports::of_bridge(link.index, Some(mac)).ok()?;
        ports.into_iter().find(|port| port.learned).map(|port| port.name)
    }
}
