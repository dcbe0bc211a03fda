//! A frame from the bridge → what was heard of somebody else; pure.
//!
//! The kernel's filter has let through only frames that look right; everything is checked here all the same, for every
//! byte is whoever's sent it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet_packet::Packet;
use pnet_packet::ethernet::EthernetPacket;
use pnet_packet::icmpv6::{Icmpv6Packet, Icmpv6Types};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::ipv6::Ipv6Packet;
use pnet_packet::udp::UdpPacket;

use crate::dhcp::wire::{Message, MessageType, OptionCode};
use crate::guard::rivals::{Evidence, Heard, Kind};
use crate::net::MacAddr;

const SERVER_PORT: u16 = 67;
/// RFC 4861 §6.1.2: proof that no router forwarded it.
const HOP_LIMIT: u8 = 255;
const ADVERTISEMENT_HEADER: usize = 16;
/// Flags of RFC 4861 §4.2: addresses, or other things, by DHCPv6.
const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;
const PREFIX_OPTION: u8 = 3;

/// Who we are: frames of our own are nobody else's.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    pub mac: MacAddr,
    /// Where our own DISCOVERs claim to come from.
    pub probe: MacAddr,
}

/// What an Ethernet frame tells of another server or router, if anything.
pub fn of_frame(frame: &[u8], own: Own) -> Option<Heard> {
    let frame = EthernetPacket::new(frame)?;
    let source = frame.get_source();
    let mac = MacAddr([source.0, source.1, source.2, source.3, source.4, source.5]);
    if mac == own.mac {
        return None;
    }
    match i32::from(frame.get_ethertype().0) {
        libc::ETH_P_IP => dhcp(frame.payload(), mac, own.probe),
        libc::ETH_P_IPV6 => advertisement(frame.payload(), mac),
        _ => None,
    }
}

fn dhcp(packet: &[u8], mac: MacAddr, probe: MacAddr) -> Option<Heard> {
    let packet = Ipv4Packet::new(packet)?;
    let header = usize::from(packet.get_header_length()) * 4;
    let whole = packet.get_fragment_offset() == 0 && header >= 20;
    if !whole || packet.get_next_level_protocol() != IpNextHeaderProtocols::Udp {
        return None;
    }
    let datagram = UdpPacket::new(packet.packet().get(header..)?)?;
    // The UDP length counts: Ethernet pads short frames.
    let message = datagram.packet().get(8..usize::from(datagram.get_length()))?;
    if datagram.get_source() != SERVER_PORT {
        return None;
    }
    let message = Message::parse(message).ok().filter(Message::is_reply)?;
    let client = message.chaddr().first_chunk().copied().map(MacAddr);
    let evidence = match message.message_type() {
        Some(MessageType::Offer) if client == Some(probe) => Evidence::ProbeAnswer,
        Some(MessageType::Offer) => Evidence::Offer,
        Some(MessageType::Ack) => Evidence::Ack,
        Some(MessageType::Nak) => Evidence::Nak,
        // BOOTP replies have no type, and give an address as well.
        None => Evidence::Offer,
        Some(_) => return None,
    };
    // Through a relay the frame is the relay's; the identifier is the server's.
    let named = message.options().address(OptionCode::ServerIdentifier);
    let address = named.filter(|address| *address != Ipv4Addr::UNSPECIFIED).unwrap_or(packet.get_source());
    Some(Heard {
        kind: Kind::Dhcp,
        address: IpAddr::V4(address),
        mac: Some(mac),
        evidence,
        client: client.filter(|client| *client != probe),
        harmless: false,
    })
}

fn advertisement(packet: &[u8], mac: MacAddr) -> Option<Heard> {
    let packet = Ipv6Packet::new(packet)?;
    if packet.get_next_header() != IpNextHeaderProtocols::Icmpv6 || packet.get_hop_limit() != HOP_LIMIT {
        return None;
    }
    let payload = packet.payload();
    if Icmpv6Packet::new(payload)?.get_icmpv6_type() != Icmpv6Types::RouterAdvert {
        return None;
    }
    let (header, options) = payload.split_first_chunk::<ADVERTISEMENT_HEADER>()?;
    let lifetime = u16::from_be_bytes([header[6], header[7]]);
    let harmless = lifetime == 0 && header[5] & (MANAGED | OTHER) == 0 && !has_prefix(options);
    let source: Ipv6Addr = packet.get_source();
    Some(Heard {
        kind: Kind::RouterAdvertisement,
        address: IpAddr::V6(source),
        mac: Some(mac),
        evidence: Evidence::Advertisement,
        client: None,
        harmless,
    })
}

fn has_prefix(mut options: &[u8]) -> bool {
    while let [kind, units, ..] = *options {
        if kind == PREFIX_OPTION {
            return true;
        }
        let length = usize::from(units) * 8;
        let Some(rest) = options.get(length..).filter(|_| length > 0) else { return false };
        options = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frame::{Delivery, emit_packet};

    const OWN: Own = Own { mac: MacAddr([2, 0, 0, 0, 0, 1]), probe: MacAddr([2, 0, 0, 0, 0, 0x99]) };
    const OTHER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn ethernet(from: MacAddr, ethertype: u16, packet: &[u8]) -> Vec<u8> {
        [&[0xff; 6], &from.0[..], &ethertype.to_be_bytes(), packet].concat()
    }

    fn reply(kind: Option<u8>, client: MacAddr, server: Option<[u8; 4]>) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[..3].copy_from_slice(&[2, 1, 6]);
        bytes[28..34].copy_from_slice(&client.0);
        bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend(kind.iter().flat_map(|kind| [53, 1, *kind]));
        bytes.extend(server.iter().flat_map(|address| [[54, 4].as_slice(), address].concat()));
        bytes.push(255);
        bytes
    }

    fn frame(from: MacAddr, source_port: u16, payload: &[u8]) -> Vec<u8> {
        let delivery = Delivery {
            to: MacAddr::BROADCAST,
            destination: "255.255.255.255:68".parse().unwrap(),
            source_port,
            payload,
        };
        ethernet(from, 0x0800, &emit_packet([192, 168, 2, 9].into(), &delivery))
    }

    #[test]
    fn replies_of_others_are_heard_and_ours_are_not() {
        let client = MacAddr([2, 0, 0, 0, 0, 7]);
        let offer = reply(Some(2), client, Some([192, 168, 2, 8]));
        let heard = of_frame(&frame(OTHER_MAC, 67, &offer), OWN).unwrap();
        assert_eq!(heard.address, IpAddr::from([192, 168, 2, 8]), "the identifier, not the sender");
        assert_eq!(
            (heard.mac, heard.evidence, heard.client),
            (Some(OTHER_MAC), Evidence::Offer, Some(client))
        );
        assert_eq!(of_frame(&frame(OWN.mac, 67, &offer), OWN), None, "our own");
        assert_eq!(of_frame(&frame(OTHER_MAC, 1067, &offer), OWN), None, "not from a server's port");
        let mut request = offer.clone();
        request[0] = 1;
        assert_eq!(of_frame(&frame(OTHER_MAC, 67, &request), OWN), None, "a relay asks, it does not answer");
        let evidence = |kind, client| {
            of_frame(&frame(OTHER_MAC, 67, &reply(kind, client, None)), OWN).map(|heard| heard.evidence)
        };
        assert_eq!(evidence(Some(5), client), Some(Evidence::Ack));
        assert_eq!(evidence(Some(6), client), Some(Evidence::Nak));
        assert_eq!(evidence(None, client), Some(Evidence::Offer), "BOOTP");
        assert_eq!(evidence(Some(2), OWN.probe), Some(Evidence::ProbeAnswer));
        assert_eq!(evidence(Some(10), client), None);
    }

    fn advert(lifetime: u16, flags: u8, options: &[u8], hop_limit: u8) -> Option<Heard> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 16 + options.len() as u8, 58, hop_limit];
        packet.extend_from_slice(&Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9).octets());
        packet.extend_from_slice(&Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets());
        packet.extend_from_slice(&[134, 0, 0, 0, 64, flags]);
        packet.extend_from_slice(&lifetime.to_be_bytes());
        packet.extend_from_slice(&[0; 8]);
        packet.extend_from_slice(options);
        of_frame(&ethernet(OTHER_MAC, 0x86dd, &packet), OWN)
    }

    #[test]
    fn a_router_is_a_rival_by_what_it_offers() {
        let prefix = [[3, 4].as_slice(), &[0; 30]].concat();
        let link_address = [1, 1, 2, 0, 0, 0, 0, 9];
        let harmless = |heard: Option<Heard>| heard.map(|heard| heard.harmless);
        assert_eq!(harmless(advert(1800, 0, &[], 255)), Some(false));
        assert_eq!(harmless(advert(0, MANAGED, &[], 255)), Some(false));
        assert_eq!(harmless(advert(0, 0, &[&link_address[..], &prefix].concat(), 255)), Some(false));
        assert_eq!(harmless(advert(0, 0, &link_address, 255)), Some(true), "such as ours");
        assert_eq!(advert(1800, 0, &[], 64), None, "forwarded, so forged");
        assert_eq!(harmless(advert(0, 0, &[7, 0, 3], 255)), Some(true), "options that do not end");
    }

    #[test]
    fn cut_off_frames_tell_nothing_and_break_nothing() {
        let whole = frame(OTHER_MAC, 67, &reply(Some(2), OTHER_MAC, Some([192, 168, 2, 8])));
        for length in 0..whole.len() {
            let _ = of_frame(&whole[..length], OWN);
        }
        let mut lying = whole;
        for byte in 12..46 {
            for value in [0, 0x4f, 0xff] {
                let kept = std::mem::replace(&mut lying[byte], value);
                let _ = of_frame(&lying, OWN);
                lying[byte] = kept;
            }
        }
    }
}
