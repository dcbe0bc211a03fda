//! Clients behind a relay agent (RFC 1542, RFC 3046), by hand and through ISC's.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Process, SERVER, TestBed, eventually, in_namespace, run};
use crate::wire::{
    ACK, ANSWER_WITHIN, DISCOVER, INFORM, NAK, OFFER, Packet, REQUEST, Reply, Station, bed, counted,
    forwarding, gather, socket, text,
};

const AGENT: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 5);
/// Circuit id, remote id, and a sub-option nobody knows: echoed byte for byte.
const INFORMATION: &[u8] = &[1, 4, b'e', b't', b'h', b'7', 2, 2, 0xde, 0xad, 0xee, 3, 0, 255, 1];

fn agent(bed: &mut TestBed) -> Station {
    let agent = Station::plug(bed, 5, 67);
    agent.plug.run("ip", &["addr", "add", &format!("{AGENT}/24"), "dev", "eth0"]);
    agent
}

/// The machine behind the agent; it is on no cable of ours.
const CLIENT: [u8; 6] = [0x52, 0x54, 0, 0, 0x0d, 0x77];

fn is_echoed_last(reply: &Reply) -> bool {
    reply.options().last() == Some(&(82, INFORMATION.to_vec()))
        && reply.codes().iter().filter(|code| **code == 82).count() == 1
}

#[test]
fn d_25_the_agent_gets_the_answer_and_its_information_back() {
    in_namespace("relay::d_25_the_agent_gets_the_answer_and_its_information_back", || {
        let mut bed = TestBed::start("");
        let agent = agent(&mut bed);
        let relayed = |packet: Packet| packet.no_broadcast().relayed(AGENT, INFORMATION);
        let at_agent =
            |reply: &Reply| (reply.from.port(), reply.address(24)) == (67, AGENT) && is_echoed_last(reply);

        // All of it unicast to port 67 of the agent: the socket that gets it is bound there.
        let discover =
            Packet::new(DISCOVER, CLIENT).option(61, b"\0client").pxe(7).option(55, &[1, 3, 6, 82]);
        let offer = agent.ask(&relayed(discover)).expect("an offer");
        assert!(offer.kind() == OFFER && at_agent(&offer) && !offer.broadcast_flag(), "{offer:?}");
        let address = offer.yiaddr();
        let request = Packet::new(REQUEST, CLIENT).option(54, &SERVER.octets()).option(50, &address.octets());
        let ack = agent.ask(&relayed(request.clone().pxe(7))).expect("an ACK");
        assert!(ack.kind() == ACK && at_agent(&ack) && ack.yiaddr() == address, "{ack:?}");

        // A NAK goes the same way, and tells the agent to broadcast it.
        let foreign = Packet::new(REQUEST, CLIENT).option(50, &[10, 9, 9, 9]).option(61, b"\0client");
        let nak = agent.ask(&relayed(foreign)).expect("a NAK");
        assert!(nak.kind() == NAK && at_agent(&nak) && nak.broadcast_flag(), "{nak:?}");
        assert_eq!(nak.codes(), [53, 54, 56, 61, 82]);
        assert_eq!(nak.yiaddr(), Ipv4Addr::UNSPECIFIED);

        // So does an INFORM of a client that does not say where it is.
        let inform = agent.ask(&relayed(Packet::new(INFORM, CLIENT))).expect("an ACK");
        assert!(inform.kind() == ACK && at_agent(&inform) && inform.broadcast_flag(), "{inform:?}");

        // Through an agent of another link there is nothing to give.
        let elsewhere = Packet::new(DISCOVER, CLIENT).relayed([10, 1, 1, 1].into(), INFORMATION);
        assert!(agent.asks_in_vain(&elsewhere));
        assert_eq!(counted(&bed, "relayed"), 1);
    });
}

/// They leave as one packet of the link; the agent's socket has each by itself.
#[test]
fn many_behind_one_agent_get_their_answers_in_one_go() {
    in_namespace("relay::many_behind_one_agent_get_their_answers_in_one_go", || {
        let mut bed = TestBed::start("");
        let agent = agent(&mut bed);
        let clients: Vec<[u8; 6]> = (0..12).map(|number| [0x52, 0x54, 0, 0, 0x0e, number]).collect();
        // How many the kernel hands over at a time nobody can be sure of.
        eventually("offers that left together", || {
            let offers = ask_at_once(&agent, clients.iter().map(|mac| Packet::new(DISCOVER, *mac)), OFFER);
            let request = |(mac, address): (&[u8; 6], &Ipv4Addr)| {
                let packet = Packet::new(REQUEST, *mac);
                packet.option(54, &SERVER.octets()).option(50, &address.octets())
            };
            let acks = ask_at_once(&agent, clients.iter().zip(&offers).map(request), ACK);
            assert_eq!(acks, offers);
            (counted(&bed, "sent-together") > 0).then_some(())
        });
    });
}

/// Sends all of them, and waits for the answer to each: the addresses, in the packets' order.
fn ask_at_once(agent: &Station, packets: impl Iterator<Item = Packet>, kind: u8) -> Vec<Ipv4Addr> {
    let packets: Vec<Packet> =
        packets.map(|packet| packet.no_broadcast().relayed(AGENT, INFORMATION)).collect();
    packets.iter().for_each(|packet| agent.send(packet));
    let answers = packets.iter().map(|packet| packet.xid());
    let mut waiting: HashMap<[u8; 4], Option<Ipv4Addr>> = answers.map(|xid| (xid, None)).collect();
    let mut bytes = [0; 2048];
    agent.socket().set_read_timeout(Some(ANSWER_WITHIN)).expect("a time-out");
    while waiting.values().any(Option::is_none) {
        let (length, from) = agent.socket().recv_from(&mut bytes).expect("an answer to each");
        // What it sends to everybody it hears itself.
        let (std::net::SocketAddr::V4(from), 2) = (from, bytes[0]) else { continue };
        let reply = Reply { from, bytes: bytes[..length].to_vec() };
        let Some(address) = reply.bytes.get(4..8).and_then(|xid| waiting.get_mut(xid)) else { continue };
        assert!(reply.kind() == kind && is_echoed_last(&reply), "{reply:?}");
        *address = Some(reply.yiaddr());
    }
    packets.iter().filter_map(|packet| waiting[&packet.xid()]).collect()
}

#[test]
fn d_26_without_an_agent_the_information_is_a_clients_claim() {
    in_namespace("relay::d_26_without_an_agent_the_information_is_a_clients_claim", || {
        let mut bed = TestBed::start("");
        let station = Station::plug(&mut bed, 1, 68);
        let claim = |packet: Packet| packet.option(82, INFORMATION);
        let offer = station.ask(&claim(Packet::new(DISCOVER, station.mac))).expect("an offer");
        assert_eq!((offer.kind(), offer.option(82)), (OFFER, None));
        let request = Packet::new(REQUEST, station.mac)
            .option(54, &SERVER.octets())
            .option(50, &offer.yiaddr().octets());
        let ack = station.ask(&claim(request)).expect("an ACK");
        assert_eq!((ack.kind(), ack.option(82)), (ACK, None));
        let nak = station.ask(&claim(Packet::new(REQUEST, station.mac).option(50, &[10, 0, 0, 1])));
        assert_eq!(nak.map(|nak| (nak.kind(), nak.option(82))), Some((NAK, None)));
    });
}

#[test]
fn d_25_a_client_boots_through_iscs_relay() {
    in_namespace("relay::d_25_a_client_boots_through_iscs_relay", || {
        let server = SERVER.to_string();
        let arguments = ["-4", "-d", "--no-pid", "-a", "-i", "far0", "-i", "eth0", &server];
        a_client_boots_through(Path::new("dhcrelay"), &arguments);
    });
}

#[test]
fn d_25_a_client_boots_through_dhcp_helper() {
    // From outside of the namespace, where there is a network.
    let program = dhcp_helper();
    in_namespace("relay::d_25_a_client_boots_through_dhcp_helper", || {
        a_client_boots_through(&program, &["-d", "-u", "root", "-s", &SERVER.to_string(), "-i", "far0"]);
    });
}

/// Unpacked and not installed: installed, it would relay on a network of this machine at once.
fn dhcp_helper() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dhcp-helper");
    let program = directory.join("usr/sbin/dhcp-helper");
    if !program.is_file() {
        fs::create_dir_all(&directory).expect("a directory");
        let mut download = Command::new("apt-get");
        let fetched = download.args(["download", "-qq", "dhcp-helper"]).current_dir(&directory).status();
        assert!(fetched.is_ok_and(|status| status.success()), "Debian's package dhcp-helper can be had");
        let package = fs::read_dir(&directory)
            .expect("the directory")
            .map(|entry| entry.expect("an entry").path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .expect("the package");
        run("dpkg-deb", &["-x", &package.display().to_string(), &directory.display().to_string()]);
    }
    program
}

/// The agent between a second link and the bridge, with one subnet on both: the client's link has its own port.
fn a_client_boots_through(program: &Path, arguments: &[&str]) {
    let mut bed = bed("server");
    bed.start_server();
    let relay = bed.plug("02:00:00:00:00:05");
    // The far link is a switch of its own, with the client on it.
    run("ip", &["link", "add", "br1", "type", "bridge", "forward_delay", "0", "stp_state", "0"]);
    run("ip", &["link", "set", "br1", "up"]);
    let mac = [0x52, 0x54, 0, 0, 0x0d, 0x88];
    let client = bed.plug_into("br1", &text(mac));
    let here = std::process::id().to_string();
    let cable = ["link", "add", "far0", "type", "veth", "peer", "name", "farport", "netns", &here];
    relay.run("ip", &cable);
    run("ip", &["link", "set", "farport", "master", "br1", "up"]);
    // Its address there is of our subnet, so that `giaddr` is one we serve; answers to it come by the near card.
    relay.run("ip", &["addr", "add", &format!("{AGENT}/24"), "dev", "eth0"]);
    relay.run("ip", &["addr", "add", "192.168.77.6/32", "dev", "far0"]);
    relay.run("ip", &["link", "set", "far0", "up"]);
    forwarding();
    let log = fs::File::create(relay.path("relay.log")).expect("a log file");
    let child = relay
        .command(&program.display().to_string(), arguments)
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("the relay starts");
    let _relaying = Process(child);
    let log = || String::from_utf8_lossy(&relay.read("relay.log")).into_owned();
    eventually("the relay listens", || {
        relay.run("ss", &["-Hlun", "sport", "=", ":67"]).contains(":67").then_some(())
    });
    let socket = socket(&client, 68);
    let ask = |packet: &Packet| {
        socket.send_to(&packet.bytes(), (Ipv4Addr::BROADCAST, 67)).expect("sent");
        gather(&socket, packet, ANSWER_WITHIN, |_| true)
            .pop()
            .unwrap_or_else(|| panic!("no answer:\n{}", log()))
    };
    let offer = ask(&Packet::new(DISCOVER, mac).pxe(7));
    assert_eq!((offer.kind(), offer.file()), (OFFER, "uefi-x64/shimx64.efi".to_owned()));
    assert_eq!(offer.option(82), None, "the agent takes back what it added");
    let address = offer.yiaddr();
    let request = Packet::new(REQUEST, mac).pxe(7).option(54, &SERVER.octets()).option(50, &address.octets());
    let ack = ask(&request);
    assert_eq!((ack.kind(), ack.yiaddr()), (ACK, address));
    let list = bed.farrier_json(&["lease", "list"]);
    assert_eq!((&list[0]["mac"], &list[0]["state"]), (&"52:54:00:00:0d:88".into(), &"bound".into()));
}
