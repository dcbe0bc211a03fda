//! BOOTP (RFC 951, RFC 1497): only for machines with an address of their own, and only where it is turned on.

use std::net::Ipv4Addr;

use crate::support::{SERVER, TestBed, in_namespace};
use crate::wire::{ANSWER_WITHIN, Packet, Reply, Station, counted, gather};

const FIXED: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 30);

fn register(bed: &TestBed, mac: &str, address: Option<Ipv4Addr>) {
    let port = match address {
        Some(address) => format!("{mac}={address}"),
        None => mac.to_owned(),
    };
    let output = bed.farrier(&["node", "add", &port]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A reply in the shape of RFC 951: 300 bytes, a vendor field of 64, nothing in it of DHCP.
fn is_bootp(reply: &Reply) -> bool {
    const OF_DHCP: std::ops::RangeInclusive<u8> = 50..=61;
    let codes = reply.codes();
    reply.bytes.len() == 300
        && reply.bytes[236..240] == [99, 130, 83, 99]
        && codes.contains(&1)
        && !codes.iter().any(|code| OF_DHCP.contains(code))
        && reply.bytes[240..].contains(&255)
}

#[test]
fn d_30_only_enrolled_machines_with_a_fixed_address_are_answered() {
    in_namespace("bootp::d_30_only_enrolled_machines_with_a_fixed_address_are_answered", || {
        let mut bed = TestBed::start("[dhcp]\nbootp = true\n");
        let (fixed, floating, stranger) =
            (Station::plug(&mut bed, 1, 68), Station::plug(&mut bed, 2, 68), Station::plug(&mut bed, 3, 68));
        register(&bed, &fixed.mac_text(), Some(FIXED));
        register(&bed, &floating.mac_text(), None);

        let shapes = [
            ("RFC 951, vendor field unused", Packet::bootp(fixed.mac)),
            ("RFC 1497, with a cookie", Packet::bootp(fixed.mac).with_cookie()),
        ];
        for (name, packet) in shapes {
            let reply = fixed.ask_bootp(&packet).unwrap_or_else(|| panic!("{name}: an answer"));
            assert!(is_bootp(&reply), "{name}: {reply:?}");
            assert_eq!((reply.yiaddr(), reply.from.ip()), (FIXED, &SERVER), "{name}");
        }
        // A lease without an end is not one of the pool's.
        assert!(floating.asks_in_vain(&Packet::bootp(floating.mac)));
        assert!(stranger.asks_in_vain(&Packet::bootp(stranger.mac)));
        assert_eq!(counted(&bed, "bootp-without-address"), 2);
        // Another vendor's field is none that we can read.
        assert!(fixed.asks_in_vain(&Packet::bootp(fixed.mac).with_vendor([67, 77, 85, 0])));
        // Its address is its own by DHCP as well.
        assert_eq!(fixed.bind(|packet| packet), FIXED);
        // And it is told where it is: what it fetches is its own.
        let timeline = bed.farrier_json(&["node", "show", &fixed.mac_text()]).to_string();
        assert!(timeline.contains("bootp"), "{timeline}");
    });
}

#[test]
fn d_30_nobody_is_answered_where_it_is_not_turned_on() {
    in_namespace("bootp::d_30_nobody_is_answered_where_it_is_not_turned_on", || {
        let mut bed = TestBed::start("");
        let station = Station::plug(&mut bed, 1, 68);
        register(&bed, &station.mac_text(), Some(FIXED));
        assert!(station.asks_in_vain(&Packet::bootp(station.mac)));
        assert_eq!(counted(&bed, "bootp"), 1);
    });
}

#[test]
fn d_30_through_a_relay_the_agent_gets_the_answer() {
    in_namespace("bootp::d_30_through_a_relay_the_agent_gets_the_answer", || {
        let mut bed = TestBed::start("[dhcp]\nbootp = true\n");
        let agent = Station::plug(&mut bed, 5, 67);
        let address = Ipv4Addr::new(192, 168, 77, 5);
        agent.plug.run("ip", &["addr", "add", "192.168.77.5/24", "dev", "eth0"]);
        let mac = [0x52, 0x54, 0, 0, 0x0d, 0x66];
        register(&bed, &crate::wire::text(mac), Some(FIXED));
        let reply = agent.ask_bootp(&Packet::bootp(mac).relayed(address, &[])).expect("an answer");
        assert!(is_bootp(&reply) && reply.yiaddr() == FIXED && reply.address(24) == address, "{reply:?}");
    });
}

impl Station {
    fn ask_bootp(&self, packet: &Packet) -> Option<Reply> {
        self.send(packet);
        gather(self.socket(), packet, ANSWER_WITHIN, |_| true).pop()
    }
}
