//! dnsmasq: `dhcp-host=` lines, wherever they stand in its configuration.
//!
//! `dhcp-host=[<MAC>…][,id:<id>][,set:<tag>][,tag:<tag>][,<IPv4>][,[<IPv6>]][,<name>][,<lease time>][,ignore]`, as
//! its manual has it; the parts are told apart by their shape.

use super::{Draft, RosterEntry, RosterError, RosterPort, inert, label};
use crate::net::MacAddr;

pub(super) fn parse(text: &str, draft: &mut Draft) -> Result<(), RosterError> {
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.split_once('#').map_or(line, |(before, _)| before).trim();
        let option = line.strip_prefix("--").unwrap_or(line);
        let Some(rest) = option.strip_prefix("dhcp-host") else { continue };
        let Some(value) = rest.trim_start().strip_prefix('=') else { continue };
        read_host(number, value, draft)?;
    }
    Ok(())
}

fn read_host(line: usize, value: &str, draft: &mut Draft) -> Result<(), RosterError> {
    let (mut macs, mut address, mut name) = (Vec::new(), None, None);
    for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if let Some(mac) = hardware(part) {
            macs.push(mac);
        } else if part == "ignore" {
            draft.note(line, "left out: dnsmasq ignores this host, and so would be registering it");
            return Ok(());
        } else if part.starts_with("id:") {
            draft.note(line, format!("{}: nodes are told apart by MAC, not by client id", inert(part)));
        } else if part.starts_with("set:") || part.starts_with("tag:") || part.starts_with("net:") {
            draft.note(line, format!("{}: there are no tags here", inert(part)));
        } else if part.starts_with('[') {
            draft.note(line, format!("{}: IPv6 addresses are not given out", inert(part)));
        } else if let Ok(parsed) = part.parse() {
            address = Some(parsed);
        } else if is_lease_time(part) {
            draft
                .note(line, format!("lease time {part}: dhcp.lease_time of the configuration holds for all"));
        } else if part.contains('*') {
            draft.note(line, format!("left out: {} stands for many machines", inert(part)));
            return Ok(());
        } else {
            name = draft.name(line, part)?;
        }
    }
    if macs.is_empty() {
        draft.note(line, "left out: it names no MAC address");
        return Ok(());
    }
    // One address for all of its MACs means: whichever of them is plugged in. The first one gets it here.
    if macs.len() > 1 && address.is_some() {
        draft.note(line, "its address is kept for the first of its MACs");
    }
    let ports = macs.into_iter().enumerate();
    let ports =
        ports.map(|(index, mac)| RosterPort { mac, address: address.filter(|_| index == 0) }).collect();
    draft.add(line, name, ports)
}

/// A MAC, with the hardware type in front that dnsmasq allows (`06-52:54:…`; only Ethernet is ours).
fn hardware(part: &str) -> Option<MacAddr> {
    let mac = part.strip_prefix("01-").filter(|rest| rest.contains(':')).unwrap_or(part);
    // Twelve digits without separators are a name to dnsmasq.
    mac.parse().ok().filter(|_| mac.len() == 17)
}

fn is_lease_time(part: &str) -> bool {
    let digits = part.strip_suffix(['s', 'm', 'h', 'd', 'w']).unwrap_or(part);
    part == "infinite" || (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(super) fn emit(entries: &[RosterEntry]) -> String {
    let mut text = String::new();
    for entry in entries {
        for port in &entry.ports {
            let address = port.address.map_or_else(String::new, |address| format!(",{address}"));
            let name = if entry.name.is_some() { format!(",{}", label(entry)) } else { String::new() };
            text.push_str(&format!("dhcp-host={}{address}{name}\n", port.mac));
        }
    }
    text
}
