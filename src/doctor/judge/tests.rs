//! Facts made up, one fault at a time.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::config::PoolRange;
use crate::doctor::facts::*;
use crate::doctor::{Severity, firewall, would_boot};
use crate::net::MacAddr;

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
            pool: PoolRange { first: Ipv4Addr::new(192, 168, 2, 128), last: Ipv4Addr::new(192, 168, 2, 254) },
            state: "/var/lib/farrier".into(),
            profile: "metal".to_owned(),
        },
        links: Ok(vec![bridge, port("eno2")]),
        default_routes: vec!["eno1".to_owned()],
        bridge_netfilter: Some(false),
        firewall: FirewallFact::default(),
        rivals: Some(Ok(Vec::new())),
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
    assert!(bad.iter().all(|finding| !finding.what.is_empty() && !finding.why.is_empty()), "{bad:?}");
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
    use Severity::Warning;
    only(Check::BridgePorts, Warning, |facts| {
        facts.links.as_mut().unwrap().pop();
    });
    let mends = only(Check::BridgePorts, Warning, |facts| link(facts, "eno2").up = false);
    assert_eq!(mends, "ip link set eno2 up");
    only(Check::BridgePorts, Warning, |facts| link(facts, "eno2").port_state = Some("blocking".to_owned()));
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
    only(Check::SharedNetwork, Warning, |facts| facts.default_routes = vec!["br0".to_owned()]);
    only(Check::SharedNetwork, WouldNotBoot, |facts| link(facts, "eno2").wireless = true);
    only(Check::OtherDhcp, WouldNotBoot, |facts| {
        let server = Ipv4Addr::new(192, 168, 2, 1);
        facts.rivals = Some(Ok(vec![Rival { server, mac: MacAddr([2; 6]), offered: server }]));
    });
    only(Check::OtherDhcp, Warning, |facts| facts.rivals = Some(Err("no".to_owned())));
    assert_eq!(amiss(|facts| facts.rivals = None), []);
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
