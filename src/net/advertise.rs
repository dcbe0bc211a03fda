//! Router advertisements that tell netbooting firmware not to wait for a router.
//!
//! iPXE configures IPv4 and IPv6 side by side and goes on only when both have come to an end. Where nobody answers
//! its router solicitations IPv6 ends after 13 s, on every boot. One advertisement ends it at once: iPXE's
//! `ipv6conf_rx_router_advertisement` asks for no prefix and looks at no lifetime, only at the flags M and O, which
//! would send it on to DHCPv6.
//!
//! So we advertise and offer nothing: router lifetime 0 ("not a default router", RFC 4861 §4.2), no flags, no
//! prefix; only our MAC and the MTU. Machines that do use IPv6 learn nothing from us that could mislead them.
//!
//! The answer to a solicitation goes to the soliciting MAC without neighbour discovery, as a frame of our own: the
//! bridge may snoop multicast, and boot ROMs never say which groups they listen to. The source is the bridge's
//! link-local address (RFC 4861 §6.1.2), usable once duplicate address detection is through with it: one or two
//! seconds after the first machine is attached.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::link::{self, LinkLocalState, LinkWatch};
use crate::net::link_thread::LinkThread;
use crate::net::sys::{self, Frame};
use crate::net::{Bridge, MacAddr};
use crate::telemetry::Tally;

mod schedule;
mod wire;

use schedule::Schedule;
use wire::Advertisement;

/// The word for this service in counters.
const SERVICE: &str = "router-advertisement";
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// A solicitation with one option has 16 bytes; more than this is not one.
const SOLICITATION_BYTES_MAX: usize = 512;
/// Solicitations answered before the other descriptors get a look.
const SOLICITATIONS_PER_TURN: usize = 64;
/// How long to wait before looking again for a bridge that is gone, in case its return went unnoticed.
const RETRY: Duration = Duration::from_secs(5);

/// Starts advertising on the bridge, until what it gives is dropped. A system without IPv6 is reported once in the log and
/// left alone.
pub fn start(bridge: Bridge, tally: Arc<Tally>) -> io::Result<LinkThread> {
    LinkThread::start("advertise", move |waker, watch| run(bridge, &tally, waker, watch))
}

fn run(mut bridge: Bridge, tally: &Tally, waker: &EventFd, watch: &LinkWatch) {
    let mut reported = None;
    loop {
        let ended = Advertiser::open(&bridge).and_then(|advertiser| {
            reported = None;
            advertiser.serve(tally, waker, watch)
        });
        if let Err(error) = ended {
            let reason = error.to_string();
            if reported.as_ref() != Some(&reason) {
                tracing::warn!(
                    bridge = %bridge.name,
                    reason,
                    "no router advertisements: machines with an iPXE ROM will wait 13 s for IPv6"
                );
                reported = Some(reason);
            }
        }
        // Asked to stop, or the device is gone; one made anew needs new sockets.
        loop {
            if waker.read().is_ok() {
                return;
            }
            watch.clear();
            match bridge.again() {
                Ok(found) if reported.is_none() => {
                    bridge = found;
                    break;
                }
                // With IPv6 switched off, say, opening will fail again: at a walking pace.
                Ok(found) => {
                    bridge = found;
                    let _ = wait(&[waker.as_fd()], Some(RETRY));
                    break;
                }
                Err(_) => {
                    let _ = wait(&[waker.as_fd(), watch.as_fd()], Some(RETRY));
                }
            }
        }
    }
}

/// Waits until a descriptor is ready or the time is up.
fn wait(descriptors: &[std::os::fd::BorrowedFd<'_>], timeout: Option<Duration>) -> nix::Result<()> {
    let mut polled: Vec<_> =
        descriptors.iter().map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN)).collect();
    // Rounded up, or the last millisecond would be spent turning in circles.
    let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
        PollTimeout::try_from(timeout.saturating_add(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What there is to say about the bridge's link-local address; a change is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Usable(Ipv6Addr),
    Tentative,
    Duplicate(Ipv6Addr),
    Absent,
}

struct Advertiser {
    bridge: Bridge,
    /// Raw ICMPv6, receives solicitations.
    solicitations: Socket,
    /// `AF_PACKET`, sends advertisements.
    frames: Socket,
}

impl Advertiser {
    fn open(bridge: &Bridge) -> io::Result<Advertiser> {
        let solicitations = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        solicitations.bind_device(Some(bridge.name.0.as_bytes()))?;
        solicitations.set_nonblocking(true)?;
        solicitations.set_recv_hoplimit_v6(true)?;
        sys::admit_router_solicitations_only(&solicitations)?;
        solicitations.join_multicast_v6(&ALL_ROUTERS, bridge.index)?;
        let frames = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        frames.set_nonblocking(true)?;
        Ok(Advertiser { bridge: bridge.clone(), solicitations, frames })
    }

    /// Answers and advertises until asked to stop, or until the device is gone.
    fn serve(&self, tally: &Tally, waker: &EventFd, watch: &LinkWatch) -> io::Result<()> {
        let mut schedule = Schedule::default();
        let mut source = None;
        loop {
            // Looked at in every turn: a turn is rare (a solicitation, a change of links, three minutes passed).
            watch.clear();
            let Some(link) = self.bridge.link() else { return Ok(()) };
            let now_source = self.source();
            if source != Some(now_source) {
                self.report(now_source);
                if matches!(now_source, Source::Usable(_)) {
                    schedule.restart(Instant::now());
                }
                source = Some(now_source);
            }
            let advertisement = match (now_source, link.mac) {
                (Source::Usable(address), Some(mac)) => {
                    Some(Advertisement { source: address, mac, mtu: link.mtu })
                }
                (Source::Usable(_) | Source::Tentative | Source::Duplicate(_) | Source::Absent, _) => None,
            };
            self.answer_solicitations(advertisement.as_ref(), &mut schedule, tally);
            let due = schedule.due(Instant::now());
            if let Some(advertisement) = advertisement.as_ref().filter(|_| due) {
                schedule.sent(Instant::now());
                self.send(advertisement, ALL_NODES, ALL_NODES_MAC, "multicast", tally);
            }
            let timeout =
                advertisement.map(|_| schedule.next_deadline().saturating_duration_since(Instant::now()));
            wait(&[self.solicitations.as_fd(), waker.as_fd(), watch.as_fd()], timeout)?;
            if is_readable(waker) {
                return Ok(());
            }
        }
    }

    fn source(&self) -> Source {
        let locals = link::link_locals(self.bridge.index).unwrap_or_default();
        let in_state = |state| locals.iter().find(|local| local.state == state).map(|local| local.address);
        if let Some(address) = in_state(LinkLocalState::Usable) {
            Source::Usable(address)
        } else if in_state(LinkLocalState::Tentative).is_some() {
            Source::Tentative
        } else if let Some(address) = in_state(LinkLocalState::Duplicate) {
            Source::Duplicate(address)
        } else {
            Source::Absent
        }
    }

    fn report(&self, source: Source) {
        let bridge = &self.bridge.name;
        match source {
            Source::Usable(address) => tracing::info!(%bridge, ip = %address, "router advertisements on"),
            // Ends by itself, within seconds.
            Source::Tentative => {
                tracing::debug!(%bridge, "router advertisements wait: link-local address is tentative")
            }
            Source::Duplicate(address) => tracing::warn!(
                %bridge, ip = %address,
                "router advertisements off: another station has the bridge's link-local address; machines with an iPXE ROM will wait 13 s for IPv6"
            ),
            // Normal before the first machine is attached: a bridge without ports has no carrier.
            Source::Absent => tracing::info!(
                %bridge,
                "router advertisements wait: no IPv6 link-local address yet; if it never comes, see the sysctl net.ipv6.conf.{bridge}.disable_ipv6"
            ),
        }
    }

    fn answer_solicitations(
        &self,
        advertisement: Option<&Advertisement>,
        schedule: &mut Schedule,
        tally: &Tally,
    ) {
        for _ in 0..SOLICITATIONS_PER_TURN {
            let (bytes, source, hop_limit) = match self.receive() {
                Ok(received) => received,
                Err(Errno::EINTR) => continue,
                // Nothing queued; or the device went down, which the next look at the link will tell.
                Err(_) => return,
            };
            match (wire::parse_solicitation(&bytes, source, hop_limit), advertisement) {
                (Err(reason), _) => tally.count(SERVICE, reason),
                (Ok(_), None) => tally.count(SERVICE, "no-link-local"),
                (Ok(Some(mac)), Some(advertisement)) => {
                    self.send(advertisement, source, mac, "solicited", tally)
                }
                // It did not say where it is: all are told, at the pace RFC 4861 §6.2.6 allows.
                (Ok(None), Some(_)) => schedule.solicited(Instant::now()),
            }
        }
    }

    fn receive(&self) -> nix::Result<(Vec<u8>, Ipv6Addr, i32)> {
        let mut buffer = [0; SOLICITATION_BYTES_MAX];
        let mut control = nix::cmsg_space!(libc::c_int);
        let mut slices = [io::IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<SockaddrIn6>(
            self.solicitations.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let hop_limit = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv6HopLimit(limit) => Some(limit),
            _ => None,
        });
        let source = message.address.map_or(Ipv6Addr::UNSPECIFIED, |address| address.ip());
        let length = message.bytes;
        Ok((buffer[..length].to_vec(), source, hop_limit.unwrap_or(0)))
    }

    fn send(
        &self,
        advertisement: &Advertisement,
        destination: Ipv6Addr,
        to: MacAddr,
        outcome: &'static str,
        tally: &Tally,
    ) {
        let packet = advertisement.emit(destination);
        let frame =
            Frame { packet: &packet, to, ethertype: libc::ETH_P_IPV6 as u16, interface: self.bridge.index };
        match sys::send_frames(&self.frames, &[frame]).pop() {
            Some(Err(error)) => {
                tally.count(SERVICE, "send-failed");
                tracing::debug!(mac = %to, reason = %error, "router advertisement not sent");
            }
            Some(Ok(())) | None => {
                tally.count(SERVICE, outcome);
                tracing::debug!(mac = %to, ip = %destination, "router advertisement sent");
            }
        }
    }
}

fn is_readable(waker: &EventFd) -> bool {
    let mut polled = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
