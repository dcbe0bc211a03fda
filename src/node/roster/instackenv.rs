//! TripleO's instackenv.json: `nodes` with `mac` lists, or `ports` as newer releases write them. Power management
//! is not ours to do, and its passwords are not ours to keep.

use serde::Deserialize;

use super::document::{At, plain_json, read};
use super::{Draft, RosterEntry, RosterError, RosterPort, label, parse_mac};

#[derive(Deserialize)]
struct File {
    nodes: Vec<At<Entry>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    mac: Vec<String>,
    #[serde(default)]
    ports: Vec<Port>,
    #[serde(default)]
    pm_addr: Option<String>,
    #[serde(default)]
    pm_password: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Port {
    address: String,
}

pub(super) fn parse(text: &str, draft: &mut Draft) -> Result<(), RosterError> {
    let files: Vec<File> = read(&plain_json(text))?;
    for entry in files.iter().flat_map(|file| &file.nodes) {
        let line = entry.line();
        let entry = entry.value();
        if entry.pm_addr.is_some() || entry.pm_password.is_some() {
            draft.note(line, "its power management (pm_…) is not taken over");
        }
        let name = draft.name(line, entry.name.as_deref().unwrap_or_default())?;
        let macs = entry.mac.iter().chain(entry.ports.iter().map(|port| &port.address));
        let mut ports = Vec::new();
        for mac in macs {
            ports.push(RosterPort { mac: parse_mac(line, mac)?, address: None });
        }
        draft.add(line, name, ports)?;
    }
    Ok(())
}

pub(super) fn emit(entries: &[RosterEntry]) -> String {
    let node = |entry: &RosterEntry| {
        let macs: Vec<_> = entry.ports.iter().map(|port| port.mac).collect();
        let mut node = serde_json::json!({ "mac": macs, "pm_type": "manual-management" });
        if entry.name.is_some() {
            node["name"] = label(entry).into();
        }
        node
    };
    let nodes: Vec<_> = entries.iter().map(node).collect();
    format!("{:#}\n", serde_json::json!({ "nodes": nodes }))
}
