//! `dhcp.mode = "proxy"`: dnsmasq gives the addresses, we say what to boot.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{SERVER, TestBed, eventually, in_namespace};
use crate::wire::{
    ACK, ANSWER_WITHIN, DISCOVER, INFORM, OFFER, OTHER, OtherServer, Packet, REQUEST, Reply, SILENCE,
    Station, bed, counted, gather,
};

/// A proxy beside dnsmasq.
fn beside() -> (TestBed, OtherServer) {
    let mut bed = bed("proxy");
    let other = OtherServer::start(&mut bed);
    bed.start_server();
    (bed, other)
}

fn split(replies: &[Reply]) -> (Vec<&Reply>, Vec<&Reply>) {
    replies.iter().partition(|reply| reply.ours())
}

#[test]
fn boot_clients_get_an_offer_without_an_address() {
    in_namespace("proxy::boot_clients_get_an_offer_without_an_address", || {
        let (mut bed, _other) = beside();
        let station = Station::plug(&mut bed, 1, 68);
        let discover = || Packet::new(DISCOVER, station.mac);
        let script = format!("http://{SERVER}/boot/{}/script.ipxe", station.mac_text().replace(':', "-"));
        let cases = [
            ("BIOS", discover().pxe(0), "undionly.kpxe".to_owned(), &b"PXEClient"[..]),
            ("UEFI", discover().pxe(7), "ipxe.efi".to_owned(), b"PXEClient"),
            ("HTTP Boot", discover().http(), format!("http://{SERVER}/ipxe.efi"), b"HTTPClient\0"),
            ("iPXE", discover().ipxe(), script, b"PXEClient"),
            ("UEFI, flag clear", discover().pxe(7).no_broadcast(), "ipxe.efi".to_owned(), b"PXEClient"),
        ];
        for (name, packet, file, class) in cases {
            let packet = packet.option(55, &[1, 3, 6, 43, 60, 66, 67]);
            let replies = station.ask_all(&packet);
            let (ours, theirs) = split(&replies);
            let [offer] = ours[..] else { panic!("{name}: one offer of ours: {replies:?}") };
            assert_eq!((offer.kind(), offer.yiaddr()), (OFFER, Ipv4Addr::UNSPECIFIED), "{name}");
            assert_eq!((offer.siaddr(), offer.file()), (SERVER, file.clone()), "{name}");
            assert!(offer.broadcast_flag(), "{name}");
            assert_eq!(offer.option(60).as_deref(), Some(class), "{name}");
            assert_eq!(offer.option(67), Some([file.as_bytes(), b"\0"].concat()), "{name}");
            assert_eq!(offer.option(54), Some(SERVER.octets().to_vec()), "{name}");
            let vendor = offer.option(43);
            assert_eq!(vendor.is_some(), class == b"PXEClient", "{name}");
            assert!(vendor.is_none_or(|vendor| vendor == [6, 1, 8, 255]), "{name}");
            for code in [51, 58, 59, 1, 3, 6, 50] {
                assert_eq!(offer.option(code), None, "{name}: option {code} is the other server's to say");
            }
            if packet_says_broadcast(&packet) {
                assert!(
                    theirs.iter().any(|reply| reply.yiaddr() != Ipv4Addr::UNSPECIFIED),
                    "{name}: {theirs:?}"
                );
            }
        }
    });
}

fn packet_says_broadcast(packet: &Packet) -> bool {
    packet.bytes()[10] & 0x80 != 0
}

#[test]
fn everybody_else_is_left_to_the_other_server() {
    in_namespace("proxy::everybody_else_is_left_to_the_other_server", || {
        let (mut bed, _other) = beside();
        let station = Station::plug(&mut bed, 1, 68);
        let new = |kind| Packet::new(kind, station.mac);
        let theirs: Ipv4Addr = [192, 168, 77, 120].into();
        let cases = [
            ("an operating system's DISCOVER", new(DISCOVER), "not-a-boot-client"),
            ("its INFORM", new(INFORM).using(theirs), "not-a-boot-client"),
            (
                "a DISCOVER that names a server",
                new(DISCOVER).pxe(7).option(54, &SERVER.octets()),
                "discover-names-server",
            ),
            ("firmware nobody has a loader for", new(DISCOVER).pxe(2), "nothing-to-boot"),
            (
                "a REQUEST to the other server",
                new(REQUEST).pxe(7).option(54, &OTHER.octets()).option(50, &theirs.octets()),
                "address-elsewhere",
            ),
            (
                "a REQUEST to us",
                new(REQUEST).pxe(7).option(54, &SERVER.octets()).option(50, &theirs.octets()),
                "address-elsewhere",
            ),
            (
                "an INIT-REBOOT of a strange address",
                new(REQUEST).option(50, &[10, 0, 0, 1]),
                "address-elsewhere",
            ),
            (
                "a DECLINE",
                new(4).option(54, &OTHER.octets()).option(50, &theirs.octets()),
                "address-elsewhere",
            ),
            ("a RELEASE", new(7).option(54, &OTHER.octets()).using(theirs), "address-elsewhere"),
        ];
        for (name, packet, word) in cases {
            let before = counted(&bed, word);
            let replies = station.ask_all(&packet);
            assert!(!replies.iter().any(Reply::ours), "{name}: {replies:?}");
            assert_eq!(counted(&bed, word), before + 1, "{name} is counted as {word}");
        }
        let status = bed.farrier_json(&["status"]);
        assert_eq!(status["pool"]["size"], 0, "{status:#}");
        assert_eq!(status["dhcp"]["mode"], "proxy");
        let servers = status["dhcp"]["other_servers"].as_array().expect("servers");
        assert!(servers.len() == 1 && servers[0]["address"] == OTHER.to_string(), "{servers:?}");
    });
}

#[test]
fn p_07_port_4011_answers_request_and_inform_with_and_without_a_boot_item() {
    in_namespace("proxy::p_07_port_4011_answers_request_and_inform_with_and_without_a_boot_item", || {
        let (mut bed, _other) = beside();
        let station = Station::plug(&mut bed, 1, 68);
        let address = station.take_from_other(|packet| packet.pxe(7));
        let client = station.port(4011);
        let ask_within = |packet: &Packet, patience| {
            client.send_to(&packet.bytes(), (SERVER, 4011)).expect("sent");
            gather(&client, packet, patience, |_| true).pop()
        };
        let ask = |packet: &Packet| ask_within(packet, ANSWER_WITHIN);
        let asks_in_vain = |packet: &Packet| ask_within(packet, SILENCE).is_none();
        let new = |kind| Packet::new(kind, station.mac).no_broadcast().using(address).pxe(7);
        const ITEM: [u8; 7] = [71, 4, 0, 5, 0, 0, 255];
        for kind in [REQUEST, INFORM] {
            let plain = ask(&new(kind)).expect("an answer");
            assert_eq!((plain.kind(), plain.from.port(), plain.from.ip()), (ACK, 4011, &SERVER));
            assert_eq!((plain.yiaddr(), plain.siaddr()), (Ipv4Addr::UNSPECIFIED, SERVER));
            assert_eq!(plain.file(), "ipxe.efi");
            assert_eq!(plain.option(54), Some(SERVER.octets().to_vec()));
            assert_eq!(plain.option(60).as_deref(), Some(&b"PXEClient"[..]));
            assert_eq!(plain.option(97), Some(vec![0; 17]));
            assert_eq!((plain.option(51), plain.option(1)), (None, None), "the lease is another's");
            let item = ask(&new(kind).option(43, &ITEM)).expect("an answer");
            assert_eq!((item.yiaddr(), item.option(43)), (address, Some(ITEM.to_vec())));
            assert_eq!(item.file(), "ipxe.efi");
            let before = counted(&bed, "bis-refused");
            assert!(asks_in_vain(&new(kind).option(43, &[71, 4, 0, 5, 0x80, 0, 255])), "BIS");
            assert_eq!(counted(&bed, "bis-refused"), before + 1);
        }
        let stranger = Packet::new(REQUEST, station.mac).using(address);
        assert!(asks_in_vain(&stranger));
        assert_eq!(counted(&bed, "not-a-boot-request"), 1);
    });
}

fn post(station: &Station, call: &str, body: &Value) -> (String, Value) {
    let url = format!("http://{SERVER}/agent/v1/{call}");
    let text = station
        .plug
        .run("curl", &["-sS", "-o", "answer.json", "-w", "%{http_code}", "--json", &body.to_string(), &url]);
    let answer = serde_json::from_slice(&station.plug.read("answer.json")).unwrap_or_default();
    (text, answer)
}

fn fetch_script(station: &Station) -> Result<String, String> {
    let name = format!("boot/{}/script.ipxe", station.mac_text().replace(':', "-"));
    let url = format!("http://{SERVER}/{name}");
    let output = station.plug.output("curl", &["-sS", "--fail", &url]);
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).expect("text")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn token_of(script: &str) -> &str {
    script.split_ascii_whitespace().find_map(|word| word.strip_prefix("farrier.token=")).expect("a token")
}

#[test]
fn a_machine_is_tracked_though_another_gave_its_address() {
    in_namespace("proxy::a_machine_is_tracked_though_another_gave_its_address", || {
        let (mut bed, _other) = beside();
        let station = Station::plug(&mut bed, 1, 68);
        let thief = Station::plug(&mut bed, 2, 68);
        let mac = station.mac_text();
        let address = station.take_from_other(Packet::ipxe);
        assert_ne!(thief.take_from_other(Packet::ipxe), address);

        // A stranger until it fetches something, though it asked and was answered.
        assert_eq!(bed.farrier_json(&["node", "list"]).as_array().map(Vec::len), Some(0));
        let script = fetch_script(&station).expect("its script");
        let node = bed.farrier_json(&["node", "show", &mac])["node"].clone();
        assert_eq!(node["ports"][0]["address"], address.to_string(), "{node:#}");
        let lease = &bed.farrier_json(&["lease", "list"])[0];
        assert_eq!((&lease["state"], &lease["mac"]), (&json!("elsewhere"), &json!(mac)), "{lease}");

        // What it asked before it was a node is on its timeline, with the server that it chose.
        let verdict = bed.farrier_json(&["why", &mac]);
        assert_eq!(
            (&verdict["outcome"], &verdict["stage"]),
            (&json!("under-way"), &json!("kernel")),
            "{verdict:#}"
        );
        let shown = bed.farrier_json(&["node", "show", &mac]);
        let events = shown["boot"]["events"].as_array().expect("events");
        let offered = events.iter().any(|event| event["event"] == "dhcp" && event["answer"]["Ok"] == "offer");
        let took = events.iter().any(|event| {
            event["answer"]["Err"] == "address-elsewhere"
                && event["other_server"] == OTHER.to_string()
                && event["address"] == address.to_string()
        });
        assert!(offered && took, "{events:#?}");

        // Its token is good from its own address, and from no other.
        let hello = json!({ "token": token_of(&script), "mac": mac, "uptime_secs": 1.0 });
        let (status, answer) = post(&thief, "hello", &hello);
        assert_eq!((status.as_str(), &answer["code"]), ("401", &json!("not-its-address")), "{answer}");
        let (status, answer) = post(&station, "hello", &hello);
        assert_eq!(status, "200", "{answer}");

        // A claim on its address does not turn what it fetches into the thief's: the kernel knows who answers there.
        let claim =
            Packet::new(REQUEST, thief.mac).ipxe().option(54, &OTHER.octets()).option(50, &address.octets());
        let before = counted(&bed, "address-elsewhere");
        thief.send(&claim);
        eventually("the claim was heard", || (counted(&bed, "address-elsewhere") > before).then_some(()));
        assert!(fetch_script(&station).is_ok_and(|script| script.contains("farrier.token=")));
        assert!(fetch_script(&thief).is_ok_and(|script| script.contains("farrier.token=")));

        // Nor does a restart, which forgets what was heard.
        bed.kill_server();
        bed.start_server();
        assert_eq!(bed.farrier_json(&["lease", "list"]).as_array().map(Vec::len), Some(0));
        assert!(fetch_script(&station).is_ok_and(|script| script.contains("farrier.token=")));
    });
}

#[test]
fn a_node_whose_other_server_gives_nothing_is_told_so() {
    in_namespace("proxy::a_node_whose_other_server_gives_nothing_is_told_so", || {
        let mut bed = bed("proxy");
        bed.start_server();
        let station = Station::plug(&mut bed, 1, 68);
        assert!(bed.farrier(&["node", "add", &station.mac_text()]).status.success());
        assert!(station.ask(&Packet::new(DISCOVER, station.mac).pxe(0)).is_some());
        let later = std::time::SystemTime::now() + Duration::from_secs(60);
        let millis = later.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
        let at = farrier::clock::Timestamp::from_millis(u64::try_from(millis).expect("fits")).to_string();
        let cause = eventually("the event is recorded", || {
            let verdict = bed.farrier_json(&["why", &station.mac_text(), "--at", &at]);
            let cause = verdict["cause"].as_str().expect("a cause").to_owned();
            (cause != "never-heard").then_some(cause)
        });
        assert_eq!(cause, "no-address-elsewhere");
        // The dialogue without a packet says the same of a machine that is well.
        let told = bed.farrier(&["explain", "--mac", &station.mac_text(), "--firmware", "bios"]);
        let told = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
        assert!(told.contains("the other DHCP server offers") && told.contains("it enrolls"), "{told}");
    });
}
