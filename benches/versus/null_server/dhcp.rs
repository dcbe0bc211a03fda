//! Answers every DISCOVER with an OFFER and every REQUEST with an ACK.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;

use farrier::net::sys::{self, Inbox, Outgoing};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::bed::{Bed, POOL_FIRST, SERVER};

pub const ARGUMENT: &str = "dhcp";
const SLOT: usize = 1500;

pub fn run() -> ! {
    let bridge = Bed::bridge();
    let socket = bridge.udp_socket(67).expect("port 67");
    let mut inbox = Inbox::new(sys::BATCH_MAX, SLOT);
    let from = (bridge.ip(), bridge.index);
    let mut replies: Vec<([u8; 300], SocketAddrV4)> = Vec::with_capacity(sys::BATCH_MAX);
    loop {
        let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut waiting, PollTimeout::NONE);
        if sys::recv_batch(&socket, &mut inbox).is_err() {
            continue;
        }
        replies.clear();
        replies.extend(inbox.iter().filter_map(|(_, bytes)| answer(bytes)));
        let outgoing: Vec<Outgoing<'_>> =
            replies.iter().map(|(bytes, to)| Outgoing { payload: bytes, to: *to, from }).collect();
        if !outgoing.is_empty() {
            sys::send_batch(&socket, &outgoing);
        }
    }
}

/// The request with a few bytes changed.
fn answer(request: &[u8]) -> Option<([u8; 300], SocketAddrV4)> {
    let mut options = request.get(240..)?;
    let kind = loop {
        match options {
            [53, 1, 1, ..] => break 2,
            [53, 1, 3, ..] => break 5,
            [_, length, rest @ ..] => options = rest.get(usize::from(*length)..)?,
            [] | [_] => return None,
        }
    };
    let mut reply = [0; 300];
    reply[..44].copy_from_slice(&request[..44]);
    reply[0] = 2;
    reply[3] = 0;
    // An address made of the MAC's last digits: nothing is looked up.
    let number = u32::from_be_bytes([0, 0, request[32], request[33]]);
    reply[16..20].copy_from_slice(&(u32::from(POOL_FIRST) + number).to_be_bytes());
    reply[236..240].copy_from_slice(&[99, 130, 83, 99]);
    reply[240..243].copy_from_slice(&[53, 1, kind]);
    reply[243..245].copy_from_slice(&[54, 4]);
    reply[245..249].copy_from_slice(&SERVER.octets());
    reply[249..255].copy_from_slice(&[51, 4, 0, 0, 168, 192]);
    reply[255..261].copy_from_slice(&[1, 4, 255, 240, 0, 0]);
    reply[261] = 255;
    let relay = Ipv4Addr::new(request[24], request[25], request[26], request[27]);
    Some((reply, SocketAddrV4::new(relay, 67)))
}
