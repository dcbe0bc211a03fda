use super::*;
use crate::boot::client::Firmware;
use crate::dhcp::testing::{ClientMessage, SERVER, address, mac};

fn read(message: &ClientMessage, check: impl FnOnce(Result<Request<'_>, Silence>)) {
    let bytes = message.bytes();
    let message = Message::parse(&bytes).unwrap();
    check(Request::read(&message));
}

fn refusal(message: &ClientMessage) -> Option<Silence> {
    let mut silence = None;
    read(message, |request| silence = request.err());
    silence
}

#[test]
fn each_refusal_has_its_reason() {
    let discover = ClientMessage::discover(mac(1));
    let cases = [
        ("a plain DISCOVER is read", discover.clone(), None),
        ("a reply", discover.clone().byte(0, 2), Some(Silence::ReplyFromAnotherServer)),
        ("an ACK in a request", ClientMessage::new(5, mac(1)), Some(Silence::ReplyFromAnotherServer)),
        ("no hardware type", discover.clone().byte(1, 0), Some(Silence::BadHardwareAddress)),
        ("Infiniband", discover.clone().byte(1, 32), Some(Silence::BadHardwareAddress)),
        ("no hardware address", discover.clone().byte(2, 0), Some(Silence::BadHardwareAddress)),
        ("a GUID for an address", discover.clone().byte(2, 16), Some(Silence::BadHardwareAddress)),
        ("a multicast address", discover.clone().byte(28, 0x53), Some(Silence::BadHardwareAddress)),
        ("16 hops are tolerated", discover.clone().byte(3, 16), None),
        ("17 hops", discover.clone().byte(3, 17), Some(Silence::TooManyHops)),
        ("a relay", discover.clone().byte(27, 1), None),
        ("FORCERENEW", ClientMessage::new(9, mac(1)), Some(Silence::UnknownMessage)),
        ("LEASEQUERY", ClientMessage::new(10, mac(1)), Some(Silence::UnknownMessage)),
        ("type 0", ClientMessage::new(0, mac(1)), Some(Silence::UnknownMessage)),
        ("type 200", ClientMessage::new(200, mac(1)), Some(Silence::UnknownMessage)),
        ("any secs", discover.clone().byte(8, 0xff).byte(9, 0xff), None),
    ];
    for (name, message, expected) in cases {
        assert_eq!(refusal(&message), expected, "{name}");
    }
    let mut bootp = discover;
    bootp.options.clear();
    let is_bootp = |message: &ClientMessage| {
        let mut kind = None;
        read(message, |request| kind = request.ok().map(|request| request.kind));
        kind == Some(MessageKind::Bootp)
    };
    assert!(is_bootp(&bootp));
    bootp.options.push((53, vec![]));
    assert!(is_bootp(&bootp), "an empty message type is none");
}

#[test]
fn the_four_requests_of_rfc_2131_are_told_apart_and_the_fifth_that_clients_send() {
    let (wanted, other) = (address(50), address(60));
    let cases = [
        ("selecting", ClientMessage::selecting(mac(1), wanted), RequestState::Selecting { address: wanted }),
        (
            "init-reboot",
            ClientMessage::init_reboot(mac(1), wanted),
            RequestState::InitReboot { address: wanted },
        ),
        ("renewing", ClientMessage::renewing(mac(1), wanted), RequestState::Renewing { address: wanted }),
        ("rebinding", ClientMessage::rebinding(mac(1), wanted), RequestState::Rebinding { address: wanted }),
        (
            "renewing with a needless server identifier",
            ClientMessage::renewing(mac(1), wanted).option(54, &SERVER.octets()),
            RequestState::Renewing { address: wanted },
        ),
        (
            "option 50 beats a stale ciaddr",
            ClientMessage::selecting(mac(1), wanted).using(other),
            RequestState::Selecting { address: wanted },
        ),
        ("naming no address", ClientMessage::new(3, mac(1)), RequestState::Bare),
        ("requesting 0.0.0.0", ClientMessage::new(3, mac(1)).option(50, &[0; 4]), RequestState::Bare),
    ];
    for (name, message, expected) in cases {
        read(&message, |request| {
            assert_eq!(request.unwrap().state(message.destination), expected, "{name}");
        });
    }
}

#[test]
fn a_discover_has_no_current_address_whatever_it_says() {
    read(&ClientMessage::discover(mac(1)).using(address(9)), |request| {
        assert_eq!(request.unwrap().current, None);
    });
}

#[test]
fn a_host_name_is_reduced_to_inert_characters() {
    let cases: [(&[u8], Option<&str>); 6] = [
        (b"node-1.example", Some("node-1.example")),
        (b"<b>x</b>\x1b[31m", Some("bxb31m")),
        (b"-rf.", Some("rf")),
        (b"", None),
        (b"\0\0", None),
        (&[b'a'; 200], Some("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")),
    ];
    for (raw, expected) in cases {
        read(&ClientMessage::discover(mac(1)).option(12, raw), |request| {
            assert_eq!(request.unwrap().hostname().as_deref(), expected);
        });
    }
    read(&ClientMessage::discover(mac(1)), |request| assert_eq!(request.unwrap().hostname(), None));
}

#[test]
fn boot_clients_are_classified_from_their_options() {
    read(&ClientMessage::discover(mac(1)).uefi(), |request| {
        let request = request.unwrap();
        assert_eq!(request.class, ClientClass::Firmware { firmware: Firmware::UefiX64 });
        assert!(request.uuid.is_some());
        assert_eq!(request.machine_id().map(<[u8]>::len), Some(17));
        assert_eq!(request.size_limit(), Some(1472));
    });
    read(&ClientMessage::discover(mac(1)).ipxe(), |request| {
        let class = request.unwrap().class;
        assert_eq!(class, ClientClass::Ipxe { firmware: Firmware::Bios, can_boot: true });
    });
}

#[test]
fn boot_server_discovery_is_known_by_port_or_by_boot_item() {
    let item = [71, 4, 0, 1, 0, 0, 255];
    let asks = |message: ClientMessage| {
        let mut asks = false;
        let service = message.service;
        read(&message, |request| asks = request.unwrap().asks_boot_server(service));
        asks
    };
    let inform = || ClientMessage::inform(mac(1)).using(address(50)).uefi();
    assert!(asks(inform().at_boot_server()));
    assert!(asks(inform().option(43, &item)));
    assert!(!asks(inform()));
    assert!(!asks(inform().option(43, &item[..4])), "a cut-off boot item is none");
    assert!(!asks(ClientMessage::selecting(mac(1), address(50)).uefi().option(43, &item)));
    assert!(!asks(ClientMessage::inform(mac(1)).using(address(50)).option(43, &item)), "not a boot client");
}
