use super::*;
use crate::dhcp::server::Settings;
use crate::dhcp::testing::{
    ClientMessage, LEASE, SERVER, World, address, codes_of, mac, option_of, options_of, parsed, reply,
    server_of, settings,
};

#[test]
fn a_reply_goes_where_rfc_2131_section_4_1_says() {
    use ReplyKind::{Ack, Nak, Offer};
    let client = mac(1);
    let none = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    let granted = Some(address(50));
    let frame = Destination::Frame { mac: client, address: address(50) };
    let unicast = |port| Destination::Unicast(SocketAddrV4::new(address(50), port));
    let from = |port| SocketAddrV4::new(address(50), port);
    //   kind, current, source, broadcast flag, granted, expected
    let table = [
        (Offer, None, none, false, granted, frame),
        (Offer, None, none, true, granted, Destination::Broadcast),
        (Ack, None, none, false, granted, frame),
        (Ack, None, none, true, granted, Destination::Broadcast),
        (Ack, granted, none, false, granted, unicast(68)),
        (Ack, granted, none, true, granted, unicast(68)),
        (Ack, granted, from(68), false, granted, unicast(68)),
        (Ack, granted, from(1068), false, granted, unicast(1068)),
        (Ack, granted, SocketAddrV4::new(address(51), 1068), false, granted, unicast(68)),
        (Ack, granted, none, false, None, unicast(68)),
        (Ack, None, none, false, None, Destination::Broadcast),
        (Nak, None, none, false, None, Destination::Broadcast),
        (Nak, None, none, true, None, Destination::Broadcast),
        (Nak, granted, from(68), false, None, Destination::Broadcast),
    ];
    for (kind, current, source, broadcast_flag, granted, expected) in table {
        let addressing =
            Addressing { kind, mac: client, current, source, broadcast_flag, granted, relay: None };
        assert_eq!(destination(&addressing), expected, "{addressing:?}");
    }
}

#[test]
fn renewal_times_are_fuzzed_but_stable_ordered_and_within_five_percent() {
    let mut seen = std::collections::BTreeSet::new();
    for last in 0..=255 {
        let (t1, t2) = renewal_times(Duration::from_secs(40_000), mac(last));
        assert_eq!((t1, t2), renewal_times(Duration::from_secs(40_000), mac(last)));
        assert!((19_000..=21_000).contains(&t1.as_secs()), "{t1:?}");
        assert!((33_250..=36_750).contains(&t2.as_secs()), "{t2:?}");
        assert!(t1 < t2);
        seen.insert(t1);
    }
    assert!(seen.len() > 50, "neighbouring MACs renew at different times: {}", seen.len());
    assert_eq!(
        renewal_times(Duration::MAX, mac(1)).0.as_secs() / 1_000_000,
        u64::MAX / 1_000_000 / 1_000_000
    );
}

#[test]
fn a_uefi_offer_carries_boot_data_in_order_whatever_was_asked_for() {
    let mut world = World::new(settings());
    let discover =
        ClientMessage::discover(mac(1)).uefi().option(55, &[67, 28, 6, 0, 1, 13, 6]).option(61, b"\x01id");
    let outcome = world.send(&discover);
    let offer = reply(&outcome);
    assert_eq!(codes_of(&offer.bytes), [53, 54, 51, 58, 59, 1, 3, 28, 6, 66, 67, 60, 43, 97, 61]);
    let boot_file = offer.boot_file.clone().unwrap();
    let terminated = [boot_file.as_bytes(), &[0]].concat();
    assert_eq!(option_of(&offer.bytes, 67), Some(terminated), "NUL behind the name");
    assert_eq!(option_of(&offer.bytes, 66), Some(b"192.168.2.2\0".to_vec()));
    assert_eq!(option_of(&offer.bytes, 60), Some(b"PXEClient".to_vec()));
    assert_eq!(option_of(&offer.bytes, 43), Some(vec![6, 1, 8, 255]));
    assert_eq!(option_of(&offer.bytes, 97).map(|id| id.len()), Some(17));
    assert_eq!(option_of(&offer.bytes, 61), Some(b"\x01id".to_vec()));
    let message = parsed(&outcome);
    assert_eq!(message.file(), boot_file.as_bytes());
    assert_eq!(message.siaddr(), SERVER);
    assert_eq!(server_of(&message), Some(SERVER));
}

#[test]
fn boot_data_is_the_same_in_offer_and_ack() {
    for dress in [ClientMessage::uefi, ClientMessage::uefi_http, ClientMessage::ipxe] {
        let mut world = World::new(settings());
        let offer = world.send(&dress(ClientMessage::discover(mac(1))));
        let offered = reply(&offer).address.unwrap();
        let ack = world.send(&dress(ClientMessage::selecting(mac(1), offered)));
        assert_eq!(reply(&ack).kind, ReplyKind::Ack);
        let but_type = |bytes: &[u8]| options_of(bytes).split_off(1);
        assert_eq!(but_type(&reply(&offer).bytes), but_type(&reply(&ack).bytes));
        assert_eq!(parsed(&offer).file(), parsed(&ack).file());
        assert_eq!(parsed(&offer).siaddr(), parsed(&ack).siaddr());
        assert_eq!(parsed(&offer).yiaddr(), parsed(&ack).yiaddr());
    }
}

#[test]
fn http_firmware_gets_a_url_a_terminated_class_and_no_pxe_options() {
    let mut world = World::new(settings());
    let outcome = world.send(&ClientMessage::discover(mac(1)).uefi_http());
    let offer = reply(&outcome);
    assert_eq!(option_of(&offer.bytes, 60), Some(b"HTTPClient\0".to_vec()));
    assert_eq!(option_of(&offer.bytes, 43), None);
    assert!(offer.boot_file.as_ref().unwrap().starts_with("http://192.168.2.2/"));
    assert!(parsed(&outcome).file().starts_with(b"http://192.168.2.2/"));
}

#[test]
fn ipxe_is_told_twice_not_to_wait_for_a_proxy() {
    let mut world = World::new(settings());
    let outcome = world.send(&ClientMessage::discover(mac(1)).ipxe());
    let offer = reply(&outcome);
    assert_eq!(option_of(&offer.bytes, 175), Some(vec![0xb0, 1, 1]));
    assert_eq!(option_of(&offer.bytes, 43), Some(vec![6, 1, 8, 255]));
    assert_eq!(offer.boot_file.as_deref(), Some("http://192.168.2.2/boot/52-54-00-00-00-01/script.ipxe"));
}

#[test]
fn an_operating_system_gets_an_address_and_nothing_to_boot() {
    let mut world = World::new(settings());
    let discover =
        ClientMessage::discover(mac(1)).option(55, &[1, 3, 6, 12, 66, 67, 43, 60]).option(97, &[0; 17]);
    let outcome = world.send(&discover);
    let offer = reply(&outcome);
    assert_eq!(codes_of(&offer.bytes), [53, 54, 51, 58, 59, 1, 3, 6]);
    assert_eq!(option_of(&offer.bytes, 6), Some(vec![192, 168, 2, 3, 192, 168, 2, 4]));
    assert_eq!(option_of(&offer.bytes, 51), Some((LEASE.as_secs() as u32).to_be_bytes().to_vec()));
    let message = parsed(&outcome);
    assert_eq!((message.file(), message.siaddr()), (&b""[..], Ipv4Addr::UNSPECIFIED));
    assert_eq!(offer.boot_file, None);
}

#[test]
fn a_nak_says_who_and_why_and_nothing_else() {
    let mut world = World::new(settings());
    world.bind(mac(1));
    let request = ClientMessage::selecting(mac(2), address(50)).uefi().option(55, &[1, 3]).option(61, b"id");
    let outcome = world.send(&request);
    let nak = reply(&outcome);
    assert_eq!((nak.kind, nak.destination, nak.address), (ReplyKind::Nak, Destination::Broadcast, None));
    assert_eq!(codes_of(&nak.bytes), [53, 54, 56, 61]);
    let message = parsed(&outcome);
    assert_eq!((message.yiaddr(), message.siaddr()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    assert_eq!(message.file(), b"");
}

#[test]
fn a_refused_rom_of_an_unknown_kind_is_told_of_no_next_server() {
    let mut world = World::new(settings());
    let strange =
        |message: ClientMessage| message.option(93, &[0, 99]).option(60, b"PXEClient:Arch:00099:UNDI:003000");
    let offer = world.send(&strange(ClientMessage::discover(mac(1))));
    assert_eq!(parsed(&offer).siaddr(), SERVER, "it looks for its configuration there");
    let nak = world.send(&strange(ClientMessage::init_reboot(mac(1), Ipv4Addr::new(10, 9, 9, 9))));
    assert_eq!((reply(&nak).kind, parsed(&nak).siaddr()), (ReplyKind::Nak, Ipv4Addr::UNSPECIFIED));
}

#[test]
fn fixed_fields_are_copied_from_the_request() {
    let mut world = World::new(settings());
    let request = ClientMessage::discover(mac(7)).byte(8, 9).byte(3, 2).broadcast_flag();
    let outcome = world.send(&request);
    let bytes = &reply(&outcome).bytes;
    assert_eq!(bytes[..3], [2, 1, 6]);
    assert_eq!((bytes[3], &bytes[8..10]), (0, &[0, 0][..]), "hops and secs are zero");
    assert_eq!(bytes[4..8], request.bytes()[4..8]);
    assert_eq!(bytes[10..12], [0x80, 0]);
    assert_eq!(bytes[28..44], request.bytes()[28..44]);
    assert_eq!(bytes[24..28], [0; 4]);
}

#[test]
fn the_client_identifier_is_echoed_byte_for_byte_at_any_length() {
    for len in [0, 1, 2, 7, 100, 255] {
        let mut world = World::new(settings());
        let id: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
        let discover = ClientMessage::discover(mac(1)).option(57, &[5, 0xdc]).option(61, &id);
        assert_eq!(option_of(&reply(&world.send(&discover)).bytes, 61), Some(id), "{len} bytes");
    }
}

#[test]
fn no_reply_is_longer_than_its_client_takes_or_shorter_than_300() {
    let large = Settings { dns: (0..20).map(address).collect(), ..settings() };
    //  option 57, longest payload allowed
    let table: [(Option<u16>, usize); 7] = [
        (None, 548),
        (Some(0), 548),
        (Some(300), 548),
        (Some(576), 548),
        (Some(700), 672),
        (Some(1472), 1444),
        (Some(65280), 1472),
    ];
    for (stated, longest) in table {
        for dress in [ClientMessage::uefi_http, ClientMessage::ipxe, |message| message] {
            let mut world = World::new(large.clone());
            let mut discover = dress(ClientMessage::discover(mac(1)))
                .option(55, &[1, 3, 6, 28])
                .option(61, &[7; 255])
                .option(97, &[0; 255]);
            if let Some(stated) = stated {
                discover = discover.option(57, &stated.to_be_bytes());
            }
            let outcome = world.send(&discover);
            let offer = reply(&outcome);
            assert!((300..=longest).contains(&offer.bytes.len()), "{stated:?}: {}", offer.bytes.len());
            let codes = codes_of(&offer.bytes);
            assert!(codes.starts_with(&[53, 54, 51, 58, 59, 1, 3]), "{codes:?}");
            if offer.boot_file.is_some() {
                assert!(codes.contains(&67) && codes.contains(&60), "{codes:?}");
            }
        }
    }
}

#[test]
fn what_is_never_sent_is_never_sent() {
    let every_code: Vec<u8> = (0..=255).take(255).collect();
    for dress in [ClientMessage::uefi, ClientMessage::uefi_http, ClientMessage::ipxe, |message| message] {
        let mut world = World::new(settings());
        let discover =
            dress(ClientMessage::discover(mac(1))).option(55, &every_code).option(82, b"\x01\x01x");
        let codes = codes_of(&reply(&world.send(&discover)).bytes);
        for code in [13, 50, 52, 55, 57, 82, 114, 116, 252] {
            assert!(!codes.contains(&code), "option {code}");
        }
    }
}
