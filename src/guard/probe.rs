//! The questions we ask: a DISCOVER like that of a boot ROM, from a MAC that no machine has; a router solicitation; and
//! when; pure.
//!
//! Like a boot ROM's, so that proxies answer that serve only such. An offer is looked at and never requested. One MAC for
//! the whole run: a rival spends one address on us, however often it is asked.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use pnet_packet::icmpv6::{self, Icmpv6Packet, Icmpv6Types};

use crate::net::MacAddr;

/// Between questions while nobody else is known.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// … and while somebody is: its end is to be noticed soon.
pub const INTERVAL_ALARMED: Duration = Duration::from_secs(5);
/// A change of links may have brought somebody: it is asked about after this long, for ports need a moment.
const AFTER_CHANGE: Duration = Duration::from_secs(1);

/// However many are heard of, questions are not asked oftener.
const PAUSE: Duration = Duration::from_secs(1);

/// A DISCOVER with the broadcast flag: the answer is to be seen whatever the switches know of the MAC.
pub fn message(mac: MacAddr, xid: u32) -> Vec<u8> {
    const CLASS: &[u8] = b"PXEClient:Arch:00007:UNDI:003016";
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes[10] = 0x80;
    bytes[28..34].copy_from_slice(&mac.0);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend_from_slice(&[53, 1, 1]);
    bytes.extend_from_slice(&[55, 7, 1, 3, 43, 54, 60, 66, 67]);
    bytes.extend_from_slice(&[57, 2, 0x05, 0xc0]);
    bytes.extend_from_slice(&[93, 2, 0, 7]);
    bytes.extend_from_slice(&[94, 3, 1, 3, 16]);
    bytes.extend_from_slice(&[60, CLASS.len() as u8]);
    bytes.extend_from_slice(CLASS);
    bytes.push(255);
    // RFC 951: some servers take nothing shorter.
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

/// Where a solicitation goes: to every router of the link.
pub const ALL_ROUTERS: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 2]);
/// The ICMPv6 type of what answers it (RFC 4861 §4.2).
pub const ROUTER_ADVERTISEMENT: u8 = Icmpv6Types::RouterAdvert.0;

/// The Ethernet frame of a router solicitation (RFC 4861 §4.1). It comes from nobody's address: the bridge may have none
/// yet, and what answers such a one goes to everybody, us among them.
pub fn solicitation(from: MacAddr) -> Vec<u8> {
    let ethertype = (libc::ETH_P_IPV6 as u16).to_be_bytes();
    const ICMPV6: u8 = 58;
    /// RFC 4861 §6.1.1: proof that no router forwarded it.
    const HOP_LIMIT: u8 = 255;
    let (source, destination) = (Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2));
    let mut message = [Icmpv6Types::RouterSolicit.0, 0, 0, 0, 0, 0, 0, 0];
    let sum = Icmpv6Packet::new(&message).map_or(0, |it| icmpv6::checksum(&it, &source, &destination));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let head = [0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, HOP_LIMIT];
    let packet = [&head[..], &source.octets(), &destination.octets(), &message].concat();
    [&ALL_ROUTERS.0[..], &from.0, &ethertype, &packet].concat()
}

/// When to ask next.
#[derive(Debug)]
pub struct Schedule {
    asked_at: Option<Instant>,
    next_at: Instant,
}

impl Schedule {
    /// The first question at once.
    pub fn new(now: Instant) -> Schedule {
        Schedule { asked_at: None, next_at: now }
    }

    pub fn due(&self, now: Instant) -> bool {
        now >= self.next_at
    }

    pub fn asked(&mut self, now: Instant, alarmed: bool) {
        self.asked_at = Some(now);
        self.next_at = now + if alarmed { INTERVAL_ALARMED } else { INTERVAL };
    }

    /// Somebody was heard who was not known: whether it answers us is asked right away, for by that its end is noticed.
    pub fn alarmed(&mut self, now: Instant) {
        let earliest = self.asked_at.map_or(now, |asked_at| now.max(asked_at + PAUSE));
        self.next_at = self.next_at.min(earliest);
    }

    /// Ports came or went. However often they do, questions keep their distance.
    pub fn links_changed(&mut self, now: Instant) {
        let soon = now + AFTER_CHANGE;
        let earliest = self.asked_at.map_or(soon, |asked_at| soon.max(asked_at + INTERVAL_ALARMED));
        self.next_at = self.next_at.min(earliest);
    }

    pub fn next_at(&self) -> Instant {
        self.next_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::wire;

    #[test]
    fn the_question_is_a_discover_of_a_boot_rom() {
        let mac = MacAddr([2, 0, 0, 0, 0, 0x99]);
        let bytes = message(mac, 7);
        assert_eq!(wire::discover_of(&bytes), Some(mac.0));
        let message = wire::Message::parse(&bytes).unwrap();
        assert!(message.broadcast() && !message.is_reply() && message.xid() == 7);
        assert!(
            message.options().bytes(wire::OptionCode::ClassIdentifier).unwrap().starts_with(b"PXEClient")
        );
        assert_eq!(message.options().number(wire::OptionCode::MaxMessageSize), Some(1472));
    }

    #[test]
    fn routers_are_asked_as_the_rfc_says() {
        let frame = solicitation(MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd]);
        let bytes = &frame[14..];
        assert_eq!(bytes[..8], [0x60, 0, 0, 0, 0, 8, 58, 255]);
        assert_eq!((&bytes[8..24], &bytes[24..26], bytes[39]), (&[0; 16][..], &[0xff, 2][..], 2));
        assert_eq!((bytes[40], bytes.len()), (133, 48), "without an address there is no option either");
        // RFC 8200 §8.1: the sum over pseudo-header and message is all ones.
        let pseudo = [&bytes[8..40], &[0, 0, 0, 8, 0, 0, 0, 58], &bytes[40..]].concat();
        let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    #[test]
    fn a_minute_apart_five_seconds_when_alarmed_and_soon_after_a_change() {
        let start = Instant::now();
        let secs = Duration::from_secs;
        let mut schedule = Schedule::new(start);
        assert!(schedule.due(start));
        schedule.asked(start, false);
        assert_eq!(schedule.next_at(), start + secs(60));
        schedule.alarmed(start);
        assert_eq!(schedule.next_at(), start + secs(1));
        schedule.alarmed(start + secs(5));
        assert_eq!(schedule.next_at(), start + secs(1));
        schedule.asked(start + secs(5), true);
        assert_eq!(schedule.next_at(), start + secs(10));
        schedule.asked(start + secs(10), false);
        schedule.links_changed(start + secs(11));
        assert_eq!(schedule.next_at(), start + secs(15), "they keep their distance");
        schedule.links_changed(start + secs(40));
        assert_eq!(schedule.next_at(), start + secs(15));
        schedule.asked(start + secs(15), false);
        schedule.links_changed(start + secs(40));
        assert_eq!(schedule.next_at(), start + secs(41));
    }
}
