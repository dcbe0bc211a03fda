//! The bridge's ports: whether they let machines through, and who finishes checksums.

use crate::doctor::facts::{BridgeFact, LinkFact};
use crate::doctor::{Check, Finding, Mend};

/// A bridge without ports, or with dark ones, is a warning: that is how it looks before a virtual machine starts and brings
/// its port with it, and before a real one is switched on. Ports that are there and let nothing pass are another matter:
/// no machine that is switched on changes that.
pub(super) fn passing(name: &str, bridge: BridgeFact, ports: &[&LinkFact]) -> Finding {
    if ports.is_empty() {
        let advice = format!(
            "ip link set PORT master {name} up, with the port your machines are on; virtual machines bring theirs with them"
        );
        return Finding::warning(
            Check::BridgePorts,
            name,
            "the bridge has no port",
            "no machine can reach it until one is attached",
        )
        .mended_by([Mend::advice(advice)]);
    }
    let severe = |all: bool| if all { Finding::would_not_boot } else { Finding::warning };
    let down: Vec<&str> = ports.iter().filter(|port| !port.up).map(|port| port.name.as_str()).collect();
    if !down.is_empty() {
        let what = format!("down: {}", down.join(", "));
        return severe(down.len() == ports.len())(
            Check::BridgePorts,
            name.to_owned(),
            what,
            "machines behind them are not heard",
        )
        .mended_by(down.iter().map(|port| Mend::safe(&["ip", "link", "set", port, "up"])));
    }
    let silent: Vec<(&str, &str)> = ports
        .iter()
        .filter(|port| port.carrier)
        .filter_map(|port| Some((port.name.as_str(), port.port_state.as_deref()?)))
        .filter(|(_, state)| *state != "forwarding")
        .collect();
    if !silent.is_empty() {
        let told: Vec<String> = silent.iter().map(|(port, state)| format!("{port} is {state}")).collect();
        let what = format!("not forwarding: {}", told.join(", "));
        let why = "machines behind them are not heard until they forward";
        // Those that listen or learn will forward by themselves.
        let stopped = silent.iter().filter(|(_, state)| matches!(*state, "blocking" | "disabled")).count();
        let live = ports.iter().filter(|port| port.carrier).count();
        return severe(stopped == live)(Check::BridgePorts, name.to_owned(), what, why)
            .mended_by(forwarding_mends(name, bridge, &silent));
    }
    if !ports.iter().any(|port| port.carrier) {
        let what = format!("nothing is plugged in or powered on behind {}", list(ports));
        let advice = "plug in the cable of a machine that has power, or start the virtual machine";
        return Finding::warning(Check::BridgePorts, name, what, "no machine can reach the bridge yet")
            .mended_by([Mend::advice(advice)]);
    }
    Finding::ok(Check::BridgePorts, name, format!("forwarding: {}", list(ports)))
}

/// Without spanning tree the state is what somebody set; with it, what prevents a loop.
fn forwarding_mends(name: &str, bridge: BridgeFact, silent: &[(&str, &str)]) -> Vec<Mend> {
    if bridge.spanning_tree {
        return vec![Mend::advice(format!(
            "wait until spanning tree lets them pass; one that stays blocked closes a loop: take that cable out, or where \
             no loop is possible: ip link set {name} type bridge stp_state 0"
        ))];
    }
    /// `BR_STATE_FORWARDING` (linux/if_bridge.h).
    const FORWARDING: &str = "3";
    silent
        .iter()
        .map(|(port, _)| Mend::safe(&["bridge", "link", "set", "dev", port, "state", FORWARDING]))
        .collect()
}

/// The end of a virtual machine's or container's cable.
pub(super) fn is_virtual_end(port: &LinkFact) -> bool {
    matches!(port.kind.as_str(), "tun" | "veth")
}

fn list(ports: &[&LinkFact]) -> String {
    /// A rack of virtual machines fills no screen.
    const SHOWN: usize = 6;
    let names: Vec<&str> = ports.iter().take(SHOWN).map(|port| port.name.as_str()).collect();
    let more = ports.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

pub(super) fn checksums(name: &str, ports: &[&LinkFact]) -> Finding {
    let leaving: Vec<&LinkFact> = ports
        .iter()
        .copied()
        .filter(|port| is_virtual_end(port) && port.checksum_offload == Some(true))
        .collect();
    if leaving.is_empty() {
        return Finding::ok(Check::Checksums, name, "packets leave the bridge with whole checksums");
    }
    Finding::warning(
        Check::Checksums,
        name,
        format!("checksums are left to {}, which have no hardware to finish them", list(&leaving)),
        "firmware behind them may drop what farrier's TFTP and HTTP send as damaged; DHCP is sent whole",
    )
    .mended_by(leaving.iter().map(|port| Mend::ChecksumsBySoftware { port: port.name.clone() }))
}
