//! Lists of nodes as other programs write them, read into one shape and written back.
//!
//! Pure text in, entries out. Whatever is wrong is told with its line, and nothing of the file is used then; what
//! is right but not ours to keep (a power password, a reservation by client id) becomes a note. Hosts of the same
//! name are one node with several ports: that is how each of these formats writes a machine with two NICs.
//!
//! - `csv`: spreadsheets; `json`: our own documents
//! - `dnsmasq`: `dhcp-host=` lines; `dhcpd`: ISC host blocks; `kea`: reservations
//! - `instackenv`: TripleO's node list; `tinkerbell`: Hardware documents
//! - `document`: JSON and YAML with the line of every value

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::net::MacAddr;
use crate::node::labels::Labels;
use crate::node::registry::NODES_MAX;
use crate::node::{Node, NodeName, PORTS_MAX, Port};

mod csv;
mod dhcpd;
mod dnsmasq;
mod document;
mod instackenv;
mod json;
mod kea;
#[cfg(test)]
mod tests;
mod tinkerbell;

/// Entries one file may have: a registry holds no more nodes.
pub const ENTRIES_MAX: usize = NODES_MAX;

/// A machine of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterEntry {
    /// Where it begins, from 1.
    pub line: usize,
    pub name: Option<NodeName>,
    pub ports: Vec<RosterPort>,
    /// Set on the node; those the list does not name stay.
    pub labels: Labels,
}

impl From<&Node> for RosterEntry {
    fn from(node: &Node) -> RosterEntry {
        let port = |port: &Port| RosterPort { mac: port.mac, address: port.reserved };
        RosterEntry {
            line: 0,
            name: node.name.clone(),
            ports: node.ports.iter().map(port).collect(),
            labels: node.labels.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RosterPort {
    pub mac: MacAddr,
    /// An address to keep for it.
    pub address: Option<Ipv4Addr>,
}

/// Something of a line that was understood and left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Note {
    pub line: usize,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    pub format: Format,
    pub entries: Vec<RosterEntry>,
    pub notes: Vec<Note>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Comma, semicolon or tab separated, with a header: mac, name, address, labels
    Csv,
    /// Our own: `[{"name": …, "ports": [{"mac": …, "address": …}], "labels": {…}}]`
    Json,
    /// `dhcp-host=` lines of a dnsmasq configuration
    Dnsmasq,
    /// `host` blocks of ISC's dhcpd.conf
    Dhcpd,
    /// Reservations of a Kea configuration
    Kea,
    /// TripleO's instackenv.json
    Instackenv,
    /// Tinkerbell Hardware documents
    Tinkerbell,
}

impl Format {
    pub const ALL: [Format; 7] = [
        Format::Csv,
        Format::Json,
        Format::Dnsmasq,
        Format::Dhcpd,
        Format::Kea,
        Format::Instackenv,
        Format::Tinkerbell,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Format::Csv => "csv",
            Format::Json => "json",
            Format::Dnsmasq => "dnsmasq",
            Format::Dhcpd => "dhcpd",
            Format::Kea => "kea",
            Format::Instackenv => "instackenv",
            Format::Tinkerbell => "tinkerbell",
        }
    }

    /// What a text looks like; none of ours if it looks like nothing we read.
    pub fn guess(text: &str) -> Option<Format> {
        let text = text.trim_start_matches('\u{feff}');
        let begins = text.trim_start();
        let has = |word: &str| text.contains(word);
        if begins.starts_with('{') || begins.starts_with('[') || has("\"Dhcp4\"") {
            return Some(if has("\"Dhcp4\"") || has("\"reservations\"") || has("\"hw-address\"") {
                Format::Kea
            } else if has("\"pm_type\"") || has("\"pm_addr\"") || has("\"arch\"") {
                Format::Instackenv
            } else if has("\"tinkerbell.org") {
                Format::Tinkerbell
            } else {
                Format::Json
            });
        }
        let mut lines = text.lines().map(str::trim);
        if lines.clone().any(|line| line.starts_with("dhcp-host")) {
            return Some(Format::Dnsmasq);
        }
        if has("tinkerbell.org/") || lines.clone().any(|line| line == "kind: Hardware") {
            return Some(Format::Tinkerbell);
        }
        if has("hardware ethernet") {
            return Some(Format::Dhcpd);
        }
        let header = lines.find(|line| !line.is_empty())?;
        csv::is_header(header).then_some(Format::Csv)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no format we know: csv, json, dnsmasq, dhcpd, kea, instackenv or tinkerbell is wanted")]
pub struct UnknownFormatError {
    pub text: String,
}

impl FromStr for Format {
    type Err = UnknownFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Format::ALL.into_iter().find(|format| format.as_str() == text);
        known.ok_or_else(|| UnknownFormatError { text: inert(text) })
    }
}

/// Why a list was not taken. The line is 0 where no single one is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct RosterError {
    pub line: usize,
    pub reason: String,
}

impl fmt::Display for RosterError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => formatter.write_str(&self.reason),
            line => write!(formatter, "line {line}: {}", self.reason),
        }
    }
}

impl RosterError {
    pub fn at(line: usize, reason: impl fmt::Display) -> RosterError {
        RosterError { line, reason: reason.to_string() }
    }
}

/// Reads a list; without a format, by what it looks like.
pub fn parse(text: &[u8], format: Option<Format>) -> Result<Roster, RosterError> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let line = 1 + text[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        RosterError::at(line, "this is not UTF-8 text: save the file as UTF-8")
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let format = format.or_else(|| Format::guess(text)).ok_or_else(|| {
        let formats = Format::ALL.map(Format::as_str).join(", ");
        RosterError::at(0, format!("this looks like none of {formats}: name the format it is in"))
    })?;
    let mut draft = Draft::default();
    match format {
        Format::Csv => csv::parse(text, &mut draft),
        Format::Json => json::parse(text, &mut draft),
        Format::Dnsmasq => dnsmasq::parse(text, &mut draft),
        Format::Dhcpd => dhcpd::parse(text, &mut draft),
        Format::Kea => kea::parse(text, &mut draft),
        Format::Instackenv => instackenv::parse(text, &mut draft),
        Format::Tinkerbell => tinkerbell::parse(text, &mut draft),
    }?;
    draft.finish(format)
}

/// Writes nodes so that [`parse`] and the program the format is of read the same from it.
pub fn emit(entries: &[RosterEntry], format: Format) -> String {
    match format {
        Format::Csv => csv::emit(entries),
        Format::Json => json::emit(entries),
        Format::Dnsmasq => dnsmasq::emit(entries),
        Format::Dhcpd => dhcpd::emit(entries),
        Format::Kea => kea::emit(entries),
        Format::Instackenv => instackenv::emit(entries),
        Format::Tinkerbell => tinkerbell::emit(entries),
    }
}

/// Entries while a file is read.
#[derive(Debug, Default)]
struct Draft {
    entries: Vec<RosterEntry>,
    notes: Vec<Note>,
    by_name: BTreeMap<NodeName, usize>,
}

impl Draft {
    fn note(&mut self, line: usize, text: impl fmt::Display) {
        self.notes.push(Note { line, text: text.to_string() });
    }

    /// Adds a machine, or ports to one of that name.
    fn add(
        &mut self,
        line: usize,
        name: Option<NodeName>,
        ports: Vec<RosterPort>,
    ) -> Result<(), RosterError> {
        self.add_labelled(line, name, ports, Labels::default())
    }

    /// The same, from a list that knows of labels.
    fn add_labelled(
        &mut self,
        line: usize,
        name: Option<NodeName>,
        ports: Vec<RosterPort>,
        labels: Labels,
    ) -> Result<(), RosterError> {
        if ports.is_empty() {
            return Err(RosterError::at(line, "no MAC address: a node is known by the MACs of its ports"));
        }
        let known = name.as_ref().and_then(|name| self.by_name.get(name)).copied();
        match known.and_then(|index| self.entries.get_mut(index)) {
            Some(entry) => {
                entry.ports.extend(ports);
                let both = entry.labels.edited(&labels.as_edit());
                entry.labels = both.map_err(|error| RosterError::at(line, error))?;
            }
            None => {
                if self.entries.len() == ENTRIES_MAX {
                    return Err(RosterError::at(
                        line,
                        format!("more than {ENTRIES_MAX} nodes: split the file"),
                    ));
                }
                if let Some(name) = &name {
                    self.by_name.insert(name.clone(), self.entries.len());
                }
                self.entries.push(RosterEntry { line, name, ports, labels });
            }
        }
        Ok(())
    }

    /// A host name as others allow it, as a node name: its first label, in lower case.
    fn name(&mut self, line: usize, text: &str) -> Result<Option<NodeName>, RosterError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let label = text.split('.').next().unwrap_or_default();
        let name = label.to_ascii_lowercase().parse::<NodeName>().map_err(|_| {
            let error = text.parse::<NodeName>().err();
            RosterError::at(line, error.map_or_else(String::new, |error| error.to_string()))
        })?;
        if name.as_str() != text {
            self.note(line, format!("{} is called {name} here", inert(text)));
        }
        Ok(Some(name))
    }

    /// The rules that hold for every format.
    fn finish(self, format: Format) -> Result<Roster, RosterError> {
        if self.entries.is_empty() {
            return Err(RosterError::at(0, format!("there is no node in it, read as {format}")));
        }
        let mut macs = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for entry in &self.entries {
            let line = entry.line;
            if entry.ports.len() > PORTS_MAX {
                let count = entry.ports.len();
                return Err(RosterError::at(line, format!("{count} ports: a node has at most {PORTS_MAX}")));
            }
            for port in &entry.ports {
                let mac = port.mac;
                if !mac.is_station() {
                    return Err(RosterError::at(line, format!("{mac} is a group address or all zero")));
                }
                if let Some(other) = macs.insert(mac, line) {
                    return Err(RosterError::at(line, format!("{mac} stands in line {other} already")));
                }
                let taken = port.address.and_then(|address| addresses.insert(address, line));
                if let (Some(address), Some(other)) = (port.address, taken) {
                    return Err(RosterError::at(line, format!("{address} is given in line {other} already")));
                }
            }
        }
        Ok(Roster { format, entries: self.entries, notes: self.notes })
    }
}

fn parse_mac(line: usize, text: &str) -> Result<MacAddr, RosterError> {
    text.trim().parse().map_err(|error| RosterError::at(line, error))
}

fn parse_address(line: usize, text: &str) -> Result<Ipv4Addr, RosterError> {
    let wanted = |_| RosterError::at(line, format!("`{}` is not an IPv4 address", inert(text.trim())));
    text.trim().parse().map_err(wanted)
}

/// Text of a file that is told to people: short, and on one line.
fn inert(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(80).collect()
}

/// What the formats want a node called that has no name.
fn label(entry: &RosterEntry) -> String {
    match (&entry.name, entry.ports.first()) {
        (Some(name), _) => name.to_string(),
        (None, Some(port)) => format!("node-{}", port.mac.dashed()),
        (None, None) => "node".to_owned(),
    }
}
