//! Links and addresses as the kernel tells them over rtnetlink.
//!
//! Not sysfs: /sys shows the network namespace it was mounted in, which is another than ours in a lab that has
//! entered a namespace of its own without mounting /sys anew. A netlink socket always belongs to the namespace of
//! the thread that opens it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::net::MacAddr;

/// One datagram of a netlink answer; the kernel never makes them longer for a reader with this much room.
const ANSWER_BYTES_MAX: usize = 32 * 1024;
/// The answer to a question for one thing: one message, or why there is none.
const ONE_ANSWER_BYTES_MAX: usize = 8 * 1024;
/// Datagrams of one dump; a system with more addresses than fit is not one we serve.
const ANSWERS_MAX: usize = 4096;

const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
/// `IFLA_INFO_KIND` and `IFLA_INFO_DATA` within `IFLA_LINKINFO`.
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
/// `IFLA_BR_FORWARD_DELAY` and `IFLA_BR_STP_STATE` within a bridge's `IFLA_INFO_DATA`.
const BRIDGE_FORWARD_DELAY: u16 = 1;
const BRIDGE_STP_STATE: u16 = 5;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub up: bool,
    pub mac: Option<MacAddr>,
    pub mtu: u32,
    pub is_bridge: bool,
    /// How long the spanning tree keeps a freshly attached port silent; `None` without spanning tree.
    pub spanning_tree_delay: Option<Duration>,
}

impl Link {
    /// The link of that name; `None` if there is none.
    pub fn find(name: &str) -> io::Result<Option<Link>> {
        // Names end in a NUL within IFNAMSIZ bytes.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Ok(None);
        }
        let mut request = vec![0; LINK_HEADER];
        let attribute = (4 + name.len() + 1) as u16;
        request.extend_from_slice(&attribute.to_ne_bytes());
        request.extend_from_slice(&libc::IFLA_IFNAME.to_ne_bytes());
        request.extend_from_slice(name.as_bytes());
        request.push(0);
        request.resize(request.len().next_multiple_of(4), 0);
        match ask(libc::RTM_GETLINK, 0, &request) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| parse_link(answer))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// An IPv6 link-local address and whether duplicate address detection has finished with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLocal {
    pub address: Ipv6Addr,
    pub state: LinkLocalState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLocalState {
    /// Still being checked; must not be a source yet (RFC 4862 §5.4).
    Tentative,
    /// Another station has it.
    Duplicate,
    Usable,
}

pub fn ipv4_addresses(index: u32) -> io::Result<Vec<Ipv4Network>> {
    let answers = ask_addresses(libc::AF_INET)?;
    let addresses =
        answers.iter().filter_map(|answer| parse_address(answer)).filter(|found| found.index == index);
    let networks = addresses.filter_map(|found| {
        let octets: [u8; 4] = found.bytes.try_into().ok()?;
        Ipv4Network::new(Ipv4Addr::from(octets), found.prefix).ok()
    });
    Ok(networks.collect())
}

pub fn link_locals(index: u32) -> io::Result<Vec<LinkLocal>> {
    let answers = ask_addresses(libc::AF_INET6)?;
    let addresses =
        answers.iter().filter_map(|answer| parse_address(answer)).filter(|found| found.index == index);
    let locals = addresses.filter_map(|found| {
        let octets: [u8; 16] = found.bytes.try_into().ok()?;
        let address = Ipv6Addr::from(octets);
        let state = if found.flags & libc::IFA_F_DADFAILED != 0 {
            LinkLocalState::Duplicate
        } else if found.flags & libc::IFA_F_TENTATIVE != 0 {
            LinkLocalState::Tentative
        } else {
            LinkLocalState::Usable
        };
        address.is_unicast_link_local().then_some(LinkLocal { address, state })
    });
    Ok(locals.collect())
}

fn ask_addresses(family: libc::c_int) -> io::Result<Vec<Vec<u8>>> {
    let mut request = [0; ADDRESS_HEADER];
    request[0] = family as u8;
    ask(libc::RTM_GETADDR, libc::NLM_F_DUMP, &request)
}

/// Sends one request and returns the payloads of all messages that answer it.
pub(super) fn ask(kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    exchange(&open()?, kind, flags, body).1
}

/// Sockets that are kept from question to question: to open and close one costs more than most of them. There are as many as
/// have been asking at once, for nobody waits for another's answer. Each stays in the network namespace of who asked first.
#[derive(Debug, Default)]
pub struct Netlink {
    idle: Mutex<Vec<OwnedFd>>,
}

impl Netlink {
    /// Open from the start, for whoever may not open one later.
    pub(super) fn open() -> io::Result<Netlink> {
        Ok(Netlink { idle: Mutex::new(vec![open()?]) })
    }

    /// As the function of that name.
    pub(super) fn ask(&self, kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let kept = self.idle().pop();
        let socket = match kept {
            Some(socket) => socket,
            None => open()?,
        };
        let (complete, result) = exchange(&socket, kind, flags, body);
        // With part of an answer still to come it would be in the way of the next.
        if complete {
            self.idle().push(socket);
        }
        result
    }

    fn idle(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open() -> io::Result<OwnedFd> {
    let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkRoute);
    Ok(socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?)
}

/// Whether everything that answers the request was read, and what it said.
fn exchange(
    socket: &OwnedFd,
    kind: u16,
    flags: libc::c_int,
    body: &[u8],
) -> (bool, io::Result<Vec<Vec<u8>>>) {
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // sequence and port: one exchange at a time
    request.extend_from_slice(body);
    if let Err(error) = send(socket.as_raw_fd(), &request, MsgFlags::empty()) {
        return (false, Err(error.into()));
    }
    let is_dump = flags & libc::NLM_F_DUMP != 0;
    let mut payloads = Vec::new();
    // Each script asks one thing: that is not to cost a large allocation.
    let (mut one, mut many) = ([0; ONE_ANSWER_BYTES_MAX], Vec::new());
    let datagram: &mut [u8] = if is_dump {
        many.resize(ANSWER_BYTES_MAX, 0);
        &mut many
    } else {
        &mut one
    };
    for _ in 0..ANSWERS_MAX {
        let length = match recv(socket.as_raw_fd(), datagram, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(error) => return (false, Err(error.into())),
        };
        match read_answer(&datagram[..length], &mut payloads) {
            Ok(ended) if ended || !is_dump => return (true, Ok(payloads)),
            Ok(_) => {}
            // An error is the whole answer to a question for one thing.
            Err(error) => return (!is_dump, Err(error)),
        }
    }
    (false, Err(io::Error::other("the kernel's answer does not end")))
}

/// Takes the messages of one datagram apart; true once the last one has come.
fn read_answer(mut datagram: &[u8], payloads: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let length = u32_at(header, 0) as usize;
        let kind = u16_at(header, 4);
        let Some(payload) = datagram.get(HEADER..length) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut off"));
        };
        match libc::c_int::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                return if code == 0 {
                    Ok(true)
                } else {
                    Err(io::Error::from_raw_os_error(code.saturating_neg()))
                };
            }
            _ => payloads.push(payload.to_vec()),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let (header, attributes) = payload.split_first_chunk::<LINK_HEADER>()?;
    let mut link = Link {
        index: u32_at(header, 4),
        up: u32_at(header, 8) & libc::IFF_UP as u32 != 0,
        mac: None,
        mtu: 0,
        is_bridge: false,
        spanning_tree_delay: None,
    };
    for (kind, value) in Attributes(attributes) {
        match kind {
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddr),
            libc::IFLA_MTU => link.mtu = value.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)),
            libc::IFLA_LINKINFO => {
                link.is_bridge =
                    Attributes(value).any(|(kind, value)| kind == INFO_KIND && value == b"bridge\0");
                let data = Attributes(value).find(|(kind, _)| *kind == INFO_DATA);
                link.spanning_tree_delay = data.and_then(|(_, data)| parse_spanning_tree(data));
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_spanning_tree(data: &[u8]) -> Option<Duration> {
    let number = |wanted| {
        let (_, value) = Attributes(data).find(|(kind, _)| *kind == wanted)?;
        value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    };
    let running = number(BRIDGE_STP_STATE)? != 0;
    // Hundredths of a second; a port listens that long, then learns that long, and only then forwards.
    let delay = Duration::from_millis(u64::from(number(BRIDGE_FORWARD_DELAY)?) * 10 * 2);
    (running && !delay.is_zero()).then_some(delay)
}

struct Address {
    index: u32,
    prefix: u8,
    flags: u32,
    bytes: Vec<u8>,
}

fn parse_address(payload: &[u8]) -> Option<Address> {
    let (header, attributes) = payload.split_first_chunk::<ADDRESS_HEADER>()?;
    let find = |wanted| Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    // On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours; IPv6 has no IFA_LOCAL otherwise.
    let bytes = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS))?.to_vec();
    let wide = find(libc::IFA_FLAGS).and_then(|value| value.first_chunk());
    let flags = wide.map_or(u32::from(header[2]), |bytes| u32::from_ne_bytes(*bytes));
    Some(Address { index: u32_at(header, 4), prefix: header[1], flags, bytes })
}

/// Type-length-value attributes, padded to four bytes; stops at the first that does not fit.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const NESTED_AND_BYTE_ORDER: u16 = 0xc000;
        let header = self.0.first_chunk::<4>()?;
        let length = usize::from(u16_at(header, 0));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16_at(header, 2) & !NESTED_AND_BYTE_ORDER, value))
    }
}

fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Becomes readable whenever a link or an address of the system changes. A hint: its reader looks for itself.
pub struct LinkWatch {
    socket: OwnedFd,
}

impl LinkWatch {
    pub fn open() -> io::Result<LinkWatch> {
        LinkWatch::of(libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR)
    }

    /// The same for routes.
    pub fn of_routes() -> io::Result<LinkWatch> {
        LinkWatch::of(libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE)
    }

    fn of(groups: libc::c_int) -> io::Result<LinkWatch> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        Ok(LinkWatch { socket })
    }

    /// Discards what is queued, so that only later changes wake the reader again; true if there was something.
    pub fn clear(&self) -> bool {
        /// What remains wakes the reader once more.
        const NOTICES_MAX: usize = 1024;
        let mut notice = [0; 4096];
        for taken in 0..NOTICES_MAX {
            match recv(self.socket.as_raw_fd(), &mut notice, MsgFlags::MSG_DONTWAIT) {
                // ENOBUFS: the kernel dropped notices because we were slow; that too means "something changed".
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(_) => return taken > 0,
            }
        }
        true
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_and_is_no_bridge() {
        let link = Link::find("lo").unwrap().unwrap();
        assert!(!link.is_bridge);
        assert_eq!(link.mac, Some(MacAddr([0; 6])));
        assert!(Link::find("no-such-link").unwrap().is_none());
        assert!(Link::find("").unwrap().is_none());
        assert!(Link::find("a-name-that-is-too-long").unwrap().is_none());
    }

    #[test]
    fn cut_off_messages_are_refused_or_skipped() {
        let mut payloads = Vec::new();
        let mut message = Vec::new();
        message.extend_from_slice(&64_u32.to_ne_bytes());
        message.extend_from_slice(&[0; 12]);
        assert!(read_answer(&message, &mut payloads).is_err());
        message[..4].copy_from_slice(&4_u32.to_ne_bytes());
        assert!(read_answer(&message, &mut payloads).is_err());
        assert!(!read_answer(&message[..10], &mut payloads).unwrap());
        assert!(payloads.is_empty());
        for length in 0..40 {
            let _ = (parse_link(&vec![0xff; length]), parse_address(&vec![1; length]));
        }
    }
}
