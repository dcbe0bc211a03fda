//! Tinkerbell: Hardware documents (`tinkerbell.org/v1alpha1`), one after the other or in a List.

use serde::Deserialize;

use super::document::{At, plain_json, read};
use super::{Draft, RosterEntry, RosterError, RosterPort, label, parse_address, parse_mac};

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    metadata: Option<Metadata>,
    #[serde(default)]
    spec: Option<At<Spec>>,
    #[serde(default)]
    items: Vec<Document>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Spec {
    #[serde(default)]
    interfaces: Vec<At<Interface>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    dhcp: Option<Dhcp>,
}

#[derive(Clone, Debug, Deserialize)]
struct Dhcp {
    mac: String,
    #[serde(default)]
    ip: Option<Ip>,
}

#[derive(Clone, Debug, Deserialize)]
struct Ip {
    #[serde(default)]
    address: Option<String>,
}

pub(super) fn parse(text: &str, draft: &mut Draft) -> Result<(), RosterError> {
    let is_json = text.trim_start().starts_with('{');
    let documents: Vec<Option<Document>> = if is_json { read(&plain_json(text))? } else { read(text)? };
    documents.iter().flatten().try_for_each(|document| take(document, draft))
}

fn take(document: &Document, draft: &mut Draft) -> Result<(), RosterError> {
    document.items.iter().try_for_each(|inner| take(inner, draft))?;
    let Some(spec) = document.spec.as_ref().filter(|_| document.kind.as_deref() == Some("Hardware")) else {
        return Ok(());
    };
    let line = spec.line();
    let name = document.metadata.as_ref().and_then(|metadata| metadata.name.as_deref());
    let name = draft.name(line, name.unwrap_or_default())?;
    let mut ports = Vec::new();
    for interface in &spec.value().interfaces {
        let line = interface.line();
        let Some(dhcp) = &interface.value().dhcp else { continue };
        let address = dhcp.ip.as_ref().and_then(|ip| ip.address.as_deref());
        let address = address.map(|text| parse_address(line, text)).transpose()?;
        ports.push(RosterPort { mac: parse_mac(line, &dhcp.mac)?, address });
    }
    draft.add(line, name, ports)
}

pub(super) fn emit(entries: &[RosterEntry]) -> String {
    let mut text = String::new();
    for entry in entries {
        let name = label(entry);
        text.push_str("---\napiVersion: tinkerbell.org/v1alpha1\nkind: Hardware\nmetadata:\n");
        text.push_str(&format!("  name: \"{name}\"\nspec:\n  interfaces:\n"));
        for port in &entry.ports {
            // Quoted: bare, some MACs are numbers to base 60.
            text.push_str(&format!(
                "    - dhcp:\n        mac: \"{}\"\n        hostname: \"{name}\"\n",
                port.mac
            ));
            if let Some(address) = port.address {
                text.push_str(&format!("        ip:\n          address: \"{address}\"\n"));
            }
            text.push_str("      netboot:\n        allowPXE: true\n");
        }
    }
    text
}
