//! IPv4/UDP frames to clients that have no address yet.
//!
//! RFC 2131 §4.1: an answer to a client that did not set the broadcast flag goes to its new address *and* its
//! hardware address. The client cannot answer ARP for an address it does not have, so the kernel's UDP cannot
//! deliver it. We write the IP and UDP headers ourselves and hand the packet to an `AF_PACKET` socket with the
//! client's MAC. The socket has protocol 0: the kernel never queues a received frame on it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::{self, Ipv4Flags, Ipv4Packet, MutableIpv4Packet};
use pnet_packet::udp::{self, MutableUdpPacket, UdpPacket};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::sys::{self, Frame};
use crate::net::{Bridge, MacAddr, Urgency};

const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const TTL: u8 = 64;

/// A UDP datagram for one station of the bridge.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    pub to: MacAddr,
    pub destination: SocketAddrV4,
    pub source_port: u16,
    pub payload: &'a [u8],
}

pub struct FrameSender {
    socket: Socket,
    interface: u32,
    source: Ipv4Addr,
}

impl FrameSender {
    pub fn open(bridge: &Bridge) -> io::Result<FrameSender> {
        FrameSender::open_from(bridge, bridge.ip())
    }

    /// One that claims this source address: a client that has none yet is 0.0.0.0.
    pub fn open_from(bridge: &Bridge, source: Ipv4Addr) -> io::Result<FrameSender> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        Urgency::Prompt.set_on(&socket);
        Ok(FrameSender { socket, interface: bridge.index, source })
    }

    pub fn send(
        &self,
        to: MacAddr,
        destination: SocketAddrV4,
        source_port: u16,
        payload: &[u8],
    ) -> io::Result<()> {
        let delivery = Delivery { to, destination, source_port, payload };
        self.send_batch(&[delivery]).pop().unwrap_or(Ok(()))
    }

    /// Sends each delivery; one result each, in order. One that exceeds the bridge's MTU fails (`EMSGSIZE`): it is never
    /// fragmented.
    pub fn send_batch(&self, deliveries: &[Delivery<'_>]) -> Vec<io::Result<()>> {
        let packets: Vec<Vec<u8>> =
            deliveries.iter().map(|delivery| emit_packet(self.source, delivery)).collect();
        let frames: Vec<Frame<'_>> = deliveries
            .iter()
            .zip(&packets)
            .map(|(delivery, packet)| Frame {
                packet,
                to: delivery.to,
                ethertype: libc::ETH_P_IP as u16,
                interface: self.interface,
            })
            .collect();
        sys::send_frames(&self.socket, &frames)
    }
}

/// The IPv4 packet of a delivery, both checksums whole: nothing on the way to a virtual machine finishes a partial
/// one.
pub(crate) fn emit_packet(source: Ipv4Addr, delivery: &Delivery<'_>) -> Vec<u8> {
    let payload = delivery.payload;
    let total = IPV4_HEADER + UDP_HEADER + payload.len();
    // Longer ones the kernel refuses whole.
    let total_length = u16::try_from(total).unwrap_or(u16::MAX);
    let mut bytes = vec![0; total];
    let (head, body) = bytes.split_at_mut(IPV4_HEADER);
    if let Some(mut datagram) = MutableUdpPacket::new(body) {
        datagram.set_source(delivery.source_port);
        datagram.set_destination(delivery.destination.port());
        datagram.set_length(total_length - IPV4_HEADER as u16);
        datagram.set_payload(payload);
    }
    let checksum = UdpPacket::new(body)
        .map_or(0, |datagram| udp::ipv4_checksum(&datagram, &source, delivery.destination.ip()));
    if let Some(mut datagram) = MutableUdpPacket::new(body) {
        // RFC 768: a computed zero is sent as all ones, for zero means "no checksum".
        datagram.set_checksum(if checksum == 0 { 0xffff } else { checksum });
    }
    if let Some(mut header) = MutableIpv4Packet::new(head) {
        header.set_version(4);
        header.set_header_length((IPV4_HEADER / 4) as u8);
        header.set_total_length(total_length);
        // RFC 6864 §4.1: never fragmented, so the identification may be anything.
        header.set_flags(Ipv4Flags::DontFragment);
        header.set_ttl(TTL);
        header.set_next_level_protocol(IpNextHeaderProtocols::Udp);
        header.set_source(source);
        header.set_destination(*delivery.destination.ip());
    }
    let checksum = Ipv4Packet::new(head).map_or(0, |header| ipv4::checksum(&header));
    if let Some(mut header) = MutableIpv4Packet::new(head) {
        header.set_checksum(checksum);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use pnet_packet::Packet;

    use super::*;

    /// What fills a frame at the Ethernet MTU.
    const PAYLOAD_MAX: usize = 1500 - IPV4_HEADER - UDP_HEADER;

    /// RFC 1071: the sum over data that includes its checksum is all ones.
    fn sums_to_ones(parts: &[&[u8]]) -> bool {
        let mut sum = 0_u32;
        for part in parts {
            for pair in part.chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            }
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum == 0xffff
    }

    #[test]
    fn headers_and_checksums_are_whole() {
        let source = Ipv4Addr::new(192, 168, 2, 2);
        for length in [0, 1, 299, 300, PAYLOAD_MAX] {
            let payload: Vec<u8> = (0..length).map(|number| number as u8).collect();
            let delivery = Delivery {
                to: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
                destination: "192.168.2.9:68".parse().unwrap(),
                source_port: 67,
                payload: &payload,
            };
            let packet = emit_packet(source, &delivery);
            assert_eq!(packet.len(), 28 + length);
            assert!(sums_to_ones(&[&packet[..20]]), "IPv4 header, {length} bytes");
            let datagram = &packet[20..];
            let pseudo = [&packet[12..20], &[0, 17], &(datagram.len() as u16).to_be_bytes()].concat();
            assert!(sums_to_ones(&[&pseudo, datagram]), "UDP, {length} bytes");
            let header = Ipv4Packet::new(&packet).unwrap();
            assert_eq!(
                (header.get_source(), header.get_destination()),
                (source, Ipv4Addr::new(192, 168, 2, 9))
            );
            let datagram = UdpPacket::new(header.payload()).unwrap();
            assert_eq!((datagram.get_source(), datagram.get_destination()), (67, 68));
            assert_eq!(datagram.payload(), payload);
        }
    }
}
