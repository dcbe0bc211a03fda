//! The storm's end of the cable: raw frames for DHCP, and addresses that the kernel answers for.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use serde::Serialize;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::net::frame::{Delivery, emit_packet};
use crate::net::link::Link;
use crate::net::sys::{self, Frame};
use crate::net::tap::{self, Test};
use crate::net::{MacAddr, arp};

/// Kernel memory for frames not yet read: what a second of 10 000 answers takes.
const RECEIVE_BUFFER: usize = 16 << 20;

const ETHERTYPE_IPV6: u16 = 0x86dd;
const ALL_ROUTERS: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 2]);
const ICMPV6: u8 = 58;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;

/// Frames of one kind, as they pass on one interface. The namespace has no other interface but loopback.
pub struct Tap {
    socket: Socket,
    index: u32,
}

impl Tap {
    /// DHCP messages for clients, whoever they are for.
    pub fn open_dhcp(index: u32) -> io::Result<Tap> {
        let filter = tap::filter(libc::ETH_P_IP, &[Test::Udp, Test::UdpTo(&[68])]);
        Tap::open(index, libc::ETH_P_IP as u16, &filter)
    }

    /// Router advertisements.
    pub fn open_routers(index: u32) -> io::Result<Tap> {
        let filter = tap::filter(libc::ETH_P_IPV6, &[Test::Icmpv6(ROUTER_ADVERTISEMENT)]);
        Tap::open(index, ETHERTYPE_IPV6, &filter)
    }

    fn open(index: u32, ethertype: u16, filter: &[SockFilter]) -> io::Result<Tap> {
        // What came before the filter was there finds no reader either: it is not what is looked for.
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        socket.attach_filter(filter)?;
        socket.set_nonblocking(true)?;
        // Beyond the system's limit only with privilege over it; without, the limit is what we get.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        Ok(Tap { socket, index })
    }

    /// The length of a frame read into `buffer`; `None` when none is waiting.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN) => Ok(None),
            // Told when the link goes down; it may come back.
            Err(Errno::ENETDOWN | Errno::EINTR | Errno::ENOBUFS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends whole Ethernet frames; how many could not leave.
    pub fn send(&self, frames: &[(MacAddr, Vec<u8>)]) -> u64 {
        let frames: Vec<Frame<'_>> = frames
            .iter()
            .map(|(to, packet)| Frame {
                packet,
                to: *to,
                ethertype: libc::ETH_P_IP as u16,
                interface: self.index,
            })
            .collect();
        sys::send_frames(&self.socket, &frames).iter().filter(|sent| sent.is_err()).count() as u64
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A DHCP message, broadcast by a machine that has no address yet.
pub fn dhcp_frame(from: MacAddr, payload: &[u8]) -> (MacAddr, Vec<u8>) {
    let to = MacAddr::BROADCAST;
    let destination = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    let delivery = Delivery { to, destination, source_port: 68, payload };
    (to, ethernet(to, from, libc::ETH_P_IP as u16, &emit_packet(Ipv4Addr::UNSPECIFIED, &delivery)))
}

/// A router solicitation (RFC 4861 §4.1) from the machine's link-local address.
pub fn solicitation_frame(from: MacAddr) -> (MacAddr, Vec<u8>) {
    let [a, b, c, d, e, f] = from.0;
    let mut source = [0; 16];
    source[..2].copy_from_slice(&[0xfe, 0x80]);
    source[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let mut destination = [0; 16];
    destination[0] = 0xff;
    destination[1] = 2;
    destination[15] = 2;
    let mut message = vec![ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0, 1, 1, a, b, c, d, e, f];
    let length = message.len() as u8;
    let pseudo = [&source[..], &destination, &[0, 0, 0, length, 0, 0, 0, ICMPV6], &message].concat();
    let mut sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    // RFC 4861 §6.1.1: a hop limit of 255 proves that it comes from this link.
    let header = [&[0x60, 0, 0, 0, 0, length, ICMPV6, 255][..], &source, &destination].concat();
    (ALL_ROUTERS, ethernet(ALL_ROUTERS, from, ETHERTYPE_IPV6, &[header, message].concat()))
}

/// Whoever knows another station by this address forgets it.
pub fn announcement_frame(from: MacAddr, address: Ipv4Addr) -> (MacAddr, Vec<u8>) {
    let to = MacAddr::BROADCAST;
    (to, ethernet(to, from, libc::ETH_P_ARP as u16, &arp::announcement(from, address)))
}

fn ethernet(to: MacAddr, from: MacAddr, ethertype: u16, packet: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), packet].concat()
}

/// Addresses this namespace answers for: one `local` route each, as `ip route add local ADDRESS dev NAME table local`
/// would make, without a process per machine.
pub struct Addresses {
    socket: OwnedFd,
    index: u32,
    sequence: u32,
}

impl Addresses {
    pub fn open(index: u32) -> io::Result<Addresses> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Addresses { socket, index, sequence: 0 })
    }

    pub fn add(&mut self, address: Ipv4Addr) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.ask(libc::RTM_NEWROUTE, flags as u16, address)
    }

    /// An address that is not there is no error.
    pub fn remove(&mut self, address: Ipv4Addr) -> io::Result<()> {
        match self.ask(libc::RTM_DELROUTE, 0, address) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            outcome => outcome,
        }
    }

    fn ask(&mut self, kind: u16, flags: u16, address: Ipv4Addr) -> io::Result<()> {
        const ADDRESS_BITS: u8 = 32;
        self.sequence += 1;
        let mut message = Vec::with_capacity(48);
        message.extend_from_slice(&44_u32.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0_u32.to_ne_bytes());
        // rtmsg: family, destination and source prefix, service, table, protocol, scope, type, flags.
        message.extend_from_slice(&[
            libc::AF_INET as u8,
            ADDRESS_BITS,
            0,
            0,
            libc::RT_TABLE_LOCAL,
            libc::RTPROT_BOOT,
            libc::RT_SCOPE_HOST,
            libc::RTN_LOCAL,
        ]);
        message.extend_from_slice(&0_u32.to_ne_bytes());
        for (attribute, value) in
            [(libc::RTA_DST, address.octets()), (libc::RTA_OIF, self.index.to_ne_bytes())]
        {
            message.extend_from_slice(&8_u16.to_ne_bytes());
            message.extend_from_slice(&attribute.to_ne_bytes());
            message.extend_from_slice(&value);
        }
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 256];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let code = answer.get(16..20).filter(|_| length >= 20).and_then(|bytes| bytes.try_into().ok());
        match code.map_or(-libc::EPROTO, i32::from_ne_bytes) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        }
    }
}

/// What has passed on an interface. A segment that the kernel hands over whole, up to 64 KiB, counts as one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub packets_to_machines: u64,
    pub bytes_to_machines: u64,
    pub packets_from_machines: u64,
    pub bytes_from_machines: u64,
}

impl Counters {
    /// Of an interface of this thread's namespace, whose other end is the server's.
    pub fn read(name: &str) -> io::Result<Counters> {
        // Not sysfs, which shows the namespace it was mounted in.
        let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        Counters::parse(&text, name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no counters of {name}")))
    }

    fn parse(text: &str, name: &str) -> Option<Counters> {
        let figures =
            text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
        let figures: Vec<u64> =
            figures.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        Some(Counters {
            bytes_to_machines: *figures.first()?,
            packets_to_machines: *figures.get(1)?,
            bytes_from_machines: *figures.get(8)?,
            packets_from_machines: *figures.get(9)?,
        })
    }

    pub fn since(self, earlier: Counters) -> Counters {
        Counters {
            packets_to_machines: self.packets_to_machines.saturating_sub(earlier.packets_to_machines),
            bytes_to_machines: self.bytes_to_machines.saturating_sub(earlier.bytes_to_machines),
            packets_from_machines: self.packets_from_machines.saturating_sub(earlier.packets_from_machines),
            bytes_from_machines: self.bytes_from_machines.saturating_sub(earlier.bytes_from_machines),
        }
    }
}

/// Datagrams that this thread's namespace received and had no room for.
pub fn datagrams_dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default();
    udp_figure(&text, "RcvbufErrors").unwrap_or(0)
}

/// Two lines begin with `Udp:`: names, and figures in the same order.
fn udp_figure(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let (names, figures) = (lines.next()?, lines.next()?);
    let at = names.split_ascii_whitespace().position(|word| word == name)?;
    figures.split_ascii_whitespace().nth(at)?.parse().ok()
}

/// Index and address of an interface of this namespace.
pub fn interface_called(name: &str) -> io::Result<(u32, MacAddr)> {
    Link::find(name)?
        .and_then(|link| Some((link.index, link.mac?)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no Ethernet interface {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::message::payload_for_client;

    #[test]
    fn a_solicitation_sums_to_ones() {
        let (_, frame) = solicitation_frame(MacAddr([2, 1, 2, 3, 4, 5]));
        let pseudo = [&frame[22..54], &[0, 0, 0, 16, 0, 0, 0, 58], &frame[54..]].concat();
        let mut sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
        assert_eq!(frame.len(), 14 + 40 + 16);
    }

    #[test]
    fn counters_are_those_of_the_interface() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets\n    lo: 1 2 0 0 0 0 0 0 1 2 0 0 0 0 0 0\n\
                    storm0: 900 9 0 0 0 0 0 0 700 7 0 0 0 0 0 0\n";
        let counters = Counters::parse(text, "storm0").unwrap();
        assert_eq!((counters.bytes_to_machines, counters.packets_to_machines), (900, 9));
        assert_eq!((counters.bytes_from_machines, counters.packets_from_machines), (700, 7));
        assert_eq!(Counters::parse(text, "storm"), None);
        assert_eq!(counters.since(counters), Counters::default());
        let text =
            "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors\nUdp: 1 2 3 4 5\nUdpLite: 0\n";
        assert_eq!((udp_figure(text, "RcvbufErrors"), udp_figure(text, "Other")), (Some(5), None));
    }

    #[test]
    fn what_a_client_sends_is_not_for_clients() {
        let (to, mut frame) = dhcp_frame(MacAddr([2, 0, 0, 0, 0, 1]), b"hello");
        assert_eq!(to, MacAddr::BROADCAST);
        assert_eq!(payload_for_client(&frame), None);
        frame[14 + 20 + 3] = 68;
        assert_eq!(payload_for_client(&frame), Some(&b"hello"[..]));
    }
}
