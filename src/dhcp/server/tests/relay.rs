//! Requests that come through a relay agent: RFC 2131 §4.1, RFC 3046 §2.2, RFC 3527, RFC 8357.

use super::*;
use crate::dhcp::testing::GATEWAY;

/// Circuit "port 7", remote id "sw1".
const INFORMATION: &[u8] = b"\x01\x06port 7\x02\x03sw1";
const AGENT: u8 = 9;

fn to_agent(port: u16) -> Destination {
    Destination::Unicast(SocketAddrV4::new(address(AGENT), port))
}

#[test]
fn every_answer_goes_to_the_agent_with_its_option_last() {
    let mut world = World::new(settings());
    let relayed = |message: ClientMessage| message.relayed(address(AGENT), INFORMATION);
    let offer = world.send(&relayed(ClientMessage::discover(mac(1)).uefi().option(61, b"\x01id")));
    let offered = reply(&offer).address.unwrap();
    let ack = world.send(&relayed(ClientMessage::selecting(mac(1), offered).uefi()));
    let nak = world.send(&relayed(ClientMessage::selecting(mac(2), offered)));
    for (outcome, kind) in [(&offer, ReplyKind::Offer), (&ack, ReplyKind::Ack), (&nak, ReplyKind::Nak)] {
        assert_eq!(reply(outcome).kind, kind);
        assert_eq!(reply(outcome).destination, to_agent(67));
        assert_eq!(codes_of(&reply(outcome).bytes).last(), Some(&82));
        assert_eq!(option_of(&reply(outcome).bytes, 82).as_deref(), Some(INFORMATION));
        assert_eq!(parsed(outcome).giaddr(), address(AGENT));
        assert_eq!(parsed(outcome).hops(), 0);
    }
    assert_eq!(codes_of(&reply(&nak).bytes), [53, 54, 56, 82]);
}

#[test]
fn a_nak_tells_the_agent_to_broadcast_and_other_answers_leave_that_to_the_client() {
    let mut world = World::new(settings());
    let relayed = |message: ClientMessage| message.relayed(address(AGENT), b"");
    let offer = world.send(&relayed(ClientMessage::discover(mac(1))));
    assert!(!parsed(&offer).broadcast());
    let nak = world.send(&relayed(ClientMessage::init_reboot(mac(1), Ipv4Addr::new(10, 0, 0, 1))));
    assert_eq!(reply(&nak).kind, ReplyKind::Nak);
    assert!(parsed(&nak).broadcast());
    let direct = world.send(&ClientMessage::init_reboot(mac(1), Ipv4Addr::new(10, 0, 0, 1)));
    assert!(!parsed(&direct).broadcast());
}

#[test]
fn option_82_from_a_client_itself_is_not_echoed() {
    let mut world = World::new(settings());
    let offer = world.send(&ClientMessage::discover(mac(1)).option(82, INFORMATION));
    assert_eq!(option_of(&reply(&offer).bytes, 82), None);
    assert_ne!(reply(&offer).destination, to_agent(67));
}

#[test]
fn only_agents_on_our_subnet_are_served() {
    let link = |last: [u8; 4]| [&[5, 4][..], &last].concat();
    let cases = [
        ("on the subnet", address(AGENT), Vec::new(), None),
        ("the gateway may be one", GATEWAY, Vec::new(), None),
        ("elsewhere", Ipv4Addr::new(10, 0, 0, 1), Vec::new(), Some(Silence::Relayed)),
        ("we are none", SERVER, Vec::new(), Some(Silence::Relayed)),
        ("the subnet itself", address(0), Vec::new(), Some(Silence::Relayed)),
        ("everybody", address(255), Vec::new(), Some(Silence::Relayed)),
        ("its client's link is ours", address(AGENT), link([192, 168, 2, 1]), None),
        ("its client is on another link", address(AGENT), link([10, 0, 0, 1]), Some(Silence::Relayed)),
        ("a link cut off is none", address(AGENT), vec![5, 4, 10, 0], None),
    ];
    for (name, agent, information, expected) in cases {
        let mut world = World::new(settings());
        let outcome = world.send(&ClientMessage::discover(mac(1)).relayed(agent, &information));
        assert_eq!(silence(&outcome), expected, "{name}");
    }
}

#[test]
fn an_agent_may_choose_its_port() {
    let mut world = World::new(settings());
    let mut discover = ClientMessage::discover(mac(1)).relayed(address(AGENT), b"\x01\x01x\x13\x00");
    discover.source.set_port(4067);
    assert_eq!(reply(&world.send(&discover)).destination, to_agent(4067));
    let mut without = ClientMessage::discover(mac(1)).relayed(address(AGENT), b"");
    without.source.set_port(4067);
    assert_eq!(reply(&world.send(&without)).destination, to_agent(67));
}

#[test]
fn what_an_agent_forwards_was_broadcast_so_it_is_a_rebinding() {
    let unsure = Settings { authoritative: false, ..settings() };
    let mut world = World::new(unsure);
    let rebinding = ClientMessage::rebinding(mac(1), address(60)).relayed(address(AGENT), b"");
    // Renewing, this would be a NAK: but another server may know the client.
    assert_eq!(silence(&world.send(&rebinding)), Some(Silence::UnknownClient));
    let bound = world.bind(mac(1));
    let ack = world.send(&ClientMessage::rebinding(mac(1), bound).relayed(address(AGENT), b""));
    assert_eq!((reply(&ack).kind, reply(&ack).destination), (ReplyKind::Ack, to_agent(67)));
}

#[test]
fn inform_is_answered_to_the_client_if_it_says_where_it_is_else_by_the_agent() {
    let mut world = World::new(settings());
    let mut placed = ClientMessage::inform(mac(1)).using(address(40));
    placed = placed.relayed(address(AGENT), b"");
    let direct = Destination::Unicast(SocketAddrV4::new(address(40), 68));
    assert_eq!(reply(&world.send(&placed)).destination, direct);
    let outcome = world.send(&ClientMessage::inform(mac(1)).relayed(address(AGENT), INFORMATION));
    assert_eq!(reply(&outcome).destination, to_agent(67));
    assert!(parsed(&outcome).broadcast());
    assert_eq!(option_of(&reply(&outcome).bytes, 51), None);
}

#[test]
fn a_boot_server_answer_returns_through_the_agent() {
    let mut world = World::new(settings());
    let asked = ClientMessage::new(3, mac(1)).uefi().option(43, &[71, 4, 0, 0, 0, 0, 255]);
    let outcome = world.send(&asked.relayed(address(AGENT), INFORMATION));
    assert_eq!(reply(&outcome).destination, to_agent(67));
    assert_eq!(option_of(&reply(&outcome).bytes, 82).as_deref(), Some(INFORMATION));
}
