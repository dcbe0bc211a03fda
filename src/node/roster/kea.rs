//! Kea: the reservations of a DHCPv4 configuration, global, of subnets and of shared networks; also a list of
//! reservations alone.

use serde::Deserialize;

use super::document::{At, plain_json, read};
use super::{Draft, RosterEntry, RosterError, RosterPort, label, parse_address, parse_mac};

#[derive(Deserialize)]
struct File {
    #[serde(rename = "Dhcp4")]
    dhcp4: Scope,
}

/// The whole configuration, a subnet, a shared network: each may have reservations and hold further ones.
#[derive(Deserialize)]
struct Scope {
    #[serde(default)]
    reservations: Vec<At<Reservation>>,
    #[serde(default)]
    subnet4: Vec<Scope>,
    #[serde(rename = "shared-networks", default)]
    shared_networks: Vec<Scope>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Reservation {
    #[serde(default)]
    hw_address: Option<String>,
    #[serde(default)]
    ip_address: Option<String>,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    next_server: Option<String>,
    #[serde(default)]
    boot_file_name: Option<String>,
}

pub(super) fn parse(text: &str, draft: &mut Draft) -> Result<(), RosterError> {
    let plain = plain_json(text);
    if plain.trim_start().starts_with('[') {
        for reservation in read::<Vec<At<Reservation>>>(&plain)?.iter().flatten() {
            take(reservation, draft)?;
        }
        return Ok(());
    }
    let scopes: Vec<Scope> = if plain.contains("\"Dhcp4\"") {
        read::<File>(&plain)?.into_iter().map(|file| file.dhcp4).collect()
    } else {
        read(&plain)?
    };
    scopes.iter().try_for_each(|scope| walk(scope, draft))
}

fn walk(scope: &Scope, draft: &mut Draft) -> Result<(), RosterError> {
    for reservation in &scope.reservations {
        take(reservation, draft)?;
    }
    scope.subnet4.iter().chain(&scope.shared_networks).try_for_each(|inner| walk(inner, draft))
}

fn take(reservation: &At<Reservation>, draft: &mut Draft) -> Result<(), RosterError> {
    let line = reservation.line();
    let reservation = reservation.value();
    let Some(mac) = &reservation.hw_address else {
        draft.note(line, "left out: it names no hw-address, and nodes are told apart by MAC");
        return Ok(());
    };
    let mac = parse_mac(line, mac)?;
    let address = reservation.ip_address.as_deref().filter(|text| !text.is_empty());
    let address = address.map(|text| parse_address(line, text)).transpose()?;
    if reservation.next_server.is_some() || reservation.boot_file_name.is_some() {
        draft.note(line, "its boot file is not taken over: farrier decides that by firmware");
    }
    let name = draft.name(line, reservation.hostname.as_deref().unwrap_or_default())?;
    draft.add(line, name, vec![RosterPort { mac, address }])
}

pub(super) fn emit(entries: &[RosterEntry]) -> String {
    let mut reservations = Vec::new();
    for entry in entries {
        for port in &entry.ports {
            let mut reservation = serde_json::json!({ "hw-address": port.mac });
            if let Some(address) = port.address {
                reservation["ip-address"] = address.to_string().into();
            }
            if entry.name.is_some() {
                reservation["hostname"] = label(entry).into();
            }
            reservations.push(reservation);
        }
    }
    format!("{:#}\n", serde_json::json!({ "Dhcp4": { "reservations": reservations } }))
}
