//! The ports of the bridge, and who is behind which, as the kernel tells.
//!
//! What never reaches the bridge leaves no trace in any server: a port that spanning tree keeps blocked, a cable that
//! is out. The kernel knows, and so can we when somebody asks why a machine was never heard.

use std::io;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::net::MacAddr;
use crate::net::link::{Attributes, Netlink, ask, u32_at};

const LINK_HEADER: usize = 16;
const NEIGHBOUR_HEADER: usize = 12;
/// `IFLA_INFO_SLAVE_DATA` within `IFLA_LINKINFO`, and `IFLA_BRPORT_STATE` within that.
const INFO_SLAVE_DATA: u16 = 5;
const BRIDGE_PORT_STATE: u16 = 1;
/// `NDA_DST` and `NDA_LLADDR` of a neighbour.
const NEIGHBOUR_DESTINATION: u16 = 1;
const NEIGHBOUR_MAC: u16 = 2;
/// `NUD_PERMANENT`: in a forwarding database an address of the bridge or a port itself.
const PERMANENT: u16 = 0x80;

/// What a bridge port does with frames (IEEE 802.1D §8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    Disabled,
    Listening,
    Learning,
    Forwarding,
    Blocking,
}

impl PortState {
    fn from_kernel(state: u8) -> Option<PortState> {
        Some(match state {
            0 => PortState::Disabled,
            1 => PortState::Listening,
            2 => PortState::Learning,
            3 => PortState::Forwarding,
            4 => PortState::Blocking,
            _ => return None,
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            PortState::Disabled => "disabled",
            PortState::Listening => "listening",
            PortState::Learning => "learning",
            PortState::Forwarding => "forwarding",
            PortState::Blocking => "blocking",
        }
    }
}

/// One port of the bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgePort {
    pub name: String,
    pub state: PortState,
    /// Up, and something is at the other end.
    pub carrier: bool,
    /// The MAC asked about was heard behind it.
    pub learned: bool,
}

/// The ports of the bridge with this index; `learned` where the forwarding database has `mac`.
pub fn of_bridge(index: u32, mac: Option<MacAddr>) -> io::Result<Vec<BridgePort>> {
    let behind = match mac {
        Some(mac) => learned_at(mac)?,
        None => Vec::new(),
    };
    let answers = ask(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; LINK_HEADER])?;
    let ports = answers.iter().filter_map(|answer| parse_port(answer, index, &behind));
    Ok(ports.collect())
}

/// The index of the port of this bridge that the MAC was heard behind last. Asks for one entry: a forwarding database may
/// hold tens of thousands.
pub fn behind(netlink: &Netlink, bridge: u32, mac: MacAddr) -> io::Result<Option<u32>> {
    /// `NDA_MASTER`.
    const NEIGHBOUR_MASTER: u16 = 9;
    let mut request = vec![0; NEIGHBOUR_HEADER];
    request[0] = libc::AF_BRIDGE as u8;
    for (kind, value) in [(NEIGHBOUR_MAC, &mac.0[..]), (NEIGHBOUR_MASTER, &bridge.to_ne_bytes()[..])] {
        request.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(value);
        request.resize(request.len().next_multiple_of(4), 0);
    }
    match netlink.ask(libc::RTM_GETNEIGH, 0, &request) {
        Ok(answers) => Ok(answers.iter().find_map(|answer| {
            let (header, _) = answer.split_first_chunk::<NEIGHBOUR_HEADER>()?;
            Some(u32_at(header, 4))
        })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether this link is a port of the bridge, is up, and has something at its other end.
pub fn is_plugged(bridge: u32, port: u32) -> io::Result<bool> {
    let mut request = [0; LINK_HEADER];
    request[4..8].copy_from_slice(&port.to_ne_bytes());
    let answers = match ask(libc::RTM_GETLINK, 0, &request) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
        other => other?,
    };
    Ok(answers.iter().filter_map(|answer| parse_port(answer, bridge, &[])).any(|port| port.carrier))
}

/// The MAC the kernel knows for an address, on any link.
pub fn neighbour(address: Ipv4Addr) -> io::Result<Option<MacAddr>> {
    let answers = ask_neighbours(libc::AF_INET)?;
    Ok(answers.iter().find_map(|answer| {
        let (_, attributes) = answer.split_first_chunk::<NEIGHBOUR_HEADER>()?;
        let find = |wanted| Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let is_it = find(NEIGHBOUR_DESTINATION)? == address.octets();
        is_it.then(|| find(NEIGHBOUR_MAC)?.try_into().ok().map(MacAddr)).flatten()
    }))
}

/// The MAC that answers for an address on this link, if the kernel knows it: one question, however many there are.
pub fn neighbour_on(link: u32, address: Ipv4Addr) -> io::Result<Option<MacAddr>> {
    /// `NUD_FAILED` and `NUD_INCOMPLETE`: it was asked for, and nobody answered.
    const UNANSWERED: u16 = 0x20 | 0x01;
    let mut request = vec![0; NEIGHBOUR_HEADER];
    request[0] = libc::AF_INET as u8;
    request[4..8].copy_from_slice(&link.to_ne_bytes());
    request.extend_from_slice(&8_u16.to_ne_bytes());
    request.extend_from_slice(&NEIGHBOUR_DESTINATION.to_ne_bytes());
    request.extend_from_slice(&address.octets());
    let answers = match ask(libc::RTM_GETNEIGH, 0, &request) {
        Ok(answers) => answers,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(answers.iter().find_map(|answer| {
        let (header, attributes) = answer.split_first_chunk::<NEIGHBOUR_HEADER>()?;
        let state = u16::from_ne_bytes([header[8], header[9]]);
        let mac = Attributes(attributes).find(|(kind, _)| *kind == NEIGHBOUR_MAC)?.1;
        (state & UNANSWERED == 0).then(|| mac.try_into().ok().map(MacAddr)).flatten()
    }))
}

/// Indexes of the ports the MAC was heard behind.
fn learned_at(mac: MacAddr) -> io::Result<Vec<u32>> {
    let answers = ask_neighbours(libc::AF_BRIDGE)?;
    let port = |answer: &Vec<u8>| {
        let (header, attributes) = answer.split_first_chunk::<NEIGHBOUR_HEADER>()?;
        let state = u16::from_ne_bytes([header[8], header[9]]);
        let known = Attributes(attributes).any(|(kind, value)| kind == NEIGHBOUR_MAC && value == mac.0);
        (known && state & PERMANENT == 0).then(|| u32_at(header, 4))
    };
    Ok(answers.iter().filter_map(port).collect())
}

fn ask_neighbours(family: libc::c_int) -> io::Result<Vec<Vec<u8>>> {
    let mut request = [0; NEIGHBOUR_HEADER];
    request[0] = family as u8;
    ask(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &request)
}

fn parse_port(payload: &[u8], bridge: u32, behind: &[u32]) -> Option<BridgePort> {
    let (header, attributes) = payload.split_first_chunk::<LINK_HEADER>()?;
    let find = |wanted| Attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let master = u32::from_ne_bytes(*find(libc::IFLA_MASTER)?.first_chunk()?);
    if master != bridge {
        return None;
    }
    let slave = Attributes(find(libc::IFLA_LINKINFO)?).find(|(kind, _)| *kind == INFO_SLAVE_DATA)?.1;
    let state = Attributes(slave).find(|(kind, _)| *kind == BRIDGE_PORT_STATE)?.1;
    let name = find(libc::IFLA_IFNAME)?.split(|byte| *byte == 0).next()?;
    let index = u32_at(header, 4);
    let running = libc::IFF_UP as u32 | libc::IFF_RUNNING as u32;
    Some(BridgePort {
        name: name.escape_ascii().to_string(),
        state: PortState::from_kernel(*state.first()?)?,
        carrier: u32_at(header, 8) & running == running,
        learned: behind.contains(&index),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_without_a_mistake() {
        // Loopback is no bridge and has no ports; nobody has the address of a test network (RFC 5737).
        assert_eq!(of_bridge(1, Some(MacAddr([2, 0, 0, 0, 0, 1]))).unwrap(), []);
        assert_eq!(neighbour(Ipv4Addr::new(192, 0, 2, 77)).unwrap(), None);
    }

    #[test]
    fn cut_off_messages_give_nothing() {
        for length in 0..64 {
            assert_eq!(parse_port(&vec![0xff; length], 3, &[]), None, "{length}");
        }
    }

    #[test]
    fn every_state_of_the_kernel_has_a_word() {
        let words: Vec<_> =
            (0..6).map(|state| PortState::from_kernel(state).map(PortState::as_str)).collect();
        let expected = ["disabled", "listening", "learning", "forwarding", "blocking"];
        assert_eq!(words[..5], expected.map(Some));
        assert_eq!(words[5], None);
    }
}
