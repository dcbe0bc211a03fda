//! ARP on the bridge: is anybody there who would answer at this address (probes, RFC 5227 §2.1.1), and where we are
//! (announcements, §2.3).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::sys::{self, Frame};
use crate::net::{Bridge, MacAddr, Urgency};

/// An ARP packet for IPv4 over Ethernet (RFC 826): hardware and protocol types, their lengths, the operation …
const ARP_BYTES: usize = 28;
const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
/// … then the sender's MAC and address, and the target's.
const SENDER_MAC: usize = 8;
const SENDER: usize = 14;
const TARGET: usize = 24;

/// Somebody says that the address is at its MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpAnswer {
    pub address: Ipv4Addr,
    pub mac: MacAddr,
}

pub struct ArpProber {
    socket: Socket,
    interface: u32,
}

impl ArpProber {
    pub fn open(bridge: &Bridge) -> io::Result<ArpProber> {
        let protocol = Protocol::from(i32::from((libc::ETH_P_ARP as u16).to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        socket.set_nonblocking(true)?;
        Urgency::Prompt.set_on(&socket);
        Ok(ArpProber { socket, interface: bridge.index })
    }

    /// Asks everybody on the bridge for these addresses. What cannot be sent is a question nobody answers.
    ///
    /// `own` is the bridge's MAC as it is now: one without a fixed MAC takes its ports' lowest, and an answer to an
    /// earlier one is lost.
    pub fn ask(&self, own: MacAddr, addresses: &[Ipv4Addr]) {
        // RFC 5227: the sender's address stays zero, so that nobody's table is changed by the question.
        self.broadcast(addresses.iter().map(|address| request(own, Ipv4Addr::UNSPECIFIED, *address)));
    }

    /// Tells everybody who knows this address that it is at this MAC now.
    pub fn announce(&self, own: MacAddr, address: Ipv4Addr) {
        self.broadcast([announcement(own, address)]);
    }

    fn broadcast(&self, packets: impl IntoIterator<Item = Vec<u8>>) {
        let packets: Vec<Vec<u8>> = packets.into_iter().collect();
        let frames: Vec<Frame<'_>> = packets
            .iter()
            .map(|packet| Frame {
                packet,
                to: MacAddr::BROADCAST,
                ethertype: libc::ETH_P_ARP as u16,
                interface: self.interface,
            })
            .collect();
        let _ = sys::send_frames(&self.socket, &frames);
    }

    /// The next answer that has come in; `None` when none is waiting.
    pub fn receive(&self) -> io::Result<Option<ArpAnswer>> {
        /// Whatever else is in the queue wakes the reader once more.
        const PACKETS_MAX: usize = 256;
        let mut buffer = [0; 64];
        for _ in 0..PACKETS_MAX {
            let (length, from) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR | Errno::ENETDOWN | Errno::ENOBUFS) => continue,
                Err(error) => return Err(error.into()),
            };
            // The socket hears every device of the host; one of our ports would tell the same again.
            let here = from.is_some_and(|from| from.ifindex() == self.interface as usize);
            if here && let Some(answer) = read(&buffer[..length]) {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }
}

impl AsFd for ArpProber {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// "This address is at this MAC", as an ARP packet (RFC 5227 §1.1).
pub fn announcement(own: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    request(own, address, address)
}

fn request(own: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0; ARP_BYTES];
    packet[..6].copy_from_slice(&ETHERNET_AND_IPV4);
    packet[6..SENDER_MAC].copy_from_slice(&REQUEST);
    packet[SENDER_MAC..SENDER].copy_from_slice(&own.0);
    packet[SENDER..SENDER + 4].copy_from_slice(&sender.octets());
    packet[TARGET..].copy_from_slice(&target.octets());
    packet
}

/// An answer, or any other packet by which its sender claims the address as its own.
fn read(bytes: &[u8]) -> Option<ArpAnswer> {
    let packet: &[u8; ARP_BYTES] = bytes.first_chunk()?;
    if packet[..6] != ETHERNET_AND_IPV4 {
        return None;
    }
    let mac = MacAddr(packet[SENDER_MAC..SENDER].try_into().ok()?);
    let octets: [u8; 4] = packet[SENDER..SENDER + 4].try_into().ok()?;
    let address = Ipv4Addr::from(octets);
    (!address.is_unspecified() && mac.is_station()).then_some(ArpAnswer { address, mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_claims_nothing_and_who_claims_an_address_is_read() {
        let own = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
        let address = Ipv4Addr::new(192, 168, 2, 130);
        let bytes = request(own, Ipv4Addr::UNSPECIFIED, address);
        assert_eq!(bytes[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(bytes[14..18], [0; 4], "RFC 5227 §2.1.1: the sender's address is all zero");
        assert_eq!(bytes[24..28], address.octets());
        assert_eq!(read(&bytes), None, "a probe claims no address");
        assert_eq!(read(&announcement(own, address)), Some(ArpAnswer { address, mac: own }));
        let mut answer = bytes.clone();
        answer[7] = 2;
        answer[8..14].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 9]);
        answer[14..18].copy_from_slice(&address.octets());
        assert_eq!(read(&answer), Some(ArpAnswer { address, mac: MacAddr([0x52, 0x54, 0, 0, 0, 9]) }));
        for length in 0..ARP_BYTES {
            assert_eq!(read(&answer[..length]), None, "{length}");
        }
        answer[4] = 8;
        assert_eq!(read(&answer), None);
    }
}
