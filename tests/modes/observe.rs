//! `dhcp.mode = "observe"`: nothing of ours leaves, and everything is seen.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{ClientMachine, Process, SERVER, TestBed, eventually, in_namespace, run};
use crate::wire::{DISCOVER, OTHER, OtherServer, Packet, REQUEST, Reply, Station, bed, counted};

/// Frames a program of ours would have sent: what the kernel says by itself (ARP, neighbour discovery, "nobody is there")
/// is no answer.
const OURS: &str =
    "ip.src == 192.168.77.2 && (udp || (tcp && !tcp.flags.reset)) && !icmp || icmpv6.type == 134";

/// Everything that reaches a machine's card.
struct Capture {
    _process: Process,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(machine: &ClientMachine, name: &str) -> Capture {
        let mut child = machine
            .command("tcpdump", &["-Z", "root", "-U", "-n", "-i", "eth0", "-w", name])
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump");
        let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert_ne!(said.read_line(&mut line).expect("a line"), 0, "tcpdump ended");
        }
        std::thread::spawn(move || for _ in said.lines() {});
        Capture { _process: Process(child), file: machine.path(name) }
    }

    fn count(&self, filter: &str) -> usize {
        let file = self.file.to_str().expect("UTF-8");
        // A file that is being written to ends in the middle of a packet, which tshark reports and we do not mind.
        let output = std::process::Command::new("tshark").args(["-r", file, "-Y", filter]).output();
        String::from_utf8_lossy(&output.expect("tshark").stdout).lines().count()
    }
}

#[test]
fn no_packet_of_ours_leaves_and_everything_is_seen() {
    in_namespace("observe::no_packet_of_ours_leaves_and_everything_is_seen", || {
        let mut bed = bed("observe");
        let _other = OtherServer::start(&mut bed);
        let station = Station::plug(&mut bed, 1, 68);
        let known = Station::plug(&mut bed, 2, 68);
        let capture = Capture::start(&station.plug, "observed.pcap");
        bed.start_server();
        assert!(bed.farrier(&["node", "add", &known.mac_text(), "--name", "rack1"]).status.success());

        // Without the broadcast flag dnsmasq's answers pass between two ports: they are heard all the same.
        let address = known.take_from_other(|packet| packet.pxe(7));
        let unicast = station.ask_all(&Packet::new(DISCOVER, station.mac).no_broadcast());
        assert!(unicast.is_empty(), "it has no address to hear it at");
        let heard = || bed.farrier_json(&["status"])["dhcp"]["other_servers"].clone();
        eventually("both offers and the ACK were heard", || {
            let servers = heard();
            let server = servers.get(0)?;
            (server["address"] == OTHER.to_string() && server["offers"] == 2 && server["acks"] == 1)
                .then_some(())
        });

        // A stranger with an address of another network; a client that chooses us; port 4011; TFTP; HTTP.
        let stranger = station.ask_all(&Packet::new(REQUEST, station.mac).option(50, &[10, 0, 0, 1]));
        assert!(!stranger.iter().any(Reply::ours), "{stranger:?}");
        let ours =
            Packet::new(REQUEST, known.mac).pxe(7).option(54, &SERVER.octets()).option(50, &address.octets());
        assert!(known.asks_in_vain(&ours));
        let socket = known.port(4011);
        let boot = Packet::new(REQUEST, known.mac).no_broadcast().using(address).pxe(7);
        socket.send_to(&boot.bytes(), (SERVER, 4011)).expect("sent");
        for url in [format!("tftp://{SERVER}/ipxe.efi"), format!("http://{SERVER}/ipxe.efi")] {
            let fetched = known.plug.output("curl", &["-sS", "--max-time", "2", &url]);
            assert!(!fetched.status.success(), "{url}");
        }
        for word in ["would-offer", "would-nak", "address-elsewhere"] {
            eventually(word, || (counted(&bed, word) > 0).then_some(()));
        }
        assert_eq!((counted(&bed, "offer"), counted(&bed, "ack"), counted(&bed, "nak")), (0, 0, 0));
        eventually("what dnsmasq said was captured", || (capture.count("dhcp.type == 2") > 0).then_some(()));
        assert_eq!(capture.count(OURS), 0, "packets of ours");

        // Of a node both are on the timeline: what we would have said, and what the other said.
        let events = bed.farrier_json(&["node", "show", "rack1"])["boot"]["events"].clone();
        let of = |wanted: &dyn Fn(&serde_json::Value) -> bool| {
            events.as_array().expect("events").iter().any(wanted)
        };
        assert!(
            of(&|event| event["answer"]["Err"] == "would-offer" && event["boot_file"].is_string()),
            "{events:#}"
        );
        assert!(
            of(&|event| event["event"] == "other-server" && event["address"] == address.to_string()),
            "{events:#}"
        );
        let status = bed.farrier(&["status"]);
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(text.contains("observe: nobody is answered") && text.contains(&OTHER.to_string()), "{text}");
        let leases = run_leases(&bed);
        assert!(leases.contains("elsewhere") && leases.contains(&address.to_string()), "{leases}");

        // The same packets to a server: the capture would have shown an answer.
        bed.kill_server();
        bed.configure("");
        bed.start_server();
        assert!(station.ask(&Packet::new(DISCOVER, station.mac)).is_some());
        eventually("the capture shows our packets", || (capture.count(OURS) > 0).then_some(()));
    });
}

fn run_leases(bed: &TestBed) -> String {
    String::from_utf8_lossy(&bed.farrier(&["lease", "list"]).stdout).into_owned()
}

#[test]
fn the_bridge_is_promiscuous_only_while_it_is_observed() {
    in_namespace("observe::the_bridge_is_promiscuous_only_while_it_is_observed", || {
        let promiscuous = || {
            let told = run("ip", &["-d", "link", "show", "br0"]);
            !String::from_utf8_lossy(&told.stdout).contains("promiscuity 0")
        };
        let mut bed = TestBed::new("[dhcp]\nmode = \"observe\"\n");
        bed.start_server();
        assert!(promiscuous());
        bed.kill_server();
        eventually("it is not any more", || (!promiscuous()).then_some(()));
        bed.configure("[dhcp]\nmode = \"proxy\"\n");
        bed.start_server();
        assert!(!promiscuous());
        // The mode is taken over at a start only.
        bed.configure("[dhcp]\nmode = \"server\"\n");
        bed.signal(nix::sys::signal::Signal::SIGHUP);
        eventually("the reload is refused", || bed.log().contains("dhcp.mode").then_some(()));
        assert_eq!(bed.farrier_json(&["status"])["dhcp"]["mode"], "proxy");
    });
}
