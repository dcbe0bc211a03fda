//! Finding the bridge, and sockets that cannot leave it.

use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use farrier::net::MacAddr;
use farrier::net::bridge::{Bridge, BridgeError};
use farrier::net::link::{Link, LinkWatch};
use farrier::net::sys::{self, Inbox, Outgoing};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::support::{
    Machine, attach, bridge_name, eventually, exchange, ip, isolated, make_bridge, network, udp_frame,
};

const ANYWHERE: [u8; 4] = [255; 4];

#[test]
fn each_thing_wrong_with_the_bridge_is_told_apart() {
    if !isolated("bridge::each_thing_wrong_with_the_bridge_is_told_apart") {
        return;
    }
    let find = || Bridge::find(&bridge_name("br0"), network("192.168.2.2/24"));
    assert!(matches!(find(), Err(BridgeError::Missing { .. })));
    ip("link add br0 type veth peer name other");
    assert!(matches!(find(), Err(BridgeError::NotABridge { .. })));
    ip("link del br0");
    ip("link add br0 address 52:54:00:00:00:02 type bridge");
    assert!(matches!(find(), Err(BridgeError::Down { .. })));
    ip("link set br0 up");
    ip("addr add 192.168.2.2/16 dev br0");
    let error = find().unwrap_err();
    assert!(
        error.to_string().contains("carries 192.168.2.2/16: `ip addr add 192.168.2.2/24 dev br0`"),
        "{error}"
    );
    ip("addr add 192.168.2.2/24 dev br0");
    let bridge = find().unwrap();
    assert_eq!(bridge.mac, MacAddr([0x52, 0x54, 0, 0, 0, 2]));
    assert_eq!(bridge.ip(), Ipv4Addr::new(192, 168, 2, 2));
    assert_eq!(bridge.link().unwrap().spanning_tree_delay, None);
    ip("link set br0 type bridge stp_state 1 forward_delay 1500");
    assert_eq!(bridge.link().unwrap().spanning_tree_delay.unwrap().as_secs(), 30);
    let watch = LinkWatch::open().unwrap();
    ip("link del br0");
    let mut polled = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut polled, PollTimeout::from(20_000_u16)).unwrap(), 1);
    ip("link add br0 type bridge");
    assert!(Link::find("br0").unwrap().is_some());
    assert!(bridge.link().is_none(), "another device with the same name is not ours");
}

#[test]
fn a_broadcast_arrives_with_the_address_it_was_sent_to() {
    if !isolated("bridge::a_broadcast_arrives_with_the_address_it_was_sent_to") {
        return;
    }
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let socket = bridge.udp_socket(67).unwrap();
    let mut inbox = Inbox::new(8, 2048);
    let macs = (wire.mac, MacAddr::BROADCAST);
    wire.send(&udp_frame(macs, ([0; 4], 68), (ANYWHERE, 67), b"DISCOVER"));
    wire.send(&udp_frame((wire.mac, bridge.mac), ([192, 168, 2, 50], 68), ([192, 168, 2, 2], 67), b"RENEW"));
    let mut seen = Vec::new();
    eventually("two datagrams", || {
        if sys::recv_batch(&socket, &mut inbox).is_ok() {
            seen.extend(inbox.iter().map(|(arrival, bytes)| (*arrival, bytes.to_vec())));
        }
        (seen.len() == 2).then_some(())
    });
    let (discover, renew) = (&seen[0], &seen[1]);
    assert_eq!(
        (discover.0.destination, discover.1.as_slice()),
        (Ipv4Addr::BROADCAST, b"DISCOVER".as_slice())
    );
    assert_eq!(discover.0.source.to_string(), "0.0.0.0:68");
    assert_eq!(discover.0.interface, bridge.index);
    assert_eq!((renew.0.destination, renew.1.as_slice()), (bridge.ip(), b"RENEW".as_slice()));
}

#[test]
fn a_broadcast_answer_leaves_from_our_address() {
    if !isolated("bridge::a_broadcast_answer_leaves_from_our_address") {
        return;
    }
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let wire = wire.undissected();
    // The kernel's own choice of source would be the first address.
    ip("addr flush dev br0");
    ip("addr add 10.9.9.9/8 dev br0");
    ip("addr add 192.168.2.2/24 dev br0");
    let socket = bridge.udp_socket(67).unwrap();
    let to = "255.255.255.255:68".parse().unwrap();
    let message = Outgoing { payload: b"OFFER", to, from: (bridge.ip(), bridge.index) };
    assert!(sys::send_batch(&socket, &[message]).iter().all(Result::is_ok));
    wire.expect("the offer, from 192.168.2.2:67 to everybody", |frame| {
        (frame.ends_with(b"OFFER")
            && frame[..6] == [0xff; 6]
            && frame[26..34] == [192, 168, 2, 2, 255, 255, 255, 255]
            && frame[34..38] == [0, 67, 0, 68])
        .then_some(())
    });
}

#[test]
fn nothing_arrives_from_another_bridge() {
    if !isolated("bridge::nothing_arrives_from_another_bridge") {
        return;
    }
    let (bridge, wire) = make_bridge("br0", "192.168.2.2/24");
    let (other, other_wire) = make_bridge("br1", "192.168.3.2/24");
    let socket = bridge.udp_socket(67).unwrap();
    let mut inbox = Inbox::new(8, 2048);
    // Somebody else's server may hold the same port there; on our bridge nobody may.
    let neighbour = other.udp_socket(67).unwrap();
    assert_eq!(bridge.udp_socket(67).unwrap_err().kind(), ErrorKind::AddrInUse);
    let foreign =
        |destination, mac| udp_frame((other_wire.mac, mac), ([0; 4], 68), (destination, 67), b"foreign");
    other_wire.send(&foreign(ANYWHERE, MacAddr::BROADCAST));
    // Our address, but by way of the other bridge.
    other_wire.send(&foreign([192, 168, 2, 2], other.mac));
    eventually("the neighbour gets its broadcast", || sys::recv_batch(&neighbour, &mut inbox).ok());
    wire.send(&udp_frame((wire.mac, MacAddr::BROADCAST), ([0; 4], 68), (ANYWHERE, 67), b"ours"));
    eventually("our broadcast", || sys::recv_batch(&socket, &mut inbox).ok());
    let seen: Vec<_> = inbox.iter().map(|(_, bytes)| bytes.to_vec()).collect();
    assert_eq!(seen, [b"ours"]);
}

#[test]
fn tcp_is_served_on_the_bridge_alone_and_without_delay() {
    if !isolated("bridge::tcp_is_served_on_the_bridge_alone_and_without_delay") {
        return;
    }
    let (bridge, _wire) = make_bridge("br0", "192.168.2.2/24");
    let (_other, _other_wire) = make_bridge("br1", "192.168.3.2/24");
    let listener = bridge.tcp_listener(80).unwrap();
    attach("br0", "near");
    attach("br1", "far");
    let stranger = Machine::run("fars", "192.168.3.9/24", || {
        ip("route add 192.168.2.0/24 via 192.168.3.2");
        exchange("192.168.2.2:80", b"from elsewhere")
    });
    let refused = stranger.join().unwrap();
    assert!(refused.is_err(), "{refused:?}");
    let client = Machine::run("nears", "192.168.2.9/24", || exchange("192.168.2.2:80", b"hello"));
    let (mut stream, _) = eventually("a connection", || listener.accept().ok());
    assert!(stream.nodelay().unwrap());
    assert_eq!(stream.peer_addr().unwrap().ip(), Ipv4Addr::new(192, 168, 2, 9));
    stream.set_nonblocking(false).unwrap();
    let mut request = [0; 5];
    stream.read_exact(&mut request).unwrap();
    stream.write_all(&request).unwrap();
    drop(stream);
    assert_eq!(client.join().unwrap().unwrap(), b"hello");
}
