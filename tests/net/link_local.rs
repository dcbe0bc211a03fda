//! 169.254.169.254: there for the machines on the bridge, nowhere else, and no longer than the appliance.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::thread;

use farrier::config::BridgeName;
use farrier::net::link_local::{ADDRESS, LinkLocal, LinkLocalError};
use farrier::net::sys::die_with_parent;
use farrier::privileges::Keeper;

use crate::support::{Machine, Wire, attach, bridge_name, eventually, exchange, ip, isolated, make_bridge};

/// With a keeper as the appliance has it.
fn put_on(bridge: &BridgeName) -> Result<LinkLocal, LinkLocalError> {
    let keeper = Keeper::prepare(None).unwrap();
    LinkLocal::put_on(bridge, || keeper.confine())
}

fn told_by(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("iproute2 is needed");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn is_ruled() -> bool {
    told_by("rule").contains("169.254.169.254 iif br0")
}

/// Asks who has an address, as `sender`.
fn ask(wire: &Wire, sender: Ipv4Addr, target: Ipv4Addr) {
    let mut frame = [[0xff; 6], wire.mac.0].concat();
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&[&wire.mac.0[..], &sender.octets(), &[0; 6], &target.octets()].concat());
    wire.send(&frame);
}

/// Whose address the next ARP reply tells.
fn answered(wire: &Wire) -> Ipv4Addr {
    wire.expect("an ARP reply", |frame| {
        let reply = frame.get(12..22)? == [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
        let sender: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
        reply.then(|| Ipv4Addr::from(sender))
    })
}

#[test]
fn machines_on_the_bridge_reach_it_and_nobody_else_hears_of_it() {
    if !isolated("link_local::machines_on_the_bridge_reach_it_and_nobody_else_hears_of_it") {
        return;
    }
    ip("link set lo up");
    let (bridge, wire) = make_bridge("br0", "192.168.77.2/24");
    // Another network of this host.
    ip("link add wan type veth peer name wans");
    ip("addr add 10.0.0.2/24 dev wan");
    ip("link set wan up");
    ip("link set wans up");
    let outside = Wire::open("wans");
    put_on(&bridge.name).unwrap();
    put_on(&bridge.name).expect("what a killed run left is taken over");
    let listener = bridge.link_local_listener(80).unwrap();
    listener.set_nonblocking(false).unwrap();

    let own = Ipv4Addr::new(192, 168, 77, 2);
    ask(&wire, Ipv4Addr::new(192, 168, 77, 9), ADDRESS);
    assert_eq!(answered(&wire), ADDRESS);
    ask(&wire, Ipv4Addr::new(192, 168, 77, 9), own);
    assert_eq!(answered(&wire), own);
    // Questions are answered in their order: the one in between was not.
    ask(&outside, Ipv4Addr::new(10, 0, 0, 9), ADDRESS);
    ask(&outside, Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 2));
    assert_eq!(answered(&outside), Ipv4Addr::new(10, 0, 0, 2));
    // The host itself is where it was: it has no such address, and no way there.
    assert!(!told_by(&format!("route get {ADDRESS}")).contains("local"));
    assert!(!told_by("addr").contains("169.254.169.254"));

    let server = thread::spawn(move || {
        let (mut socket, peer) = listener.accept().unwrap();
        let mut request = [0; 64];
        let length = socket.read(&mut request).unwrap();
        socket.write_all(b"HTTP/1.0 200 OK\r\n\r\nhere").unwrap();
        (
            peer,
            socket.local_addr().unwrap(),
            String::from_utf8_lossy(&request[..length]).into_owned(),
            socket.ttl().unwrap(),
        )
    });
    let station = attach("br0", "two");
    let machine = Machine::run(&station, "192.168.77.50/24", || {
        ip("route add 169.254.169.254 dev twos");
        exchange("169.254.169.254:80", b"GET / HTTP/1.0\r\n\r\n")
    });
    let answer = machine.join().unwrap().expect("reached");
    assert!(answer.ends_with(b"here"));
    let (peer, local, request, ttl) = server.join().unwrap();
    assert_eq!((peer.ip(), local.ip()), ([192, 168, 77, 50].into(), ADDRESS.into()));
    assert!(request.starts_with("GET / "));
    // One hop: no node passes it on.
    assert_eq!(ttl, 1);
}

#[test]
fn it_goes_with_the_appliance_however_that_ends() {
    const TEST: &str = "link_local::it_goes_with_the_appliance_however_that_ends";
    const HOLDER: &str = "FARRIER_TEST_HOLDER";
    if std::env::var_os(HOLDER).is_some() {
        put_on(&bridge_name("br0")).unwrap();
        // Until killed.
        loop {
            thread::park();
        }
    }
    if !isolated(TEST) {
        return;
    }
    ip("link set lo up");
    ip("link add br0 type bridge");
    let refused = LinkLocal::put_on(&bridge_name("br0"), || Err("it may not be confined")).unwrap_err();
    assert!(refused.to_string().contains("it may not be confined"), "{refused}");
    assert!(!is_ruled(), "rather no rule than one that stays");
    for signal in ["-KILL", "-TERM"] {
        let mut holder = Command::new(std::env::current_exe().unwrap());
        holder.args(["--exact", TEST, "--nocapture", "--test-threads=1"]).env(HOLDER, "1");
        holder.stdout(Stdio::null()).stderr(Stdio::null());
        let mut holder = die_with_parent(&mut holder).spawn().unwrap();
        eventually("the rule is there", || is_ruled().then_some(()));
        // A bridge that is made anew has it again.
        ip("link del br0");
        ip("link add br0 type bridge");
        assert!(is_ruled());
        assert!(Command::new("kill").args([signal, &holder.id().to_string()]).status().unwrap().success());
        holder.wait().unwrap();
        eventually("the rule is gone", || (!is_ruled()).then_some(()));
    }
}
