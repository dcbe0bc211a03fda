//! Who is one client: the MAC, or with `identity = "client-id"` what RFC 2131 §4.2 and RFC 6842 say.

use std::net::Ipv4Addr;

use crate::support::{SERVER, TestBed, eventually, in_namespace};
use crate::wire::{ACK, DISCOVER, NAK, OFFER, Packet, REQUEST, Reply, Station};

const STRICT: &str = "[dhcp]\nidentity = \"client-id\"\n";
/// RFC 4361: type 255, IAID, DUID-EN.
const DUID: &[u8] = &[255, 0, 0, 0, 1, 0, 2, 0, 0, 0xab, 0x11, 1, 2, 3, 4, 5, 6, 7, 8];

fn leases(bed: &TestBed) -> Vec<(String, String)> {
    let list = bed.farrier_json(&["lease", "list"]);
    let bound = list.as_array().expect("a list").iter().filter(|lease| lease["state"] == "bound");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    bound.map(|lease| (text(&lease["address"]), text(&lease["mac"]))).collect()
}

fn with(id: &'static [u8]) -> impl Fn(Packet) -> Packet {
    move |packet| packet.option(61, id)
}

fn request(station: &Station, address: Ipv4Addr) -> Packet {
    Packet::new(REQUEST, station.mac).option(54, &SERVER.octets()).option(50, &address.octets())
}

#[test]
fn d_22_three_client_ids_of_one_machine_are_one_address_and_one_lease() {
    in_namespace("identity::d_22_three_client_ids_of_one_machine_are_one_address_and_one_lease", || {
        let mut bed = TestBed::start("");
        let station = Station::plug(&mut bed, 1, 68);
        let by_mac = [&[1][..], &station.mac].concat();
        let none = station.bind(|packet| packet);
        let of_ipxe = station.bind(|packet| packet.option(61, &by_mac));
        let of_system = station.bind(with(DUID));
        assert_eq!((none, of_ipxe), (of_ipxe, of_system));
        assert_eq!(leases(&bed), [(none.to_string(), station.mac_text())]);
    });
}

#[test]
fn d_23_two_machines_with_one_client_id_are_two_addresses() {
    in_namespace("identity::d_23_two_machines_with_one_client_id_are_two_addresses", || {
        let mut bed = TestBed::start("");
        let (first, second) = (Station::plug(&mut bed, 1, 68), Station::plug(&mut bed, 2, 68));
        assert_ne!(first.bind(with(DUID)), second.bind(with(DUID)));
        assert_eq!(leases(&bed).len(), 2);
    });
}

#[test]
fn d_24_the_client_id_is_the_client() {
    in_namespace("identity::d_24_the_client_id_is_the_client", || {
        let mut bed = TestBed::start(STRICT);
        let (first, second) = (Station::plug(&mut bed, 1, 68), Station::plug(&mut bed, 2, 68));
        let of_duid = first.bind(with(DUID));

        // Another identifier, or none, is another client, though the MAC is the same.
        let of_other = first.bind(with(b"\0other"));
        let of_mac = first.bind(|packet| packet);
        assert!(of_duid != of_other && of_duid != of_mac && of_other != of_mac);
        assert_eq!(leases(&bed).len(), 3);

        // The same identifier behind another MAC is the same client: it keeps its address.
        assert_eq!(second.bind(with(DUID)), of_duid);
        assert_eq!(leases(&bed).len(), 3);
        let now_of_second = (of_duid.to_string(), second.mac_text());
        eventually("the lease is the second's", || leases(&bed).contains(&now_of_second).then_some(()));

        // An identifier equal to type and MAC is not the MAC: the option names the client whatever is in it.
        let by_mac = [&[1][..], &first.mac].concat();
        assert_ne!(first.bind(|packet| packet.option(61, &by_mac)), of_mac);
        // Shorter than two bytes is none (RFC 2132 §9.14).
        assert_eq!(first.bind(with(b"x")), of_mac);
        assert_eq!(first.bind(with(b"")), of_mac);
        // Identifiers that differ in the last byte, or in length by a NUL, differ.
        assert_ne!(first.bind(with(b"\0other\0")), of_other);
    });
}

#[test]
fn d_24_what_is_one_clients_is_refused_to_another() {
    in_namespace("identity::d_24_what_is_one_clients_is_refused_to_another", || {
        let mut bed = TestBed::start(STRICT);
        let station = Station::plug(&mut bed, 1, 68);
        let owner = with(DUID);
        let stranger = with(b"\0other");
        let address = station.bind(&owner);
        // Asking for it is offered another; requesting it is refused; the identifier comes back in both.
        let wished = Packet::new(DISCOVER, station.mac).option(50, &address.octets());
        let offer = station.ask(&stranger(wished)).expect("an offer");
        assert_eq!((offer.kind(), offer.option(61).as_deref()), (OFFER, Some(&b"\0other"[..])));
        assert_ne!(offer.yiaddr(), address);
        let nak = station.ask(&stranger(request(&station, address))).expect("an answer");
        assert_eq!((nak.kind(), nak.codes()), (NAK, vec![53, 54, 56, 61]));
        let init_reboot = Packet::new(REQUEST, station.mac).option(50, &address.octets());
        assert_eq!(station.ask(&stranger(init_reboot.clone())).map(|nak| nak.kind()), Some(NAK));
        assert_eq!(station.ask(&owner(init_reboot)).map(|ack| ack.kind()), Some(ACK));
        // RELEASE and DECLINE by another client id change nothing, by the same MAC or not.
        let given_back = |packet: Packet| packet.option(54, &SERVER.octets()).using(address);
        assert!(station.asks_in_vain(&stranger(given_back(Packet::new(7, station.mac)))));
        let declined = Packet::new(4, station.mac).option(54, &SERVER.octets()).option(50, &address.octets());
        assert!(station.asks_in_vain(&stranger(declined)));
        assert!(leases(&bed).iter().any(|(leased, _)| *leased == address.to_string()));
        assert!(station.asks_in_vain(&owner(given_back(Packet::new(7, station.mac)))));
        eventually("it was given back", || {
            let held = leases(&bed).iter().any(|(leased, _)| *leased == address.to_string());
            (!held).then_some(())
        });
        // Affinity is the identifier's as well.
        assert_eq!(station.bind(&owner), address);
    });
}

/// What ISC's Forge asks of RELEASE and DECLINE (its `release` and `decline` scenarios for DHCPv4, in our words): who is
/// heeded, given who holds the address and who speaks up. A client is its identifier, or its MAC where it has none.
#[test]
fn d_24_forge_release_and_decline_are_heeded_from_the_same_client_only() {
    in_namespace("identity::d_24_forge_release_and_decline_are_heeded_from_the_same_client_only", || {
        const ID: &[u8] = b"\0client";
        const OTHER_ID: &[u8] = b"\0another";
        let mut bed = TestBed::start(STRICT);
        let station = Station::plug(&mut bed, 1, 68);
        let (mac, other_mac) = (station.mac, [0x52, 0x54, 0, 0, 0x0d, 0x99]);
        /// Who has the address; who speaks up, by MAC and identifier; whether that is the same client.
        type Case = (Option<&'static [u8]>, [u8; 6], Option<&'static [u8]>, bool);
        let cases: [Case; 9] = [
            (Some(ID), other_mac, Some(OTHER_ID), false),
            (Some(ID), mac, Some(OTHER_ID), false),
            (Some(ID), mac, None, false),
            (Some(ID), other_mac, None, false),
            (Some(ID), mac, Some(ID), true),
            (Some(ID), other_mac, Some(ID), true),
            (None, other_mac, None, false),
            (None, mac, Some(ID), false),
            (None, mac, None, true),
        ];
        let identified = |packet: Packet, id: Option<&[u8]>| match id {
            Some(id) => packet.option(61, id),
            None => packet,
        };
        let counted = |word: &str| crate::wire::counted(&bed, word);
        let mut declined = 0;
        for (kind, heeded, unheeded) in
            [(7, "released", "release-unfounded"), (4, "declined", "decline-unfounded")]
        {
            for (holder, speaker, id, same) in cases {
                let address = station.bind(|packet| identified(packet, holder));
                let before = counted(heeded) + counted(unheeded);
                let expected = counted(heeded) + u64::from(same);
                let packet = identified(Packet::new(kind, speaker).option(54, &SERVER.octets()), id);
                let packet =
                    if kind == 7 { packet.using(address) } else { packet.option(50, &address.octets()) };
                station.send(&packet);
                eventually("it has been dealt with", || {
                    (counted(heeded) + counted(unheeded) > before).then_some(())
                });
                let case = format!("{heeded}: {holder:?} holds it, {speaker:x?} {id:?} speaks up");
                assert_eq!(counted(heeded), expected, "{case}");
                let holds = || leases(&bed).iter().any(|(leased, _)| *leased == address.to_string());
                eventually(&case, || (holds() != same).then_some(()));
                declined += u32::from(same && kind == 4);
                // Given back, it is the client's again; declined, it is not.
                if same {
                    assert_eq!(
                        station.bind(|packet| identified(packet, holder)) == address,
                        kind == 7,
                        "{case}"
                    );
                }
            }
        }
        assert_eq!(declined, 3);
    });
}

#[test]
fn d_24_a_client_is_known_by_its_identifier_after_a_restart() {
    in_namespace("identity::d_24_a_client_is_known_by_its_identifier_after_a_restart", || {
        let mut bed = TestBed::start(STRICT);
        let (first, second) = (Station::plug(&mut bed, 1, 68), Station::plug(&mut bed, 2, 68));
        let (of_first, of_second) = (first.bind(with(DUID)), first.bind(with(b"\0other")));
        bed.kill_server();
        bed.start_server();
        assert_eq!((second.bind(with(DUID)), second.bind(with(b"\0other"))), (of_first, of_second));
    });
}

/// D-37: `secs` is nothing to go by (iPXE puts other things there), and more than 16 hops are a loop.
#[test]
fn d_37_hops_over_16_are_dropped_and_secs_are_arbitrary() {
    in_namespace("identity::d_37_hops_over_16_are_dropped_and_secs_are_arbitrary", || {
        let mut bed = TestBed::start("");
        let station = Station::plug(&mut bed, 1, 68);
        let discover = || Packet::new(DISCOVER, station.mac);
        for secs in [0_u16, 1, 4, 10, 18, 0x0100, 0x7fff, 0xffff] {
            let offer = station.ask(&discover().at(8, &secs.to_be_bytes()));
            let offer: Reply = offer.unwrap_or_else(|| panic!("secs {secs}"));
            assert_eq!((offer.kind(), &offer.bytes[8..10]), (OFFER, &[0, 0][..]), "secs {secs}");
        }
        for (hops, answered) in [(1, true), (16, true), (17, false), (255, false)] {
            let offers = station.ask_all(&discover().at(3, &[hops]));
            assert_eq!(offers.len(), usize::from(answered), "{hops} hops");
            assert!(offers.iter().all(|offer| offer.bytes[3] == 0), "a reply has come no way yet");
        }
        assert_eq!(crate::wire::counted(&bed, "too-many-hops"), 2);
    });
}
