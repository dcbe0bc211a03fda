//! Router advertisements on a real segment.

use std::net::Ipv6Addr;
use std::sync::Arc;

use farrier::net::{MacAddr, advertise};
use farrier::telemetry::Tally;

use crate::support::{Wire, attach, eventually, ip, isolated, make_bridge, ones_sum};

const MACHINE: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const MACHINE_IP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// A solicitation as iPXE sends it: link-local source, source link-layer address option.
fn solicitation() -> Vec<u8> {
    let mut message = vec![133, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    message.extend_from_slice(&MACHINE.0);
    let addresses = [MACHINE_IP.octets(), ALL_ROUTERS.octets()].concat();
    let pseudo = [addresses.as_slice(), &[0, 0, 0, 16, 0, 0, 0, 58]].concat();
    let checksum = !ones_sum(&[pseudo.as_slice(), &message].concat());
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 2];
    frame.extend_from_slice(&MACHINE.0);
    frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 58, 255]);
    frame.extend_from_slice(&addresses);
    frame.extend_from_slice(&message);
    frame
}

/// Checks a router advertisement to `destination` and returns the MAC it was sent to and its source.
fn advertisement(frame: &[u8], destination: Ipv6Addr) -> Option<(MacAddr, Ipv6Addr)> {
    let packet = frame.get(14..)?;
    let message = packet.get(40..)?;
    if frame[12..14] != [0x86, 0xdd] || packet[6] != 58 || message[0] != 134 {
        return None;
    }
    if packet[24..40] != destination.octets() {
        return None;
    }
    assert_eq!(packet[7], 255, "hop limit");
    assert_eq!(message[5], 0, "neither managed nor other: no DHCPv6");
    assert_eq!(message[6..8], [0, 0], "router lifetime");
    assert_eq!(message[24..32], [5, 1, 0, 0, 0, 0, 0x05, 0xdc], "MTU 1500");
    assert_eq!(message.len(), 32, "no prefix");
    assert_eq!(message[16..18], [1, 1]);
    assert_eq!(message[18..24], frame[6..12], "source link-layer address");
    let pseudo = [&packet[8..40], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
    assert_eq!(ones_sum(&[pseudo.as_slice(), message].concat()), 0xffff, "checksum");
    let source = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap());
    assert!(source.is_unicast_link_local());
    Some((MacAddr(frame[..6].try_into().unwrap()), source))
}

#[test]
fn a_solicitation_is_answered_to_the_machine_that_sent_it() {
    if !isolated("advertise::a_solicitation_is_answered_to_the_machine_that_sent_it") {
        return;
    }
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let tally = Arc::new(Tally::default());
    let _advertiser = advertise::start(bridge, Arc::clone(&tally)).unwrap();
    // The first unsolicited one comes as soon as the bridge's address has passed duplicate detection.
    let (to, source) = wire.expect("an unsolicited advertisement", |frame| advertisement(frame, ALL_NODES));
    assert_eq!(to, MacAddr([0x33, 0x33, 0, 0, 0, 1]));
    // A querier on the bridge makes it filter multicast; ours must come through all the same.
    ip("link set br0 type bridge mcast_querier 1");
    wire.send(&solicitation());
    let answer = wire.expect("the answer", |frame| advertisement(frame, MACHINE_IP));
    assert_eq!(answer, (MACHINE, source));
    let mut forged = solicitation();
    forged[14 + 7] = 64;
    wire.send(&forged);
    wire.send(&solicitation());
    wire.expect("a second answer", |frame| advertisement(frame, MACHINE_IP));
    eventually("both counted", || (tally.value("router-advertisement", "solicited") == 2).then_some(()));
    assert_eq!(tally.value("router-advertisement", "hop-limit"), 1);
}

#[test]
fn advertising_outlives_the_bridge() {
    if !isolated("advertise::advertising_outlives_the_bridge") {
        return;
    }
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let advertiser = advertise::start(bridge, Arc::default()).unwrap();
    wire.expect("an advertisement", |frame| advertisement(frame, ALL_NODES));
    ip("link del br0");
    ip("link add br0 type bridge");
    ip("link set br0 up");
    ip("addr add 192.168.2.2/24 dev br0");
    let wire = Wire::open(&attach("br0", "new"));
    wire.expect("an advertisement of the new bridge", |frame| advertisement(frame, ALL_NODES));
    // Stops at once, not at its next deadline.
    drop(advertiser);
}
