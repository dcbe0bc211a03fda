//! What the firewall does to a boot, and the narrowest rule that lets it through.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::doctor::facts::Facts;
use crate::doctor::firewall::{Chain, Family, Fate, Tool, Traffic, obstacles, of_a_boot};
use crate::doctor::{Check, Finding, Mend};

/// A chain in the way, and all it is in the way of.
struct Block<'a> {
    chain: &'a Chain,
    rules: Vec<String>,
    certain: bool,
    stopped: Vec<Traffic>,
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let name = &facts.wanted.bridge;
    let ports: Vec<String> = match &facts.links {
        Ok(links) => links
            .iter()
            .filter(|link| link.master.as_ref() == Some(name))
            .map(|link| link.name.clone())
            .collect(),
        Err(_) => Vec::new(),
    };
    let client: Ipv4Addr = facts.wanted.pool.first;
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for traffic in of_a_boot(name, &ports, facts.wanted.address.ip(), client) {
        for obstacle in obstacles(&facts.firewall.chains, &traffic) {
            let (rule, certain) = match obstacle.fate {
                Fate::Passes => continue,
                Fate::Dropped(rule) => (rule, true),
                Fate::Perhaps(rule) => (rule, false),
            };
            let same = |block: &&mut Block<'_>| {
                std::ptr::eq(block.chain, obstacle.chain) && block.certain == certain
            };
            match blocks.iter_mut().find(same) {
                Some(block) => {
                    block.stopped.push(traffic.clone());
                    if !block.rules.contains(&rule) {
                        block.rules.push(rule);
                    }
                }
                None => blocks.push(Block {
                    chain: obstacle.chain,
                    rules: vec![rule],
                    certain,
                    stopped: vec![traffic.clone()],
                }),
            }
        }
    }
    let mut findings: Vec<Finding> = blocks.iter().map(|block| finding(block, name)).collect();
    for unread in &facts.firewall.unread {
        let what = format!("not all rules could be read: {unread}");
        let why = "a rule that drops DHCP, TFTP or HTTP would not be noticed here";
        let advice = "as root, with nftables and iptables installed, ask again; or look yourself: `nft list ruleset`, \
                      `iptables-save`";
        findings
            .push(Finding::warning(Check::Firewall, "rules", what, why).mended_by([Mend::advice(advice)]));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(Check::Firewall, name, "DHCP, PXE, TFTP and HTTP pass"));
    }
    findings
}

fn finding(block: &Block<'_>, bridge: &str) -> Finding {
    let names: BTreeSet<&str> = block.stopped.iter().map(|traffic| traffic.name).collect();
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    let direction = if block.stopped.iter().all(|traffic| traffic.incoming) { "to" } else { "from" };
    let rules = block.rules.join("; ");
    let subject = format!("{} {}", block.chain.table, block.chain.name);
    let mends = mends(block, bridge);
    // Port 4011 is asked by few, and only by firmware that was sent there.
    let only_pxe = block.stopped.iter().all(|traffic| traffic.name == "PXE");
    let finding = match (block.certain, only_pxe) {
        (true, false) => Finding::would_not_boot(
            Check::Firewall,
            subject,
            format!("{names} {direction} us: dropped by {rules}"),
            "what is dropped is never answered: the machine asks until it gives up",
        ),
        (true, true) => Finding::warning(
            Check::Firewall,
            subject,
            format!("{names} {direction} us: dropped by {rules}"),
            "old firmware that asks on port 4011 after DHCP gets no loader",
        ),
        (false, _) => Finding::warning(
            Check::Firewall,
            subject,
            format!("{names} {direction} us: perhaps dropped by {rules}"),
            "whether that rule concerns a boot cannot be seen from outside",
        ),
    };
    finding.mended_by(mends)
}

/// A rule in front of the others that lets just this through, for just this bridge.
fn mends(block: &Block<'_>, bridge: &str) -> Vec<Mend> {
    let mut mends = Vec::new();
    for incoming in [true, false] {
        for protocol in ["udp", "tcp"] {
            let stopped: Vec<&Traffic> = block
                .stopped
                .iter()
                .filter(|traffic| traffic.incoming == incoming && traffic.protocol == protocol)
                .collect();
            let ports: BTreeSet<u16> = stopped.iter().filter_map(|traffic| traffic.service_port()).collect();
            if !ports.is_empty() {
                mends.push(accept(block.chain, bridge, incoming, protocol, Some(&ports)));
            }
            if stopped.iter().any(|traffic| traffic.service_port().is_none()) {
                mends.push(accept(block.chain, bridge, incoming, protocol, None));
            }
        }
    }
    mends
}

/// `ports` of ours, or whatever belongs to a transfer under way.
fn accept(
    chain: &Chain,
    bridge: &str,
    incoming: bool,
    protocol: &str,
    ports: Option<&BTreeSet<u16>>,
) -> Mend {
    let list = |separator| {
        let ports: Vec<String> = ports.into_iter().flatten().map(u16::to_string).collect();
        ports.join(separator)
    };
    let own = if incoming { "dport" } else { "sport" };
    match chain.tool {
        Tool::Nft => {
            // Rules for frames do not know the bridge by that word, and those of one device are that device's.
            let (device, safe) = match chain.family {
                Family::Ip | Family::Inet => (if incoming { "iifname" } else { "oifname" }, true),
                Family::Bridge => (if incoming { "ibrname" } else { "obrname" }, false),
                Family::Netdev => ("", false),
            };
            let mut words = vec!["nft", "insert", "rule", chain.family.as_str(), &chain.table, &chain.name];
            if !device.is_empty() {
                words.extend([device, bridge]);
            }
            let set = format!("{{ {} }}", list(", "));
            match (ports, incoming) {
                (Some(_), _) => words.extend([protocol, own, &set]),
                (None, true) => words.extend(["meta", "l4proto", protocol, "ct", "state", "established"]),
                (None, false) => words.extend(["meta", "l4proto", protocol]),
            }
            words.push("accept");
            if safe { Mend::safe(&words) } else { Mend::command(&words) }
        }
        Tool::Iptables => {
            let device = if incoming { "-i" } else { "-o" };
            let flag = format!("--{own}s");
            let ports_listed = list(",");
            let mut words =
                vec!["iptables", "-t", &chain.table, "-I", &chain.name, device, bridge, "-p", protocol];
            match (ports, incoming) {
                (Some(_), _) => words.extend(["-m", "multiport", &flag, &ports_listed]),
                (None, true) => words.extend(["-m", "conntrack", "--ctstate", "ESTABLISHED"]),
                (None, false) => {}
            }
            words.extend(["-j", "ACCEPT"]);
            Mend::safe(&words)
        }
    }
}
