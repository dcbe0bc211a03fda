//! Links, as `ip -j -d addr` prints them.

use std::path::Path;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use serde_json::Value as Json;

use super::printed;
use crate::doctor::facts::{BridgeFact, LinkFact, Seen};
use crate::net::sys;

pub(super) fn read() -> Seen<Vec<LinkFact>> {
    let mut links = parse(&printed("ip", &["-j", "-d", "addr", "show"])?)?;
    for link in &mut links {
        link.checksum_offload = sys::checksum_offload(&link.name).ok();
        let device = Path::new("/sys/class/net").join(&link.name);
        link.wireless = device.join("phy80211").exists() || device.join("wireless").exists();
    }
    Ok(links)
}

fn parse(text: &str) -> Seen<Vec<LinkFact>> {
    let document: Json = serde_json::from_str(text).map_err(|error| format!("`ip -j`: {error}"))?;
    let links = document.as_array().ok_or("`ip -j` printed no list of links")?;
    Ok(links.iter().filter_map(link).collect())
}

fn link(entry: &Json) -> Option<LinkFact> {
    let word = |value: &Json| value.as_str().map(str::to_owned);
    let flag =
        |flag: &str| entry["flags"].as_array().is_some_and(|flags| flags.iter().any(|one| one == flag));
    let info = &entry["linkinfo"];
    let kind = word(&info["info_kind"]).unwrap_or_default();
    let bridge = (kind == "bridge").then(|| bridge(&info["info_data"]));
    Some(LinkFact {
        name: word(&entry["ifname"])?,
        up: flag("UP"),
        carrier: flag("LOWER_UP"),
        master: word(&entry["master"]),
        peer: word(&entry["link"]),
        bridge,
        port_state: (info["info_slave_kind"] == "bridge")
            .then(|| word(&info["info_slave_data"]["state"]))
            .flatten(),
        addresses: addresses(&entry["addr_info"]),
        wireless: false,
        checksum_offload: None,
        kind,
    })
}

fn bridge(data: &Json) -> BridgeFact {
    let number = |name: &str| data[name].as_u64().unwrap_or(0);
    BridgeFact {
        spanning_tree: number("stp_state") != 0,
        // Hundredths of a second.
        forward_delay: Duration::from_millis(number("forward_delay").saturating_mul(10)),
        calls_iptables: number("nf_call_iptables") != 0,
    }
}

fn addresses(list: &Json) -> Vec<Ipv4Network> {
    let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let network = |entry: &Json| {
        let address = entry["local"].as_str()?.parse().ok()?;
        Ipv4Network::new(address, u8::try_from(entry["prefixlen"].as_u64()?).ok()?).ok()
    };
    entries.iter().filter_map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_its_port_and_a_card_are_told_apart() {
        let text = r#"[
          {"ifname":"br0","flags":["BROADCAST","UP"],"linkinfo":{"info_kind":"bridge",
           "info_data":{"forward_delay":1500,"stp_state":1,"nf_call_iptables":1}},
           "addr_info":[{"family":"inet","local":"192.168.2.2","prefixlen":24},{"family":"inet6","local":"fe80::1","prefixlen":64}]},
          {"ifname":"p0","link":"q0","master":"br0","flags":["UP","LOWER_UP"],
           "linkinfo":{"info_kind":"veth","info_slave_kind":"bridge","info_slave_data":{"state":"listening"}}},
          {"ifname":"eno1","flags":[],"addr_info":[]}, {"no":"link"}]"#;
        let links = parse(text).unwrap();
        let [bridge, port, card] = links.as_slice() else { panic!("{links:?}") };
        assert_eq!(
            bridge.bridge,
            Some(BridgeFact {
                spanning_tree: true,
                forward_delay: Duration::from_secs(15),
                calls_iptables: true
            })
        );
        assert_eq!(bridge.addresses, ["192.168.2.2/24".parse().unwrap()]);
        assert_eq!((bridge.up, bridge.carrier), (true, false));
        assert_eq!((port.master.as_deref(), port.peer.as_deref()), (Some("br0"), Some("q0")));
        assert_eq!((port.port_state.as_deref(), port.carrier), (Some("listening"), true));
        assert_eq!((card.kind.as_str(), card.up), ("", false));
        for text in ["", "{}", "[1", "null"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
