//! Who else answers on the bridge: one DISCOVER of a machine that does not exist, one router solicitation, and a short wait.
//!
//! Our own appliance does not hear them: what a bridge's own device sends goes to the ports. Servers keep the offered
//! address for a while.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use socket2::Socket;

use super::facts::Rival;
use crate::guard::probe;
use crate::guard::rivals::Kind;
use crate::guard::sighting::{self, Own};
use crate::net::sys::{self, Frame};
use crate::net::tap::{self, Reach, Test};
use crate::net::{Bridge, MacAddr};
use crate::storm::firmware;
use crate::storm::message::{self, Ask, Identity, ReplyKind};
use crate::storm::wire::dhcp_frame;

/// Servers that probe an address before they offer it take up to a second; dnsmasq's default is three.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// Once a DHCP server has answered, others that will are not far behind; routers wait half a second at most
/// (RFC 4861 §6.2.6).
const STRAGGLERS: Duration = Duration::from_secs(1);
const FRAME_BYTES_MAX: usize = 2048;

/// Every server that offers an address, and every router that offers anything, within [`PATIENCE`].
pub fn ask(bridge: &Bridge) -> io::Result<Vec<Rival>> {
    let mut random = [0; 9];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let [a, b, c, d, e, xid @ ..] = random;
    // Locally administered, so that it is no real card's.
    let mac = MacAddr([0x02, a, b, c, d, e]);
    let xid = u32::from_be_bytes(xid);
    let open = |ethertype, tests: &[Test<'_>]| {
        tap::open(bridge.index, ethertype, &tap::filter(ethertype, tests), Reach::Ours)
    };
    let servers = open(libc::ETH_P_IP, &[Test::Udp, Test::UdpTo(&[68])])?;
    let routers = open(libc::ETH_P_IPV6, &[Test::Icmpv6(probe::ROUTER_ADVERTISEMENT)])?;
    let manners = &firmware::Kind::Bios.manners().dhcp;
    let mut discover = message::emit(manners, &Identity { mac, uuid: [0; 16] }, Ask::Discover, xid, 0);
    // Nobody has this MAC: the answer must be broadcast to reach us.
    discover[10] = 0x80;
    let (to, discover) = dhcp_frame(mac, &discover);
    send(&servers, bridge, to, libc::ETH_P_IP, &discover)?;
    send(&routers, bridge, probe::ALL_ROUTERS, libc::ETH_P_IPV6, &probe::solicitation(bridge.mac))?;

    let own = Own { mac: bridge.mac, probe: mac };
    let mut rivals: Vec<Rival> = Vec::new();
    let mut until = Instant::now() + PATIENCE;
    let mut buffer = [0; FRAME_BYTES_MAX];
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let mut polled = [&servers, &routers].map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        let milliseconds = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        match poll(&mut polled, PollTimeout::from(milliseconds)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(length) = receive(&servers, &mut buffer)? {
            if let Some(rival) = offer(&buffer[..length], mac, xid) {
                until = until.min(Instant::now() + STRAGGLERS);
                note(&mut rivals, rival);
            }
        }
        while let Some(length) = receive(&routers, &mut buffer)? {
            if let Some(rival) = advertisement(&buffer[..length], own) {
                note(&mut rivals, rival);
            }
        }
    }
    Ok(rivals)
}

/// Sends a whole Ethernet frame.
fn send(
    socket: &Socket,
    bridge: &Bridge,
    to: MacAddr,
    ethertype: libc::c_int,
    frame: &[u8],
) -> io::Result<()> {
    let frame = Frame { packet: frame, to, ethertype: ethertype as u16, interface: bridge.index };
    sys::send_frames(socket, &[frame]).pop().unwrap_or(Ok(()))
}

fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(length) => Ok(Some(length)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whoever talks much is told of once.
fn note(rivals: &mut Vec<Rival>, rival: Rival) {
    if !rivals.contains(&rival) && rivals.len() < crate::guard::rivals::RIVALS_MAX {
        rivals.push(rival);
    }
}

fn offer(frame: &[u8], mac: MacAddr, xid: u32) -> Option<Rival> {
    let sender = MacAddr(frame.get(6..12)?.try_into().ok()?);
    let reply = message::parse(message::payload_for_client(frame)?)?;
    let ours = reply.kind == ReplyKind::Offer && reply.mac == mac && reply.xid == xid;
    ours.then_some(Rival {
        kind: Kind::Dhcp,
        address: IpAddr::V4(reply.server?),
        mac: Some(sender),
        offered: Some(reply.address),
        way_out: None,
    })
}

fn advertisement(frame: &[u8], own: Own) -> Option<Rival> {
    let heard = sighting::of_frame(frame, own).filter(|heard| !heard.harmless)?;
    Some(Rival { kind: heard.kind, address: heard.address, mac: heard.mac, offered: None, way_out: None })
}
