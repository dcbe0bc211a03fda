//! Spreadsheets: a header line, then one port a line.
//!
//! Columns are found by name, in any order: `mac`, `name`, `address`, `labels`, and what others call them. Comma, semicolon
//! or tab may separate, as spreadsheets write it in different countries. A cell of MACs may hold several, and one of
//! labels does: `rack=r1 owner=ada`.

use super::{Draft, RosterEntry, RosterError, RosterPort, parse_address, parse_mac};
use crate::node::labels::{Labels, parse_label};

const MAC: [&str; 6] = ["mac", "macs", "mac_address", "mac address", "macaddress", "hwaddr"];
const NAME: [&str; 4] = ["name", "hostname", "host", "node"];
const LABELS: [&str; 2] = ["labels", "label"];
const ADDRESS: [&str; 5] = ["address", "ip", "ip_address", "ip address", "reserved"];

/// Where a header has our columns.
struct Columns {
    mac: usize,
    name: Option<usize>,
    address: Option<usize>,
    labels: Option<usize>,
}

fn separator(header: &str) -> u8 {
    [b';', b'\t'].into_iter().find(|byte| header.as_bytes().contains(byte)).unwrap_or(b',')
}

fn find(cells: &[String], names: &[&str]) -> Option<usize> {
    cells.iter().position(|cell| names.contains(&cell.as_str()))
}

pub(super) fn is_header(line: &str) -> bool {
    let separator = char::from(separator(line));
    let cells: Vec<String> =
        line.split(separator).map(|cell| cell.trim().trim_matches('"').to_lowercase()).collect();
    find(&cells, &MAC).is_some()
}

pub(super) fn parse(text: &str, draft: &mut Draft) -> Result<(), RosterError> {
    let header = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator(header))
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut columns = None;
    let mut lines = Lines { text, at: 0, line: 1 };
    for record in reader.records() {
        let record = record.map_err(|error| {
            RosterError::at(error.position().map_or(0, |at| lines.number(at)), "this line is not CSV")
        })?;
        let line = record.position().map_or(0, |at| lines.number(at));
        if record.get(0).is_some_and(|cell| cell.starts_with('#')) {
            continue;
        }
        match &columns {
            None => columns = Some(read_header(line, &record)?),
            Some(columns) => read_row(line, &record, columns, draft)?,
        }
    }
    Ok(())
}

/// Counts lines as people do; the reader's own count leaves out empty ones and halves of CR LF.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl Lines<'_> {
    /// The line a record begins in; records are asked for in order.
    fn number(&mut self, position: &csv::Position) -> usize {
        let bytes = self.text.as_bytes();
        let mut begins = usize::try_from(position.byte()).unwrap_or(usize::MAX).min(bytes.len());
        // A record's position lies before the ends of lines that precede it.
        while bytes.get(begins).is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
            begins += 1;
        }
        let passed = bytes.get(self.at..begins).unwrap_or_default();
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.at = self.at.max(begins);
        self.line
    }
}

fn read_header(line: usize, record: &csv::StringRecord) -> Result<Columns, RosterError> {
    let cells: Vec<String> = record.iter().map(str::to_lowercase).collect();
    let mac = find(&cells, &MAC).ok_or_else(|| {
        RosterError::at(
            line,
            "the first line names the columns, and one is to be called mac: mac,name,address",
        )
    })?;
    Ok(Columns {
        mac,
        name: find(&cells, &NAME),
        address: find(&cells, &ADDRESS),
        labels: find(&cells, &LABELS),
    })
}

fn read_row(
    line: usize,
    record: &csv::StringRecord,
    columns: &Columns,
    draft: &mut Draft,
) -> Result<(), RosterError> {
    if record.iter().all(str::is_empty) {
        return Ok(());
    }
    let cell = |column: Option<usize>| column.and_then(|column| record.get(column)).unwrap_or_default();
    let name = draft.name(line, cell(columns.name))?;
    let mut addresses = split(cell(columns.address)).map(|text| parse_address(line, text));
    let mut ports = Vec::new();
    for mac in split(cell(Some(columns.mac))) {
        ports.push(RosterPort { mac: parse_mac(line, mac)?, address: addresses.next().transpose()? });
    }
    if let Some(left) = addresses.next() {
        return Err(RosterError::at(line, format!("{} has no MAC address to go with", left?)));
    }
    let labels = split(cell(columns.labels)).map(parse_label).collect::<Result<Labels, _>>();
    let labels = labels.map_err(|error| RosterError::at(line, error))?;
    draft.add_labelled(line, name, ports, labels)
}

fn split(cell: &str) -> impl Iterator<Item = &str> {
    cell.split([' ', '|', '/', ',', ';']).filter(|word| !word.is_empty())
}

pub(super) fn emit(entries: &[RosterEntry]) -> String {
    // A list without labels is one that any program reads.
    let labelled = entries.iter().any(|entry| !entry.labels.is_empty());
    let mut text = format!("name,mac,address{}\n", if labelled { ",labels" } else { "" });
    for entry in entries {
        let name = entry.name.as_ref().map_or("", |name| name.as_str());
        for port in &entry.ports {
            let address = port.address.map_or_else(String::new, |address| address.to_string());
            let labels = if labelled { format!(",{}", entry.labels) } else { String::new() };
            // Names are letters, digits and hyphens, labels little more; nothing of this needs quotes.
            text.push_str(&format!("{name},{},{address}{labels}\n", port.mac));
        }
    }
    text
}
