//! Rules as the tools print them, and what becomes of a boot's packets.

use std::net::Ipv4Addr;

use super::*;

const US: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 128);

/// What drops a boot's traffic: (its name, towards us, certain, the rule).
fn dropped(chains: &[Chain]) -> Vec<(&'static str, bool, bool, String)> {
    let ports = ["tap0".to_owned(), "tap1".to_owned()];
    let mut found = Vec::new();
    for traffic in of_a_boot("br0", &ports, US, CLIENT) {
        for obstacle in obstacles(chains, &traffic) {
            let (certain, rule) = match obstacle.fate {
                Fate::Passes => continue,
                Fate::Dropped(rule) => (true, rule),
                Fate::Perhaps(rule) => (false, rule),
            };
            found.push((traffic.name, traffic.incoming, certain, rule));
        }
    }
    found
}

fn names(chains: &[Chain]) -> Vec<(&'static str, bool, bool)> {
    dropped(chains).into_iter().map(|(name, incoming, certain, _)| (name, incoming, certain)).collect()
}

/// A ruleset as `nft -j` prints it: one base chain with these rules, and a chain `other`.
fn nft(family: &str, hook: &str, policy: &str, rules: &[&str], other: &[&str]) -> nft::Ruleset {
    let rule = |chain: &str, number: usize, expr: &str| {
        format!(
            r#"{{"rule":{{"family":"{family}","table":"t","chain":"{chain}","handle":{number},"expr":[{expr}]}}}}"#
        )
    };
    let mut entries = vec![
        r#"{"metainfo":{}}"#.to_owned(),
        format!(r#"{{"set":{{"family":"{family}","table":"t","name":"s","elem":[67,69]}}}}"#),
        format!(
            r#"{{"chain":{{"family":"{family}","table":"t","name":"base","hook":"{hook}","policy":"{policy}"}}}}"#
        ),
        format!(r#"{{"chain":{{"family":"{family}","table":"t","name":"other"}}}}"#),
    ];
    entries.extend(rules.iter().enumerate().map(|(number, expr)| rule("base", number + 1, expr)));
    entries.extend(other.iter().enumerate().map(|(number, expr)| rule("other", number + 101, expr)));
    nft::parse(&format!(r#"{{"nftables":[{}]}}"#, entries.join(","))).unwrap()
}

fn input(policy: &str, rules: &[&str]) -> Vec<Chain> {
    nft("inet", "input", policy, rules, &[]).chains
}

const DHCP: &str =
    r#"{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":67}}"#;
const ACCEPT: &str = r#"{"accept":null}"#;
const DROP: &str = r#"{"drop":null}"#;

#[test]
fn no_rules_let_everything_pass() {
    assert_eq!(names(&[]), []);
    assert_eq!(names(&input("accept", &[])), []);
    assert_eq!(nft::parse("{\"nftables\":[]}").unwrap(), nft::Ruleset::default());
    assert!(nft::parse("").is_err() && nft::parse("{}").is_err());
}

#[test]
fn a_policy_drops_what_no_rule_accepts() {
    let all = [
        ("DHCP", true, true),
        ("PXE", true, true),
        ("TFTP", true, true),
        ("TFTP data", true, true),
        ("HTTP", true, true),
    ];
    assert_eq!(names(&input("drop", &[])), all);
    let established = r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","related"]}},{"accept":null}"#;
    let set = r#"{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":"@s"}},{"accept":null}"#;
    let rest = dropped(&input("drop", &[established, set]));
    let told: Vec<_> = rest.iter().map(|(name, ..)| *name).collect();
    assert_eq!(told, ["PXE", "HTTP"]);
    assert!(rest[0].3.contains("policy drop of chain t base"), "{rest:?}");
}

#[test]
fn one_rule_drops_what_it_names_and_nothing_else() {
    let rules = dropped(&input("accept", &[&format!("{DHCP},{DROP}")]));
    assert_eq!(rules, [("DHCP", true, true, "nft rule 1 of chain t base".to_owned())]);
    // An earlier rule decides.
    assert_eq!(names(&input("accept", &[&format!("{DHCP},{ACCEPT}"), &format!("{DHCP},{DROP}")])), []);
    // A TCP rule concerns no UDP packet; another device, another address, a reject.
    let web = r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":{"set":[22,{"range":[80,90]}]}}},{"reject":null}"#;
    assert_eq!(names(&input("accept", &[web])), [("HTTP", true, true)]);
    for (left, right, drops) in [
        (r#"{"meta":{"key":"iifname"}}"#, r#""eth0""#, 0),
        (r#"{"meta":{"key":"iifname"}}"#, r#""br*""#, 5),
        (r#"{"meta":{"key":"iif"}}"#, r#"{"set":["br0","br1"]}"#, 5),
        (r#"{"meta":{"key":"oifname"}}"#, r#""br0""#, 0),
        (r#"{"meta":{"key":"nfproto"}}"#, r#""ipv6""#, 0),
        (r#"{"meta":{"key":"pkttype"}}"#, r#""broadcast""#, 1),
        (r#"{"payload":{"protocol":"ip","field":"daddr"}}"#, r#""255.255.255.255""#, 1),
        (
            r#"{"payload":{"protocol":"ip","field":"saddr"}}"#,
            r#"{"prefix":{"addr":"192.168.2.0","len":24}}"#,
            4,
        ),
        (r#"{"payload":{"protocol":"ip","field":"saddr"}}"#, r#"{"range":["10.0.0.1","10.0.0.9"]}"#, 0),
        (r#"{"payload":{"protocol":"ip6","field":"saddr"}}"#, r#""fe80::1""#, 0),
    ] {
        let rule = format!(r#"{{"match":{{"op":"==","left":{left},"right":{right}}}}},{DROP}"#);
        let found = names(&input("accept", &[&rule]));
        assert_eq!(found.len(), drops, "{left} {right}: {found:?}");
        assert!(found.iter().all(|(.., certain)| *certain), "{left} {right}: {found:?}");
    }
}

#[test]
fn jumps_return_and_gotos_do_not() {
    let jump = r#"{"jump":{"target":"other"}}"#;
    let goto = r#"{"goto":{"target":"other"}}"#;
    let all = |first: &str, other: &str| {
        let chains = nft("ip", "input", "drop", &[first, ACCEPT], &[other]).chains;
        names(&chains).len()
    };
    assert_eq!(all(jump, r#"{"return":null}"#), 0, "back from the jump, and accepted");
    assert_eq!(all(goto, r#"{"return":null}"#), 5, "a goto ends at the policy");
    assert_eq!(all(jump, DROP), 5);
    assert_eq!(all(jump, jump), 0, "a circle ends");
}

#[test]
fn verdict_maps_are_rules() {
    let map = r#"{"vmap":{"key":{"payload":{"protocol":"udp","field":"dport"}},"data":{"set":[[69,{"drop":null}],[67,{"accept":null}]]}}}"#;
    assert_eq!(
        names(&input("accept", &[map])),
        [("TFTP", true, true), ("TFTP data", true, false)]
            .into_iter()
            .filter(|(name, ..)| *name == "TFTP")
            .collect::<Vec<_>>()
    );
}

#[test]
fn what_is_not_understood_is_a_doubt() {
    let limited = format!(r#"{DHCP},{{"limit":{{"rate":5,"per":"second"}}}},{ACCEPT}"#);
    let found = names(&input("drop", &[&limited]));
    assert_eq!(found[0], ("DHCP", true, false), "perhaps over the limit");
    let sometimes = format!(r#"{{"match":{{"op":"<","left":{{"numgen":{{}}}},"right":5}}}},{DROP}"#);
    assert!(names(&input("accept", &[&sometimes])).iter().all(|(.., certain)| !certain));
    let set = r#"{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":"@unseen"}},{"drop":null}"#;
    assert_eq!(names(&input("accept", &[set]))[0], ("DHCP", true, false));
    let opaque = nft("ip", "input", "accept", &[r#"{"xt":null},{"drop":null}"#], &[]);
    assert!(opaque.opaque);
    assert!(names(&opaque.chains).iter().all(|(.., certain)| !certain));
}

#[test]
fn other_hooks_and_families_are_seen_for_what_they_are() {
    assert_eq!(names(&nft("ip", "forward", "drop", &[], &[]).chains), [], "nothing of ours is forwarded");
    assert_eq!(names(&nft("ip6", "input", "drop", &[], &[]).chains), []);
    let out = names(&nft("ip", "output", "drop", &[], &[]).chains);
    assert_eq!(out, [("DHCP", false, true), ("TFTP data", false, true), ("HTTP", false, true)]);
    let device = |name: &str| {
        let rule = format!(
            r#"{{"match":{{"op":"==","left":{{"meta":{{"key":"iifname"}}}},"right":"{name}"}}}},{DROP}"#
        );
        names(&nft("bridge", "input", "accept", &[&rule], &[]).chains)
    };
    assert_eq!(device("br0"), [], "frames are on a port");
    assert!(device("tap0").iter().all(|(.., certain)| !certain) && !device("tap0").is_empty());
    assert!(device("tap*").iter().all(|(.., certain)| *certain));
}

#[test]
fn iptables_rules_are_read() {
    let saved = "# Generated\n*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:ours - [0:0]\n\
        -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A INPUT -i br+ -p udp -m multiport --dports 67,69 -m comment --comment \"two words\" -j ours\n\
        -A INPUT ! -i br0 -j ACCEPT\n\
        -A INPUT -p tcp -m tcp --dport 80 -s 10.0.0.0/8 -j ACCEPT\n\
        -A INPUT -p udp --dport 4011 -m recent --set -j ACCEPT\n\
        -A ours -p udp -m udp --dport 67:68 -j LOG --log-prefix \"dhcp \"\n\
        -A ours -j ACCEPT\nCOMMIT\n\
        *nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i br0 -p udp --dport 69 -j DNAT --to-destination 10.0.0.1\nCOMMIT\n";
    assert_eq!(names(&iptables::parse(saved)), [("PXE", true, false), ("HTTP", true, true)]);
    let rule = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i br0 -p udp --dport 67 -j DROP\nCOMMIT\n";
    let found = dropped(&iptables::parse(rule));
    assert_eq!(found.len(), 1);
    assert!(found[0].3.contains("`-t raw -A PREROUTING -i br0"), "{found:?}");
    assert_eq!(iptables::parse("nonsense\n-A nowhere -j DROP\n*\n:\n"), []);
}
