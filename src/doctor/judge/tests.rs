//! Facts made up, one fault at a time.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::config::{DhcpMode, PoolRange};
use crate::doctor::facts::*;
use crate::doctor::{Severity, firewall, would_boot};
use crate::guard::rivals::Kind;
use crate::net::MacAddr;
use crate::net::hazards::{Allowed, Hazard};

fn port(name: &str) -> LinkFact {
    LinkFact {
        name: name.to_owned(),
        up: true,
        carrier: true,
        master: Some("br0".to_owned()),
        port_state: Some("forwarding".to_owned()),
        ..LinkFact::default()
    }
}

fn veth(name: &str) -> LinkFact {
    LinkFact { kind: "veth".to_owned(), checksum_offload: Some(false), ..port(name) }
}

/// A machine on which everything is as it should be.
fn healthy() -> Facts {
    let bridge = LinkFact {
        name: "br0".to_owned(),
        up: true,
        kind: "bridge".to_owned(),
        bridge: Some(BridgeFact::default()),
        addresses: vec!["192.168.2.2/24".parse().unwrap()],
        ..LinkFact::default()
    };
    let door = |service, protocol, port| Door { service, protocol, port, state: DoorState::Free };
    Facts {
        wanted: Wanted {
            bridge: "br0".to_owned(),
            address: "192.168.2.2/24".parse().unwrap(),
            allowed: Allowed::default(),
            mode: DhcpMode::Server,
            pool: PoolRange { first: Ipv4Addr::new(192, 168, 2, 128), last: Ipv4Addr::new(192, 168, 2, 254) },
            state: "/var/lib/farrier".into(),
            profile: "metal".to_owned(),
        },
        refused: None,
        links: Ok(vec![bridge, port("eno2")]),
        default_routes: vec!["eno1".to_owned()],
        bridge_netfilter: Some(false),
        firewall: FirewallFact::default(),
        rivals: RivalsFact::Answered(Vec::new()),
        doors: vec![door("DHCP", "udp", 67), door("HTTP", "tcp", 80)],
        capabilities: Ok(u64::MAX),
        unprivileged_ports: 1024,
        neighbour_limit: Some(1024),
        state: StateFact { unusable: None, free_bytes: Ok(10 << 30), sync: Ok(Duration::from_millis(1)) },
        loaders: LoadersFact { served: vec!["bios".to_owned()], ..LoadersFact::default() },
        image: ImageFact::Served { kernel_bytes: 1, ramdisk_bytes: 1 },
        product: Some("PowerEdge".to_owned()),
        now: Timestamp::from_millis(1_795_000_000_000),
        synchronised: Ok(true),
        lab: LabFact::default(),
    }
}

/// The findings that are not ok, as (check, severity, the mends' text).
fn amiss(change: impl FnOnce(&mut Facts)) -> Vec<(Check, Severity, Vec<String>)> {
    let mut facts = healthy();
    change(&mut facts);
    let findings = judge(&facts);
    let severe = findings.iter().any(|finding| finding.severity == Severity::WouldNotBoot);
    assert_eq!(would_boot(&findings), !severe);
    let bad: Vec<_> = findings.into_iter().filter(|finding| finding.severity > Severity::Ok).collect();
    for Finding { what, why, mends, .. } in &bad {
        assert!(!what.is_empty() && !why.is_empty(), "{bad:?}");
        assert!(
            !mends.is_empty() && mends.iter().all(|mend| !mend.text().is_empty()),
            "no way out of: {what}"
        );
    }
    bad.into_iter()
        .map(|finding| (finding.check, finding.severity, finding.mends.iter().map(Mend::text).collect()))
        .collect()
}

/// One finding of this check and severity, and nothing else; its first mend.
#[track_caller]
fn only(check: Check, severity: Severity, change: impl FnOnce(&mut Facts)) -> String {
    let found = amiss(change);
    let [(which, how, mends)] = found.as_slice() else { panic!("not one finding: {found:?}") };
    assert_eq!((*which, *how), (check, severity));
    mends.join(" | ")
}

fn link<'a>(facts: &'a mut Facts, name: &str) -> &'a mut LinkFact {
    facts.links.as_mut().unwrap().iter_mut().find(|link| link.name == name).unwrap()
}

#[test]
fn a_healthy_machine_boots_and_every_check_says_so() {
    assert_eq!(amiss(|_| {}), []);
    let findings = judge(&healthy());
    let checked: Vec<Check> = findings.iter().map(|finding| finding.check).collect();
    for check in Check::ALL.iter().filter(|check| **check != Check::Lab) {
        assert!(checked.contains(check), "{check:?} says nothing");
    }
}

#[test]
fn a_bridge_that_is_not_as_it_should_be() {
    use Severity::WouldNotBoot;
    let mends = only(Check::Bridge, WouldNotBoot, |facts| facts.links.as_mut().unwrap().clear());
    assert!(mends.starts_with("ip link add br0 type bridge forward_delay 0"), "{mends}");
    let mends = only(Check::Bridge, WouldNotBoot, |facts| link(facts, "br0").up = false);
    assert_eq!(mends, "ip link set br0 up");
    only(Check::Bridge, WouldNotBoot, |facts| link(facts, "br0").bridge = None);
    let mends = only(Check::Bridge, WouldNotBoot, |facts| {
        facts.refused = Some(Refusal::Other("the kernel does not tell about it".to_owned()));
    });
    assert!(mends.contains("config check --bridge"), "{mends}");
    // Without a bridge, where somebody allowed it: as it is for `serve`.
    let plain = |facts: &mut Facts| {
        facts.wanted.allowed = Allowed::of(&[Hazard::NotABridge]);
        link(facts, "br0").bridge = None;
    };
    assert_eq!(amiss(plain), []);
    only(Check::Bridge, WouldNotBoot, |facts| {
        plain(facts);
        facts.refused = Some(Refusal::Hazard(Hazard::NotABridge, "br0".to_owned()));
    });
    only(Check::Bridge, WouldNotBoot, |facts| facts.links = Err("no ip".to_owned()));
    let mends = only(Check::Address, WouldNotBoot, |facts| {
        link(facts, "br0").addresses = vec!["192.168.2.2/16".parse().unwrap()];
    });
    assert_eq!(mends, "ip addr add 192.168.2.2/24 dev br0");
    only(Check::Address, Severity::Warning, |facts| {
        let addresses = vec!["192.168.2.9/24".parse().unwrap()];
        let other = LinkFact { name: "eno1".to_owned(), addresses, ..LinkFact::default() };
        facts.links.as_mut().unwrap().push(other);
    });
}

#[test]
fn spanning_tree_is_ended_where_no_loop_is_possible_and_hurried_elsewhere() {
    let slow = |facts: &mut Facts| {
        let forward_delay = Duration::from_secs(15);
        link(facts, "br0").bridge =
            Some(BridgeFact { spanning_tree: true, forward_delay, ..BridgeFact::default() });
    };
    let mends = only(Check::SpanningTree, Severity::WouldNotBoot, slow);
    assert_eq!(
        mends,
        "ip link set br0 type bridge stp_state 0 | ip link set br0 type bridge forward_delay 0"
    );
    let mends = only(Check::SpanningTree, Severity::WouldNotBoot, |facts| {
        slow(facts);
        facts.links.as_mut().unwrap().push(port("eno3"));
    });
    assert!(mends.starts_with("ip link set br0 type bridge forward_delay 200 | where no loop"), "{mends}");
    only(Check::SpanningTree, Severity::Warning, |facts| {
        let forward_delay = Duration::from_secs(2);
        link(facts, "br0").bridge =
            Some(BridgeFact { spanning_tree: true, forward_delay, ..BridgeFact::default() });
    });
    // The delay alone keeps no port silent.
    let idle = BridgeFact { forward_delay: Duration::from_secs(15), ..BridgeFact::default() };
    assert_eq!(amiss(|facts| link(facts, "br0").bridge = Some(idle)), []);
}

#[test]
fn ports_that_are_missing_down_silent_or_dark() {
    use Severity::{Warning, WouldNotBoot};
    only(Check::BridgePorts, Warning, |facts| {
        facts.links.as_mut().unwrap().pop();
    });
    let mends = only(Check::BridgePorts, WouldNotBoot, |facts| link(facts, "eno2").up = false);
    assert_eq!(mends, "ip link set eno2 up");
    only(Check::BridgePorts, Warning, |facts| {
        facts.links.as_mut().unwrap().push(LinkFact { up: false, ..port("eno3") });
    });
    let state = |state: &'static str| {
        move |facts: &mut Facts| link(facts, "eno2").port_state = Some(state.to_owned())
    };
    let mends = only(Check::BridgePorts, WouldNotBoot, state("disabled"));
    assert_eq!(mends, "bridge link set dev eno2 state 3");
    let mends = only(Check::BridgePorts, Warning, |facts| {
        state("learning")(facts);
        link(facts, "br0").bridge = Some(BridgeFact { spanning_tree: true, ..BridgeFact::default() });
    });
    assert!(mends.starts_with("wait until spanning tree"), "{mends}");
    only(Check::BridgePorts, Warning, |facts| link(facts, "eno2").carrier = false);
}

#[test]
fn checksums_matter_on_virtual_cables_only() {
    assert_eq!(amiss(|facts| link(facts, "eno2").checksum_offload = Some(true)), []);
    let mends = only(Check::Checksums, Severity::Warning, |facts| {
        let offload = |name: &str| LinkFact { checksum_offload: Some(true), ..veth(name) };
        facts.links.as_mut().unwrap().extend([offload("v1"), offload("v2"), veth("v3")]);
    });
    assert_eq!(mends, "ethtool -K v1 tx off | ethtool -K v2 tx off");
}

#[test]
fn rules_within_the_bridge_are_the_hosts_or_the_bridges() {
    let mends = only(Check::BridgeNetfilter, Severity::Warning, |facts| facts.bridge_netfilter = Some(true));
    assert!(mends.starts_with("sysctl"), "{mends}");
    let calls = BridgeFact { calls_iptables: true, ..BridgeFact::default() };
    let mends =
        only(Check::BridgeNetfilter, Severity::Warning, |facts| link(facts, "br0").bridge = Some(calls));
    assert_eq!(mends, "ip link set br0 type bridge nf_call_iptables 0");
}

#[test]
fn a_network_that_is_not_ours_alone() {
    use Severity::{Warning, WouldNotBoot};
    let refused = |hazard, about: &str| Some(Refusal::Hazard(hazard, about.to_owned()));
    let route = |facts: &mut Facts| facts.default_routes = vec!["br0".to_owned()];
    let mends = only(Check::SharedNetwork, WouldNotBoot, |facts| {
        route(facts);
        facts.refused = refused(Hazard::DefaultRoute, "default via 192.168.2.1");
    });
    assert!(mends.contains("allow = [\"default-route\"]"), "{mends}");
    only(Check::SharedNetwork, Warning, |facts| {
        route(facts);
        facts.wanted.allowed = Allowed::of(&[Hazard::DefaultRoute]);
    });
    // What a router advertised, which `serve` does not heed.
    only(Check::SharedNetwork, Warning, route);
    // Among several ports as well.
    let air = |facts: &mut Facts| {
        link(facts, "eno2").wireless = true;
        facts.links.as_mut().unwrap().push(port("eno3"));
    };
    let mends = only(Check::SharedNetwork, WouldNotBoot, |facts| {
        air(facts);
        facts.refused = refused(Hazard::Wireless, "eno2");
    });
    assert!(mends.starts_with("ip link set eno2 nomaster | or write allow = [\"wireless\"]"), "{mends}");
    only(Check::SharedNetwork, Warning, |facts| {
        air(facts);
        facts.wanted.allowed = Allowed::of(&[Hazard::Wireless]);
    });
    for product in ["VirtualBox", "VMware Virtual Platform", "Virtual Machine"] {
        only(Check::Nested, Warning, |facts| facts.product = Some(product.to_owned()));
    }
    let mends = only(Check::Nested, Warning, |facts| {
        let forward_delay = Duration::from_secs(15);
        let bridge = Some(BridgeFact { spanning_tree: true, forward_delay, ..BridgeFact::default() });
        facts.links.as_mut().unwrap().extend([
            LinkFact { peer: Some("far".to_owned()), ..veth("near") },
            LinkFact { master: Some("outer".to_owned()), ..veth("far") },
            LinkFact { name: "outer".to_owned(), kind: "bridge".to_owned(), bridge, ..LinkFact::default() },
        ]);
    });
    assert_eq!(mends, "ip link set outer type bridge stp_state 0");
}

/// Everything that can be wrong, one at a time.
fn faults() -> Vec<fn(&mut Facts)> {
    fn ports(facts: &mut Facts) -> &mut Vec<LinkFact> {
        facts.links.as_mut().unwrap()
    }
    fn spanning(facts: &mut Facts, seconds: u64) {
        let forward_delay = Duration::from_secs(seconds);
        let bridge = BridgeFact { spanning_tree: true, forward_delay, ..BridgeFact::default() };
        link(facts, "br0").bridge = Some(bridge);
    }
    fn outer(facts: &mut Facts, spanning_tree: bool) {
        let forward_delay = Duration::from_secs(15);
        let bridge = Some(BridgeFact { spanning_tree, forward_delay, ..BridgeFact::default() });
        ports(facts).extend([
            LinkFact { peer: Some("far".to_owned()), ..veth("near") },
            LinkFact { master: Some("outer".to_owned()), ..veth("far") },
            LinkFact { name: "outer".to_owned(), kind: "bridge".to_owned(), bridge, ..LinkFact::default() },
        ]);
    }
    fn drops(facts: &mut Facts, rule: &str) {
        let saved = format!("*filter\n:INPUT ACCEPT [0:0]\n{rule}\nCOMMIT\n");
        facts.firewall.chains = firewall::iptables::parse(&saved);
    }
    fn taken(facts: &mut Facts, program: &str, unit: Option<&str>) {
        let (program, unit) = (program.to_owned(), unit.map(str::to_owned));
        let holder = Holder { pid: 12, arguments: vec![program.clone()], program, unit };
        facts.doors[0].state = DoorState::Taken(vec![holder]);
    }
    vec![
        |facts| facts.links = Err("no ip".to_owned()),
        |facts| ports(facts).clear(),
        |facts| link(facts, "br0").bridge = None,
        |facts| link(facts, "br0").up = false,
        |facts| link(facts, "br0").addresses.clear(),
        |facts| {
            let addresses = vec!["192.168.2.9/24".parse().unwrap()];
            ports(facts).push(LinkFact { name: "eno1".to_owned(), addresses, ..LinkFact::default() });
        },
        |facts| facts.refused = Some(Refusal::Other("no".to_owned())),
        |facts| facts.refused = Some(Refusal::Hazard(Hazard::Wireless, "eno2".to_owned())),
        |facts| facts.refused = Some(Refusal::Hazard(Hazard::DefaultRoute, "default".to_owned())),
        |facts| facts.default_routes = vec!["br0".to_owned()],
        |facts| link(facts, "eno2").wireless = true,
        |facts| {
            facts.wanted.allowed = Allowed::of(&Hazard::ALL);
            link(facts, "eno2").wireless = true;
        },
        |facts| {
            facts.wanted.allowed = Allowed::of(&[Hazard::NotABridge]);
            link(facts, "br0").bridge = None;
            link(facts, "br0").wireless = true;
        },
        |facts| spanning(facts, 15),
        |facts| spanning(facts, 2),
        |facts| {
            ports(facts).push(port("eno3"));
            spanning(facts, 15);
        },
        |facts| {
            ports(facts).push(port("eno3"));
            spanning(facts, 2);
        },
        |facts| drop(ports(facts).pop()),
        |facts| link(facts, "eno2").up = false,
        |facts| link(facts, "eno2").carrier = false,
        |facts| link(facts, "eno2").port_state = Some("blocking".to_owned()),
        |facts| {
            spanning(facts, 0);
            link(facts, "eno2").port_state = Some("listening".to_owned());
        },
        |facts| ports(facts).push(LinkFact { checksum_offload: Some(true), ..veth("v1") }),
        |facts| facts.bridge_netfilter = Some(true),
        |facts| {
            link(facts, "br0").bridge = Some(BridgeFact { calls_iptables: true, ..BridgeFact::default() });
        },
        |facts| drops(facts, "-A INPUT -p udp --dport 67 -j DROP"),
        |facts| drops(facts, "-A INPUT -p udp --dport 4011 -j DROP"),
        |facts| drops(facts, "-A INPUT -p udp --dport 67 -m recent --name x -j DROP"),
        |facts| drops(facts, "-A INPUT -p tcp --dport 80 -j REJECT"),
        |facts| facts.firewall.unread.push("nft: no".to_owned()),
        |facts| facts.rivals = RivalsFact::NobodyAsked,
        |facts| {
            facts.rivals = RivalsFact::NobodyAsked;
            facts.refused = Some(Refusal::Other("no".to_owned()));
        },
        |facts| facts.rivals = RivalsFact::Unknown("no".to_owned()),
        |facts| facts.rivals = RivalsFact::Answered(vec![server(), router()]),
        |facts| facts.rivals = RivalsFact::Told(vec![Rival { mac: None, offered: None, ..server() }]),
        |facts| facts.wanted.mode = DhcpMode::Proxy,
        |facts| facts.wanted.mode = DhcpMode::Observe,
        |facts| facts.product = Some("VirtualBox".to_owned()),
        |facts| outer(facts, true),
        |facts| outer(facts, false),
        |facts| taken(facts, "dnsmasq", None),
        |facts| taken(facts, "nginx", Some("nginx.service")),
        |facts| facts.doors[0].state = DoorState::Taken(Vec::new()),
        |facts| facts.doors[0].state = DoorState::Refused("no".to_owned()),
        |facts| facts.capabilities = Err("no".to_owned()),
        |facts| facts.capabilities = Ok(0),
        |facts| facts.capabilities = Ok(1 << 10 | 1 << 13),
        |facts| facts.neighbour_limit = Some(64),
        |facts| facts.state.unusable = Some("read-only".to_owned()),
        |facts| facts.state.free_bytes = Ok(100 << 20),
        |facts| facts.state.free_bytes = Ok(0),
        |facts| facts.state.free_bytes = Err("no".to_owned()),
        |facts| facts.state.sync = Ok(Duration::from_millis(300)),
        |facts| facts.state.sync = Ok(Duration::from_secs(5)),
        |facts| facts.state.sync = Err("no".to_owned()),
        |facts| facts.loaders = LoadersFact::default(),
        |facts| facts.loaders.wanting = vec![("uefi-x64".to_owned(), "not there".to_owned())],
        |facts| facts.image = ImageFact::Missing { others: Vec::new() },
        |facts| facts.image = ImageFact::Damaged("cut off".to_owned()),
        |facts| facts.now = Timestamp::from_millis(86_400_000),
        |facts| facts.synchronised = Ok(false),
        |facts| facts.lab.kvm = Some(Err("KVM is present but fails".to_owned())),
        |facts| facts.lab.missing = Some("qemu".to_owned()),
    ]
}

#[test]
fn whatever_is_found_amiss_has_a_way_out() {
    let mut checks = BTreeSet::new();
    for (number, fault) in faults().into_iter().enumerate() {
        // This asserts it of each finding.
        let found = amiss(fault);
        assert!(!found.is_empty(), "fault {number} is not found");
        checks.extend(found.into_iter().map(|(check, ..)| check));
    }
    assert!(checks.into_iter().eq(Check::ALL.iter().copied()), "no check is left out");
}

fn server() -> Rival {
    let (address, mac) = (Ipv4Addr::new(192, 168, 2, 1), Some(MacAddr([2; 6])));
    Rival { kind: Kind::Dhcp, address: address.into(), mac, offered: Some(address), way_out: None }
}

fn router() -> Rival {
    let address = "fe80::1".parse().unwrap();
    Rival { kind: Kind::RouterAdvertisement, address, offered: None, ..server() }
}

#[test]
fn others_who_answer_and_nobody_asked() {
    use Severity::{Warning, WouldNotBoot};
    only(Check::OtherDhcp, WouldNotBoot, |facts| facts.rivals = RivalsFact::Answered(vec![server()]));
    let line = "add the line except-interface=br0 to /x.conf";
    let mends = only(Check::OtherDhcp, WouldNotBoot, |facts| {
        facts.rivals = RivalsFact::Told(vec![Rival { way_out: Some(line.to_owned()), ..server() }]);
    });
    assert_eq!(mends, line, "the appliance knows more");
    assert_eq!(amiss(|facts| facts.rivals = RivalsFact::Told(Vec::new())), []);
    only(Check::OtherDhcp, Warning, |facts| facts.rivals = RivalsFact::Answered(vec![router()]));
    only(Check::OtherDhcp, WouldNotBoot, |facts| facts.rivals = RivalsFact::Unknown("no".to_owned()));
    let mends = only(Check::OtherDhcp, Warning, |facts| facts.rivals = RivalsFact::NobodyAsked);
    assert!(mends.contains("leave out --no-probe"), "{mends}");
    // Beside another server there has to be one, and who only listens boots nobody.
    let beside = |rivals: Vec<Rival>| {
        move |facts: &mut Facts| {
            facts.wanted.mode = DhcpMode::Proxy;
            facts.rivals = RivalsFact::Answered(rivals);
        }
    };
    assert_eq!(amiss(beside(vec![server()])), []);
    only(Check::OtherDhcp, WouldNotBoot, beside(Vec::new()));
    only(Check::OtherDhcp, WouldNotBoot, |facts| facts.wanted.mode = DhcpMode::Observe);
}

#[test]
fn ports_that_others_have() {
    let holder = |program: &str, arguments: &[&str], unit: Option<&str>| Holder {
        pid: 12,
        program: program.to_owned(),
        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        unit: unit.map(str::to_owned),
    };
    let taken = |holder: Holder| {
        let mut facts = healthy();
        facts.doors[0].state = DoorState::Taken(vec![holder]);
        let finding = judge(&facts).into_iter().find(|finding| finding.check == Check::Sockets).unwrap();
        let mends: Vec<_> = finding.mends.iter().map(Mend::text).collect();
        assert!(finding.mends.iter().all(|mend| !mend.is_safe()), "another program is its owner's");
        (finding.severity, finding.what, mends.join(" | "))
    };
    let (severity, what, mends) = taken(holder("dnsmasq", &["dnsmasq", "--conf-file=/var/x.conf"], None));
    assert_eq!(severity, Severity::WouldNotBoot);
    assert!(what.contains("dnsmasq (process 12, configured by /var/x.conf)"), "{what}");
    assert!(mends.contains("except-interface=br0 and bind-dynamic in /var/x.conf | kill 12"), "{mends}");
    let (_, what, mends) = taken(holder("nginx", &["nginx: master"], Some("nginx.service")));
    assert!(
        what.contains("/etc/nginx/nginx.conf") && mends == "systemctl disable --now nginx.service",
        "{mends}"
    );
    let (_, what, _) = taken(holder("kea-dhcp4", &["kea-dhcp4", "-c", "/k.conf"], None));
    assert!(what.contains("/k.conf"), "{what}");
    let (severity, what, _) = taken(holder("farrier", &["farrier", "serve"], None));
    assert_eq!(severity, Severity::Ok, "{what}");
    only(Check::Sockets, Severity::WouldNotBoot, |facts| facts.doors[1].state = DoorState::Taken(Vec::new()));
    only(Check::Sockets, Severity::WouldNotBoot, |facts| {
        facts.doors[1].state = DoorState::Refused("not permitted".to_owned());
    });
}

#[test]
fn rights_room_and_time() {
    use Severity::{Warning, WouldNotBoot};
    only(Check::Capabilities, WouldNotBoot, |facts| facts.capabilities = Ok(0));
    only(Check::Capabilities, WouldNotBoot, |facts| facts.capabilities = Ok(1 << 10 | 1 << 12));
    only(Check::Capabilities, Warning, |facts| facts.capabilities = Ok(1 << 10 | 1 << 13));
    only(Check::Capabilities, Warning, |facts| {
        facts.unprivileged_ports = 0;
        facts.capabilities = Ok(1 << 13);
    });
    let mends = only(Check::Neighbours, Warning, |facts| facts.neighbour_limit = Some(64));
    assert_eq!(mends, "sysctl -w net.ipv4.neigh.default.gc_thresh3=256");
    only(Check::State, WouldNotBoot, |facts| facts.state.unusable = Some("read-only".to_owned()));
    only(Check::State, Warning, |facts| facts.state.free_bytes = Ok(100 << 20));
    only(Check::State, WouldNotBoot, |facts| facts.state.free_bytes = Ok(1 << 20));
    only(Check::State, Warning, |facts| facts.state.sync = Ok(Duration::from_millis(300)));
    only(Check::State, WouldNotBoot, |facts| facts.state.sync = Ok(Duration::from_secs(5)));
    only(Check::State, Warning, |facts| facts.state.sync = Err("no".to_owned()));
    only(Check::Clock, Warning, |facts| facts.now = Timestamp::from_millis(86_400_000));
    only(Check::Clock, Warning, |facts| facts.synchronised = Ok(false));
}

#[test]
fn nothing_to_serve() {
    use Severity::{Warning, WouldNotBoot};
    let missing = || vec![("uefi-x64".to_owned(), "ipxe.efi is not there".to_owned())];
    let mends = only(Check::Loaders, WouldNotBoot, |facts| {
        facts.loaders = LoadersFact { wanting: missing(), ..LoadersFact::default() };
    });
    assert_eq!(mends, "farrier image build loaders --state /var/lib/farrier");
    only(Check::Loaders, Warning, |facts| facts.loaders.wanting = missing());
    assert_eq!(amiss(|facts| facts.loaders.lacking = vec!["uefi-arm64".to_owned()]), []);
    let mends =
        only(Check::Image, WouldNotBoot, |facts| facts.image = ImageFact::Missing { others: Vec::new() });
    assert_eq!(mends, "farrier image build deploy --profile metal --state /var/lib/farrier");
    only(Check::Image, WouldNotBoot, |facts| facts.image = ImageFact::Damaged("cut off".to_owned()));
    only(Check::Lab, Warning, |facts| facts.lab.kvm = Some(Err("KVM is present but fails".to_owned())));
    only(Check::Lab, Warning, |facts| facts.lab.missing = Some("qemu".to_owned()));
}

#[test]
fn a_rule_is_proposed_for_the_bridge_and_what_is_dropped_alone() {
    let saved = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp --dport 67 -j DROP\nCOMMIT\n";
    let mends = only(Check::Firewall, Severity::WouldNotBoot, |facts| {
        facts.firewall.chains = firewall::iptables::parse(saved);
    });
    assert_eq!(mends, "iptables -t filter -I INPUT -i br0 -p udp -m multiport --dports 67 -j ACCEPT");
    let ruleset = r#"{"nftables":[{"chain":{"family":"inet","table":"f","name":"in","hook":"input","policy":"drop"}}]}"#;
    let mends = only(Check::Firewall, Severity::WouldNotBoot, |facts| {
        facts.firewall.chains = firewall::nft::parse(ruleset).unwrap().chains;
    });
    assert_eq!(
        mends,
        "nft insert rule inet f in iifname br0 udp dport '{ 67, 69, 4011 }' accept | \
         nft insert rule inet f in iifname br0 meta l4proto udp ct state established accept | \
         nft insert rule inet f in iifname br0 tcp dport '{ 80 }' accept"
    );
    only(Check::Firewall, Severity::Warning, |facts| facts.firewall.unread.push("nft: no".to_owned()));
}
