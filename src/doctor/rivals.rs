//! Who else answers DHCP on the bridge: one DISCOVER of a machine that does not exist, and a short wait.
//!
//! Our own appliance does not hear it: what a bridge's own device sends goes to the ports. Servers keep the offered
//! address for a while; that is why nobody is asked unless an operator wants it.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::facts::Rival;
use crate::net::{Bridge, MacAddr};
use crate::storm::firmware::Kind;
use crate::storm::message::{self, Ask, Identity, ReplyKind};
use crate::storm::wire::{Tap, dhcp_frame};

/// Servers that probe an address before they offer it take up to a second; dnsmasq's default is three.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// Once one has answered, others that will are not far behind.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// Every server that offers an address within [`PATIENCE`].
pub fn ask(bridge: &Bridge) -> io::Result<Vec<Rival>> {
    let mut random = [0; 9];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let [a, b, c, d, e, xid @ ..] = random;
    // Locally administered, so that it is no real card's.
    let mac = MacAddr([0x02, a, b, c, d, e]);
    let xid = u32::from_be_bytes(xid);
    let tap = Tap::open_dhcp(bridge.index)?;
    let mut discover =
        message::emit(&Kind::Bios.manners().dhcp, &Identity { mac, uuid: [0; 16] }, Ask::Discover, xid, 0);
    // Nobody has this MAC: the answer must be broadcast to reach us.
    discover[10] = 0x80;
    if tap.send(&[dhcp_frame(mac, &discover)]) > 0 {
        return Err(io::Error::other("the DISCOVER could not be sent"));
    }
    let mut rivals: Vec<Rival> = Vec::new();
    let mut until = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let mut polled = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        let milliseconds = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        match poll(&mut polled, PollTimeout::from(milliseconds)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(length) = tap.receive(&mut buffer)? {
            let Some(rival) = offer(&buffer[..length], mac, xid) else { continue };
            if !rivals.contains(&rival) {
                rivals.push(rival);
            }
            until = until.min(Instant::now() + STRAGGLERS);
        }
    }
    Ok(rivals)
}

fn offer(frame: &[u8], mac: MacAddr, xid: u32) -> Option<Rival> {
    let sender = MacAddr(frame.get(6..12)?.try_into().ok()?);
    let reply = message::parse(message::payload_for_client(frame)?)?;
    let ours = reply.kind == ReplyKind::Offer && reply.mac == mac && reply.xid == xid;
    ours.then_some(Rival { server: reply.server?, mac: sender, offered: reply.address })
}
