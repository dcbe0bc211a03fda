//! The guard of the bridge: what is not served, who else answers, and what the bridge's side can reach.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use farrier::boot::namespace;

use crate::support::{
    ClientMachine, Process, SERVER, TestBed, add_bridge, eventually, farrier_program, in_namespace, run,
};

/// Exit code and standard error of `farrier serve` on this interface, which must end by itself.
fn refused(bed: &TestBed, interface: &str, allow: &str) -> (Option<i32>, String) {
    let path = bed.path("refused.toml");
    std::fs::write(&path, configuration(bed, interface, allow)).unwrap();
    let serve = |arguments: &[&str]| {
        let output = Command::new(farrier_program()).args(arguments).arg(&path).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let checked = serve(&["config", "check", "--bridge"]);
    let served = serve(&["serve", "--config"]);
    assert_eq!(checked.0, served.0, "`config check --bridge` and `serve` agree: {checked:?} {served:?}");
    served
}

fn configuration(bed: &TestBed, interface: &str, allow: &str) -> String {
    format!(
        "[network]\nbridge = \"{interface}\"\naddress = \"192.168.77.2/24\"\nallow = [{allow}]\n\
         [operator]\nsocket = \"{}\"\nlisten = \"off\"\n[store]\npath = \"{}\"\n",
        bed.path("operator.sock").display(),
        bed.state().display()
    )
}

#[test]
fn d_40_an_interface_that_is_not_the_machines_own_is_refused_unless_allowed() {
    in_namespace("guard::d_40_an_interface_that_is_not_the_machines_own_is_refused_unless_allowed", || {
        let mut bed = TestBed::new("");
        let says = |(code, said): (Option<i32>, String), words: &[&str]| {
            assert_eq!(code, Some(2), "{said}");
            for word in words {
                assert!(said.contains(word), "{word:?} in:\n{said}");
            }
        };
        run("ip", &["route", "add", "default", "via", "192.168.77.1", "dev", "br0"]);
        let route = ["network.bridge = \"br0\"", "default via 192.168.77.1", "allow = [\"default-route\"]"];
        says(refused(&bed, "br0", ""), &route);
        says(refused(&bed, "br0", "\"wireless\", \"not-a-bridge\""), &route);
        says(refused(&bed, "br0", "\"default-rout\""), &["network.allow[0]", "write \"default-route\""]);
        // Wherever the route stands: another table is a way out as well.
        run("ip", &["route", "del", "default"]);
        run("ip", &["route", "add", "default", "dev", "br0", "table", "77"]);
        says(refused(&bed, "br0", ""), &["default route", "allow = [\"default-route\"]"]);
        std::fs::write(bed.path("farrier.toml"), configuration(&bed, "br0", "\"default-route\"")).unwrap();
        bed.start_server();
        assert_eq!(bed.farrier_json(&["status"])["bridge"]["up"], true);
        bed.kill_server();
        run("ip", &["route", "flush", "table", "77"]);

        // What the kernel says of a wireless card it says in this folder; here it is ours.
        run("mount", &["-t", "tmpfs", "none", "/sys/class/net"]);
        std::fs::create_dir_all("/sys/class/net/wlan7/phy80211").unwrap();
        run("ip", &["link", "add", "wlan7", "type", "veth", "peer", "name", "air"]);
        run("ip", &["link", "set", "wlan7", "master", "br0"]);
        says(refused(&bed, "br0", "\"default-route\""), &["wlan7 is wireless", "allow = [\"wireless\"]"]);
        run("ip", &["link", "set", "wlan7", "nomaster", "up"]);
        run("ip", &["link", "set", "air", "up"]);

        run("ip", &["link", "del", "br0"]);
        run("ip", &["addr", "add", "192.168.77.2/24", "dev", "wlan7"]);
        says(refused(&bed, "wlan7", "\"wireless\""), &["not a bridge", "allow = [\"not-a-bridge\"]"]);
        says(refused(&bed, "wlan7", "\"not-a-bridge\""), &["wlan7 is wireless"]);
        let both = configuration(&bed, "wlan7", "\"wireless\", \"not-a-bridge\"");
        std::fs::write(bed.path("farrier.toml"), both).unwrap();
        bed.start_server();
        assert_eq!(bed.farrier_json(&["status"])["bridge"]["up"], true);
    });
}

/// Local addresses of the sockets `ss` lists for these flags, as `address%device:port`.
fn listening(flags: &str) -> Vec<String> {
    let output = run("ss", &["-H", "-n", flags]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned)).collect()
}

#[test]
fn d_34_no_socket_listens_beyond_the_bridge() {
    in_namespace("guard::d_34_no_socket_listens_beyond_the_bridge", || {
        let bed = TestBed::new("");
        let before = [listening("-lu"), listening("-lt")];
        assert!(before.iter().all(Vec::is_empty), "{before:?}");
        let mut bed = bed;
        bed.start_server();
        let udp = listening("-lu");
        for port in [67, 69, 4011] {
            assert!(udp.contains(&format!("0.0.0.0%br0:{port}")), "{port}: {udp:?}");
        }
        let all = [udp, listening("-lt")].concat();
        let astray: Vec<_> = all.iter().filter(|socket| !socket.contains("%br0:")).collect();
        assert!(astray.is_empty(), "not bound to the bridge's device: {astray:?}");
        // And as the kernel's own tables have it: as many wildcards as `ss` showed with a device, and not one more.
        for (table, expected) in [("udp", &listening("-lu")), ("tcp", &listening("-lt"))] {
            let lines = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap();
            let count = |wild: bool| {
                let is_wild = |line: &&str| {
                    line.split_whitespace().nth(1).is_some_and(|local| local.starts_with("00000000:") == wild)
                };
                lines.lines().skip(1).filter(is_wild).count()
            };
            assert_eq!(count(true) + count(false), expected.len(), "{table}: {lines}");
        }
    });
}

/// A machine that serves DHCP as well: dnsmasq at 192.168.77.9, with its configuration in a file of this name.
fn rival(machine: &ClientMachine, name: &str) -> Process {
    machine.run("ip", &["addr", "add", "192.168.77.9/24", "dev", "eth0"]);
    let text = "port=0\nuser=root\ngroup=\ninterface=eth0\nbind-interfaces\ndhcp-authoritative\n\
                dhcp-range=192.168.77.20,192.168.77.40,1h\nno-ping\ndhcp-leasefile=leases\npid-file=\n";
    std::fs::write(machine.path(name), text).unwrap();
    let configuration = format!("--conf-file={}", machine.path(name).display());
    let log = std::fs::File::create(machine.path("dnsmasq.log")).unwrap();
    let mut command = machine.command("dnsmasq", &["--no-daemon", "--log-facility=-", &configuration]);
    let process = Process(command.stdout(Stdio::null()).stderr(log).spawn().expect("dnsmasq-base"));
    eventually("dnsmasq serves", || {
        let said = std::fs::read_to_string(machine.path("dnsmasq.log")).unwrap_or_default();
        assert!(!said.contains("FAILED"), "{said}");
        said.contains("sockets bound").then_some(())
    });
    process
}

fn rivals(bed: &TestBed) -> Vec<serde_json::Value> {
    bed.farrier_json(&["status"])["rivals"].as_array().unwrap().clone()
}

/// What the operator plane has at this path.
fn fetched(bed: &TestBed, path: &str) -> String {
    let socket = bed.path("operator.sock");
    let url = format!("http://localhost/{path}");
    let output = run("curl", &["-s", "--unix-socket", socket.to_str().unwrap(), &url]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn readiness(bed: &TestBed) -> String {
    fetched(bed, "readyz")
}

fn metrics(bed: &TestBed) -> String {
    fetched(bed, "metrics")
}

/// What the page says in red of this address.
fn marked_bad(bed: &TestBed, address: &str) -> Option<String> {
    let page = fetched(bed, "");
    assert!(page.contains("Needs you"), "{page}");
    let mut marked = page.split("<li ").filter(|item| item.starts_with("class=\"need is-bad\""));
    marked.find(|item| item.contains(address)).map(|item| item.split("</li>").next().unwrap().to_owned())
}

#[test]
fn d_39_a_second_server_is_found_by_asking_and_named_with_its_process() {
    in_namespace("guard::d_39_a_second_server_is_found_by_asking_and_named_with_its_process", || {
        let mut bed = TestBed::new("");
        let other = bed.plug("02:00:00:00:00:09");
        let server = rival(&other, "rival.conf");
        // Nobody but us asks for an address.
        bed.start_server();
        let found = eventually("it is found", || rivals(&bed).first().cloned());
        assert_eq!((&found["kind"], &found["evidence"]), (&"dhcp".into(), &"probe-answer".into()), "{found}");
        assert_eq!((&found["address"], &found["mac"]), (&"192.168.77.9".into(), &"02:00:00:00:00:09".into()));
        let named = eventually("its process is named", || {
            rivals(&bed).first().filter(|rival| rival.get("process").is_some()).cloned()
        });
        let process = &named["process"];
        assert_eq!((&process["program"], &named["port"]), (&"dnsmasq".into(), &"port1".into()), "{named}");
        let file = other.path("rival.conf").display().to_string();
        assert_eq!(process["configuration"], file.as_str());
        let line = format!("add the line except-interface=eth0 to {file}");
        assert!(named["way_out"].as_str().unwrap().contains(&line), "{named}");
        let marked = marked_bad(&bed, "192.168.77.9").expect("red on the page");
        let mends = format!("the line except-interface=eth0 to {file}");
        assert!(marked.contains("02:00:00:00:00:09") && marked.contains(&mends), "{marked}");
        let ready = readiness(&bed);
        assert!(ready.contains("\"ok\":false") && ready.contains("192.168.77.9"), "{ready}");
        assert!(metrics(&bed).contains("farrier_rivals{kind=\"dhcp\"} 1"));
        let shown = String::from_utf8(bed.farrier(&["status"]).stdout).unwrap();
        assert!(
            shown.contains("rivals     a second DHCP server answers on the bridge, 192.168.77.9"),
            "{shown}"
        );
        // Our own question is no stranger: it got no address, and is no machine.
        assert_eq!(bed.farrier_json(&["status"])["pool"]["offered"], 0);
        assert_eq!(bed.farrier_json(&["node", "list"]).to_string().matches("\"mac\"").count(), 0);
        // And gone it is told to be gone.
        drop(server);
        eventually("it is gone", || rivals(&bed).is_empty().then_some(()));
        assert_eq!(marked_bad(&bed, "192.168.77.9"), None);
        assert!(!readiness(&bed).contains("192.168.77.9"));
        let told = bed.farrier_json(&["event", "bridge"]);
        let told: Vec<_> =
            told.as_array().unwrap().iter().filter(|event| event.get("kind").is_some()).collect();
        let words: Vec<_> =
            told.iter().map(|event| (&event["event"], &event["address"], &event["port"])).collect();
        let address = "192.168.77.9".into();
        let (came, gone) = ("rival-appeared".into(), "rival-gone".into());
        assert_eq!(words, [(&came, &address, &"port1".into()), (&gone, &address, &serde_json::Value::Null)]);
    });
}

#[test]
fn d_39_a_second_server_is_overheard_and_service_holds_until_it_is_quiet() {
    in_namespace("guard::d_39_a_second_server_is_overheard_and_service_holds_until_it_is_quiet", || {
        let mut bed = TestBed::start("[dhcp]\non_rival = \"hold\"\n");
        let machine = bed.plug("02:00:00:00:00:01");
        let other = bed.plug("02:00:00:00:00:09");
        assert!(machine.boot_udhcpc().octets()[3] > 127, "all is well");
        eventually("our first questions are asked", || {
            metrics(&bed).contains("outcome=\"probed\"").then_some(())
        });
        let server = rival(&other, "rival.conf");
        // The other's range is its own, so whose offer it took shows; whichever, the other's was seen.
        machine.output("udhcpc", &["-i", "eth0", "-n", "-q", "-f", "-t", "4", "-T", "1", "-s", "/bin/true"]);
        let found = eventually("it is overheard", || rivals(&bed).first().cloned());
        assert_eq!((&found["address"], &found["holding"]), (&"192.168.77.9".into(), &true.into()), "{found}");
        // Held: what a machine gets now is the other's.
        let third = bed.plug("02:00:00:00:00:03");
        third.write_udhcpc_script();
        eventually("the other serves it", || {
            third.output(
                "udhcpc",
                &["-i", "eth0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-s", "./udhcpc.sh"],
            );
            third.address()
        });
        assert!(third.address().unwrap().octets()[3] <= 40, "{:?}", third.address());
        assert!(bed.log().contains("rival-on-bridge"), "silence has its reason");
        eventually("it answers us as well", || {
            metrics(&bed).contains("outcome=\"probe-answered\"").then_some(())
        });
        drop(server);
        eventually("service goes on", || {
            (!rivals(&bed).iter().any(|rival| rival["holding"] == true)).then_some(())
        });
        let fourth = bed.plug("02:00:00:00:00:04");
        assert!(fourth.boot_udhcpc().octets()[3] > 127);
    });
}

/// A socket of the machine's that hears what is sent to routers, and speaks as one.
fn router(machine: &ClientMachine) -> socket2::Socket {
    eventually("the machine has its link-local address", || {
        let shown = machine.run("ip", &["-6", "addr", "show", "dev", "eth0", "scope", "link"]);
        (shown.contains("fe80:") && !shown.contains("tentative")).then_some(())
    });
    machine.inside(|| {
        let kind = socket2::Type::RAW;
        let socket =
            socket2::Socket::new(socket2::Domain::IPV6, kind, Some(socket2::Protocol::ICMPV6)).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        socket.join_multicast_v6(&Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2), index).unwrap();
        socket.set_multicast_if_v6(index).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket
    })
}

/// A router advertisement (RFC 4861 §4.2) without options, to all nodes; the kernel writes checksum and sender.
fn advertise(router: &socket2::Socket, lifetime: u16) {
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend_from_slice(&lifetime.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    let all_nodes = SocketAddr::from((Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0));
    assert_eq!(router.send_to(&message, &all_nodes.into()).unwrap(), message.len());
}

#[test]
fn a_foreign_router_is_found_by_asking_and_keeps_nobody_from_an_address() {
    in_namespace("guard::a_foreign_router_is_found_by_asking_and_keeps_nobody_from_an_address", || {
        const ROUTER: &str = "fe80::ff:fe00:9";
        let mut bed = TestBed::new("[dhcp]\non_rival = \"hold\"\n");
        let other = bed.plug("02:00:00:00:00:09");
        let router = router(&other);
        bed.start_server();
        // It says nothing unasked. The kernel of the bridge's side asks as well, if at all from its own address.
        eventually("a solicitation of ours", || {
            let mut buffer = [std::mem::MaybeUninit::uninit(); 64];
            let (length, from) = router.recv_from(&mut buffer).ok()?;
            let ours = length == 8 && from.as_socket_ipv6().is_some_and(|from| from.ip().is_unspecified());
            ours.then_some(())
        });
        assert_eq!(rivals(&bed), Vec::<serde_json::Value>::new(), "our own advertisements are nobody else's");
        advertise(&router, 1800);
        let found = eventually("it is found", || rivals(&bed).first().cloned());
        assert_eq!(
            (&found["kind"], &found["evidence"], &found["address"], &found["mac"], &found["holding"]),
            (
                &"router-advertisement".into(),
                &"advertisement".into(),
                &ROUTER.into(),
                &"02:00:00:00:00:09".into(),
                &false.into()
            ),
            "{found}"
        );
        let counted = metrics(&bed);
        assert!(counted.contains("farrier_rivals{kind=\"router-advertisement\"} 1"), "{counted}");
        assert!(counted.contains("farrier_rivals{kind=\"dhcp\"} 0"), "{counted}");
        let marked = marked_bad(&bed, ROUTER).expect("red on the page");
        assert!(marked.contains("02:00:00:00:00:09") && marked.contains("port1"), "{marked}");
        // "hold" is about who gives addresses.
        let machine = bed.plug("02:00:00:00:00:01");
        machine.boot_udhcpc();
        // A router that says it is none any more is gone at once.
        advertise(&router, 0);
        eventually("it is gone", || rivals(&bed).is_empty().then_some(()));
        assert_eq!(marked_bad(&bed, ROUTER), None);
        let told = bed.farrier_json(&["event", "bridge"]);
        let told = told.as_array().unwrap().iter().filter(|event| event["kind"] == "router-advertisement");
        let words: Vec<_> = told.map(|event| (&event["event"], &event["address"])).collect();
        let (came, gone, address) = ("rival-appeared".into(), "rival-gone".into(), ROUTER.into());
        assert_eq!(words, [(&came, &address), (&gone, &address)]);
    });
}

#[test]
fn a_server_of_this_host_that_holds_our_port_is_named_at_start() {
    in_namespace("guard::a_server_of_this_host_that_holds_our_port_is_named_at_start", || {
        let bed = TestBed::new("");
        let file = bed.path("host.conf");
        let text = "port=0\nuser=root\ngroup=\ndhcp-range=192.168.77.20,192.168.77.40,1h\npid-file=\n\
                    dhcp-leasefile=/dev/null\n";
        std::fs::write(&file, text).unwrap();
        let configuration = format!("--conf-file={}", file.display());
        let mut command = Command::new("dnsmasq");
        command.args(["--no-daemon", &configuration]).stdout(Stdio::null()).stderr(Stdio::null());
        let _server = Process(command.spawn().expect("dnsmasq-base"));
        eventually("it holds the port", || {
            listening("-lu").iter().any(|socket| socket.ends_with(":67")).then_some(())
        });
        let path = bed.path("farrier.toml");
        let output = Command::new(farrier_program()).args(["serve", "--config"]).arg(path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let line = format!("add the line except-interface=br0 to {}", file.display());
        assert!(said.contains("is taken: dnsmasq (pid ") && said.contains(&line), "{said}");
    });
}

/// The ports among `range` of that address that nmap, run on this machine, does not find closed. Closed is what all others
/// must be, not silent: that could be a filter. Otherwise all that nmap said.
fn scan(machine: &ClientMachine, address: &str, how: &[&str], range: &str) -> Result<Vec<u16>, String> {
    let what = ["-n", "-Pn", "-p", range, "--host-timeout", "60s", "-oG", "-", address];
    let report = machine.run("nmap", &[how, &what].concat());
    let told =
        report.lines().find_map(|line| line.split_once("\tPorts: ")?.1.split_once("\tIgnored State: "));
    let Some((ports, _)) = told.filter(|(_, ignored)| ignored.starts_with("closed (")) else {
        return Err(report);
    };
    let open = ports.trim().split(", ").filter(|port| !port.is_empty());
    let mut found: Vec<u16> = open.map(|port| port.split('/').next().unwrap().parse().unwrap()).collect();
    found.sort_unstable();
    Ok(found)
}

/// What a scan finds is exactly this. It is made again if it is not: of tens of thousands of answers one may be lost.
fn finds(machine: &ClientMachine, address: &str, how: &[&str], range: &str, ports: &[u16]) {
    if scan(machine, address, how, range).as_deref() != Ok(ports) {
        let again = scan(machine, address, how, range);
        assert_eq!(again.as_deref(), Ok(ports), "nmap {how:?} {range} {address}");
    }
}

/// The address the bridge gave itself, once it is sure that nobody else has it.
fn link_local() -> String {
    eventually("the bridge's link-local address", || {
        let told = run("ip", &["-6", "-o", "addr", "show", "dev", "br0", "scope", "link", "-tentative"]);
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let address = told.split_whitespace().skip_while(|word| *word != "inet6").nth(1)?;
        Some(address.split('/').next()?.to_owned())
    })
}

#[test]
fn s_01_a_machine_reaches_the_boot_plane_and_nothing_else() {
    in_namespace("guard::s_01_a_machine_reaches_the_boot_plane_and_nothing_else", || {
        let mut bed = TestBed::new("");
        // The operator plane listens for the host, as it does by default.
        let text = std::fs::read_to_string(bed.path("farrier.toml")).unwrap();
        std::fs::write(
            bed.path("farrier.toml"),
            text.replace("listen = \"off\"\n", "listen = \"127.0.0.1:8067\"\n"),
        )
        .unwrap();
        bed.start_server();
        assert!(listening("-lt").contains(&"127.0.0.1:8067".to_owned()));
        let machine = bed.plug("02:00:00:00:00:01");
        machine.boot_udhcpc();
        // The host's loopback address by way of the bridge, too: it must not answer there.
        machine.run("ip", &["route", "add", "127.0.0.2/32", "via", "192.168.77.2", "dev", "eth0"]);
        machine.inside(|| {
            let to = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 8067));
            assert!(TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_err());
        });
        let (server, connects) = (SERVER.to_string(), ["-sT", "--min-rate", "10000"]);
        finds(&machine, &server, &connects, "1-65535", &[80]);
        // By IPv6 machines hear router advertisements, and reach nothing. (udhcpc's script took all addresses away.)
        machine.run("ip", &["-6", "addr", "add", "fe80::1/64", "dev", "eth0", "nodad"]);
        let by_ipv6 = [&["-6"], &connects[..]].concat();
        finds(&machine, &format!("{}%eth0", link_local()), &by_ipv6, "1-65535", &[]);
        // A host tells of closed UDP ports once a second; here of all, else they could not be told from those that are
        // open and say nothing.
        std::fs::write("/proc/sys/net/ipv4/icmp_ratemask", "0").unwrap();
        let listening = listening("-lu");
        let at = |address: &str| {
            let ports = listening.iter().filter_map(|socket| socket.strip_prefix(address)?.strip_prefix(':'));
            let mut ports: Vec<u16> = ports.map(|port| port.parse().unwrap()).collect();
            ports.sort_unstable();
            ports
        };
        // The rest are the shared transfer ports of TFTP, which answer their own clients only.
        let (service, mut transfers) = (at("0.0.0.0%br0"), at("192.168.77.2%br0"));
        assert_eq!(service, [67, 69, 4011]);
        assert_eq!(listening.len(), service.len() + transfers.len(), "{listening:?}");
        transfers.extend(&service);
        transfers.sort_unstable();
        // `ss` told of all ports; nmap, which waits for each, is asked for those of services and the ones that are open.
        let named: Vec<String> = transfers.iter().filter(|port| **port > 4096).map(u16::to_string).collect();
        let range = format!("1-4096,8067,{}", named.join(","));
        finds(&machine, &server, &["-sU", "--min-rate", "2000"], &range, &transfers);
        // Nothing of the operator's is served on the one that is open.
        for path in ["api/v1/status", "metrics", "readyz", "healthz", "login", ""] {
            let url = format!("http://{SERVER}/{path}");
            let code = machine.run("curl", &["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]);
            assert!(code.starts_with('4'), "{path}: {code}");
        }
    });
}

/// Asks for a file every 50 ms until TFTP says that there is none of that name.
fn await_tftp(machine: &ClientMachine) {
    const NO_SUCH_FILE: [u8; 4] = [0, 5, 0, 1];
    machine.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut answer = [0; 1500];
        eventually("TFTP answers", || {
            // While the bridge comes up it may be told that there is no way.
            let _ = socket.send_to(b"\0\x01nothing-of-that-name\0octet\0", (SERVER, 69));
            let (length, sender) = socket.recv_from(&mut answer).ok()?;
            (sender.ip() == SERVER && answer[..length].starts_with(&NO_SUCH_FILE)).then_some(())
        });
    });
}

/// Asks for an address every 50 ms until the machine is offered one.
fn await_offer(machine: &ClientMachine) {
    const DISCOVER: [u8; 8] = [99, 130, 83, 99, 53, 1, 1, 255];
    let mut message = vec![0; 300];
    message[..3].copy_from_slice(&[1, 1, 6]);
    // The answer is to go to everybody: the machine has an address already.
    message[10] = 0x80;
    message[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    message[236..244].copy_from_slice(&DISCOVER);
    machine.inside(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into()).unwrap();
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut answer = [0; 1500];
        eventually("an offer", || {
            // While the bridge comes up it may be told that there is no way.
            let _ = socket.send_to(&message, (Ipv4Addr::BROADCAST, 67));
            // The only answer to a DISCOVER.
            let length = socket.recv(&mut answer).ok()?;
            (length > 240 && answer[28..34] == message[28..34]).then_some(())
        });
    });
}

/// Three hundred ports come to the bridge and go, as fast as they can; how many a second, and how often `serve` succeeded
/// from the first to the last of them. They go in groups, for the kernel waits for all processors at each removal.
fn churn(bed: &TestBed, serve: impl Fn() -> bool) -> (f64, u32) {
    const ROUNDS: u32 = 6;
    const PORTS: u32 = 50;
    let mut batch = String::new();
    for number in (0..ROUNDS).flat_map(|_| 0..PORTS) {
        batch += &format!("link add churn{number} group 77 type veth peer name nruhc{number}\n");
        batch += &format!("link set churn{number} master br0 up\n");
        if number == PORTS - 1 {
            batch += "link del group 77\n";
        }
    }
    let path = bed.path("churn");
    std::fs::write(&path, batch).unwrap();
    let began = Instant::now();
    let mut churn = Process(Command::new("ip").arg("-batch").arg(&path).spawn().unwrap());
    let watched = std::thread::spawn(move || (churn.0.wait().unwrap(), began.elapsed()));
    let mut served = 0;
    while !watched.is_finished() {
        served += u32::from(serve());
    }
    let (ended, lasted) = watched.join().unwrap();
    assert!(ended.success(), "{ended}");
    (f64::from(ROUNDS * PORTS) / lasted.as_secs_f64(), served)
}

#[test]
fn r_07_churn_and_loss_of_the_address_end_within_seconds_and_never_elsewhere() {
    in_namespace("guard::r_07_churn_and_loss_of_the_address_end_within_seconds_and_never_elsewhere", || {
        let mut bed = TestBed::start("");
        add_bridge("br1", "192.168.77.2/24");
        let machine = bed.plug("02:00:00:00:00:01");
        let elsewhere = bed.plug_into("br1", "02:00:00:00:00:02");
        machine.boot_udhcpc();
        let asks = |machine: &ClientMachine| {
            let got = machine
                .output("udhcpc", &["-i", "eth0", "-n", "-q", "-f", "-t", "2", "-T", "1", "-s", "/bin/true"]);
            got.status.success()
        };
        // A hundred ports a second and more come and go; meanwhile machines are served.
        let mut rates = Vec::new();
        for _ in 0..5 {
            let (rate, served) = churn(&bed, || asks(&machine));
            assert!(served > 0, "nobody was served while ports came and went");
            rates.push(rate);
            if rate >= 100.0 {
                break;
            }
        }
        println!("ports a second: {rates:?}");
        assert!(rates.last().is_some_and(|rate| *rate >= 100.0), "no churn to speak of: {rates:?}");
        assert!(asks(&machine), "and afterwards");
        let before = bed.farrier_json(&["status"])["services"].clone();
        for (broken, mended) in [
            (vec!["link set br0 down"], vec!["link set br0 up"]),
            (vec!["addr del 192.168.77.2/24 dev br0"], vec!["addr add 192.168.77.2/24 dev br0"]),
            (
                vec!["addr del 192.168.77.2/24 dev br0", "addr add 192.168.77.3/24 dev br0"],
                vec!["addr del 192.168.77.3/24 dev br0", "addr add 192.168.77.2/24 dev br0"],
            ),
            (
                vec!["link del br0"],
                vec![
                    "link add br0 type bridge forward_delay 0 stp_state 0",
                    "addr add 192.168.77.2/24 dev br0",
                    "link set br0 up",
                    "link set port1 master br0",
                ],
            ),
        ] {
            let all = |commands: &[&str]| {
                commands.iter().for_each(|words| drop(run("ip", &words.split(' ').collect::<Vec<_>>())));
            };
            all(&broken);
            eventually("it is told", || {
                (bed.farrier_json(&["status"])["bridge"]["up"] == false).then_some(())
            });
            assert!(!asks(&elsewhere), "{broken:?}: the other bridge has our address, and is not ours");
            all(&mended);
            // A bridge that is made anew has another MAC; that a machine remembers the old one is its own affair.
            machine.run("ip", &["neigh", "flush", "dev", "eth0"]);
            let mended_at = Instant::now();
            await_offer(&machine);
            let offered = mended_at.elapsed();
            await_tftp(&machine);
            let looked_up = mended_at.elapsed();
            let url = format!("http://{SERVER}/nothing-of-that-name");
            eventually("HTTP answers", || {
                let got = machine
                    .output("curl", &["-s", "-m", "0.5", "-o", "/dev/null", "-w", "%{http_code}", &url]);
                (got.stdout == b"404").then_some(())
            });
            let answered = mended_at.elapsed();
            println!(
                "{broken:?}: DHCP {offered:?} after it is mended, TFTP {looked_up:?}, HTTP {answered:?}"
            );
            for (service, after) in [("DHCP", offered), ("TFTP", looked_up), ("HTTP", answered)] {
                assert!(after < Duration::from_secs(2), "{broken:?}: {service} after {after:?}");
            }
            machine.boot_udhcpc();
            assert_eq!(bed.farrier_json(&["status"])["services"], before, "{broken:?}");
        }
        assert!(!asks(&elsewhere));
    });
}

#[test]
fn s_04_a_machines_mac_from_another_port_gets_nothing_that_is_bound_to_its_boot() {
    in_namespace(
        "guard::s_04_a_machines_mac_from_another_port_gets_nothing_that_is_bound_to_its_boot",
        || {
            const MAC: &str = "02:00:00:00:00:01";
            let mut bed = TestBed::new("");
            bed.publish("metal", b"kernel", b"ramdisk");
            bed.start_server();
            assert!(bed.farrier(&["node", "add", MAC]).status.success());
            let machine = bed.plug(MAC);
            machine.boot_udhcpc();
            let node = format!("http://{SERVER}/{}", namespace::ipxe_script_name(MAC.parse().unwrap()));
            let fetch = |machine: &ClientMachine| {
                let got = machine.output("curl", &["-s", "-m", "5", &node]);
                String::from_utf8_lossy(&got.stdout).into_owned()
            };
            let has_token = |script: &str| script.contains("farrier.token=");
            assert!(has_token(&fetch(&machine)), "{}", fetch(&machine));
            assert!(has_token(&fetch(&machine)), "the machine itself may ask again");
            // Somebody else takes its MAC, and by DHCP its address.
            let thief = bed.plug(MAC);
            assert_eq!(thief.boot_udhcpc(), machine.address().unwrap());
            let stolen = fetch(&thief);
            assert!(!has_token(&stolen) && !stolen.contains("vmlinuz"), "{stolen}");
            assert!(bed.log().contains("wrong-port"), "it is recorded");
            // The machine itself goes on, and from another port once the first is unplugged.
            assert!(has_token(&fetch(&machine)));
            run("ip", &["link", "set", "port1", "down"]);
            thief.boot_udhcpc();
            assert!(has_token(&fetch(&thief)), "a machine that was moved boots");
        },
    );
}
