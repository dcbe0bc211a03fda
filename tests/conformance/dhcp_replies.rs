//! What a DHCP reply looks like and where it goes, byte for byte; and which requests deserve none.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use farrier::net::MacAddr;

use crate::capture;
use crate::dhcp::*;
use crate::ground::{Group, with_files};
use crate::station::{Checksum, PATIENCE, udp_frame};
use crate::support::SERVER;

static GROUP: Group = Group::new("dhcp_replies", "", with_files);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 0, 0);
const BROADCAST_MAC: MacAddr = MacAddr([0xff; 6]);

#[test]
fn d_02_offer_and_ack_carry_what_rfc_2131_wants_and_our_address() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let offer = client.offer();
        let request = client.selecting(offer.yiaddr);
        for reply in [offer, client.ask(&request)] {
            assert_eq!((reply.frame.source, reply.address(54)), ((SERVER, 67), Some(SERVER)));
            assert_eq!(reply.address(1), Some(MASK));
            let (lease, t1, t2) = (reply.seconds(51), reply.seconds(58), reply.seconds(59));
            let (lease, t1, t2) = (lease.expect("51"), t1.expect("58"), t2.expect("59"));
            assert_eq!(lease, 12 * 3600);
            // Half and seven eighths, moved by 5 % at most.
            assert!(lease * 47 / 100 <= t1 && t1 <= lease * 53 / 100, "T1 {t1}");
            assert!(lease * 83 / 100 <= t2 && t2 <= lease * 92 / 100 && t1 < t2, "T2 {t2}");
        }
    });
}

#[test]
fn d_03_replies_have_300_bytes_and_zeros_behind_end_alone() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        // `Reply::read` insists on END, then zeros: here, that the shortest reply is filled up and a longer one not.
        assert_eq!(client.offer().frame.payload.len(), 300);
        let discover = rom(client.message(DISCOVER), 7).with(57, 1472_u16.to_be_bytes());
        let discover = discover.with(97, [0; 17]).with(61, [7; 200]);
        let offer = client.ask(&discover);
        assert!(offer.frame.payload.len() > 300);
        assert_eq!(offer.frame.payload.last(), Some(&255));
    });
}

#[test]
fn d_04_replies_fit_what_the_client_takes() {
    GROUP.check(|ground| {
        let station = ground.station();
        for limit in [None, Some(576_u16), Some(1472), Some(65280), Some(1)] {
            let mut client = Client::new(&station, ground.mac());
            let mut discover = ipxe(client.message(DISCOVER), 7).with(55, [1, 3, 6, 28, 66, 67]);
            discover = discover.with(97, [3; 17]).with(61, [9; 255]);
            if let Some(limit) = limit {
                discover = discover.with(57, limit.to_be_bytes());
            }
            let offer = client.ask(&discover);
            let most = usize::from(limit.unwrap_or(576).clamp(576, 1500)) - 28;
            assert!(offer.frame.payload.len() <= most, "{limit:?}: {}", offer.frame.payload.len());
            assert!(!offer.frame.fragment);
            assert!(offer.boot_file().is_some_and(|file| file.starts_with("http://")), "{limit:?}");
            let whole = most > 600;
            assert_eq!(offer.option(61).is_some(), whole, "{limit:?}: left out when it does not fit");
        }
    });
}

#[test]
fn d_05_with_the_broadcast_flag_the_answer_goes_to_everybody() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let discover = client.message(DISCOVER).broadcast();
        let offer = client.ask(&discover);
        let request = client.selecting(offer.yiaddr).broadcast();
        for reply in [offer, client.ask(&request)] {
            assert_eq!((reply.frame.to, reply.frame.destination), (BROADCAST_MAC, (EVERYBODY, 68)));
            assert_eq!(reply.flags, 0x8000);
        }
    });
}

#[test]
fn d_06_without_it_a_frame_goes_to_the_client_and_nobody_asks_for_it_by_arp() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let offer = client.offer();
        let address = offer.yiaddr;
        let request = client.selecting(address);
        for reply in [offer, client.ask(&request)] {
            assert_eq!((reply.frame.to, reply.frame.destination), (client.mac, (address, 68)));
            assert_eq!(reply.flags, 0);
        }
        assert!(!station.resolved.borrow().contains(&address), "the server asked who has {address}");
    });
}

#[test]
fn d_07_checksums_are_whole_and_a_missing_or_unfinished_one_is_taken() {
    GROUP.check(|ground| {
        // Every reply's checksums are checked where it is read.
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let discover = client.message(DISCOVER);
        let macs = (client.mac, BROADCAST_MAC);
        station.send(&udp_frame(macs, (NOWHERE, 68), (EVERYBODY, 67), &discover.bytes(), Checksum::Zero));
        assert_eq!(client.reply().kind, OFFER);
        // A client with a kernel of its own on a veth, which like virtio leaves the sum to a card that is not there:
        // what arrives carries the half-done sum of the pseudo header.
        let machine = ground.machine(ground.mac());
        let mut own = client.message(DISCOVER).broadcast();
        own.mac = MacAddr([0x52, 0x54, 0, 0xc1, 0, 1]);
        let offered = machine.inside(|| {
            let socket = std::net::UdpSocket::bind((NOWHERE, 68)).expect("port 68");
            socket2::SockRef::from(&socket).bind_device(Some(b"eth0")).expect("its card");
            socket.set_broadcast(true).expect("broadcasts");
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a time-out");
            let mut bytes = [0; 1500];
            let until = std::time::Instant::now() + PATIENCE;
            // Again and again, for a port that was just attached may not forward yet.
            loop {
                assert!(std::time::Instant::now() < until, "no offer");
                socket.send_to(&own.bytes(), (EVERYBODY, 67)).expect("sent");
                let Ok((length, _)) = socket.recv_from(&mut bytes) else { continue };
                if bytes[4..8] == own.xid.to_be_bytes() {
                    return bytes[..length].to_vec();
                }
            }
        });
        assert_eq!(offered[240..243], [53, 1, OFFER]);
    });
}

#[test]
fn d_08_what_stands_behind_the_datagram_is_no_option() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let mut discover = client.message(DISCOVER).bytes();
        // No END and no padding: options would go on into the trailer.
        discover.truncate(243);
        let macs = (client.mac, BROADCAST_MAC);
        let mut frame = udp_frame(macs, (NOWHERE, 68), (EVERYBODY, 67), &discover, Checksum::Whole);
        // A client identifier, which would be echoed, and a server identifier, which would silence us.
        frame.extend_from_slice(&[61, 3, 0, b'x', b'y', 54, 4, 9, 9, 9, 9, 255]);
        station.send(&frame);
        let offer = client.reply();
        assert_eq!((offer.kind, offer.option(61)), (OFFER, None));
    });
}

#[test]
fn d_21_client_identifier_and_machine_identifier_come_back_as_sent() {
    GROUP.check(|ground| {
        let station = ground.station();
        for id in [vec![], vec![0], vec![1, 2, 3], (0..=254).collect::<Vec<u8>>(), vec![0xff; 255]] {
            let mut client = Client::new(&station, ground.mac());
            let guid: Vec<u8> = (0..17).map(|byte| byte * 7).collect();
            let asks = |message: Message| {
                rom(message.with(57, 1472_u16.to_be_bytes()), 7).with(61, &id).with(97, &guid)
            };
            let discover = asks(client.message(DISCOVER));
            let offer = client.ask(&discover);
            let request = asks(client.selecting(offer.yiaddr));
            for reply in [offer, client.ask(&request)] {
                assert_eq!((reply.option(61), reply.option(97)), (Some(&id[..]), Some(&guid[..])));
            }
            let wrong = asks(client.selecting(Ipv4Addr::new(10, 1, 1, 1)));
            let nak = client.ask(&wrong);
            assert_eq!((nak.kind, nak.option(61), nak.option(97)), (NAK, Some(&id[..]), None));
        }
    });
}

#[test]
fn d_27_split_and_overloaded_requests_are_read_and_no_reply_is_overloaded() {
    GROUP.check(|ground| {
        let station = ground.station();
        // RFC 3396: one client identifier in three pieces.
        let mut client = Client::new(&station, ground.mac());
        let discover =
            client.message(DISCOVER).with(61, b"abc").with(12, b"h").with(61, b"def").with(61, b"g");
        assert_eq!(client.ask(&discover).option(61), Some(&b"abcdefg"[..]));
        // RFC 2132 §9.3: `file` first, then `sname`.
        for (overload, file, sname, id) in [
            (1, &b"\x3d\x02fi\xff"[..], &b"\x3d\x02no\xff"[..], &b"fi"[..]),
            (2, b"\x3d\x02no\xff", b"\x3d\x02sn\xff", b"sn"),
            (3, b"\x3d\x02fi\xff", b"\x3d\x02sn\xff", b"fisn"),
            (7, b"\x3d\x02fi\xff", b"\x3d\x02sn\xff", b""),
        ] {
            let mut client = Client::new(&station, ground.mac());
            let mut discover = ipxe(client.message(DISCOVER), 0).with(52, [overload]);
            discover.file = file.to_vec();
            discover.sname = sname.to_vec();
            let offer = client.ask(&discover);
            assert_eq!(offer.option(61).unwrap_or_default(), id, "overload {overload}");
            // Whatever the client does, `file` is a name and `sname` is empty (option 52 is refused in `Reply::read`).
            assert!(offer.file_field().starts_with("http://") && offer.sname == [0; 64]);
        }
    });
}

#[test]
fn d_28_oddities_of_real_firmware_are_tolerated() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut asked = Vec::new();
        for odd in 0..8 {
            let mut client = Client::new(&station, ground.mac());
            let discover = client.message(DISCOVER);
            let discover = match odd {
                0 => discover.with(12, b""),
                // edk2's HTTP Boot: a byte of its parameter list is never written.
                1 => http_rom(discover, 16).with(55, [1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 0, 66, 67]),
                2 => discover.with(55, []).with(60, []).with(93, []).with(97, []).with(77, []).with(175, []),
                3 => discover.with(53, [DISCOVER]).with(57, 1472_u16.to_be_bytes()).with(57, [0, 0]),
                4 => discover.with(12, [b'h'; 255]).with(60, [b'v'; 255]).with(77, [0xff; 255]),
                5 => discover.with(0, []).with(0, []).with(55, [1, 1, 1, 1, 6, 6]),
                6 => discover.with(57, [5]).with(54, []).with(51, [1]),
                _ => discover.with(82, [1, 4, 1, 2, 3]).with(43, [6, 200, 1]).with(175, [0x13]),
            };
            let offer = client.ask(&discover);
            assert_eq!(offer.kind, OFFER, "{odd}");
            asked.push(offer.yiaddr);
        }
        let count = asked.len();
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), count);
    });
}

#[test]
fn d_29_malformed_messages_get_no_answer_and_harm_nobody() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let good = client.message(DISCOVER).bytes();
        let change = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        let mut bad: Vec<Vec<u8>> = vec![change(0, 0), change(0, 3), change(0, 255)];
        bad.extend([0, 6, 7, 32, 255].map(|htype| change(1, htype)));
        bad.extend([0, 1, 5, 7, 16, 17, 255].map(|hlen| change(2, hlen)));
        bad.extend((236..240).map(|at| change(at, 0)));
        // Message types that servers do not handle, and those of servers.
        bad.extend([0, 2, 5, 6, 9, 10, 13, 18, 255].map(|kind| change(242, kind)));
        bad.extend([change(28, 0x53), change(3, 17)]);
        bad.extend((0..240).map(|length| good[..length].to_vec()));
        for bytes in &bad {
            client.send_bytes(bytes, NOWHERE);
        }
        client.is_silent();
        // Captures of real firmware, cut everywhere, as their own machines would send them.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/captures");
        let file =
            std::fs::read(folder.join("ovmf_ipxe_udhcpc_dhclient_vs_dnsmasq.pcap")).expect("a capture");
        let captured = capture::client_datagrams(&file);
        let messages: Vec<_> = captured.iter().map(|datagram| &datagram.payload).take(10).collect();
        assert_eq!(messages.len(), 10);
        for message in messages {
            for length in (0..message.len()).rev() {
                client.send_bytes(&message[..length], NOWHERE);
            }
            // Their answers, if any, are read away.
            while station.receive(std::time::Instant::now() + Duration::from_millis(5)).is_some() {}
        }
        assert_eq!(client.offer().kind, OFFER, "all is well");
        assert!(!ground.bed().log().contains("panicked"));
    });
}

#[test]
fn replies_dissect_without_a_mark() {
    GROUP.dissect();
}
