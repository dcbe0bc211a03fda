//! The pool and the reservations: which addresses may be given to machines, and that no two claims meet.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::check::{Check, network_text, quoted};
use super::error::ConfigError;
use super::file::ReservationEntry;
use super::{NetworkConfig, PoolRange, Reservation};
use crate::net::MacAddr;
use crate::node::NodeName;

/// What a /12 holds. Every address that was ever given is held in memory; no bridge carries more machines.
pub(super) const POOL_MAX: u32 = 1 << 20;
/// Nobody who says nothing means more than this.
const DEFAULT_POOL_MAX: u32 = 1 << 16;
/// Reservations are read with the configuration; more machines than this belong into `farrier node add`.
const RESERVATIONS_MAX: usize = 4096;

impl PoolRange {
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    pub fn size(&self) -> u32 {
        u32::from(self.last).saturating_sub(u32::from(self.first)).saturating_add(1)
    }
}

impl std::fmt::Display for PoolRange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}", self.first, self.last)
    }
}

/// The longest run in the upper half of the subnet that holds neither our address nor the gateway. The lower half
/// stays free for what operators number by hand.
pub(super) fn default_pool(network: &NetworkConfig) -> Option<PoolRange> {
    let subnet = network.address;
    let broadcast = u32::from(subnet.broadcast());
    let middle = u32::from(subnet.network()) + (broadcast - u32::from(subnet.network())).div_ceil(2);
    let mut taken = vec![u32::from(subnet.ip()), broadcast];
    taken.extend(network.gateway.map(u32::from));
    taken.sort_unstable();
    let mut best: Option<(u32, u32)> = None;
    let mut first = middle;
    for address in taken.into_iter().filter(|address| *address >= middle) {
        let longest = best.map_or(0, |(first, last)| last - first + 1);
        if address > first && address - first > longest {
            best = Some((first, address - 1));
        }
        first = address + 1;
    }
    let (first, last) = best?;
    Some(PoolRange { first: first.into(), last: last.min(first + (DEFAULT_POOL_MAX - 1)).into() })
}

impl Check<'_> {
    pub(super) fn pool(&self, text: &str, network: &NetworkConfig) -> Result<PoolRange, ConfigError> {
        let subnet = network.address;
        let net = network_text(subnet);
        let suggestion = match default_pool(network) {
            Some(pool) => format!("write pool = \"{pool}\", or leave the key out for just that"),
            None => "choose a larger subnet in network.address".to_owned(),
        };
        let refuse = |rule: String| Err(self.refuse("dhcp.pool", quoted(text), rule, &suggestion));
        let ends = text.split_once('-').map(|(first, last)| (first.trim().parse(), last.trim().parse()));
        let Some((Ok(first), Ok(last))) = ends else {
            return refuse("first and last address, joined by a hyphen, are wanted".to_owned());
        };
        let pool = PoolRange { first, last };
        if first > last {
            return refuse("the first address comes before the last".to_owned());
        }
        if !subnet.contains(first) || !subnet.contains(last) {
            let outside = if subnet.contains(first) { last } else { first };
            return refuse(format!(
                "the pool lies in the subnet of network.address, {net}; {outside} does not"
            ));
        }
        let reserved_by_net = [(subnet.network(), "network"), (subnet.broadcast(), "broadcast")];
        for (address, what) in reserved_by_net {
            if pool.contains(address) {
                return refuse(format!("the pool leaves out the {what} address of {net}, {address}"));
            }
        }
        if pool.contains(subnet.ip()) {
            return refuse(format!("the pool leaves out our own address, {} (network.address)", subnet.ip()));
        }
        if let Some(gateway) = network.gateway.filter(|gateway| pool.contains(*gateway)) {
            return refuse(format!("the pool leaves out the gateway, {gateway} (network.gateway)"));
        }
        if pool.size() > POOL_MAX {
            return refuse(format!("the pool has at most {POOL_MAX} addresses, not {}", pool.size()));
        }
        Ok(pool)
    }

    pub(super) fn reservations(
        &self,
        entries: Vec<ReservationEntry>,
        network: &NetworkConfig,
    ) -> Result<Vec<Reservation>, ConfigError> {
        if entries.len() > RESERVATIONS_MAX {
            let rule = format!("the file holds at most {RESERVATIONS_MAX} reservations");
            let way_out = "register the other machines with `farrier node add`";
            return Err(self.refuse("dhcp.reservation", entries.len(), rule, way_out));
        }
        let mut reservations = Vec::with_capacity(entries.len());
        let mut claims = Claims::default();
        for (index, entry) in entries.into_iter().enumerate() {
            let key = format!("dhcp.reservation[{index}]");
            let reservation = self.reservation(&key, &entry, network)?;
            self.claim(&mut claims, &key, &reservation)?;
            reservations.push(reservation);
        }
        Ok(reservations)
    }

    fn reservation(
        &self,
        key: &str,
        entry: &ReservationEntry,
        network: &NetworkConfig,
    ) -> Result<Reservation, ConfigError> {
        let mac_key = format!("{key}.mac");
        let mac_text = entry.mac.as_deref().unwrap_or_default();
        let mac = mac_text.parse::<MacAddr>().ok().filter(|mac| mac.is_station()).ok_or_else(|| {
            let rule =
                "a reservation names the MAC address of one port: six bytes in hexadecimal, not multicast";
            self.refuse(&mac_key, shown(mac_text), rule, "write mac = \"52:54:00:12:34:56\"")
        })?;
        let address_key = format!("{key}.address");
        let address_text = entry.address.as_deref().unwrap_or_default();
        if address_text.is_empty() {
            let rule = "a reservation names the address to keep";
            let way_out = format!("write an address of {}", network_text(network.address));
            return Err(self.refuse(&address_key, "", rule, way_out));
        }
        let elsewhere = "or remove the reservation";
        let address = self.host_in_subnet(&address_key, address_text, network.address, elsewhere)?;
        let own = [(Some(network.address.ip()), "our own address"), (network.gateway, "the gateway")];
        for (taken, whose) in own {
            if taken == Some(address) {
                let rule = format!("{address} is {whose}");
                return Err(self.refuse(&address_key, quoted(address_text), rule, "choose another address"));
            }
        }
        let name = match &entry.name {
            None => None,
            Some(text) => Some(text.parse::<NodeName>().map_err(|_| {
                let rule = "a node name has 1 to 63 lower-case letters, digits and inner hyphens, and is no MAC or UUID";
                self.refuse(&format!("{key}.name"), quoted(text), rule, "write a name such as \"rack1-node07\"")
            })?),
        };
        Ok(Reservation { mac, address, name })
    }

    /// Two reservations may share a name (a machine with two ports), never a MAC or an address.
    fn claim(&self, claims: &mut Claims, key: &str, reservation: &Reservation) -> Result<(), ConfigError> {
        if let Some(other) = claims.addresses.insert(reservation.address, key.to_owned()) {
            let rule = format!("an address is reserved once; {other} reserves it too");
            let way_out = "give one of the two another address, or remove it";
            return Err(self.refuse(
                &format!("{key}.address"),
                quoted(&reservation.address.to_string()),
                rule,
                way_out,
            ));
        }
        if let Some(other) = claims.macs.insert(reservation.mac, key.to_owned()) {
            let rule = format!("a MAC has one reservation; {other} has the same MAC");
            return Err(self.refuse(
                &format!("{key}.mac"),
                quoted(&reservation.mac.to_string()),
                rule,
                "remove one of the two",
            ));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Claims {
    addresses: BTreeMap<Ipv4Addr, String>,
    macs: BTreeMap<MacAddr, String>,
}

fn shown(text: &str) -> String {
    if text.is_empty() { String::new() } else { quoted(text) }
}
