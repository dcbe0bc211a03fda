//! Our own documents: a list of nodes as the API answers it, or as little of that as is needed.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::document::{At, plain_json, read};
use super::{Draft, RosterEntry, RosterError, RosterPort, parse_address, parse_mac};
use crate::node::labels::{LabelError, Labels};

/// `farrier node list --json` and pages of the API.
#[derive(Deserialize)]
struct Items {
    #[serde(alias = "nodes")]
    items: Vec<At<Entry>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    name: Option<String>,
    ports: Vec<Port>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Port {
    mac: String,
    /// What is to be kept for it, in a request …
    #[serde(default)]
    address: Option<String>,
    /// … and what is kept for it, in an answer, whose `address` is the one it holds at the moment.
    #[serde(default, deserialize_with = "present")]
    reserved: Option<Option<String>>,
}

/// `null` that is there differs from nothing at all.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

pub(super) fn parse(text: &str, draft: &mut Draft) -> Result<(), RosterError> {
    let plain = plain_json(text);
    for entry in entries(&plain)? {
        let line = entry.line();
        let entry = entry.value();
        let name = draft.name(line, entry.name.as_deref().unwrap_or_default())?;
        let mut ports = Vec::with_capacity(entry.ports.len());
        for port in &entry.ports {
            let kept = port.reserved.clone().unwrap_or_else(|| port.address.clone());
            let address = kept.map(|text| parse_address(line, &text)).transpose()?;
            ports.push(RosterPort { mac: parse_mac(line, &port.mac)?, address });
        }
        let label = |(key, value): (&String, &String)| Ok((key.parse()?, value.parse()?));
        let labels = entry.labels.iter().map(label).collect::<Result<Labels, LabelError>>();
        let labels = labels.map_err(|error| RosterError::at(line, error))?;
        draft.add_labelled(line, name, ports, labels)?;
    }
    Ok(())
}

/// Told apart by its first character, since guessing by trial would lose the lines.
fn entries(text: &str) -> Result<Vec<At<Entry>>, RosterError> {
    if text.trim_start().starts_with('[') {
        Ok(read::<Vec<At<Entry>>>(text)?.into_iter().flatten().collect())
    } else {
        Ok(read::<Items>(text)?.into_iter().flat_map(|items| items.items).collect())
    }
}

pub(super) fn emit(entries: &[RosterEntry]) -> String {
    let port = |port: &RosterPort| match port.address {
        Some(address) => serde_json::json!({ "mac": port.mac, "address": address }),
        None => serde_json::json!({ "mac": port.mac }),
    };
    let node = |entry: &RosterEntry| {
        let ports: Vec<_> = entry.ports.iter().map(port).collect();
        let mut node = serde_json::Map::new();
        node.extend(entry.name.as_ref().map(|name| ("name".to_owned(), name.to_string().into())));
        node.insert("ports".to_owned(), ports.into());
        let labels: serde_json::Map<_, _> =
            entry.labels.iter().map(|(key, value)| (key.to_string(), value.to_string().into())).collect();
        if !labels.is_empty() {
            node.insert("labels".to_owned(), labels.into());
        }
        serde_json::Value::from(node)
    };
    let list: Vec<_> = entries.iter().map(node).collect();
    format!("{:#}\n", serde_json::Value::from(list))
}
