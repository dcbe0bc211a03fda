//! Raw Ethernet on a port of the bridge, and the frames that come back.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use farrier::net::MacAddr;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::support::{eventually, run};

/// Longest wait for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The bridge's own MAC, fixed: else it would be that of one port or another.
pub const BRIDGE: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 2]);
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];

/// One cable with raw frames on it. It has no address and no ARP of its own: it answers for what it [owns](Self::own).
pub struct Station {
    socket: OwnedFd,
    owned: RefCell<Vec<(Ipv4Addr, MacAddr)>>,
    /// Addresses the appliance asked for by ARP, to send there.
    pub resolved: RefCell<Vec<Ipv4Addr>>,
}

/// A UDP datagram as it came, headers included.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub to: MacAddr,
    pub source: (Ipv4Addr, u16),
    pub destination: (Ipv4Addr, u16),
    pub sums: Sums,
    pub fragment: bool,
    pub payload: Vec<u8>,
}

impl Station {
    pub fn plug(bridge: &str, number: u32) -> Station {
        let (near, far) = (format!("sp{number}"), format!("st{number}"));
        run("ip", &["link", "add", &near, "type", "veth", "peer", "name", &far]);
        run("ip", &["link", "set", &far, "arp", "off", "addrgenmode", "none", "up"]);
        // As on a wire, where a card has cut what the kernel took as one packet (UDP_SEGMENT): a frame is a datagram.
        run("ip", &["link", "set", &near, "gso_max_segs", "1"]);
        run("ip", &["link", "set", &near, "addrgenmode", "none", "master", bridge, "up"]);
        eventually("the port forwards", || {
            let told = run("bridge", &["link", "show", "dev", &near]);
            String::from_utf8_lossy(&told.stdout).contains("state forwarding").then_some(())
        });
        let link = nix::ifaddrs::getifaddrs()
            .expect("interfaces")
            .filter(|found| found.interface_name == far)
            .find_map(|found| found.address?.as_link_addr().copied())
            .expect("a link address");
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                .expect("a packet socket");
        // The link address carries protocol 0: the one the socket was made with stays.
        bind(socket.as_raw_fd(), &link).expect("bound to the cable");
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(10)).expect("a time-out");
        setsockopt(&socket, sockopt::RcvBuf, &(1 << 20)).expect("a buffer");
        Station { socket, owned: RefCell::default(), resolved: RefCell::default() }
    }

    /// Answers ARP for this address from now on, as the machine with this MAC.
    pub fn own(&self, address: Ipv4Addr, mac: MacAddr) {
        self.owned.borrow_mut().push((address, mac));
    }

    /// No more: the machine has let go of it.
    pub fn disown(&self, address: Ipv4Addr) {
        self.owned.borrow_mut().retain(|(other, _)| *other != address);
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.socket, frame).expect("sent"), frame.len());
    }

    /// A UDP datagram from this MAC; to the bridge unless the destination is everybody.
    pub fn send_udp(&self, from: MacAddr, source: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) {
        let mac = if to.0.is_broadcast() { MacAddr([0xff; 6]) } else { BRIDGE };
        self.send(&udp_frame((from, mac), source, to, payload, Checksum::Whole));
    }

    /// The next datagram from the appliance; `None` if `until` passes first.
    pub fn receive(&self, until: Instant) -> Option<Datagram> {
        let mut buffer = [0; 4096];
        while Instant::now() < until {
            let length = match nix::unistd::read(&self.socket, &mut buffer) {
                Ok(length) => length,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => continue,
                Err(error) => panic!("receive: {error}"),
            };
            let frame = &buffer[..length];
            if frame.len() < 42 || frame[6..12] != BRIDGE.0 {
                continue;
            }
            if frame[12..14] == ARP {
                self.answer_arp(frame);
            } else if frame[12..14] == IPV4
                && frame[23] == 17
                && let Some(datagram) = datagram(frame)
            {
                return Some(datagram);
            }
        }
        None
    }

    fn answer_arp(&self, frame: &[u8]) {
        let four = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        let (is_request, sender, target) = (frame[20..22] == [0, 1], four(28), four(38));
        if !is_request {
            return;
        }
        // A probe (RFC 5227) has no sender address: it asks whether the address is free, not where to send to.
        if !sender.is_unspecified() {
            self.resolved.borrow_mut().push(target);
        }
        let owned = self.owned.borrow();
        let Some((_, mac)) = owned.iter().find(|(address, _)| *address == target) else { return };
        let mut answer = [&frame[6..12], &mac.0, &ARP, &[0, 1, 8, 0, 6, 4, 0, 2]].concat();
        answer.extend_from_slice(&mac.0);
        answer.extend_from_slice(&target.octets());
        answer.extend_from_slice(&frame[22..32]);
        answer.resize(60, 0);
        self.send(&answer);
    }
}

/// What the appliance's checksums are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    Whole,
    /// UDP's is left to a network card, as the kernel does on a virtual wire; a real card would have finished it.
    Unfinished,
    Wrong,
}

/// What the client leaves in the UDP checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Whole,
    /// None, as RFC 768 allows.
    Zero,
}

pub fn udp_frame(
    (source_mac, mac): (MacAddr, MacAddr),
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    payload: &[u8],
    checksum: Checksum,
) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).expect("a datagram");
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&(20 + udp_length).to_be_bytes());
    header.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend_from_slice(&source.0.octets());
    header.extend_from_slice(&destination.0.octets());
    let sum = !ones_sum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = Vec::new();
    for word in [source.1, destination.1, udp_length, 0] {
        udp.extend_from_slice(&word.to_be_bytes());
    }
    udp.extend_from_slice(payload);
    if checksum == Checksum::Whole {
        let pseudo = [&header[12..20], &[0, 17], &udp_length.to_be_bytes(), &udp].concat();
        let sum = !ones_sum(&pseudo);
        udp[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
    }
    [&mac.0[..], &source_mac.0, &IPV4, header.as_slice(), &udp].concat()
}

fn datagram(frame: &[u8]) -> Option<Datagram> {
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let packet = frame.get(14..14 + total)?;
    let four = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    let two = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let udp_length = usize::from(two(24));
    let pseudo = [&packet[12..20], &[0, 17], &packet[24..26], packet.get(20..20 + udp_length)?].concat();
    Some(Datagram {
        to: MacAddr(frame[..6].try_into().expect("six bytes")),
        source: (four(12), two(20)),
        destination: (four(16), two(22)),
        sums: match (ones_sum(&packet[..20]), two(26)) {
            (0xffff, 1..) if ones_sum(&pseudo) == 0xffff => Sums::Whole,
            (0xffff, sum) if ones_sum(&pseudo[..12]) == sum => Sums::Unfinished,
            _ => Sums::Wrong,
        },
        fragment: two(6) & 0x3fff != 0,
        payload: packet.get(28..20 + udp_length)?.to_vec(),
    })
}

/// RFC 1071, before complementing.
fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
