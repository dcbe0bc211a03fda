//! The bridge, its address, and what lies behind it.

use std::time::Duration;

use super::ports::{self, is_virtual_end};
use crate::doctor::facts::{BridgeFact, Facts, LinkFact, Refusal};
use crate::doctor::{Check, Finding, Mend, Severity};
use crate::net::hazards::Hazard;

/// A port that comes up listens that long, and then learns that long again.
const PHASES: u32 = 2;
/// The kernel refuses a shorter one while spanning tree runs.
const FORWARD_DELAY_MIN: Duration = Duration::from_secs(2);
/// Firmware gives up after some 30 s in all, and every link reset (firmware, loader, kernel) starts the delay anew.
/// What the kernel's shortest delay costs is bearable.
const SILENCE_BEARABLE: Duration = Duration::from_secs(4);

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let name = &facts.wanted.bridge;
    let links = match &facts.links {
        Ok(links) => links,
        Err(error) => {
            let what = format!("the links of this machine cannot be read: {error}");
            let finding = Finding::would_not_boot(
                Check::Bridge,
                name,
                what,
                "whether the bridge is there is not known",
            );
            return vec![finding.mended_by([Mend::command(&["apt-get", "install", "iproute2"])])];
        }
    };
    let Some(link) = links.iter().find(|link| link.name == *name) else { return vec![missing(facts)] };
    let mut findings = vec![up(link), address(facts, link, links)];
    // A plain interface, where `network.allow` names it, has no ports and no spanning tree: what it is plugged into may.
    let ports: Vec<&LinkFact> = match link.bridge {
        Some(_) => links.iter().filter(|port| port.master.as_deref() == Some(name.as_str())).collect(),
        None => vec![link],
    };
    match link.bridge {
        Some(bridge) => findings.extend([
            spanning_tree(name, bridge, &ports),
            ports::passing(name, bridge, &ports),
            ports::checksums(name, &ports),
            bridge_netfilter(facts, bridge),
        ]),
        None if facts.wanted.allowed.permits(Hazard::NotABridge) => {}
        None => return vec![no_bridge(name)],
    }
    findings.extend(shared_network(facts, &ports));
    findings.extend(nested(facts, &ports, links));
    // Whatever it is, what `serve` refuses boots nobody.
    let told = findings.iter().any(|finding| finding.severity == Severity::WouldNotBoot);
    findings.extend(facts.refused.as_ref().filter(|_| !told).map(|refusal| refused(name, refusal)));
    findings
}

fn no_bridge(name: &str) -> Finding {
    let what = format!("{name} is there and is no bridge");
    let why = "farrier serves a bridge and nothing else";
    let advice = format!(
        "name a bridge as network.bridge, and make {name} a port of it; or write allow = [\"{}\"] under [network]",
        Hazard::NotABridge.as_str()
    );
    Finding::would_not_boot(Check::Bridge, name, what, why).mended_by([Mend::advice(advice)])
}

/// In the words of `serve`, which name the way out.
fn refused(name: &str, refusal: &Refusal) -> Finding {
    let what = match refusal {
        Refusal::Hazard(Hazard::NotABridge, _) => return no_bridge(name),
        Refusal::Hazard(hazard, about) => format!("{name} is refused: {} ({about})", hazard.as_str()),
        Refusal::Other(reason) => reason.clone(),
    };
    let advice =
        format!("once that is mended: farrier config check --bridge, which looks at {name} as serve does");
    Finding::would_not_boot(Check::Bridge, name, what, "farrier serve does not start on it")
        .mended_by([Mend::advice(advice)])
}

fn missing(facts: &Facts) -> Finding {
    let (name, address) = (&facts.wanted.bridge, facts.wanted.address.to_string());
    let what = format!("there is no interface {name}");
    Finding::would_not_boot(
        Check::Bridge,
        name,
        what,
        "farrier serves this bridge and does not start without it",
    )
    .mended_by([
        Mend::safe(&["ip", "link", "add", name, "type", "bridge", "forward_delay", "0", "stp_state", "0"]),
        Mend::safe(&["ip", "addr", "add", &address, "dev", name]),
        Mend::safe(&["ip", "link", "set", name, "up"]),
        Mend::advice(format!("attach the port your machines are on: ip link set PORT master {name} up")),
    ])
}

fn up(link: &LinkFact) -> Finding {
    let name = &link.name;
    if link.up {
        return Finding::ok(Check::Bridge, name, "it is there, a bridge, and up");
    }
    Finding::would_not_boot(Check::Bridge, name, "the bridge is down", "nothing passes it")
        .mended_by([Mend::safe(&["ip", "link", "set", name, "up"])])
}

fn address(facts: &Facts, link: &LinkFact, links: &[LinkFact]) -> Finding {
    let (name, wanted) = (&link.name, facts.wanted.address);
    if !link.addresses.contains(&wanted) {
        let present: Vec<String> = link.addresses.iter().map(ToString::to_string).collect();
        let present = if present.is_empty() { "no address".to_owned() } else { present.join(", ") };
        let what = format!("{name} carries {present}, and {wanted} is configured");
        let why = "farrier does not start without its address, and machines are told to fetch from it";
        return Finding::would_not_boot(Check::Address, name, what, why).mended_by([Mend::safe(&[
            "ip",
            "addr",
            "add",
            &wanted.to_string(),
            "dev",
            name,
        ])]);
    }
    let elsewhere = links.iter().filter(|other| other.name != *name).find(|other| {
        other.addresses.iter().any(|theirs| theirs.contains(wanted.ip()) || wanted.contains(theirs.ip()))
    });
    match elsewhere {
        Some(other) => Finding::warning(
            Check::Address,
            &other.name,
            format!("{} has an address in the bridge's subnet, {wanted}, as well", other.name),
            "answers to machines on the bridge may leave by it instead",
        )
        .mended_by([Mend::advice(format!("give {} or the bridge another subnet", other.name))]),
        None => Finding::ok(Check::Address, name, format!("it carries {wanted}")),
    }
}

fn spanning_tree(name: &str, bridge: BridgeFact, ports: &[&LinkFact]) -> Finding {
    let silence = bridge.forward_delay * PHASES;
    if !bridge.spanning_tree || silence.is_zero() {
        return Finding::ok(Check::SpanningTree, name, "a port forwards at once");
    }
    let what = format!("spanning tree keeps a port silent for {} s after it comes up", silence.as_secs());
    let why = "firmware, loader and kernel each reset the link, and give up before the port forwards";
    if silence > SILENCE_BEARABLE {
        return Finding::would_not_boot(Check::SpanningTree, name, what, why).mended_by(spanning_tree_mends(
            name,
            bridge.forward_delay,
            ports,
        ));
    }
    Finding::warning(
        Check::SpanningTree,
        name,
        what,
        "each link reset costs that much; firmware still comes through",
    )
    .mended_by(spanning_tree_mends(name, bridge.forward_delay, ports))
}

/// One cable cannot make a loop; with more of them spanning tree may be what prevents one, and is only hurried.
fn spanning_tree_mends(name: &str, forward_delay: Duration, ports: &[&LinkFact]) -> Vec<Mend> {
    let cables = ports.iter().filter(|port| !is_virtual_end(port)).count();
    let set = ["ip", "link", "set", name, "type", "bridge"];
    if cables <= 1 {
        return vec![
            Mend::safe(&[set.as_slice(), &["stp_state", "0"]].concat()),
            Mend::safe(&[set.as_slice(), &["forward_delay", "0"]].concat()),
        ];
    }
    let hundredths = (FORWARD_DELAY_MIN.as_millis() / 10).to_string();
    let hurried = Mend::safe(&[set.as_slice(), &["forward_delay", &hundredths]].concat());
    let ended =
        Mend::advice(format!("where no loop is possible: ip link set {name} type bridge stp_state 0"));
    if forward_delay > FORWARD_DELAY_MIN { vec![hurried, ended] } else { vec![ended] }
}

fn bridge_netfilter(facts: &Facts, bridge: BridgeFact) -> Finding {
    let name = &facts.wanted.bridge;
    let why =
        "what one port sends to another passes the host's FORWARD rules, which often drop it (Docker's do)";
    if facts.bridge_netfilter == Some(true) {
        // The setting is the host's: other bridges may depend on it.
        return Finding::warning(
            Check::BridgeNetfilter,
            "bridge-nf-call-iptables",
            "the host's iptables rules are applied to frames within every bridge",
            why,
        )
        .mended_by([Mend::command(&["sysctl", "-w", "net.bridge.bridge-nf-call-iptables=0"])]);
    }
    if bridge.calls_iptables {
        return Finding::warning(
            Check::BridgeNetfilter,
            name,
            "the host's iptables rules are applied to frames within this bridge",
            why,
        )
        .mended_by([Mend::safe(&[
            "ip",
            "link",
            "set",
            name,
            "type",
            "bridge",
            "nf_call_iptables",
            "0",
        ])]);
    }
    Finding::ok(Check::BridgeNetfilter, name, "frames within the bridge pass no iptables rules")
}

fn shared_network(facts: &Facts, ports: &[&LinkFact]) -> Vec<Finding> {
    let name = &facts.wanted.bridge;
    let mut findings = Vec::new();
    let lifted = |hazard: Hazard| format!("allow = [\"{}\"] under [network]", hazard.as_str());
    const SITE: &str =
        "that network usually has a DHCP server already, and machines that are none of ours get answers";
    const APART: &str = "serve a bridge of its own, with the machines' ports and nothing else";
    match &facts.refused {
        Some(Refusal::Hazard(Hazard::DefaultRoute, route)) => {
            let what =
                format!("the host's default route ({route}) leaves by this bridge, and serve refuses it");
            let lift = lifted(Hazard::DefaultRoute);
            let advice = format!("{APART}; or write {lift}, if they are meant to be on that network");
            findings.push(
                Finding::would_not_boot(Check::SharedNetwork, name, what, SITE)
                    .mended_by([Mend::advice(advice)]),
            );
        }
        // Allowed; or learned from a router's advertisement, which decides nothing.
        _ if facts.default_routes.contains(name) => {
            let what = "a default route leaves by this bridge: it is a part of the site's network";
            let finding = Finding::warning(Check::SharedNetwork, name, what, SITE);
            findings.push(finding.mended_by([Mend::advice(APART)]));
        }
        _ => {}
    }
    let allowed = facts.wanted.allowed.permits(Hazard::Wireless);
    for port in ports.iter().filter(|port| port.wireless) {
        let what = format!("{} is wireless", port.name);
        let why = "an access point drops frames of machines that did not log in to it themselves";
        let finding = if allowed { Finding::warning } else { Finding::would_not_boot };
        let finding = finding(Check::SharedNetwork, port.name.clone(), what, why);
        findings.push(match (allowed, port.master.is_some()) {
            (true, _) => finding.mended_by([Mend::advice("use a cable")]),
            (false, true) => finding.mended_by([
                Mend::command(&["ip", "link", "set", &port.name, "nomaster"]),
                Mend::advice(format!("or write {}", lifted(Hazard::Wireless))),
            ]),
            (false, false) => {
                let advice = format!("use a cable, or write {}", lifted(Hazard::Wireless));
                finding.mended_by([Mend::advice(advice)])
            }
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(Check::SharedNetwork, name, "the bridge is the machines' own"));
    }
    findings
}

/// Products whose virtual network cards drop frames of other MACs, and how they are told not to.
const CHOOSY: [(&str, &str); 3] = [
    ("VirtualBox", "on the host: VBoxManage modifyvm THIS-VM --nicpromisc1 allow-all"),
    ("VMware", "allow promiscuous mode and forged transmits on the port group"),
    ("Virtual Machine", "on the host: Set-VMNetworkAdapter -VMName THIS-VM -MacAddressSpoofing On"),
];

fn nested(facts: &Facts, ports: &[&LinkFact], links: &[LinkFact]) -> Vec<Finding> {
    let name = &facts.wanted.bridge;
    let mut findings = Vec::new();
    let card = ports.iter().find(|port| port.kind.is_empty());
    let choosy = facts.product.as_deref().and_then(|product| {
        CHOOSY.iter().find(|(word, _)| product.contains(word)).map(|(_, advice)| (product, *advice))
    });
    if let (Some(card), Some((product, advice))) = (card, choosy) {
        findings.push(
            Finding::warning(
                Check::Nested,
                &card.name,
                format!("this is a virtual machine ({product}), and port {} its network card", card.name),
                "unless told otherwise it drops frames to and from MACs that are not its own",
            )
            .mended_by([Mend::advice(advice)]),
        );
    }
    for port in ports {
        let peer = port.peer.as_deref().and_then(|peer| links.iter().find(|link| link.name == peer));
        let outer = peer.and_then(|peer| peer.master.as_deref());
        let outer = outer.and_then(|outer| links.iter().find(|link| link.name == outer));
        let Some((outer, beyond)) = outer.and_then(|outer| Some((outer, outer.bridge?))) else { continue };
        let silence = if beyond.spanning_tree { beyond.forward_delay * PHASES } else { Duration::ZERO };
        let what = format!("port {} leads to another bridge, {}", port.name, outer.name);
        let (why, mends) = match silence.is_zero() {
            true => (
                "what that bridge carries, other DHCP servers among it, is heard here",
                vec![Mend::advice(format!(
                    "if nothing there is meant for the machines, take it off: ip link set {} nomaster",
                    port.name
                ))],
            ),
            false => (
                "that bridge's spanning tree keeps its ports silent for longer than firmware asks",
                vec![Mend::command(&["ip", "link", "set", &outer.name, "type", "bridge", "stp_state", "0"])],
            ),
        };
        findings.push(Finding::warning(Check::Nested, &port.name, what, why).mended_by(mends));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(Check::Nested, name, "no other bridge or choosy hypervisor is in between"));
    }
    findings
}
