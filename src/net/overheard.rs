//! What other DHCP servers say on the bridge: read, never answered.
//!
//! Their replies go to port 68 of a client, as often as not as a frame to its MAC, so no UDP socket of ours gets them.
//! A packet socket does: it takes IPv4 on this one link, and a filter in the kernel leaves of that only what comes from
//! port 67 or 4011 and is not ours. Frames between two ports pass the bridge by unless it is promiscuous; who wants to
//! hear every reply ([`Reach::Everything`](super::tap::Reach::Everything)) pays with a look of the kernel at every frame.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};

use pnet_packet::Packet;
use pnet_packet::ethernet::EthernetPacket;
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::udp::UdpPacket;
use socket2::Socket;

use crate::net::tap::{self, Reach, Test};
use crate::net::{Bridge, MacAddr};

const DHCP_PORT: u16 = 67;
const BOOT_SERVER_PORT: u16 = 4011;
/// An Ethernet frame; what is longer is no DHCP.
const FRAME_BYTES_MAX: usize = 2048;

/// One datagram of another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saying<'a> {
    pub mac: MacAddr,
    pub source: Ipv4Addr,
    pub payload: &'a [u8],
}

pub struct Ear {
    socket: Socket,
    buffer: Box<[u8; FRAME_BYTES_MAX]>,
}

impl Ear {
    pub fn open(bridge: &Bridge, reach: Reach) -> io::Result<Ear> {
        let sayings =
            [Test::Udp, Test::Ipv4NotFrom(bridge.ip()), Test::UdpFrom(&[DHCP_PORT, BOOT_SERVER_PORT])];
        let filter = tap::filter(libc::ETH_P_IP, &sayings);
        let socket = tap::open(bridge.index, libc::ETH_P_IP, &filter, reach)?;
        Ok(Ear { socket, buffer: Box::new([0; FRAME_BYTES_MAX]) })
    }

    /// The next saying that is queued, or `None`.
    pub fn hear(&mut self) -> io::Result<Option<Saying<'_>>> {
        loop {
            let received = io::Read::read(&mut &self.socket, &mut self.buffer[..]);
            let length = match received {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if read_frame(&self.buffer[..length]).is_some() {
                return Ok(read_frame(&self.buffer[..length]));
            }
        }
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read_frame(frame: &[u8]) -> Option<Saying<'_>> {
    let ethernet = EthernetPacket::new(frame)?;
    let behind = frame.get(EthernetPacket::minimum_packet_size()..)?;
    let header = Ipv4Packet::new(behind)?;
    let head = usize::from(header.get_header_length()) * 4;
    // Ethernet pads: the lengths of IP and UDP count, not the frame's.
    let datagram = behind.get(head..usize::from(header.get_total_length()))?;
    let udp = UdpPacket::new(datagram)?;
    let payload = datagram.get(UdpPacket::minimum_packet_size()..usize::from(udp.get_length()))?;
    let from_server = matches!(udp.get_source(), DHCP_PORT | BOOT_SERVER_PORT);
    let is_udp = header.get_next_level_protocol() == IpNextHeaderProtocols::Udp;
    let mac = ethernet.get_source();
    (is_udp && from_server && !ethernet.packet().is_empty()).then_some(Saying {
        mac: MacAddr([mac.0, mac.1, mac.2, mac.3, mac.4, mac.5]),
        source: header.get_source(),
        payload,
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use super::*;
    use crate::net::frame::{Delivery, emit_packet};

    fn frame(source_port: u16, payload: &[u8]) -> Vec<u8> {
        let delivery = Delivery {
            to: MacAddr::BROADCAST,
            destination: SocketAddrV4::new(Ipv4Addr::BROADCAST, 68),
            source_port,
            payload,
        };
        let mut frame = vec![0xff; 6];
        frame.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 9, 8, 0]);
        frame.extend_from_slice(&emit_packet(Ipv4Addr::new(192, 168, 2, 9), &delivery));
        frame
    }

    #[test]
    fn a_reply_is_read_without_the_padding_behind_it() {
        let mut bytes = frame(67, b"reply");
        bytes.extend_from_slice(&[0; 20]);
        let saying = read_frame(&bytes).unwrap();
        assert_eq!(saying.payload, b"reply");
        assert_eq!((saying.mac, saying.source), (MacAddr([0x52, 0x54, 0, 0, 0, 9]), [192, 168, 2, 9].into()));
        assert_eq!(read_frame(&frame(68, b"request")), None);
    }

    #[test]
    fn frames_cut_off_or_garbled_anywhere_are_no_sayings() {
        let whole = frame(67, b"reply");
        for length in 0..whole.len() {
            assert_eq!(read_frame(&whole[..length]), None, "{length}");
        }
        for index in 14..whole.len() {
            let mut garbled = whole.clone();
            garbled[index] = 0xff;
            let _ = read_frame(&garbled);
        }
    }
}
