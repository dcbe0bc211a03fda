//! What speaks against serving an interface: it is the host's way to other networks, it is wireless, it is no bridge.
//!
//! A DHCP server on the wrong network takes every machine there off it. So each of these is refused at start, and
//! when the bridge is made anew, unless `network.allow` names it: a decision of somebody who wrote it down.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde::Serialize;

use crate::net::link::{Attributes, ask, u32_at};
use crate::net::ports;

const ROUTE_HEADER: usize = 12;
const NEXT_HOP_HEADER: usize = 8;
/// Interfaces as the kernel presents them to everybody.
const INTERFACES: &str = "/sys/class/net";

/// A reason not to serve an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hazard {
    DefaultRoute,
    Wireless,
    NotABridge,
}

impl Hazard {
    pub const ALL: [Hazard; 3] = [Hazard::DefaultRoute, Hazard::Wireless, Hazard::NotABridge];

    /// The word in `network.allow`.
    pub fn as_str(self) -> &'static str {
        match self {
            Hazard::DefaultRoute => "default-route",
            Hazard::Wireless => "wireless",
            Hazard::NotABridge => "not-a-bridge",
        }
    }
}

/// The hazards somebody takes upon himself: `network.allow`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    default_route: bool,
    wireless: bool,
    not_a_bridge: bool,
}

impl Allowed {
    pub fn of(hazards: &[Hazard]) -> Allowed {
        Allowed {
            default_route: hazards.contains(&Hazard::DefaultRoute),
            wireless: hazards.contains(&Hazard::Wireless),
            not_a_bridge: hazards.contains(&Hazard::NotABridge),
        }
    }

    pub fn permits(self, hazard: Hazard) -> bool {
        match hazard {
            Hazard::DefaultRoute => self.default_route,
            Hazard::Wireless => self.wireless,
            Hazard::NotABridge => self.not_a_bridge,
        }
    }
}

/// A default route by way of the interface with this index, as `ip route` would show it.
pub fn default_route(index: u32) -> io::Result<Option<String>> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; ROUTE_HEADER];
        request[0] = family as u8;
        let answers = ask(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &request)?;
        if let Some(text) = answers.iter().find_map(|answer| parse_default_route(answer, index)) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// Whatever table it is in. One that a router advertisement made does not count: anybody on the bridge can send such, and
/// nobody there is to decide whether we start.
fn parse_default_route(payload: &[u8], index: u32) -> Option<String> {
    /// `RTPROT_RA` (linux/rtnetlink.h).
    const LEARNED_FROM_ROUTER: u8 = 9;
    let (header, attributes) = payload.split_first_chunk::<ROUTE_HEADER>()?;
    let [family, destination_length, _, _, _, protocol, _, kind, ..] = *header;
    if destination_length != 0 || kind != libc::RTN_UNICAST || protocol == LEARNED_FROM_ROUTER {
        return None;
    }
    let find = |wanted| Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let number = |value: &[u8]| value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let leaves_here = find(libc::RTA_OIF).and_then(number) == Some(index)
        || find(libc::RTA_MULTIPATH).is_some_and(|hops| NextHops(hops).any(|hop| hop == index));
    if !leaves_here {
        return None;
    }
    let family = libc::c_int::from(family);
    let gateway = find(libc::RTA_GATEWAY).and_then(|value| match family {
        libc::AF_INET => value.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).to_string()),
        libc::AF_INET6 => value.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).to_string()),
        _ => None,
    });
    let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    let six = if family == libc::AF_INET6 { "-6 " } else { "" };
    Some(format!("{six}default{via}"))
}

/// The interfaces of a route with several ways.
struct NextHops<'a>(&'a [u8]);

impl Iterator for NextHops<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let header = self.0.first_chunk::<NEXT_HOP_HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]])).max(NEXT_HOP_HEADER);
        let index = u32_at(header, 4);
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(index)
    }
}

/// The interface itself, or the port of it, that is wireless.
pub fn wireless(name: &str, index: u32) -> Option<String> {
    wireless_in(Path::new(INTERFACES), name, index)
}

fn wireless_in(interfaces: &Path, name: &str, index: u32) -> Option<String> {
    let ports = ports::of_bridge(index, None).unwrap_or_default();
    let names = std::iter::once(name.to_owned()).chain(ports.into_iter().map(|port| port.name));
    names.into_iter().find(|name| {
        let folder = interfaces.join(name);
        // The kernel lets no name hold a slash; the configuration neither.
        folder.join("wireless").exists() || folder.join("phy80211").exists()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn route(family: libc::c_int, destination_length: u8, protocol: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![family as u8, destination_length, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0];
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn a_default_route_is_told_by_its_interface() {
        let out = |index: u32| attribute(libc::RTA_OIF, &index.to_ne_bytes());
        let gateway = attribute(libc::RTA_GATEWAY, &[10, 0, 0, 1]);
        let plain = route(libc::AF_INET, 0, 3, &[gateway, out(7)]);
        assert_eq!(parse_default_route(&plain, 7).as_deref(), Some("default via 10.0.0.1"));
        assert_eq!(parse_default_route(&plain, 8), None);
        assert_eq!(parse_default_route(&route(libc::AF_INET, 24, 3, &[out(7)]), 7), None, "a subnet's");
        let six = |protocol| parse_default_route(&route(libc::AF_INET6, 0, protocol, &[out(7)]), 7);
        assert_eq!(six(4).as_deref(), Some("-6 default"));
        assert_eq!(six(9), None, "a router on the wire does not decide");
        let hop = |index: u32| [&8_u16.to_ne_bytes()[..], &[0, 0], &index.to_ne_bytes()].concat();
        let several = attribute(libc::RTA_MULTIPATH, &[hop(3), hop(7)].concat());
        let several = route(libc::AF_INET, 0, 3, &[several]);
        assert!(parse_default_route(&several, 7).is_some() && parse_default_route(&several, 4).is_none());
        for length in 0..several.len() {
            let _ = parse_default_route(&several[..length], 7);
        }
    }

    #[test]
    fn wireless_is_what_the_kernel_says_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("wlan0/phy80211")).unwrap();
        std::fs::create_dir_all(folder.path().join("br0")).unwrap();
        assert_eq!(wireless_in(folder.path(), "wlan0", 1).as_deref(), Some("wlan0"));
        assert_eq!(wireless_in(folder.path(), "br0", 1), None);
    }

    #[test]
    fn loopback_is_nobodys_way_out() {
        assert_eq!(default_route(1).unwrap(), None);
    }
}
