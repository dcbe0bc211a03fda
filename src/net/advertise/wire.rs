//! Router solicitations in, router advertisements out (RFC 4861 §4.1, §4.2); pure.

use std::net::Ipv6Addr;

use pnet_packet::icmpv6::ndp::{MutableRouterAdvertPacket, NdpOption, NdpOptionTypes};
use pnet_packet::icmpv6::{self, Icmpv6Packet, Icmpv6Types};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv6::MutableIpv6Packet;

use crate::net::MacAddr;

const IPV6_HEADER: usize = 40;
const SOLICITATION_HEADER: usize = 8;
const ADVERTISEMENT_HEADER: usize = 16;
/// Both our options fill one unit of eight bytes.
const OPTION: usize = 8;
const SOURCE_LINK_ADDRESS: u8 = 1;
/// RFC 4861 §6.1.1: proof that no router forwarded it.
const HOP_LIMIT: u8 = 255;

/// The soliciting machine's MAC, if it told one and has an address to answer to; or why RFC 4861 §6.1.1 has us
/// ignore the message. The kernel has checked the checksum.
pub(super) fn parse_solicitation(
    bytes: &[u8],
    source: Ipv6Addr,
    hop_limit: i32,
) -> Result<Option<MacAddr>, &'static str> {
    if hop_limit != i32::from(HOP_LIMIT) {
        return Err("hop-limit");
    }
    if bytes.len() < SOLICITATION_HEADER || bytes[0] != Icmpv6Types::RouterSolicit.0 || bytes[1] != 0 {
        return Err("malformed");
    }
    let mut mac = None;
    let mut options = &bytes[SOLICITATION_HEADER..];
    while !options.is_empty() {
        let length = options.get(1).map_or(0, |units| usize::from(*units) * 8);
        if length == 0 || length > options.len() {
            return Err("malformed");
        }
        let (option, rest) = options.split_at(length);
        if option[0] == SOURCE_LINK_ADDRESS {
            mac = option[2..].first_chunk().copied().map(MacAddr);
        }
        options = rest;
    }
    match (source.is_unspecified(), mac) {
        (true, Some(_)) => Err("malformed"),
        (true, None) => Ok(None),
        (false, mac) => Ok(mac.filter(|mac| mac.is_station() && source.is_unicast_link_local())),
    }
}

/// What we advertise: that we are here, and nothing else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Advertisement {
    pub(super) source: Ipv6Addr,
    pub(super) mac: MacAddr,
    pub(super) mtu: u32,
}

impl Advertisement {
    /// The IPv6 packet to `destination`.
    pub(super) fn emit(&self, destination: Ipv6Addr) -> Vec<u8> {
        let mut mtu = vec![0; 2]; // reserved
        mtu.extend_from_slice(&self.mtu.to_be_bytes());
        let options = vec![
            NdpOption { option_type: NdpOptionTypes::SourceLLAddr, length: 1, data: self.mac.0.to_vec() },
            NdpOption { option_type: NdpOptionTypes::MTU, length: 1, data: mtu },
        ];
        let length = ADVERTISEMENT_HEADER + options.len() * OPTION;
        let mut bytes = vec![0; IPV6_HEADER + length];
        let (head, body) = bytes.split_at_mut(IPV6_HEADER);
        if let Some(mut header) = MutableIpv6Packet::new(head) {
            header.set_version(6);
            header.set_payload_length(length as u16);
            header.set_next_header(IpNextHeaderProtocols::Icmpv6);
            header.set_hop_limit(HOP_LIMIT);
            header.set_source(self.source);
            header.set_destination(destination);
        }
        if let Some(mut message) = MutableRouterAdvertPacket::new(body) {
            message.set_icmpv6_type(Icmpv6Types::RouterAdvert);
            // Current hop limit, flags, router lifetime, reachable time and retransmission timer stay 0: "not a
            // default router", "no DHCPv6 here", and "this router does not say".
            message.set_options(&options);
        }
        let checksum = Icmpv6Packet::new(body)
            .map_or(0, |message| icmpv6::checksum(&message, &self.source, &destination));
        if let Some(mut message) = MutableRouterAdvertPacket::new(body) {
            message.set_checksum(checksum);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);
    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

    fn solicitation() -> Vec<u8> {
        let mut bytes = vec![133, 0, 0x12, 0x34, 0, 0, 0, 0, SOURCE_LINK_ADDRESS, 1];
        bytes.extend_from_slice(&MAC.0);
        bytes
    }

    #[test]
    fn a_solicitation_tells_where_to_answer() {
        assert_eq!(parse_solicitation(&solicitation(), CLIENT, 255), Ok(Some(MAC)));
        let bare = &solicitation()[..8];
        assert_eq!(parse_solicitation(bare, CLIENT, 255), Ok(None));
        assert_eq!(parse_solicitation(bare, Ipv6Addr::UNSPECIFIED, 255), Ok(None));
    }

    #[test]
    fn forged_and_broken_solicitations_are_ignored() {
        assert_eq!(parse_solicitation(&solicitation(), CLIENT, 64), Err("hop-limit"));
        assert_eq!(parse_solicitation(&solicitation(), Ipv6Addr::UNSPECIFIED, 255), Err("malformed"));
        for length in (0..16).filter(|length| *length != 8) {
            assert_eq!(
                parse_solicitation(&solicitation()[..length], CLIENT, 255),
                Err("malformed"),
                "{length}"
            );
        }
        for (at, value) in [(0, 134), (1, 1), (9, 0), (9, 2)] {
            let mut bytes = solicitation();
            bytes[at] = value;
            assert_eq!(parse_solicitation(&bytes, CLIENT, 255), Err("malformed"), "byte {at}");
        }
        let mut multicast = solicitation();
        multicast[10] |= 1;
        assert_eq!(parse_solicitation(&multicast, CLIENT, 255), Ok(None));
    }

    #[test]
    fn the_advertisement_is_the_one_of_the_rfc() {
        let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
        let bytes = Advertisement { source, mac: MAC, mtu: 1500 }.emit(CLIENT);
        assert_eq!(bytes.len(), 40 + 16 + 16);
        assert_eq!((bytes[0] >> 4, bytes[6], bytes[7]), (6, 58, 255));
        assert_eq!(bytes[4..6], 32_u16.to_be_bytes());
        let message = &bytes[40..];
        assert_eq!(message[..2], [134, 0]);
        assert_eq!(message[4..16], [0; 12], "hop limit, flags, lifetime and timers say nothing");
        assert_eq!(message[16..24], [1, 1, 0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(message[24..32], [5, 1, 0, 0, 0, 0, 0x05, 0xdc]);
        // RFC 8200 §8.1: the sum over pseudo-header and message is all ones.
        let pseudo = [&bytes[8..40], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
        let sum: u32 = pseudo
            .chunks(2)
            .chain(message.chunks(2))
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
